"""What `inspect` found of a checkpoint: facts, what is wrong with it, what converting it takes. No files.

Everything that looks at files makes these objects; text, JSON and the text to paste are made of them alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
"""Of the JSON: a key that is there stays and keeps its meaning; new ones may come."""

ERROR, WARNING, NOTE = "error", "warning", "note"
"""An error stands in the way; with a warning the conversion runs; a note is for information."""

KINDS = {
    "missing": "a file, a part or a tensor is not there",
    "damaged": "bytes are not what they should be",
    "short": "a file has fewer bytes than it should",
    "downloading": "a download is not finished",
    "mismatch": "files are not of one checkpoint, or the content is another than is recorded",
    "extra": "something that does not belong there",
    "swapped": "files are under one another's names",
    "copy": "a file is a copy of another, and its own content is not there",
    "settings": "settings or a tokenizer do not fit, or are needed and not there",
    "unfinished": "an output folder is not finished",
    "unchecked": "the format has nothing by which damage could be told",
    "unknown": "nothing that is known here",
    "space": "what a conversion needs and is not free",
    "information": "good to know",
}
"""Kind of a finding -> what it says."""

ASSUMED_RATE = 500_000_000
"""Bytes a second of a disk that nobody measured."""

MEASURABLE_BYTES = 100_000_000
"""Read in one go, so many tell of a disk's rate."""

LIBRARIES_BYTES = 500_000_000
"""What Python, torch and transformers take in memory."""


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file.

    Attributes:
        file: Its name, from the source's folder on.
        start: First byte; None where it is the whole file, or nobody can tell.
        stop: The byte behind the last.
    """

    file: str
    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        if self.start is None or self.stop is None:
            return self.file
        return f"{self.file}, bytes {self.start:,} to {self.stop:,}"


@dataclass(frozen=True)
class Finding:
    """Something that should be known.

    Attributes:
        kind: One of `KINDS`.
        text: In words, without the files.
        places: Where; bytes of an archive's member may lie in several parts.
        severity: `ERROR`, `WARNING` or `NOTE`.
        tensor: Name of the tensor or record, if it is one.
        remedy: What to do.
    """

    kind: str
    text: str
    places: tuple[Stretch, ...] = ()
    severity: str = ERROR
    tensor: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class FileFacts:
    """A file of the checkpoint.

    Attributes:
        name: From the source's folder on.
        nbytes: Its size; None where it is not there.
        tensors: How many it holds; None where nobody could read it.
        is_member: Whether it lies in an archive, whose parts are among the files, too.
    """

    name: str
    nbytes: int | None
    tensors: int | None
    is_member: bool = False


@dataclass(frozen=True)
class Needs:
    """What a conversion takes.

    Attributes:
        options: Of the command; empty for the one that is recommended.
        read_bytes: Of the source.
        disk_bytes: Of the output.
        memory_bytes: At most, libraries included.
    """

    options: str
    read_bytes: int
    disk_bytes: int
    memory_bytes: int

    def seconds(self, rate: float) -> float:
        """Reading, writing and reading again at so many bytes a second."""
        return (self.read_bytes + 2 * self.disk_bytes) / rate


@dataclass(frozen=True)
class Check:
    """One public fact of a released model, held against what is there."""

    what: str
    expected: str
    found: str

    @property
    def holds(self) -> bool:
        """Whether it is as released."""
        return self.expected == self.found


@dataclass(frozen=True)
class Released:
    """The released model that sizes look like.

    Attributes:
        name: Of the model, or of all that have these sizes.
        checks: What of it was looked at.
    """

    name: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether everything that was looked at is as released."""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True)
class Deep:
    """What reading everything came to: bytes and seconds."""

    nbytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.nbytes / max(self.seconds, 1e-6)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        source: As it was given.
        family: "GLM-130B", "ERNIE", "ERNIE 3.0 10B", "BERT"; empty where it is unknown.
        form: What kind of files they are, in a few words.
        name: What it is, in words.
        sizes: Of the model, under transformers' names.
        dtype: Of most weights.
        files: The weight files.
        findings: The worst first.
        needs: Of the conversions there are.
        command: To be run next, quoted for a shell; empty where there is none.
        advice: What to do next, in words.
        released: What it looks like, if it looks like something released.
        deep: What reading everything came to; None where headers alone were read.
    """

    source: str
    family: str
    form: str
    name: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    dtype: str = ""
    files: Sequence[FileFacts] = ()
    findings: Sequence[Finding] = ()
    needs: Sequence[Needs] = ()
    command: str = ""
    advice: str = ""
    released: Released | None = None
    deep: Deep | None = None

    @property
    def nbytes(self) -> tuple[int, int]:
        """Number and bytes of the files that are there."""
        sizes = [file.nbytes for file in self.files if file.nbytes is not None and not file.is_member]
        return len(sizes), sum(sizes)

    @property
    def errors(self) -> list[Finding]:
        """Findings that stand in the way."""
        return [finding for finding in self.findings if finding.severity == ERROR]

    @property
    def status(self) -> str:
        """One of "complete", "downloading", "incomplete", "damaged", "unknown"."""
        kinds = {finding.kind for finding in self.errors}
        if not kinds:
            return "complete"
        if "unknown" in kinds:
            return "unknown"
        if kinds <= {"downloading"}:
            return "downloading"
        return "incomplete" if kinds <= {"downloading", "missing", "unfinished", "settings"} else "damaged"

    @property
    def exit_status(self) -> int:
        """0 complete, 1 otherwise."""
        return int(self.status != "complete")

    @property
    def rate(self) -> float:
        """Bytes a second that times are counted with."""
        return self.deep.rate if self.deep is not None and self.is_measured else ASSUMED_RATE

    @property
    def is_measured(self) -> bool:
        """Whether `rate` is what reading everything came to."""
        return self.deep is not None and self.deep.nbytes >= MEASURABLE_BYTES

    def as_json(self) -> dict[str, Any]:
        """For a program to read; the keys are in conversion/README.md."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "family": self.family or None,
            "form": self.form,
            "name": self.name,
            "status": self.status,
            "exit_status": self.exit_status,
            "sizes": dict(self.sizes),
            "dtype": self.dtype or None,
            "files": [asdict(file) for file in self.files],
            "findings": [asdict(finding) for finding in self.findings],
            "needs": [{**asdict(need), "seconds": round(need.seconds(self.rate), 1)} for need in self.needs],
            "rate": {"bytes_per_second": round(self.rate), "measured": self.is_measured},
            "released": None
            if self.released is None
            else {
                "name": self.released.name,
                "holds": self.released.holds,
                "checks": [{**asdict(check), "holds": check.holds} for check in self.released.checks],
            },
            "deep": None if self.deep is None else asdict(self.deep),
            "command": self.command or None,
            "advice": self.advice or None,
        }


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether something stands in the way."""
    return any(finding.severity == ERROR for finding in findings)


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; as they were found among themselves, each once."""
    order = (ERROR, WARNING, NOTE)
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity)))


__all__ = [
    "ASSUMED_RATE",
    "ERROR",
    "KINDS",
    "LIBRARIES_BYTES",
    "NOTE",
    "WARNING",
    "Check",
    "Deep",
    "FileFacts",
    "Finding",
    "Needs",
    "Released",
    "Report",
    "Stretch",
    "has_errors",
    "worst_first",
]
