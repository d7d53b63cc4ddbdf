"""A planned conversion, and the one way to run it: small files, weights, verification, publication."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

import hf_glm_ernie

from .file_hooks import FileHooks
from .lazy_files import CheckpointError, TensorFiles
from .operations import Shape, TensorSpec, shortened
from .output_folder import OutputFolder
from .source_file import SideFiles
from .state_map import Plan
from .verification import Progress, Verification, Verifier
from .writer import OutputFile, copy_peak_bytes

ExpectedShapes = Callable[[str, Any], Mapping[str, Shape]]
"""(name of a model class, its configuration) -> names and shapes it has, tied names included; see `classes`."""

VERIFIED_TOGETHER = 2
"""Files that are verified at one time where all are finished at the end."""

REFRESH_SECONDS = 0.5
"""How often a bar shows what another thread has done."""


@dataclass(frozen=True)
class ForwardOptions:
    """Choices of every conversion from an original format; each family adds its own.

    Attributes:
        settings: JSON file with what the tensors cannot tell; default: the one beside the weights.
        dtype: What the weights become; `None` keeps theirs.
        max_shard_bytes: Upper limit of a shard's data.
        headers_only: Plan without reading any tensor, for a dry run.
    """

    settings: Path | None = None
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9
    headers_only: bool = False

    @property
    def decisions(self) -> dict[str, str]:
        """Every choice but files, which are known by their content, and what decides nothing of the result."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "headers_only"}
        return {name: str(value) for name, value in values.items() if not isinstance(value, Path | None)}


@dataclass(frozen=True)
class Job:
    """A conversion that is fully planned: nothing the input's headers tell can make it fail any more.

    Attributes:
        title: What is converted, for the user.
        source: Where the pieces are.
        plan: What is written.
        files: The weight files.
        options: Whatever else decides the result; part of the fingerprint.
        write_first: Writes the small files into the folder, before the weights.
        reopen: Opens the complete folder as its users will, and raises if it does not hold together; what is in it,
            or in its first rank.
        write_last: Writes index and card, given the SHA-256 of each file (empty without verification).
        by_tensor: Whether a tensor of all files is written before the next one, because they share what they read.
        notices: What the user should know, one line each.
        beside: The small files that were read; part of the fingerprint.
    """

    title: str
    source: TensorFiles
    plan: Plan
    files: Sequence[OutputFile]
    options: Mapping[str, str]
    write_first: Callable[[Path], None]
    reopen: Callable[[Path], Mapping[str, TensorSpec]]
    write_last: Callable[[Path, Mapping[str, str]], None] = lambda folder, sha256: None
    by_tensor: bool = False
    notices: Sequence[str] = ()
    beside: SideFiles = field(default_factory=SideFiles)

    @property
    def order(self) -> list[tuple[str, int]]:
        """(file name, position in that file's tensors) in the order to be written.

        File by file, a file's tensors in the order of the plan: what shares a source is written one after the other.
        """
        if self.by_tensor:
            numbers = range(max((len(file.tensors) for file in self.files), default=0))
            return [(file.name, number) for number in numbers for file in self.files]
        planned = {(tensor.part, tensor.name): number for number, tensor in enumerate(self.plan.tensors)}
        order = []
        for file in self.files:
            numbered = sorted((planned[t.part, t.name], position) for position, t in enumerate(file.tensors))
            order += [(file.name, position) for _, position in numbered]
        return order

    @property
    def fingerprint(self) -> str:
        """Changes with the source files, those beside them, the plan, the options and the version of the converter."""
        files = [(f.name, [(t.name, str(t.spec), t.pieces) for t in f.tensors]) for f in self.files]
        source = (self.source.identity(), self.beside.identity)
        decides = (hf_glm_ernie.__version__, source, files, sorted(self.options.items()))
        return hashlib.sha256(repr(decides).encode()).hexdigest()

    def check_source(self) -> None:
        """Makes sure that nothing changed that the result comes from.

        Raises:
            SourceChangedError: something did.
        """
        self.beside.check()
        self.source.check_content()

    @property
    def first_part(self) -> dict[str, TensorSpec]:
        """What is written, or the first rank of it."""
        return {tensor.name: tensor.spec for tensor in self.plan.tensors if tensor.part == 0}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.plan.nbytes

    def describe(self) -> str:
        """The plan in a few lines."""
        tensors, files = self.plan.tensors, [file.name for file in self.files]
        shown = ", ".join(files[:2]) + (" ..." if len(files) > 2 else "")
        largest = max((tensor.spec.nbytes for tensor in tensors), default=0)
        lines = [
            self.title,
            f"  tensors      {len(tensors)}, {self.nbytes:,} bytes; the largest {largest:,} bytes",
            f"  files        {len(files)}: {shown}",
            f"  disk needed  {sum(file.size for file in self.files):,} bytes",
            f"  peak memory  {copy_peak_bytes(tensors):,} bytes for the copy, beside Python and its libraries (about "
            "0.5 GB)",
        ]
        return "\n".join(lines + [f"  note: {notice}" for notice in self.notices])


