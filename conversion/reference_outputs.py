"""What a model computed when it was converted, kept beside it; `publish` compares with it what others would compute.

Kept are a sample of the outputs on a row of ids, the ids of some texts and a few generated tokens, with the versions
that computed them: some ten kilobytes. The bytes of the weights have checksums, so what these numbers must show is
that a host computes otherwise, or that a setting was changed; that moves nearly every output, and a sample shows it.
What a sample on one short row cannot show: a difference at positions, batches or padding that it does not have, and
one that is smaller than the tolerance.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

import hf_glm_ernie

from .folder_files import write_json
from .job import progress_bar
from .json_files import read_json
from .operations import ConversionError
from .publish_check import observe
from .publish_classes import PUBLISHED
from .publish_trial import trial_length, trial_memory, trial_request
from .regular_files import printable

FILE = "reference_outputs.json"
SMALL_BYTES = 10**8
"""Of weights that are computed with unasked: a conversion takes the same little memory and time for every size."""

SAMPLE = 512
"""Numbers kept of an output, evenly over all of it; every one of a smaller output."""

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""dtype of the weights -> the largest difference allowed, of an output's largest number.

Other processors and versions round otherwise. Seen on the samples between AVX-512, AVX2 and scalar code, with and
without oneDNN, on transformers 5.17 and 5.24: float16 1.5e-3, bfloat16 8.2e-3, float32 4e-7. They have 3 and 4 layers;
the largest models have 70, over which rounding grows about fourfold. So float16 and bfloat16 are allowed some twelve
times what was seen, and float32, where a wrong constant may matter little, no more than sees one.
"""

CANNOT_COMPUTE = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError, ImportError),
    *(AssertionError, MemoryError),
)
"""What a host raises for a model that it cannot open or run."""


class ReferenceOutputsError(ConversionError):
    """A model computes otherwise than when it was converted, or the file of its outputs is none."""


