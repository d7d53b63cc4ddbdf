"""What went in, what came out, and why the rest did not."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REPEATED_CHARACTERS = "repeated characters"
WHITE_SPACE = "white space around lines"
REPEATED_BLOCKS = "repeated paragraphs"
SHORT_SENTENCES = "short sentences"
NO_SENTENCES = "no sentence left"
DUPLICATES = "duplicate documents"
NEAR_DUPLICATES = "near-duplicates"

TEXT_REASONS = (REPEATED_CHARACTERS, WHITE_SPACE, REPEATED_BLOCKS, SHORT_SENTENCES, NO_SENTENCES)
"""What one document loses by itself, in the order of the rules."""
REASONS = (*TEXT_REASONS, DUPLICATES, NEAR_DUPLICATES)


@dataclasses.dataclass(frozen=True)
class Tally:
    """How much text there is: numbers of documents, paragraphs, sentences and characters."""

    documents: int = 0
    paragraphs: int = 0
    sentences: int = 0
    characters: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(*(mine - its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """All four."""
        return self.documents, self.paragraphs, self.sentences, self.characters

    @classmethod
    def of(cls, sentences: Sequence[str]) -> "Tally":
        """Of one document: its sentences, which joined are its text, lines being its paragraphs."""
        lines = sum(sentence.endswith("\n") for sentence in sentences) + bool(sentences)
        return cls(1, lines, len(sentences), sum(map(len, sentences)))


@dataclasses.dataclass(frozen=True)
class CorpusReport:
    """Counts of a corpus or of a part of one; two parts add up.

    Attributes:
        read: What was read.
        dropped: Reason -> what it cost.
        unreadable: Records that were skipped because they could not be read, such as lines that are no JSON.
    """

    read: Tally = Tally()
    dropped: Mapping[str, Tally] = dataclasses.field(default_factory=lambda: dict.fromkeys(REASONS, Tally()))
    unreadable: int = 0

    @property
    def written(self) -> Tally:
        """What is left."""
        return self.read - sum(self.dropped.values(), Tally())

    def __add__(self, other: "CorpusReport") -> "CorpusReport":
        dropped = {reason: tally + other.dropped[reason] for reason, tally in self.dropped.items()}
        return CorpusReport(self.read + other.read, dropped, self.unreadable + other.unreadable)

    def with_dropped(self, reason: str, tally: Tally) -> "CorpusReport":
        """The report with more dropped for a reason."""
        return dataclasses.replace(self, dropped={**self.dropped, reason: self.dropped[reason] + tally})

    @classmethod
    def from_counts(cls, counts: Iterable[Sequence[int]]) -> "CorpusReport":
        """Sums the column `counts` of [`CleanDocuments`].

        Args:
            counts: Of each document what was read and, for each of `TEXT_REASONS`, what was dropped: four numbers
                each, one after the other.
        """
        width = len(Tally().numbers)
        sums = [0] * (width * (1 + len(TEXT_REASONS)))
        for row in counts:
            sums = [total + number for total, number in zip(sums, row, strict=True)]
        tallies = [Tally(*sums[start : start + width]) for start in range(0, len(sums), width)]
        return cls(tallies[0], dict.fromkeys(REASONS, Tally()) | dict(zip(TEXT_REASONS, tallies[1:], strict=True)))

    def to_json(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            "read": dataclasses.asdict(self.read),
            "dropped": {reason: dataclasses.asdict(tally) for reason, tally in self.dropped.items()},
            "written": dataclasses.asdict(self.written),
            "unreadable": self.unreadable,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CorpusReport":
        """The inverse of `to_json`."""
        dropped = {reason: Tally(**tally) for reason, tally in content["dropped"].items()}
        return cls(Tally(**content["read"]), dropped, content["unreadable"])

    def describe(self) -> str:
        """A table, columns aligned, and what was skipped."""
        rows = [
            ("read", self.read),
            *((f"  {reason}", tally) for reason, tally in self.dropped.items()),
            ("written", self.written),
        ]
        names = [field.name for field in dataclasses.fields(Tally)]
        cells = [[f"{number:,}" if number else "-" for number in tally.numbers] for _, tally in rows]
        shares = [f"{tally.characters / max(self.read.characters, 1):.1%}" for _, tally in rows]
        columns = [
            ["", *(label for label, _ in rows)],
            *([name, *column] for name, column in zip(names, zip(*cells, strict=True), strict=True)),
            ["", *shares],
        ]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(line)).rstrip()
            for line in (list(zip(line, widths, strict=True)) for line in zip(*columns, strict=True))
        ]
        if self.unreadable:
            lines.append(f"skipped: {self.unreadable:,} unreadable record{'s' * (self.unreadable > 1)}")
        return "\n".join(lines)


__all__ = [
    "DUPLICATES",
    "NEAR_DUPLICATES",
    "NO_SENTENCES",
    "REASONS",
    "REPEATED_BLOCKS",
    "REPEATED_CHARACTERS",
    "SHORT_SENTENCES",
    "TEXT_REASONS",
    "WHITE_SPACE",
    "CorpusReport",
    "Tally",
]
