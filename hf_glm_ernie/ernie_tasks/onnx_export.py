"""Exporting an ERNIE encoder to ONNX, with batch and length dynamic: `examples/export_ernie.py` and `shrink` use it.

What lies in an exported folder is told by `exported.py`; [`OnnxEncoder`] opens one.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .exported import CHOICE_AXES, UTC_AXES, Axes, axes_of_class

TRACED = (2, 16)  # texts, tokens
CHOICES = 3  # options of each row, for the models that choose

Exported = Callable[..., dict[str, Any]]
"""An exported file as it runs: tensors by name in, tensors by name out."""


class NamedOutputs(nn.Module):
    """A model that returns a plain dict, so that an exported file needs none of the host's classes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Runs the model; returns what it returns, by name."""
        outputs = self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return dict(outputs.items())


class NamedUtcOutputs(NamedOutputs):
    """The same for UTC, which takes more."""

    def forward(  # type: ignore[override]  # names its inputs, as exporters need
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        omask_positions: torch.Tensor,
        cls_positions: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Runs the model on `UTC_AXES`."""
        outputs = self.model(
            input_ids, attention_mask, token_type_ids, position_ids, omask_positions, cls_positions=cls_positions
        )
        return dict(outputs.items())


def axes_of(model: PreTrainedModel) -> Axes:
    """The inputs of a model and their axes; `None` is an axis of size 1."""
    return axes_of_class(type(model).__name__)


def random_inputs(model: PreTrainedModel, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Makes inputs up; every row but the first is padded, each at another place.

    Args:
        model: Its class and config tell what it takes.
        batch: Rows.
        tokens: Their length, at least 4.

    Returns:
        What `axes_of` names: int64, but for UTC's mask, which is fp32 and added to the attention scores.
    """
    random = torch.Generator().manual_seed(batch * 1000 + tokens)
    shape = (batch, CHOICES, tokens) if axes_of(model) is CHOICE_AXES else (batch, tokens)
    ids = torch.randint(1, model.config.vocab_size, shape, generator=random)
    lengths = tokens - torch.arange(batch) % (tokens - 3)  # (batch,)
    mask = (torch.arange(tokens) < lengths[:, None]).long()  # (batch, tokens)
    if len(shape) == 3:
        mask = mask[:, None].expand(shape).contiguous()
    inputs = {
        "input_ids": ids.masked_fill(mask == 0, model.config.pad_token_id or 0),
        "token_type_ids": torch.randint(0, 2, shape, generator=random) * mask,
        "attention_mask": mask,
    }
    if axes_of(model) is UTC_AXES:
        inputs["position_ids"] = torch.arange(tokens).repeat(batch, 1)
        inputs["attention_mask"] = (1.0 - mask[:, None, None, :].repeat(1, 1, tokens, 1)) * -1e4
        inputs["omask_positions"] = torch.arange(1, CHOICES + 1).repeat(batch, 1)
        inputs["cls_positions"] = torch.zeros(batch, dtype=torch.int64)
    return {name: inputs[name] for name in axes_of(model)}


def dynamic_axes(model: PreTrainedModel) -> dict[str, dict[int, Any]]:
    """The axes whose size may change, as `torch.export` wants them, in the order of the inputs."""
    sizes = {
        "batch": torch.export.Dim("batch"),
        "tokens": torch.export.Dim("tokens", max=model.config.max_position_embeddings),
        "choices": torch.export.Dim("choices"),
    }
    return {name: {i: sizes[axis] for i, axis in enumerate(axes) if axis} for name, axes in axes_of(model).items()}


def trace(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """Runs `torch.export`, with every named axis dynamic."""
    wrapped = NamedUtcOutputs(model) if axes_of(model) is UTC_AXES else NamedOutputs(model)
    inputs = random_inputs(model, *TRACED)
    return torch.export.export(wrapped.eval(), (), inputs, dynamic_shapes=dynamic_axes(model), strict=False)


def save_onnx(program: torch.export.ExportedProgram, model: PreTrainedModel, path: Path) -> Exported:
    """Writes an ONNX file with named inputs and outputs. Returns it as onnxruntime runs it."""
    # The exporter warns about operators of torchvision, which no text model has.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    outputs = list(program.module()(**random_inputs(model, *TRACED)))
    with warnings.catch_warnings():
        # Shared axes are named once, and the exporter warns of every other time; the rest is about torch's insides.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            path,
            output_names=outputs,
            dynamic_shapes=dynamic_axes(model),  # only names the axes: they are dynamic in the program already
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    return run_onnx(path)


def save_int8(path: Path, quantized: Path, reduce_range: bool = False) -> Exported:
    """Writes an ONNX file again with INT8 weights.

    Args:
        path: The fp32 file.
        quantized: Where to write.
        reduce_range: Whether weights take 7 of the 8 bits.

    Returns:
        The file as onnxruntime runs it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = graph_to_quantize(path)
    # Scales of embeddings that are integers already: rounded by one scale for all of them, they would be noise.
    scales = [node.name for node in graph.graph.node if node.op_type == "Gather" and node.input[0].endswith("_scale")]
    with without_preprocessing_advice():
        quantize_dynamic(
            graph,
            quantized,
            nodes_to_exclude=scales,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
    return run_onnx(quantized)


def graph_to_quantize(path: Path) -> Any:
    """An ONNX file without what the exporter noted beside it.

    Noted shapes have to go, for the quantizer transposes a classifier's weight and then finds its own shape to differ;
    of a small model the notes on where in Python each node comes from are a good part of the file.
    """
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return model


def write_graph(graph: Any, path: Path) -> None:
    """Writes what [`graph_to_quantize`] gave as an ONNX file."""
    import onnx

    onnx.save(graph, path)


@contextmanager
def without_preprocessing_advice() -> Iterator[None]:
    """Inside, onnxruntime does not advise to fold what the exporter has folded already."""

    def is_other(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def run_onnx(path: Path) -> Exported:
    """An ONNX file as onnxruntime runs it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [one.name for one in session.get_outputs()]

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, found, strict=True)}

    return run


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Writes the config that lies beside an exported file: it names the class that was exported."""
    settings = model.config.to_dict() | {"architectures": [type(model).__name__]}
    settings.pop("auto_map", None)  # no code lies there
    type(model.config).from_dict(settings).save_pretrained(folder)


__all__ = [
    "CHOICES",
    "TRACED",
    "Exported",
    "axes_of",
    "graph_to_quantize",
    "random_inputs",
    "run_onnx",
    "save_int8",
    "save_onnx",
    "trace",
    "without_preprocessing_advice",
    "write_config",
    "write_graph",
]
