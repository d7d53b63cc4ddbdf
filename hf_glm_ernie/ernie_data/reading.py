"""The documents of an export, each checked: a problem is told with its file, its line or task, and its annotation."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from . import doccano, label_studio
from .arguments import EXTRACTION, LabelDataArguments
from .documents import AnnotationError, ClassifiedText, Document, Entity, Relation
from .export_file import LABEL_STUDIO, read_records
from .options import known_labels
from .spool import encode
from .uie_rows import Rules, check_document

MOST_PROBLEMS = 20

UNLABELLED = "not labelled or cancelled, and left out"
UNKNOWN = "with classes that are no option, which are left out"


def read_documents(
    export: Path, form: str, arguments: LabelDataArguments, rules: Rules | None, notes: Counter[str]
) -> Iterator[tuple[int, Document | ClassifiedText]]:
    """The documents of a file, in order, each with its number among the records of the file, from 0.

    Args:
        export: The file.
        form: The tool that wrote it.
        arguments: The task, and what is left out.
        rules: What classes are held against; `None`: they may be anything.
        notes: What is not used, counted by documents.

    Raises:
        AnnotationError: at the end of the file, or at the twentieth problem: all of them.
        ValueError: there is no document.
        OSError: the file cannot be read.
    """
    problems: list[str] = []
    is_empty = True
    for number, (where, record) in enumerate(_records(export, form, arguments.progress)):
        try:
            if isinstance(record, AnnotationError):
                raise record
            if form == LABEL_STUDIO and arguments.skip_unlabelled and not label_studio.is_labelled(record):
                notes[UNLABELLED] += 1
                continue
            document = _document(record, form, arguments)
            if rules and _has_unknown(document, rules):
                notes[UNKNOWN] += 1
        except AnnotationError as error:
            problems.append(f"{where}: {error}" if where else str(error))
            if len(problems) == MOST_PROBLEMS:
                break
            continue
        notes.update(document.notes)
        is_empty = False
        yield number, document
    if problems:
        more = f" (the first {MOST_PROBLEMS} problems)" if len(problems) == MOST_PROBLEMS else ""
        raise AnnotationError(f"{export}: nothing was written{more}\n  " + "\n  ".join(problems))
    if is_empty:
        raise ValueError(f"{export} holds no document{' that is labelled' if notes[UNLABELLED] else ''}")


def packed(document: Document | ClassifiedText) -> bytes:
    """A document as a line, without its notes."""
    content: list[Any] = [document.text]
    if isinstance(document, ClassifiedText):
        content.append(list(document.labels))
    else:
        content.append([[one.id, one.start, one.end, one.label] for one in document.entities])
        content.append([[one.subject, one.object, one.predicate] for one in document.relations])
    return encode(content).encode()


def unpacked(line: bytes) -> Any:
    """The document of a line of [`packed`]."""
    text, *rest = json.loads(line)
    if len(rest) == 1:
        return ClassifiedText(text, rest[0])
    return Document(text, [Entity(*one) for one in rest[0]], [Relation(*one) for one in rest[1]])


def _records(export: Path, form: str, progress: bool) -> Iterator[tuple[str, Any]]:
    """Every record with its place; what ends the reading early comes last, as an error without one."""
    size = export.stat().st_size
    with tqdm(total=size, desc="Reading", unit="B", unit_scale=True, delay=1, disable=not progress) as bar:
        try:
            yield from read_records(export, form, bar.update)
        except AnnotationError as error:
            yield "", error


def _document(record: Any, form: str, arguments: LabelDataArguments) -> Document | ClassifiedText:
    if arguments.task != EXTRACTION:
        return (label_studio if form == LABEL_STUDIO else doccano).read_classified(record)
    if form == LABEL_STUDIO:
        return label_studio.read_document(record, arguments.default_relation)
    return doccano.read_document(record)


def _has_unknown(document: Document | ClassifiedText, rules: Rules) -> bool:
    """Whether a class is no option.

    Raises:
        AnnotationError: one is, and that is an error.
    """
    if isinstance(document, Document):
        return check_document(document, rules)
    return len(known_labels(document.labels, rules.options, "the text", rules.unknown_options)) < len(document.labels)
