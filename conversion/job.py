"""A planned conversion, and the one way to run it: small files, weights, verification, publication."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .lazy_files import CheckpointError, TensorFiles
from .operations import Shape, TensorSpec
from .output_folder import OutputFolder, explain_full_disk
from .state_map import ConversionError, Plan
from .writer import OutputFile, WriteError, copy_peak_bytes

Progress = Callable[[int], object]
"""Called with the number of bytes just done."""

Verifier = Callable[[Path, OutputFile, Mapping[str, int], Progress], str]
"""(folder, file, CRC-32 by tensor, progress) -> SHA-256 of the file; raises `verify.VerifyError`."""

ExpectedShapes = Callable[[str, Any], Mapping[str, Shape]]
"""(name of a model class, its configuration) -> names and shapes it has, tied names included; see `classes`."""


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
        """Changes with the source files, the plan and the options."""
        files = [
            (f.name, [(t.name, t.spec.shape, str(t.spec.dtype), len(t.pieces)) for t in f.tensors]) for f in self.files
        ]
        return hashlib.sha256(json.dumps([self.source.identity(), files, dict(self.options)]).encode()).hexdigest()

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
    reference: Callable[[Path, bool], object] | None = None,
) -> None:
    """Runs a job into a new folder.

    Args:
        job: The planned conversion.
        output: Folder to be made. Work is done in `<output>.incomplete`, where an interrupted run of the same job is
            continued.
        verify: Checks one finished file; `None` leaves that out.
        show_progress: Whether bars with bytes and time left go to stderr.
        reference: Computes with the complete folder and keeps there what comes out; given the folder, and whether
            bars go to stderr. `None` leaves that out.

    Raises:
        ConversionError: the output exists, the disk is full, another run is at work, the written files do not hold
            what was written.
    """
    with OutputFolder(output, job.files, job.fingerprint) as folder, explain_full_disk(folder):
        job.write_first(folder.path)
        with progress_bar("writing", job.nbytes, folder.done_bytes, show_progress) as progress:
            folder.fill(job.order, job.source, progress)
        digests = {}
        if verify is not None:
            with progress_bar("verifying", job.nbytes, 0, show_progress) as progress:
                for file in job.files:
                    try:
                        digests[file.name] = verify(folder.path, file, folder.checksums[file.name], progress)
                    except ConversionError as error:
                        folder.reject(file.name)
                        raise WriteError(f"{error} The file was removed; run the same command again.") from error
        job.write_last(folder.path, digests)
        if verify is not None and job.reopen(folder.path) != job.first_part:
            raise CheckpointError(f"{folder.path}: the files do not hold the planned tensors")
        if reference is not None:
            reference(folder.path, show_progress)
        folder.publish()


@contextmanager
def progress_bar(what: str, total: int, initial: int, show: bool) -> Iterator[Progress]:
    """A bar of bytes on stderr."""
    with tqdm(
        total=total, initial=initial, desc=what, unit="B", unit_scale=True, unit_divisor=1000, disable=not show
    ) as bar:
        yield bar.update


__all__ = ["ExpectedShapes", "ForwardOptions", "Job", "Progress", "Verifier", "progress_bar", "run"]
