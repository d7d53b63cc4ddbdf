"""What every looker is asked and gives, and what a planned conversion takes."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .inspect_files import Looked
from .inspect_report import LIBRARIES_BYTES, Deep, Finding, Needs, Report
from .job import Job
from .operations import ConversionError, SettingsError
from .output_folder import SMALL_FILES_BYTES
from .writer import copy_peak_bytes

COMMAND = "glm-ernie-convert"
MEND = "mend what is named above, and look again"


@dataclass(frozen=True)
class Question:
    """What `inspect` is asked.

    Attributes:
        source: What to look at.
        tokenizer: GLM-130B's sentencepiece model, if it does not lie beside.
        config: A file of settings, if it does not.
        vocab: ERNIE's vocabulary, if it does not.
        base: The checkpoint that an adapter of PaddleNLP's was trained on.
    """

    source: Path
    tokenizer: Path | None = None
    config: Path | None = None
    vocab: Path | None = None
    base: Path | None = None

    def command(self, family: str, *options: str) -> str:
        """The conversion of the source, for a shell; what was given to `inspect` is given to it, too."""
        given = {"tokenizer": self.tokenizer, "config": self.config, "vocab": self.vocab, "base": self.base}
        chosen = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return in_shell(family, f"--source={self.source}", f"--output={self.output}", *chosen, *options)

    @property
    def output(self) -> Path:
        """A name for the converted folder that is free."""
        source = self.source if self.source.name not in ("", "..") else self.source.resolve()
        stem = source.name if self.source.is_dir() else source.name.partition(".")[0]
        names = (f"{stem}-hf{number}" for number in ("", *(f"-{n}" for n in range(2, 1000))))
        free = (path for name in names if not (path := source.with_name(name)).exists())
        return next(free, source.with_name(f"{stem}-hf"))


@dataclass(frozen=True)
class Look:
    """What a looker found.

    Attributes:
        report: From the headers.
        files: The weight files, for reading everything.
        nbytes: How many bytes are read then, where not all of them.
        read: Reads everything, where not one file after the other: given what takes the number of bytes just read,
            what is wrong and how fast it went.
    """

    report: Report
    files: Sequence[Looked] = ()
    nbytes: int | None = None
    read: Callable[[Callable[[int], object]], tuple[list[Finding], Deep]] | None = None


Looker = Callable[[Question], Look | None]
"""Looks whether the source is of its kind; None if it is not."""


def in_shell(*words: str) -> str:
    """A command of this package, quoted for a shell: as it was called itself."""
    is_installed = Path(sys.argv[0]).stem == COMMAND
    program = [COMMAND] if is_installed else ["python", "-m", __package__ or "conversion"]
    return shlex.join([*program, *words])


def needs_of(job: Job, options: str = "") -> Needs:
    """What a planned conversion takes."""
    return Needs(
        options,
        sum(file.bytes.size for file in job.source.files),
        sum(file.size for file in job.files) + SMALL_FILES_BYTES,
        copy_peak_bytes(job.plan.tensors) + LIBRARIES_BYTES,
    )


@contextmanager
def noted(findings: list[Finding], source: Path) -> Iterator[None]:
    """Notes the refusal of a planner as a finding, and goes on behind the block."""
    try:
        yield
    except (ConversionError, OSError) as error:
        text = str(error).removeprefix(f"{source}: ")
        findings.append(Finding("settings" if isinstance(error, SettingsError) else "damaged", text))


__all__ = ["MEND", "Look", "Looker", "Question", "in_shell", "needs_of", "noted"]
