"""The three stages of preparing a corpus, each a function of one unit or partition, for any process.

What a stage has finished lies under its final name, so a second call does nothing; what a kill interrupted lies under
a temporary one, and is begun anew. So a run goes on where the last one stopped, and ends with the same files.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .finished_files import read_json, write_json, writing
from .mapping import CleanDocuments, WordSpans
from .near_duplicates import KEY_BYTES, BandKeys
from .occurrences import later_occurrences, rows_of_unit, write_keys
from .reading import read_corpus
from .report import DUPLICATES, NEAR_DUPLICATES, CorpusReport, Tally
from .signatures import SIGNATURE_BYTES
from .units import Unit
from .words import Segmenter, jieba_words

BATCH = 1000  # documents: of a call of the rules, and of a row group
SIGNATURES, BANDS = "signatures", "bands"
KINDS = {SIGNATURES: DUPLICATES, BANDS: NEAR_DUPLICATES}
"""Kind of key -> why a document is dropped whose key came before."""
SENTENCES = pa.schema({"sentences": pa.list_(pa.string())})
SPAN = pa.struct({"start": pa.int32(), "end": pa.int32(), "kind": pa.string()})

JIEBA, CHARACTERS = "jieba", "characters"
SEGMENTERS: dict[str, Segmenter] = {JIEBA: jieba_words, CHARACTERS: list}
PARQUET, JSON_LINES = "parquet", "jsonl"
OUTPUT_FORMATS = (PARQUET, JSON_LINES)


@dataclasses.dataclass(frozen=True)
class Job:
    """What every process knows: where, what and how.

    Attributes:
        work: The folder of a run that is not finished.
        units: All units.
        settings: How, as in [`CorpusArguments`]: what changes the files.
    """

    work: Path
    units: tuple[Unit, ...]
    settings: dict[str, Any]

    def file(self, stage: str, number: int, end: str) -> Path:
        """A file of a stage."""
        return self.work / stage / f"{number:05d}.{end}"

    def output(self, number: int) -> Path:
        """What a unit becomes."""
        return self.work / f"corpus-{number:05d}.{self.settings['output_format']}"

    @property
    def kinds(self) -> list[str]:
        """Which keys documents have."""
        return [SIGNATURES, BANDS] if self.settings["near_duplicates"] is not None else [SIGNATURES]

    @property
    def segmenter(self) -> Segmenter:
        """What cuts Chinese text."""
        return SEGMENTERS[self.settings["segmenter"]]


def clean_unit(job: Job, number: int) -> int:
    """Stage 1: reads a unit, cleans its documents, keeps their sentences and keys. Returns the number of its bytes."""
    unit, report_file = job.units[number], job.file("cleaned", number, "json")
    if report_file.exists():
        return unit.size
    settings = job.settings
    clean = CleanDocuments(job.segmenter, settings["min_words"])
    bands = None
    if settings["near_duplicates"] is not None:
        bands = BandKeys(settings["near_duplicates"], shingle_size=settings["shingle_size"])
    reading = {name: settings[name] for name in ("column", "sample_by", "unreadable")}
    report, signatures, band_keys = CorpusReport(), [], []
    with (
        writing(job.file("cleaned", number, "parquet")) as temporary,
        pq.ParquetWriter(temporary, SENTENCES, compression="zstd") as file,
    ):
        for rows in read_corpus(unit.paths, **reading).iter(batch_size=BATCH):
            texts = [text for text in rows["text"] if text is not None]
            cleaned = clean({"text": texts})
            unreadable = CorpusReport(unreadable=len(rows["text"]) - len(texts))
            report += CorpusReport.from_counts(cleaned["counts"]) + unreadable
            sentences = [one for one in cleaned["sentences"] if one]
            signatures += [one for one in cleaned["signature"] if one is not None]
            if bands is not None:
                band_keys.append(bands([text for text in cleaned["text"] if text]))
            file.write_table(pa.table([sentences], schema=SENTENCES))
    keys = np.frombuffer(b"".join(signatures), dtype=f"S{SIGNATURE_BYTES}").reshape(len(signatures), 1)
    write_keys(job.work / "keys", SIGNATURES, number, keys)
    if bands is not None:
        none = np.empty((0, len(bands.ranges)), dtype=f"S{KEY_BYTES}")
        write_keys(job.work / "keys", BANDS, number, np.concatenate([none, *band_keys]))
    counts = {SIGNATURES: keys.size, BANDS: sum(one.size for one in band_keys)}
    write_json(report_file, {"report": report.to_json(), "keys": counts})
    return unit.size


def find_duplicates(job: Job, partition: int, kind: str, partitions: int) -> int:
    """Stage 2: of a part of the range of all keys, the places that came later. Returns 1, the part."""
    path = job.file(kind, partition, f"of-{partitions:05d}.npy")
    if not path.exists():
        places = later_occurrences(job.work / "keys", kind, len(job.units), partition, partitions)
        with writing(path) as temporary, temporary.open("wb") as file:
            np.save(file, places)
    return 1


def write_unit(job: Job, number: int) -> int:
    """Stage 3: writes what is left of a unit, and counts it. Returns 1, the unit."""
    report_file, cleaned = job.file("written", number, "json"), job.file("cleaned", number, "parquet")
    if not report_file.exists():
        report, why = CorpusReport(), _dropped_rows(job, number)
        is_empty = True
        with writing(job.output(number)) as temporary, _CorpusFile(temporary, job.settings) as write:
            for kept, dropped in _sorted_out(cleaned, why):
                is_empty = is_empty and not kept
                write(kept, job.segmenter)
                for reason, tally in dropped:
                    report = report.with_dropped(reason, tally)
        if is_empty:
            job.output(number).unlink()
        write_json(report_file, report.to_json())
    cleaned.unlink(missing_ok=True)
    return 1


def _dropped_rows(job: Job, number: int) -> dict[int, str]:
    """Row -> why it is dropped; of two reasons the first."""
    dropped: dict[int, str] = {}
    for kind in reversed(job.kinds):
        files = sorted((job.work / kind).glob("*.npy"))
        dropped |= dict.fromkeys(rows_of_unit(files, number).tolist(), KINDS[kind])
    return dropped


def _sorted_out(cleaned: Path, why: dict[int, str]) -> Iterator[tuple[list[list[str]], list[tuple[str, Tally]]]]:
    """Batches of documents that are kept, and what the others cost."""
    numbers = itertools.count()
    with pq.ParquetFile(cleaned) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            rows = list(zip(numbers, batch.column(0).to_pylist(), strict=False))
            kept = [sentences for row, sentences in rows if row not in why]
            yield kept, [(why[row], Tally.of(sentences)) for row, sentences in rows if row in why]


class _CorpusFile:
    """Writes documents with the columns `text`, `sentences` and, if asked for, `spans`."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.has_spans = settings["word_spans"]
        columns = {"text": pa.string(), "sentences": pa.list_(pa.string())}
        self.schema = pa.schema(columns | ({"spans": pa.list_(SPAN)} if self.has_spans else {}))
        self.parquet = self.lines = None
        if settings["output_format"] == PARQUET:
            self.parquet = pq.ParquetWriter(path, self.schema, compression="zstd")
        else:
            self.lines = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> "_CorpusFile":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.parquet, self.lines):
            if file is not None:
                file.close()

    def __call__(self, documents: list[list[str]], segmenter: Segmenter) -> None:
        columns: dict[str, list[Any]] = {"text": ["".join(one) for one in documents], "sentences": documents}
        if self.has_spans:
            columns |= WordSpans(segmenter)(columns)
        if self.parquet is not None and documents:
            self.parquet.write_table(pa.table(columns, schema=self.schema))
        elif self.lines is not None:
            for row in zip(*columns.values(), strict=True):
                self.lines.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def unit_report(job: Job, number: int) -> CorpusReport:
    """What a finished unit counted."""
    read = CorpusReport.from_json(read_json(job.file("cleaned", number, "json"))["report"])
    return read + CorpusReport.from_json(read_json(job.file("written", number, "json")))


__all__ = [
    "CHARACTERS",
    "JIEBA",
    "JSON_LINES",
    "OUTPUT_FORMATS",
    "PARQUET",
    "SEGMENTERS",
    "Job",
    "clean_unit",
    "find_duplicates",
    "unit_report",
    "write_unit",
]
