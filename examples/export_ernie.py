"""Exports a converted encoder with `torch.export` and to ONNX, and checks both against the model.

    python examples/export_ernie.py --model demo-output/sample-ernie/uie --output demo-output/uie-exported --int8

Every class the ERNIE converter writes works: encoders, masked language models, classifiers, UIE, UTC. Batch and length
are dynamic, weights are fp32. `model.pt2` needs torch alone to run, `model.onnx` any ONNX runtime; `config.json` and
the tokenizer lie beside them, so that `hf_glm_ernie.OnnxEncoder` opens the folder and `uie`, `utc` and
`sentence_embeddings` take it for the model. Exit status 0: the exported files give the model's numbers on shapes other
than the traced one, with padding.

`--int8` adds `model_int8.onnx`, onnxruntime's dynamic quantization: weights of matrix products in INT8 with a scale
for each column, embeddings with one for the table, what stands between in fp32, its INT8 scale taken at run time. A
quarter of the bytes, and not the model's numbers: the largest difference is printed, and what it means is for the task
to say (docs/ernie.md).
"""

import argparse
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, ErnieConfig, PreTrainedModel

import hf_glm_ernie  # registers UIE and UTC with the Auto classes
from hf_glm_ernie.ernie_tasks.exported import (
    CHOICE_AXES,
    INT8_FILE,
    ONNX_FILE,
    TORCH_FILE,
    UTC_AXES,
    Axes,
    axes_of_class,
)

FORMATS = {"torch-export": TORCH_FILE, "onnx": ONNX_FILE}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_BYTES = 2**31 - 2**26
"""What the weights in one ONNX file may take (protobuf ends at 2 GiB), with room for the graph."""
TRACED = (2, 16)  # texts, tokens
# Other shapes than the traced one. One text is a case of its own: tracing likes to take a size of 1 as a constant.
CHECKED = ((1, 9), (5, 33))
CHOICES = 3  # options of each row, for the models that choose
# fp32 sums in another order; relative to the largest value, at least 1.
TOLERANCE = 1e-5

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