@dataclass(frozen=True)
class Output:
    """A sample of one output tensor.

    Attributes:
        shape: Of the tensor.
        values: Some of its numbers, see `sample_places`.
        largest: The largest absolute value of all.
        norm: Of all.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...]
    largest: float
    norm: float


@dataclass(frozen=True)
class Reference:
    """What a model computed.

    Attributes:
        transformers: Version of transformers.
        torch: Version of torch.
        converter: Version of this package.
        dtype: Of the weights, as config.json spells it.
        inputs: Name -> ids that `forward` was given.
        outputs: Name -> what came out.
        texts: Texts the tokenizer was given.
        ids: Their ids.
        generated: Ids that followed.
        margins: By how much each was ahead of the next best, of the largest logit.
    """

    transformers: str
    torch: str
    converter: str
    dtype: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Output]
    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    generated: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return asdict(self)

    @property
    def versions(self) -> str:
        """For the user."""
        return f"transformers {self.transformers}, torch {self.torch}"


def sample_places(numbers: int) -> list[int]:
    """Places in a flat tensor of a number of elements: all, or `SAMPLE` spread evenly."""
    return list(range(numbers)) if numbers <= SAMPLE else [place * numbers // SAMPLE for place in range(SAMPLE)]


def sample(tensor: torch.Tensor) -> Output:
    """A sample of an output.

    Args:
        tensor: Any shape, floating point.
    """
    flat = tensor.double().flatten()
    values = flat[torch.tensor(sample_places(flat.numel()), dtype=torch.long)]
    return Output(
        tuple(tensor.shape),
        tuple(_short(value) for value in values.tolist()),
        _short(float(flat.abs().max())),
        _short(float(flat.norm())),
    )


def _short(number: float) -> float:
    return float(f"{number:.9g}")  # a float32 needs no more


def write_reference(folder: Path, into: Path, show_progress: bool = True, any_size: bool = True) -> str | None:
    """Opens a converted folder, computes, and writes `FILE`.

    Args:
        folder: Complete but for this file.
        into: Folder to write it into.
        show_progress: Whether a bar goes to stderr.
        any_size: Whether memory is all that limits the size, or `SMALL_BYTES` does.

    Returns:
        Why there is none, if there is none: the size, too little memory, or the host cannot compute with the model.
    """
    config = read_json(folder / "config.json")
    row = PUBLISHED.get(config["model_type"])
    architecture = (config.get("architectures") or [""])[0]
    if row is None or architecture not in row.auto_classes:
        return f"{architecture} is no class this package publishes"
    nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not any_size and nbytes > SMALL_BYTES:
        return f"the weights have {nbytes:,} bytes, and a conversion takes little memory; --reference computes anyway"
    needed, free = trial_memory(nbytes)
    if needed > free:
        return f"computing takes about {needed:,} bytes of memory and {free:,} are free"
    has_tokenizer = (folder / "tokenizer.json").is_file()
    request = trial_request(folder, row, architecture, config, has_tokenizer)
    try:
        with (
            _quiet(),
            torch.random.fork_rng(devices=[]),
            progress_bar("computing", nbytes, 0, show_progress) as progress,
        ):
            report, outputs = observe(request)
            progress(nbytes)
    except CANNOT_COMPUTE as error:  # the conversion is whole without it
        return f"the model does not compute here: {type(error).__name__}: {printable(error)}"
    write_json(into / FILE, reference_of(request, str(config.get("dtype")), report, outputs).as_json())
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and warnings of the host's loading beside the conversion's own."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def reference_of(
    request: Mapping[str, Any], dtype: str, report: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]
) -> Reference:
    """A reference, from what `publish_check.observe` was asked and gave."""
    return Reference(
        transformers.__version__,
        torch.__version__,
        hf_glm_ernie.__version__,
        dtype,
        request["inputs"],
        {name: sample(tensor) for name, tensor in outputs.items()},
        tuple(request["texts"]),
        tuple(tuple(ids) for ids in report.get("ids", ())),
        tuple(report.get("generated", ())),
        tuple(map(_short, report.get("margins", ()))),
    )


def parse_reference(path: Path, content: Any) -> Reference:
    """A reference from what its file holds, of which nothing is believed.

    Args:
        path: The file, for messages.
        content: Of the file.

    Raises:
        ReferenceOutputsError: it is something else.
    """
    try:
        outputs = {_word(name): _output(entry) for name, entry in content["outputs"].items()}
        reference = Reference(
            _word(content["transformers"]),
            _word(content["torch"]),
            _word(content["converter"]),
            _word(content["dtype"]),
            {_word(name): _integers(ids) for name, ids in content["inputs"].items()},
            outputs,
            *_texts(content["texts"], content["ids"]),
            tuple(_integers(content["generated"])),
            tuple(_numbers(content["margins"])),
        )
        if len(reference.generated) != len(reference.margins):
            raise ValueError("generated and margins should go together")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReferenceOutputsError(
            f"{path}: not the outputs of a conversion ({type(error).__name__}: {printable(error)}). Convert again, or "
            "remove the file: then nothing is compared with the conversion, and the card says so."
        ) from error
    return reference


def _output(entry: Mapping[str, Any]) -> Output:
    shape, values = tuple(_integers(entry["shape"])), tuple(_numbers(entry["values"]))
    if min(shape, default=0) < 0 or len(shape) > 8 or len(values) != min(math.prod(shape), SAMPLE):
        raise ValueError(f"{len(values)} numbers of an output of shape {list(shape)[:8]}")
    largest, norm = _numbers([entry["largest"], entry["norm"]])
    return Output(shape, values, largest, norm)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.+-]{1,60}", value):
        raise TypeError(f"{str(value)[:50]!r} is no version or name")
    return value


def _texts(texts: Any, ids: Any) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The texts and their ids, where they are ones that are tried."""
    if not isinstance(texts, list) or not isinstance(ids, list) or len(texts) != len(ids):
        raise TypeError("texts and ids should be lists that go together")
    if tuple(texts) not in {row.texts for row in PUBLISHED.values()}:
        return (), ()
    return tuple(texts), tuple(tuple(_integers(entry)) for entry in ids)


