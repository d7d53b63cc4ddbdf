"""An exported encoder on onnxruntime, called as the model that it was exported from.

The folder is one that `examples/export_ernie.py` wrote: `model.onnx`, `model_int8.onnx` where it was asked for,
`config.json` and the tokenizer. A file of another exporter opens as well where its inputs and outputs have the names
of `exported.py` (for a class that stands there) or at least `input_ids`.

Everything that can be wrong with a folder is said when it is opened, and inputs are checked before they are run: a
graph has no checks of its own, takes the id -1 for the last row of the vocabulary, and reports a wrong shape as a
failure of one of its nodes.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import ModelOutput

from hf_glm_ernie.host_arguments import checked_list, short, whole_number
from hf_glm_ernie.host_inputs import check_ids, check_mask

from .exported import INT8_FILE, ONNX_FILE, OUTPUTS, Axes, axes_of_class

DTYPES = {
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
}


class OnnxEncoder:
    """An ERNIE encoder, with its head, in an exported folder.

    `uie`, `utc`, `answer_questions` and `sentence_embeddings` take it in the place of a model. Calls may come from
    several threads at once.

    Args:
        folder: Folder with the ONNX file, `config.json` and the tokenizer.
        file: Name of the ONNX file in it; `None`: `model.onnx`, or `model_int8.onnx` where that is the only one.
        providers: Execution providers of onnxruntime, the first one preferred; `None`: the CPU's.
        threads: Threads of one call; `None`: as many as onnxruntime finds cores.
        session_options: An `onnxruntime.SessionOptions` for everything else, in place of `threads`.

    Raises:
        ImportError: onnxruntime is not installed (the extra `onnx`).
        FileNotFoundError: no such folder or file, or no `config.json` in it.
        TypeError: a setting of another type.
        ValueError: a file that is no ONNX graph of an encoder, or whose inputs, outputs or fixed sizes do not fit the
            class that the config names; a provider that this onnxruntime does not have; threads out of range.
        RuntimeError: a provider that is there but cannot start (onnxruntime would take the CPU without a word).

    ```python
    >>> from hf_glm_ernie import OnnxEncoder, uie

    >>> encoder = OnnxEncoder("uie-exported", file="model_int8.onnx", threads=2)
    >>> uie(encoder, encoder.tokenizer, ["时间", "地点"], "去年春天，重庆下了一场大雪。")
    ```
    """

    device = torch.device("cpu")
    """Where inputs are wanted and outputs lie, whatever the provider."""

    def __init__(
        self,
        folder: str | Path,
        file: str | None = None,
        *,
        providers: list[Any] | None = None,
        threads: int | None = None,
        session_options: Any = None,
    ):
        self.folder = Path(folder)
        self.file = _file_in(self.folder, file)
        self.config = AutoConfig.from_pretrained(self.folder)
        self.session = _open_session(self.file, providers, threads, session_options)
        self._inputs = {one.name: one for one in self.session.get_inputs()}
        self.input_names = tuple(self._inputs)
        self.output_names = tuple(one.name for one in self.session.get_outputs())
        name = (getattr(self.config, "architectures", None) or [""])[0]
        self._axes = axes_of_class(name)
        _check_graph(self, name, self._axes)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (self.folder / "tokenizer_config.json").is_file():
            raise FileNotFoundError(
                f"{self.folder} holds no tokenizer_config.json. Pass the tokenizer of the model that was exported, or "
                "save it there: tokenizer.save_pretrained(folder)."
            )
        return AutoTokenizer.from_pretrained(self.folder)

    def __call__(self, **inputs: Any) -> ModelOutput:
        """Runs the encoder.

        Args:
            **inputs: Tensors or numpy arrays by name, all of `input_names`; `None` counts as left out. `input_ids`,
                `attention_mask` (1 = attend), `token_type_ids`: (B, T) integers, for multiple choice (B, choices, T).
                UTC takes those of `utc_inputs`.

        Returns:
            CPU tensors by name, as keys and as attributes: all of `output_names`.

        Raises:
            TypeError: an input that the file does not have, one that is missing, or of another kind.
            ValueError: shapes that do not fit, ids, types or places out of range, more tokens than positions.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        missing, unknown = [[*(set(a) - set(b))] for a, b in ((self._inputs, given), (given, self._inputs))]
        if missing or unknown:
            wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(unknown))} too many"
            raise TypeError(
                f"The call {wrong}: {self.file.name} takes {', '.join(self.input_names)}. What it does not take was "
                "fixed when it was exported (task types are the config's)."
            )
        tensors = {name: self._converted(name, given[name]) for name in self.input_names}
        self._check(tensors)
        found = self.session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        tensors_out = (torch.from_numpy(value) for value in found)
        return ModelOutput(dict(zip(self.output_names, tensors_out, strict=True)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.file)!r}, providers={self.session.get_providers()})"

    def _converted(self, name: str, value: Any) -> torch.Tensor:
        """An input in the dtype of the graph's; whole numbers and floating point numbers stay what they are."""
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor or a numpy array.")
        dtype = DTYPES[self._inputs[name].type]
        if dtype.is_floating_point != value.is_floating_point():
            kind = "floating point numbers" if dtype.is_floating_point else "whole numbers"
            raise TypeError(f"{name} is {value.dtype}; {self.file.name} takes {kind} there ({dtype}).")
        return value.detach().to("cpu", dtype).contiguous()

    def _check(self, inputs: dict[str, torch.Tensor]) -> None:
        """Refuses what the graph would take for something else, or fail at."""
        check_ids(inputs["input_ids"], self.config.vocab_size)
        sizes: dict[str | None, int] = {None: 1}
        for name, tensor in inputs.items():
            axes, shape = self._axes[name], tuple(tensor.shape)
            fits = len(shape) == len(axes) and min(shape) > 0
            if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)):
                wanted = ", ".join("1" if axis is None else axis for axis in axes)
                known = "".join(f", {axis} = {size}" for axis, size in sizes.items() if axis is not None)
                raise ValueError(f"{name} has shape {shape}; it must be ({wanted}){known}, and none of them 0.")
        positions = self.config.max_position_embeddings
        last = {
            "token_type_ids": (self.config.type_vocab_size, "config.type_vocab_size"),
            "position_ids": (positions, "config.max_position_embeddings"),
            "omask_positions": (sizes["tokens"], "the tokens of a row"),
            "cls_positions": (sizes["tokens"], "the tokens of a row"),
        }
        for name in inputs.keys() & last.keys():
            _check_range(name, inputs[name], *last[name])
        if "position_ids" not in inputs and sizes["tokens"] > positions:
            raise ValueError(
                f"Rows of {sizes['tokens']} tokens are longer than the model's {positions} positions: cut them."
            )
        if len(self._axes["attention_mask"]) < 4:
            ids, mask = (inputs[name].flatten(0, -2) for name in ("input_ids", "attention_mask"))
            check_mask(mask, ids)