def main(arguments: list[str] | None = None) -> int:
    """Exports a model.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The exit status: 0 where every exported file agrees with the model, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="converted folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to be made; must not exist")
    parser.add_argument("--format", choices=(*FORMATS, "both"), default="both", help="default: %(default)s")
    parser.add_argument(
        "--encoder", action="store_true", help="leave the head out: hidden states and what the pooler makes of them"
    )
    parser.add_argument("--int8", action="store_true", help="write a dynamically quantized ONNX file as well")
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="INT8 weights of 7 bits, for processors without VNNI, where sums of 8-bit products can overflow",
    )
    options = parser.parse_args(arguments)
    formats = list(FORMATS) if options.format == "both" else [options.format]
    if "onnx" in formats:
        require_onnx()
    elif options.int8:
        raise SystemExit("--int8 quantizes the ONNX file: take --format onnx or both.")
    if options.reduce_range and not options.int8:
        raise SystemExit("--reduce-range says how INT8 weights are made: pass --int8 as well.")
    if options.output.exists():
        raise SystemExit(f"--output {options.output} exists already. Name a new folder, or remove that one.")
    model = open_model(options.model, options.encoder)
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters", flush=True)
    if "onnx" in formats:
        refuse_what_one_file_cannot_hold(model)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # Nothing half-written stays where the folder is to be.
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=f".{options.output.name}-") as unfinished:
        folder = Path(unfinished) / "folder"
        folder.mkdir()
        write_what_lies_beside(model, options.model, folder)
        agree = True
        for file, run in export(model, folder, formats, options.int8, options.reduce_range):
            print(f"\n{options.output / file}: {(folder / file).stat().st_size / 2**20:.1f} MiB")
            agree &= report(model, run, None if file == INT8_FILE else TOLERANCE)
        folder.rename(options.output)
    print("\nagrees with the model" if agree else f"\nDIFFERS from the model by more than {TOLERANCE:g}")
    return 0 if agree else 1


def export(
    model: PreTrainedModel, folder: Path, formats: list[str], int8: bool, reduce_range: bool
) -> Iterator[tuple[str, Exported]]:
    """Writes the files one by one. Yields the name of each, and the file as it runs."""
    program = trace(model)
    if "torch-export" in formats:
        yield TORCH_FILE, save_torch(program, folder / TORCH_FILE)
    if "onnx" in formats:
        yield ONNX_FILE, save_onnx(program, model, folder / ONNX_FILE)
    if int8:
        yield INT8_FILE, save_int8(folder / ONNX_FILE, folder / INT8_FILE, reduce_range)


def report(model: PreTrainedModel, run: Exported, tolerance: float | None) -> bool:
    """Prints how far an exported file is from the model.

    Args:
        model: The model.
        run: The file as it runs.
        tolerance: How far it may be; `None`: any distance that is a number.

    Returns:
        Whether it is no further.
    """
    agree = True
    for shape in CHECKED:
        found = differences(model, run, shape)
        agree &= all(value <= (float("inf") if tolerance is None else tolerance) for value in found.values())
        listed = ", ".join(f"{output} {value:.1e}" for output, value in found.items())
        print(f"  {shape[0]} x {shape[1]} tokens: largest difference from the model: {listed}", flush=True)
    return agree


def write_what_lies_beside(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Writes the config, which names the class that was exported, and the tokenizer, where the model has one."""
    settings = model.config.to_dict() | {"architectures": [type(model).__name__]}
    settings.pop("auto_map", None)  # no code lies there
    type(model.config).from_dict(settings).save_pretrained(folder)
    if (source / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    else:
        print(f"{source} holds no tokenizer_config.json: the exported folder has no tokenizer.")


def require_onnx() -> None:
    """Stops where a package of ONNX is missing.

    Raises:
        SystemExit: it says which, and how to get it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"ONNX export needs {' and '.join(missing)}, not installed here: pip install 'hf-glm-ernie[onnx]'. "
            "--format torch-export does without."
        )


def open_model(folder: Path, without_head: bool = False) -> PreTrainedModel:
    """Opens a converted folder in fp32, as the class its config names.

    Args:
        folder: Converted folder.
        without_head: Whether to open the encoder alone.

    Raises:
        SystemExit: no folder of an ERNIE encoder.
    """
    if not (folder / "config.json").is_file():
        raise SystemExit(
            f"--model {folder} holds no config.json: give a folder that `python -m conversion ernie` wrote."
        )
    config = AutoConfig.from_pretrained(folder)
    name = "ErnieModel" if without_head else (config.architectures or [""])[0]
    model_class = getattr(transformers, name, None) or getattr(hf_glm_ernie, name, None)
    if not isinstance(config, ErnieConfig) or model_class is None:
        raise SystemExit(
            f"--model {folder}: model type {config.model_type!r}, class {name!r}; this exports the ERNIE encoders of "
            "`python -m conversion ernie`."
        )
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def refuse_what_one_file_cannot_hold(model: PreTrainedModel) -> None:
    """Stops where the weights are more than an ONNX file takes: before anything is traced.

    Raises:
        SystemExit: it says how many bytes they are.
    """
    size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    if size > ONNX_BYTES:
        raise SystemExit(
            f"The weights take {size:,} bytes in fp32, and one ONNX file holds {ONNX_BYTES:,}. --format torch-export "
            "has no such limit."
        )


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


def save_torch(program: torch.export.ExportedProgram, path: Path) -> Exported:
    """Writes a .pt2 file. Returns the model that it holds, read back."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


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

    with without_preprocessing_advice():
        quantize_dynamic(path, quantized, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
    return run_onnx(quantized)


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


def differences(model: PreTrainedModel, exported: Exported, shape: tuple[int, int]) -> dict[str, float]:
    """Runs both on the same made-up inputs.

    Returns:
        For every output the largest difference, relative to its largest value where that is above 1.
    """
    inputs = random_inputs(model, *shape)
    with torch.no_grad():
        expected = dict(model(**inputs).items())
        found = exported(**inputs)
    if list(found) != list(expected):
        raise RuntimeError(f"The exported file gives {list(found)}, the model {list(expected)}.")
    return {
        name: (found[name] - value).abs().max().item() / max(1.0, value.abs().max().item())
        for name, value in expected.items()
    }


if __name__ == "__main__":
    sys.exit(main())
