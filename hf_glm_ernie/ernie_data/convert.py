"""From an export to the files that training and evaluation read.

    export -> checked documents, spooled -> dealt into splits -> rows, spooled by part -> train.txt, dev.txt, test.txt

Every annotation is checked before the first row is made, and every row is made before the first file appears. What is
in memory does not grow with the texts: 24 bytes a document, 16 a row, and what the corpus has together (labels and
names of entities, for negative sampling).
"""

import json
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .arguments import CLASSIFICATION, DOCCANO_LINES, EXTRACTION, UTC, LabelDataArguments
from .export_file import DOCCANO, LABEL_STUDIO, format_of
from .label_studio import to_doccano
from .options import Row, ShuffledOptions
from .reading import packed, read_documents, unpacked
from .splits import SPLITS, TRAIN, check_splits, deal
from .spool import Spool, encode, publish, refuse_existing, work_folder
from .uie_rows import Part, class_rows, extraction_parts
from .utc_rows import utc_rows

INDEX = "sample_index.json"
ROW_FILES = {split: f"{split}.txt" for split in SPLITS}
PASSES = {EXTRACTION: 3, CLASSIFICATION: 1, UTC: 1}
"""How often the documents of a split are run over."""


@dataclass
class WrittenFile:
    """A file of rows.

    Attributes:
        documents: Annotated texts behind it.
        rows: Lines of the file.
        negatives: Rows without an answer.
    """

    documents: int = 0
    rows: int = 0
    negatives: int = 0


@dataclass
class LabelDataReport:
    """What a conversion did.

    Attributes:
        output: The folder.
        files: Name -> what is in it.
        notes: What was there and is not used -> number of documents.
    """

    output: Path
    files: dict[str, WrittenFile] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """A table, and the notes."""
        width = max(map(len, self.files))
        lines = [f"{'':{width}}  documents      rows  negative"]
        for name, one in self.files.items():
            lines.append(f"{name:{width}}  {one.documents:9,}  {one.rows:8,}  {one.negatives:8,}")
        for what, count in self.notes.items():
            lines.append(f"note: {count:,} {'document' if count == 1 else 'documents'} {what}")
        return "\n".join(lines)


class Documents:
    """Spooled documents of one split: can be run over many times, and holds none.

    Args:
        spool: All documents.
        numbers: Those of the split, in its order.
        on_document: Called behind each.
    """

    def __init__(self, spool: Spool, numbers: np.ndarray, on_document: Callable[[], object]):
        self._spool, self._numbers, self._on_document = spool, numbers, on_document

    def __iter__(self) -> Iterator[Any]:
        for number in self._numbers:
            yield unpacked(self._spool[number])
            self._on_document()


def label_data(export: Path | str, output: Path | str, arguments: LabelDataArguments | None = None) -> LabelDataReport:
    """Converts an export and writes `train.txt`, `dev.txt`, `test.txt` (JSON, a row a line) and `sample_index.json`.

    The index has the numbers, from 0, of the export's records. Without splits `train.txt` alone is written, as the
    original does. With `write="doccano"` the one file is
    `doccano_ext.jsonl` or `doccano_cls.jsonl`.

    Args:
        export: doccano's JSONL or Label Studio's JSON.
        output: A folder. Other files in it are left alone.
        arguments: How (default: PaddleNLP's defaults).

    Raises:
        AnnotationError: annotations that cannot be used; each of the first twenty with its line or task, and what is
            wrong. No file appears.
        ValueError: an empty export; arguments that do not go with it; files that are there and not to be replaced.
        OSError: a file cannot be read or written.
    """
    arguments, export, output = arguments or LabelDataArguments(), Path(export), Path(output)
    form = format_of(export) if arguments.export_format == "auto" else arguments.export_format
    to_lines = arguments.write == DOCCANO_LINES
    if to_lines and form == DOCCANO:
        raise ValueError(f"{export} is doccano's already: write='doccano' converts an export of Label Studio")
    possible = [f"doccano_{arguments.task}.jsonl"] if to_lines else [*ROW_FILES.values(), INDEX]
    refuse_existing(output, possible, arguments.overwrite)
    if export.resolve() in {(output / name).resolve() for name in possible}:
        raise ValueError(f"{export} would be replaced by what is made from it: give another folder")
    report = LabelDataReport(output)
    write = _write_lines if to_lines else _write_rows
    with work_folder(output) as work:
        publish(work, output, write(export, work, form, arguments, report), possible)
    return report