def _file_in(folder: Path, file: str | None) -> Path:
    """The ONNX file of a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder. Give one that `python examples/export_ernie.py --model MODEL --output FOLDER` "
            "wrote (from the Hub: huggingface_hub.snapshot_download)."
        )
    found = sorted(path.name for path in folder.glob("*.onnx"))
    if file is None:
        file = INT8_FILE if found == [INT8_FILE] else ONNX_FILE
    if not isinstance(file, str):
        raise TypeError(f"file={short(file)} is a {type(file).__name__}; it must be the name of a file in the folder.")
    for name in (file, "config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}. ONNX files there: {', '.join(found) or 'none'}. "
                "`python examples/export_ernie.py` writes such folders; --int8 adds the quantized file."
            )
    return folder / file


def _open_session(file: Path, providers: list[Any] | None, threads: int | None, session_options: Any) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"OnnxEncoder needs onnxruntime, which cannot be imported: {error}. Install it: "
            "pip install 'hf-glm-ernie[onnx]'."
        ) from error
    asked = ["CPUExecutionProvider"] if providers is None else checked_list(providers, "providers", "a list of names")
    names = [one if isinstance(one, str) else next(iter(one), None) for one in asked]  # or pairs of a name and options
    absent = [name for name in names if name not in onnxruntime.get_available_providers()]
    if absent or not names:
        raise ValueError(
            f"providers={short(providers)}: this onnxruntime has {', '.join(onnxruntime.get_available_providers())}. "
            "GPUs need onnxruntime-gpu or the like in its place."
        )
    if session_options is None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = 0 if threads is None else whole_number("threads", threads)
    elif threads is not None:
        raise ValueError(
            f"threads={threads} and session_options are both given: set session_options.intra_op_num_threads."
        )
    try:
        session = onnxruntime.InferenceSession(file, session_options, providers=asked)
    except Exception as error:  # onnxruntime's own classes, each an Exception and nothing else
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ValueError(f"onnxruntime cannot open {file}: {error}") from error
    if names[0] not in session.get_providers():
        raise RuntimeError(
            f"onnxruntime has {names[0]} but could not start it (its log says why), and would run on "
            f"{session.get_providers()[0]} instead. Ask for that in providers, or mend the first."
        )
    return session


def _check_graph(encoder: OnnxEncoder, class_name: str, axes: Axes) -> None:
    """Refuses a graph that is not called as the class that the config names."""
    file, inputs = encoder.file, encoder._inputs
    meant = class_name if class_name in OUTPUTS else "an encoder"
    unknown, absent = sorted(set(inputs) - set(axes)), sorted({"input_ids", "attention_mask"} - set(inputs))
    if unknown or absent:
        raise ValueError(
            f"{file} takes {', '.join(inputs) or 'nothing'}; {meant} takes {', '.join(axes)}"
            + (f", without {', '.join(absent)} texts cannot be told from padding." if absent else ".")
        )
    lost = [name for name in OUTPUTS.get(class_name, ()) if name not in encoder.output_names]
    if lost:
        raise ValueError(
            f"{file} gives {', '.join(encoder.output_names)} and not {', '.join(lost)}, as {meant} does (the class "
            "that config.json names). Is it the config of another model?"
        )
    for name, one in inputs.items():
        if one.type not in DTYPES:
            raise ValueError(f"{file} takes {name} as {one.type}; {', '.join(DTYPES)} are known.")
        if len(one.shape) != len(axes[name]):
            raise ValueError(f"{file} takes {name} of shape {one.shape}; {meant} has {len(axes[name])} axes there.")
        fixed = [size for size, axis in zip(one.shape, axes[name], strict=True) if axis and isinstance(size, int)]
        if fixed:
            raise ValueError(
                f"{file} takes {name} of shape {one.shape}: {fixed[0]} is fixed there. Batch and length change from "
                "call to call; export it with dynamic axes, as examples/export_ernie.py does."
            )


def _check_range(name: str, values: torch.Tensor, limit: int, why: str) -> None:
    low, high = torch.aminmax(values)
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} holds {wrong.item()}; they go from 0 to {limit - 1} ({why}).")


__all__ = ["OnnxEncoder"]
