"""A planned conversion, and the one way to run it: small files, weights, verification, publication."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from .output_folder import OutputFolder, explain_full_disk
from .readers import TensorFiles
from .state_map import ConversionError, Plan
from .writer import OutputFile, WriteError, copy_peak_bytes

Progress = Callable[[int], None]
"""Called with the number of bytes just done."""

Verifier = Callable[[Path, OutputFile, Mapping[str, int], Progress], str]
"""(folder, file, CRC-32 by tensor, progress) -> SHA-256 of the file; raises `verify.VerifyError`."""


@dataclass(frozen=True)
class Job:
    """A conversion that is fully planned: nothing the input's headers tell can make it fail any more.

    Attributes:
        title: What is converted, for the user.
        source: Where the pieces are.
        plan: What is written.
        files: The weight files.
        order: (file name, position in that file's tensors) in the order to be written.
        options: Whatever else decides the result; part of the fingerprint.
        write_first: Writes the small files into the folder, before the weights.
        write_last: Writes index and card, given the SHA-256 of each file (empty without verification).
        reopen: Opens the complete folder as its users will, and raises if it does not hold together.
        notices: What the user should know, one line each.
    """

    title: str
    source: TensorFiles
    plan: Plan
    files: Sequence[OutputFile]
    order: Sequence[tuple[str, int]]
    options: Mapping[str, str]
    write_first: Callable[[Path], None]
    write_last: Callable[[Path, Mapping[str, str]], None]
    reopen: Callable[[Path], None]
    notices: Sequence[str] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Changes with the source files, the plan and the options."""
        files = [
            (f.name, [(t.name, t.spec.shape, str(t.spec.dtype), len(t.pieces)) for t in f.tensors]) for f in self.files
        ]
        return hashlib.sha256(json.dumps([self.source.identity(), files, dict(self.options)]).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.plan.nbytes

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor."""
        return max((tensor.spec.nbytes for tensor in self.plan.tensors), default=0)

    @property
    def peak_bytes(self) -> int:
        """Upper bound of the memory the copy takes, in bytes, beside Python, torch and transformers (about 0.5 GB)."""
        return copy_peak_bytes(self.plan.tensors)

    def describe(self) -> str:
        """The plan in a few lines."""
        tensors, files = self.plan.tensors, [file.name for file in self.files]
        shown = ", ".join(files[:2]) + (" ..." if len(files) > 2 else "")
        lines = [
            self.title,
            f"  tensors      {len(tensors)}, {self.nbytes:,} bytes; the largest {self.largest_bytes:,} bytes",
            f"  files        {len(files)}: {shown}",
            f"  disk needed  {sum(file.size for file in self.files):,} bytes",
            f"  peak memory  {self.peak_bytes:,} bytes for the copy, beside Python and its libraries (about 0.5 GB)",
        ]
        return "\n".join(lines + [f"  note: {notice}" for notice in self.notices])


def run(job: Job, output: Path, verify: Verifier | None, show_progress: bool = True) -> None:
    """Runs a job into a new folder.

    Args:
        job: The planned conversion.
        output: Folder to be made. Work is done in `<output>.incomplete`, where an interrupted run of the same job is
            continued.
        verify: Checks one finished file; `None` leaves that out.
        show_progress: Whether bars with bytes and time left go to stderr.

    Raises:
        ConversionError: the output exists, the disk is full, another run is at work, the written files do not hold
            what was written.
    """
    with OutputFolder(output, job.files, job.fingerprint) as folder, explain_full_disk(folder):
        job.write_first(folder.path)
        with _bar("writing", job.nbytes, folder.done_bytes, show_progress) as progress:
            folder.fill(job.order, job.source, progress)
        digests = {}
        if verify is not None:
            with _bar("verifying", job.nbytes, 0, show_progress) as progress:
                for file in job.files:
                    try:
                        digests[file.name] = verify(folder.path, file, folder.checksums[file.name], progress)
                    except ConversionError as error:
                        folder.reject(file.name)
                        raise WriteError(f"{error} The file was removed; run the same command again.") from error
        job.write_last(folder.path, digests)
        if verify is not None:
            job.reopen(folder.path)
        folder.publish()


@contextmanager
def _bar(what: str, total: int, initial: int, show: bool) -> Iterator[Progress]:
    with tqdm(
        total=total, initial=initial, desc=what, unit="B", unit_scale=True, unit_divisor=1000, disable=not show
    ) as bar:

        def progress(nbytes: int) -> None:
            bar.update(nbytes)

        yield progress


__all__ = ["Job", "Progress", "Verifier", "run"]