def _write_lines(
    export: Path, work: Path, form: str, arguments: LabelDataArguments, report: LabelDataReport
) -> list[str]:
    """Label Studio's tasks in doccano's form. Returns the names of the files."""
    name = f"doccano_{arguments.task}.jsonl"
    counts = report.files[name] = WrittenFile()
    with (work / name).open("wb") as file:
        documents = read_documents(export, form, arguments, None, report.notes)
        for line in to_doccano(document for _, document in documents):
            file.write(_line(line))
            counts.documents += 1
            counts.rows += 1
    return [name]


def _write_rows(
    export: Path, work: Path, form: str, arguments: LabelDataArguments, report: LabelDataReport
) -> list[str]:
    """The rows of every split and the index. Returns the names of the files."""
    rules = arguments.rules(form)
    with closing(Spool(work / "documents")) as documents:
        places = array("Q")
        for place, document in read_documents(export, form, arguments, rules, report.notes):
            documents.add(packed(document))
            places.append(place)
        documents.finish()
        draws = np.random.RandomState(arguments.seed)
        splits = check_splits(arguments.splits)
        dealt = deal(len(documents), splits, arguments.shuffle, draws)
        make_rows = RowMaker(arguments, form)
        for split, numbers in dealt.items():
            total = PASSES[arguments.task] * len(numbers)
            hidden = not arguments.progress
            with tqdm(total=total, desc=ROW_FILES[split], unit="text", delay=1, disable=hidden) as bar:
                rows = make_rows(Documents(documents, numbers, bar.update), split)
                permuted = draws if make_rows.is_permuted(split) else None
                report.files[ROW_FILES[split]] = _write_parts(work, split, rows, len(numbers), permuted)
    if not splits:
        return [ROW_FILES[TRAIN]]
    index = {f"{split}_ids": [places[number] for number in numbers] for split, numbers in dealt.items()}
    (work / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return [*report.files, INDEX]


class RowMaker:
    """The rows of one split after another; random numbers and the order of the options go on from split to split.

    Args:
        arguments: Of the conversion.
        form: The tool that wrote the export.
    """

    def __init__(self, arguments: LabelDataArguments, form: str):
        self._arguments, self._form = arguments, form
        self._rules = {is_train: arguments.rules(form, is_train) for is_train in (True, False)}
        self._generator = random.Random(arguments.seed)
        self._options: ShuffledOptions | None = None
        if arguments.task != UTC:
            self._options = ShuffledOptions(self._rules[True].options, self._generator)

    def __call__(self, documents: Iterable[Any], split: str) -> Iterator[tuple[Part, Row]]:
        """Streams the rows of a split, each with its part."""
        is_train = split == TRAIN
        rules = self._rules[is_train]
        if self._options is None:
            separator = self._arguments.text_separator
            rows = utc_rows(documents, rules.options, separator, rules.unknown_options)
        elif self._arguments.task == CLASSIFICATION:
            rows = class_rows(documents, rules, self._options)
        else:
            return extraction_parts(documents, rules, self._generator, self._options, is_train)
        return ((Part.CLASSES, row) for row in rows)

    def is_permuted(self, split: str) -> bool:
        """Whether the rows of a split are put into a random order: as the original's doccano script does."""
        mine = self._arguments
        rows_too = mine.task == EXTRACTION or (mine.task == CLASSIFICATION and not len(mine.splits))
        return mine.shuffle and split == TRAIN and self._form != LABEL_STUDIO and rows_too


def _write_parts(
    work: Path, split: str, rows: Iterator[tuple[Part, Row]], documents: int, permuted: np.random.RandomState | None
) -> WrittenFile:
    """Writes the rows of a split, part after part, or in a random order."""
    counts = WrittenFile(documents)
    with ExitStack() as stack:
        parts = [stack.enter_context(closing(Spool(work / f"{split}-{part.name}"))) for part in Part]
        for part, row in rows:
            parts[part].add(_line(row))
            counts.negatives += not row.get("result_list", row.get("labels"))
        for one in parts:
            one.finish()
        ends = np.cumsum([len(one) for one in parts])
        counts.rows = int(ends[-1])
        with (work / ROW_FILES[split]).open("wb") as file:
            if permuted is None:
                for one in parts:
                    one.copy_to(file)
                return counts
            for number in permuted.permutation(counts.rows):
                place = int(np.searchsorted(ends, number, side="right"))
                file.write(parts[place][int(number - ends[place] + len(parts[place]))])
    return counts


def _line(row: Row) -> bytes:
    return encode(row).encode() + b"\n"
