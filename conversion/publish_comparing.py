"""The check of a repository: another process opens it, and what it sees is compared.

With what this package sees in the source folder; and, where the conversion kept it, with what the model computed then.
The first shows that the repository's code is whole, the second that the host computes as it did.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_glm_ernie.weight_only import METHOD

from . import publish_check
from .job import progress_bar
from .json_files import read_json
from .publish_card import host_requirement
from .publish_config import PublishError
from .publish_source import Source
from .publish_trial import FULL, STRUCTURE, trial_length, trial_request
from .reference_outputs import compare_with_reference

CheckRow = tuple[str, str, str]
"""Of the card's table: what, compared with, result."""

OURS = ("hf_glm_ernie", "conversion")
OPTIONAL = ("accelerate", "sentencepiece", "peft", "datasets", "bitsandbytes", "torchao", "lm_eval")
"""Hidden from the process that opens a repository; the latter only where no other library quantized the weights."""

CHECK_SECONDS = 3600
TOLERANCE = 1e-3
"""The same code on the same machine gives the same numbers, so what is seen is 0; this leaves room for threads."""

NO_REFERENCE = ("what the model computed at its conversion", "", "not compared: it was not kept")


def checked(
    source: Source, carries_code: bool, mode: str, folder: Path, scratch: Path, show_progress: bool
) -> list[CheckRow]:
    """Opens a repository's folder in a fresh process and compares; returns rows for the card.

    Args:
        source: What it was made of.
        carries_code: Whether it opens with `trust_remote_code=True`.
        mode: `FULL` or `STRUCTURE`.
        folder: The repository's.
        scratch: Empty folder for the process.
        show_progress: Whether a bar goes to stderr.

    Raises:
        PublishError: it does not open, or differs from what this package sees.
        ReferenceOutputsError: it differs from what the model computed when it was converted.
    """
    with progress_bar("checking", 2 * source.nbytes, 0, show_progress) as progress:
        request = trial_request(folder, source.row, source.architecture, source.config, source.has_tokenizer, mode)
        seen, theirs = _stranger(_hiding(request, source, carries_code, scratch), scratch)
        progress(source.nbytes)
        _check_classes(source, carries_code, seen)
        where = f"transformers {seen['transformers']}, torch {seen['torch']}"
        rows = [("opens in a process without the package", "", f"yes, {where} ({mode} check)")]
        with _as_an_error_of(source.folder):
            report, ours = publish_check.observe(request | {"folder": str(source.folder)})
        progress(source.nbytes)
        rows += _compared(seen, report)
        if mode == STRUCTURE:
            rows.append(("names, shapes, kinds of number", "the classes", f"equal, {seen['tensors']} tensors"))
        else:
            rows.append(_difference(theirs, ours, source, request))
        if source.reference is None:
            return [*rows, NO_REFERENCE]
        return [*rows, *compare_with_reference(source.reference, request, seen, theirs, source.folder)]


@contextmanager
def _as_an_error_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise PublishError(
            f"{folder}: does not open with this package ({type(error).__name__}: {error}). Nothing was published."
        ) from error


def _hiding(request: Mapping[str, Any], source: Source, carries_code: bool, scratch: Path) -> dict[str, Any]:
    """A request for a process that has nothing of ours."""
    foreign = source.quant_method not in (None, METHOD)
    return {
        **request,
        "trust_remote_code": carries_code,
        "hidden": [*OURS, *(() if foreign else OPTIONAL)],
        "outputs": str(scratch / "outputs.safetensors"),
        "report": str(scratch / "report.json"),
    }


def _stranger(request: Mapping[str, Any], scratch: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a fresh process sees and computes: no package of ours, no network, no cache, another working directory."""
    path = scratch / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {
        "HF_HOME": str(scratch / "home"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),
    }
    held, holding = os.pipe()  # ends with this process, and the other one with it
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(publish_check.__file__)), str(path)],
            cwd=scratch,
            env=environment,
            stdin=held,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PublishError(
            f"{request['folder']}: the check was not done after {CHECK_SECONDS} seconds. --check structure takes less."
        ) from error
    finally:
        os.close(held)
        os.close(holding)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it said nothing (status {done.returncode})"])[-1]
        raise PublishError(
            f"{request['folder']}: does not open in a process without this package ({host_requirement()}): {last} "
            "Nothing was published. If the folder opens with the package, please report this."
        )
    report: dict[str, Any] = read_json(Path(request["report"]))
    return report, load_file(request["outputs"]) if request["mode"] == FULL else {}


def _check_classes(source: Source, carries_code: bool, seen: Mapping[str, Any]) -> None:
    """Makes sure that the classes came from where the repository says."""
    expected = "transformers_modules." if carries_code else "transformers.models."
    if not seen["class"].startswith(expected):
        raise PublishError(f"{source.folder}: the model was opened as {seen['class']}, expected {expected}...")
    if source.quant_method == METHOD and not seen["quantized_linears"]:
        raise PublishError(f"{source.folder}: quantized, but opened without a quantized linear.")


def _compared(seen: Mapping[str, Any], ours: Mapping[str, Any]) -> list[CheckRow]:
    rows = []
    for key, what in (("ids", "ids of {} texts"), ("decoded", "{} decoded texts"), ("generated", "{} generated ids")):
        if key not in seen:
            continue
        if seen[key] != ours[key]:
            raise PublishError(
                f"the repository gives other {key} than this package: {seen[key]!r} instead of {ours[key]!r}. Is the "
                "folder's tokenizer of another version? Load and save it with this one."
            )
        rows.append((what.format(len(seen[key])), "this package", "equal"))
    return rows


def _difference(
    theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor], source: Source, request: Mapping[str, Any]
) -> CheckRow:
    """The row on outputs; the largest difference over the largest output."""
    if theirs.keys() != ours.keys():
        raise PublishError(f"{source.folder}: outputs {sorted(theirs)} instead of {sorted(ours)}.")
    differences = [
        float((theirs[name] - ours[name]).abs().max() / ours[name].abs().max().clamp_min(1e-6)) for name in ours
    ]
    worst = max(differences)
    if worst > TOLERANCE:
        raise PublishError(
            f"{source.folder}: the repository's outputs differ from this package's by {worst:.1e} of the largest; "
            f"allowed is {TOLERANCE:g}."
        )
    what = f"{', '.join(sorted(ours))} on {trial_length(request['inputs'])} tokens"
    return (what, "this package on the source folder", f"differ by {worst:.1e}")


__all__ = ["CheckRow", "checked"]
