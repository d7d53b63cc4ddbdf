"""Documents of files as a stream of `datasets`: JSON lines, parquet and plain text, compressed or not, here or remote.

`datasets` has readers of its own for all of these, but they say neither in which line of which file a broken record
stands, nor can they leave it out. So files are opened with fsspec, as `datasets` does it, and read a record at a time;
what is made is a `datasets.IterableDataset` with the files as its shards, which `map`, `filter`, `shuffle` and
`split_dataset_by_node` take like any other.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
from datasets import Features, IterableDataset, Value

LINES, PARAGRAPHS, WHOLE = "line", "paragraph", "document"
SAMPLE_BY = (LINES, PARAGRAPHS, WHOLE)

JSON_LINES, PARQUET, TEXT = "jsonl", "parquet", "txt"
FORMATS = {".jsonl": JSON_LINES, ".json": JSON_LINES, ".parquet": PARQUET, ".txt": TEXT}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ERROR, SKIP = "error", "skip"
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pyarrow.ArrowInvalid)
"""What compressed files and parquet raise when they break off or are something else."""
FEATURES = Features({"text": Value("string"), "unreadable": Value("string")})


class UnreadableRecord(ValueError):
    """A line or row that is no document; the message has its file and number."""


def format_of(file: str) -> str:
    """The format of a file, by the end of its name.

    Raises:
        ValueError: an end that is not known.
    """
    name = file.lower()
    for end in COMPRESSIONS:
        name = name.removesuffix(end)
    for end, form in FORMATS.items():
        if name.endswith(end) and not (form == PARQUET and name != file.lower()):
            return form
    raise ValueError(
        f"{file}: the name must end in one of {', '.join(FORMATS)}, and may end in one of {', '.join(COMPRESSIONS)} "
        "behind it (but for parquet, which is compressed inside)."
    )


def read_corpus(
    files: Sequence[str], *, column: str = "text", sample_by: str = LINES, unreadable: str = ERROR
) -> IterableDataset:
    """The documents of files, in order.

    Args:
        files: Paths or addresses that fsspec opens: `.jsonl`, `.json` (an object a line), `.txt`, each also `.gz`,
            `.bz2`, `.xz` or `.zst`; `.parquet`.
        column: Where JSON lines and parquet have the text.
        sample_by: What a document is in `.txt`, as in `datasets`: a "line", a "paragraph" (blank lines between them),
            or the whole "document". Blank ones are left out.
        unreadable: "error", or "skip": a line that is no JSON object, has no text or is no UTF-8 gives a row without
            text. A file that cannot be opened or that breaks off is always an error.

    Returns:
        A stream with the columns `text`, and `unreadable`: why there is no text, else `None`.

    Raises:
        ValueError: no file, or one of an unknown kind; while reading, with "error": [`UnreadableRecord`].
    """
    if not files:
        raise ValueError("No files were given.")
    if sample_by not in SAMPLE_BY:
        raise ValueError(f"sample_by={sample_by!r} must be one of {list(SAMPLE_BY)}.")
    if unreadable not in (ERROR, SKIP):
        raise ValueError(f"unreadable={unreadable!r} must be {ERROR!r} or {SKIP!r}.")
    for file in files:
        format_of(file)
    options = {"column": column, "sample_by": sample_by, "unreadable": unreadable}
    return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs={"files": list(files), **options})


def _rows(files: Sequence[str], column: str, sample_by: str, unreadable: str) -> Iterator[dict[str, str | None]]:
    for file in files:
        for text in read_file(file, column, sample_by):
            if isinstance(text, UnreadableRecord):
                if unreadable == ERROR:
                    raise text
                yield {"text": None, "unreadable": str(text)}
            else:
                yield {"text": text, "unreadable": None}


def read_file(file: str, column: str, sample_by: str) -> Iterator[str | UnreadableRecord]:
    """The documents of one file, and in place of those that cannot be read what is wrong with them.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be opened or read.
    """
    form, number = format_of(file), 0
    try:
        with fsspec.open(file, "rb", compression=None if form == PARQUET else "infer") as opened:
            for number, text in _records(opened, form, column, sample_by):
                yield text if isinstance(text, str) else UnreadableRecord(f"{file}, {_place(form, number)}: {text[0]}")
    except DAMAGE as error:
        raise ValueError(f"{file} is damaged behind {_place(form, number)}: {error}") from error


def _place(form: str, number: int) -> str:
    return f"{'row' if form == PARQUET else 'line'} {number}"


def _records(opened: Any, form: str, column: str, sample_by: str) -> Iterator[tuple[int, str | tuple[str]]]:
    """Numbers from 1, and texts or, in tuples, what is wrong."""
    if form == PARQUET:
        yield from _parquet_rows(opened, column)
        return
    lines = enumerate(io.BufferedReader(opened) if isinstance(opened, io.RawIOBase) else opened, start=1)
    if form == JSON_LINES:
        yield from ((number, _json_text(line, column)) for number, line in lines if line.strip())
    elif sample_by == LINES:
        yield from ((number, _decoded(line)) for number, line in lines if line.strip())
    else:
        yield from ((number, _decoded(block)) for number, block in _blocks(lines, sample_by) if block.strip())


def _blocks(lines: Iterator[tuple[int, bytes]], sample_by: str) -> Iterator[tuple[int, bytes]]:
    """Lines put together: up to a blank one, or all; each with the number of its first line."""
    block: list[bytes] = []
    first = 1
    for number, line in lines:
        if sample_by == PARAGRAPHS and not line.strip():
            yield first, b"".join(block)
            block, first = [], number + 1
        else:
            block.append(line)
    yield first, b"".join(block)


def _parquet_rows(opened: Any, column: str) -> Iterator[tuple[int, str | tuple[str]]]:
    file = pyarrow.parquet.ParquetFile(opened)
    if column not in file.schema_arrow.names:
        raise ValueError(f"{opened.name}: no column {column!r} but {file.schema_arrow.names}; name one with --column.")
    number = 0
    for batch in file.iter_batches(batch_size=1000, columns=[column]):
        for value in batch.column(0):
            number += 1
            try:
                yield number, _checked(value.as_py(), column)
            except UnicodeDecodeError as error:
                yield number, (f"{column!r} is no UTF-8: {error}",)


def _json_text(line: bytes, column: str) -> str | tuple[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # of the syntax, the encoding, or brackets without end
        return (f"no JSON: {error}",)
    if not isinstance(record, dict):
        return (f"{_short(record)} is no JSON object",)
    if column not in record:
        return (f"no {column!r} but {sorted(record)}; name the text's key with --column",)
    return _checked(record[column], column)


def _decoded(line: bytes) -> str | tuple[str]:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return (f"no UTF-8: {error}",)


def _checked(value: Any, column: str) -> str | tuple[str]:
    if not isinstance(value, str):
        return (f"{column!r} is {_short(value)}: a text is needed",)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can say half of a surrogate pair
        return (f"{column!r} is no Unicode text: {error}",)
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["COMPRESSIONS", "FORMATS", "SAMPLE_BY", "UnreadableRecord", "format_of", "read_corpus", "read_file"]