def _integers(values: Any) -> list[Any]:
    """Whole numbers, or lists of them."""
    if not isinstance(values, list) or len(values) > 10_000:
        raise TypeError(f"{str(values)[:50]!r} is no short list")
    if odd := [one for one in values if type(one) is not int and not isinstance(one, list)]:
        raise TypeError(f"{str(odd[0])[:50]!r} is no whole number")
    return [_integers(one) if isinstance(one, list) else one for one in values]


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) > 10_000:
        raise TypeError(f"{str(values)[:50]!r} is no short list")
    if odd := [one for one in values if type(one) not in (int, float) or not math.isfinite(one)]:
        raise TypeError(f"{str(odd[0])[:50]!r} is no number")
    return [float(one) for one in values]


def compare_with_reference(
    reference: Reference,
    request: Mapping[str, Any],
    report: Mapping[str, Any],
    outputs: Mapping[str, torch.Tensor],
    where: object,
) -> list[tuple[str, str, str]]:
    """Holds what a repository computes against what the model computed when it was converted.

    Args:
        reference: Kept at the conversion.
        request: What the process was asked for.
        report: What it saw.
        outputs: What the model gave; empty where it was not computed with.
        where: The folder, for messages.

    Returns:
        Rows for the card; none where the reference was made with other inputs than are tried now.

    Raises:
        ReferenceOutputsError: they differ by more than rounding.
    """
    beside = f"the conversion, {reference.versions}"
    rows = []
    if reference.texts and list(reference.texts) == request["texts"]:
        for number, (then, now) in enumerate(zip(reference.ids, report["ids"], strict=True), 1):
            if list(then) != list(now):
                raise ReferenceOutputsError(
                    _otherwise(reference, where, f"the tokenizer gives text {number} other ids")
                )
        rows.append((f"ids of {len(reference.ids)} texts", beside, "equal"))
    if outputs and reference.inputs == request["inputs"]:
        worst, allowed = _worst(reference, outputs, where), _allowed(reference)
        if worst > allowed:
            what = f"the outputs differ by {worst:.1e} of the largest, and rounding explains {allowed:g}"
            raise ReferenceOutputsError(_otherwise(reference, where, what))
        tokens = trial_length(request["inputs"])
        rows.append((f"{', '.join(sorted(outputs))} on {tokens} tokens", beside, f"differ by {worst:.1e}"))
        if reference.generated and "generated" in report:
            rows.append((_generated(reference, report["generated"], where), beside, "equal"))
    return rows


def _allowed(reference: Reference) -> float:
    return TOLERANCES.get(reference.dtype, max(TOLERANCES.values()))


def _worst(reference: Reference, outputs: Mapping[str, torch.Tensor], where: object) -> float:
    worst = 0.0
    for name, then in reference.outputs.items():
        if name not in outputs or tuple(outputs[name].shape) != then.shape:
            now = tuple(outputs[name].shape) if name in outputs else "none"
            raise ReferenceOutputsError(_otherwise(reference, where, f"{name} is {now} instead of {then.shape}"))
        now_sampled = sample(outputs[name])
        scale = max(then.largest, 1e-6)
        differences = [abs(one - other) / scale for one, other in zip(then.values, now_sampled.values, strict=True)]
        worst = max(worst, *differences, abs(then.norm - now_sampled.norm) / max(then.norm, 1e-6))
    return worst


def _generated(reference: Reference, now: Sequence[int], where: object) -> str:
    """How many ids are the same; the rest follows from a choice that was nearly a tie."""
    pairs = list(zip(reference.generated, now, strict=False))
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))
    if same < len(reference.generated) and reference.margins[same] > 2 * _allowed(reference):
        raise ReferenceOutputsError(_otherwise(reference, where, f"generated id {same + 1} is another"))
    return f"{same} of {len(reference.generated)} generated ids"


def _otherwise(reference: Reference, where: object, what: str) -> str:
    return (
        f"{where}: {what}, compared with what {reference.versions} computed when it was converted "
        f"({FILE}). Here are transformers {transformers.__version__}, torch {torch.__version__}. Either a setting or "
        "the tokenizer was changed since, or these versions compute otherwise: convert again if the change is meant, "
        "else publish with the versions of the conversion."
    )


__all__ = [
    "FILE",
    "SMALL_BYTES",
    "Reference",
    "ReferenceOutputsError",
    "compare_with_reference",
    "parse_reference",
    "write_reference",
]