def run(
    job: Job,
    output: Path,
    verify: Verifier | None,
    show_progress: bool = True,
    reference: Callable[[Path, Path, bool], object] | None = None,
    hooks: FileHooks | None = None,
) -> None:
    """Runs a job into a new folder.

    Args:
        job: The planned conversion.
        output: Folder to be made. Work is done in `<output>.incomplete`, where an interrupted run of the same job is
            continued.
        verify: Checks one finished file; `None` leaves that out.
        show_progress: Whether bars with bytes and time left go to stderr.
        reference: Computes with the complete folder and keeps what comes out; given the folder, where to keep it, and
            whether bars go to stderr. `None` leaves that out.
        hooks: What happens to files once they are verified; `None`: nothing. With shipped files the folder is not
            opened as its users will, because it does not hold everything.

    Raises:
        ConversionError: the output exists, the disk is full, another run is at work, the written files do not hold
            what was written, the source changed meanwhile.
        ValueError: hooks without verification.
        Exception: the hooks' own.
    """
    if hooks is not None and verify is None:
        raise ValueError("hooks act on files that were verified, so there must be a verification")
    with OutputFolder(output, job.files, job.fingerprint, hooks) as folder:
        if folder.is_published:  # a former run was killed just before its last step
            return
        threads = VERIFIED_TOGETHER if job.by_tensor else 1
        with Verification(folder, verify, FileHooks() if hooks is None else hooks, threads) as verification:
            _recheck(folder, verification, show_progress)
            folder.add(job.write_first)
            job.beside.check()  # some are read only now
            _write(job, folder, verification, show_progress)
        digests = {} if verify is None else folder.verified_files
        assert verify is None or len(digests) == len(job.files), "a file was not verified"
        folder.add(lambda path: job.write_last(path, digests))
        if verify is not None and not folder.shipped_files and job.reopen(folder.path) != job.first_part:
            raise CheckpointError(f"{folder.path}: the files do not hold the planned tensors")
        if reference is not None:
            folder.add(lambda path: reference(folder.path, path, show_progress))
        job.check_source()
        folder.publish()


def _recheck(folder: OutputFolder, verification: Verification, show_progress: bool) -> None:
    """Reads again what a former run has written. For finished files that is their verification."""
    nbytes = folder.done_bytes
    with progress_bar("checking", nbytes, 0, show_progress and nbytes > 0) as progress:
        verification.on_bytes = progress
        damaged = folder.recheck(progress, verification.holds)
    if damaged and show_progress:
        note = f"damaged since they were written, so they are written again: {', '.join(damaged)}"
        tqdm.write(shortened(f"note: {folder.path}: {note}"), file=sys.stderr)


def _write(job: Job, folder: OutputFolder, verification: Verification, show_progress: bool) -> None:
    """Writes what is missing, while what is finished is verified.

    One bar shows both: the bytes written, and beside them the bytes verified. What is verified after the last was
    written has a bar of its own.
    """
    with _bar("writing", job.nbytes, folder.done_bytes, show_progress) as bar:
        shown = 0.0

        def verified(nbytes: int) -> None:
            nonlocal shown
            bar.set_postfix_str(f"{tqdm.format_sizeof(verification.nbytes, 'B')} verified", refresh=False)
            if time.monotonic() > shown + REFRESH_SECONDS:
                shown = time.monotonic()
                bar.refresh()

        verification.on_bytes = verified
        folder.fill(job.order, job.source, bar.update, verification.before_tensor, verification.submit)
        verification.on_bytes = lambda nbytes: None
    if verification.is_on:
        with _bar("verifying", job.nbytes, verification.nbytes, show_progress) as bar:
            verification.on_bytes = lambda nbytes: bar.update(verification.nbytes - bar.n)
            verification.finish()


@contextmanager
def progress_bar(what: str, total: int, initial: int, show: bool) -> Iterator[Progress]:
    """A bar of bytes on stderr."""
    with _bar(what, total, initial, show) as bar:
        yield bar.update


def _bar(what: str, total: int, initial: int, show: bool) -> "tqdm[NoReturn]":
    return tqdm(
        total=total, initial=initial, desc=what, unit="B", unit_scale=True, unit_divisor=1000, disable=not show
    )


__all__ = ["ExpectedShapes", "ForwardOptions", "Job", "Progress", "Verifier", "progress_bar", "run"]
