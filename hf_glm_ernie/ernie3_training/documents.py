"""Document language modelling: long texts as consecutive segments whose memory is carried along.

A document is `[CLS] text [END]` (the 10B's rows start with `[CLS]` and have no `[SEP]`). It is cut into segments of
one length; row r of a batch goes on where row r of the batch before stopped, and `memory_reset` marks the rows that
begin another document. No token can see another document, neither through attention nor through the memory: either no
document begins inside a segment, and the rest of a document's last segment is padding, or, with `packing`, the next
documents follow in the same row, and `document_ids` say which token belongs to which.

Every token but `[CLS]` is predicted exactly once, also one that opens a segment: where a document goes on, the row has
one more column behind the segment's tokens. It holds the token that comes next, with the attention mask 0: a label for
the segment's last token, but nothing that is read, remembered or counted. (The model shifts labels itself, so without
that column one prediction per segment would be lost.)

Source: P10, section 3.2.3; recurrence as in ERNIE-Doc (arXiv 2012.15688).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM
from hf_glm_ernie.inference.token_ids import special_id, text_ids

from .builders import checked_text
from .collator import collate_rows
from .packing import OpenDocument, document_row
from .sources import Drawn, Source, source_of
from .streams import BatchReader, Shard, ShardedStream


def document_ids(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    """`[CLS] text [END]`.

    Args:
        tokenizer: A tokenizer of transformers.
        row: Has the column `text`.

    Raises:
        ValueError: the text is missing or empty, or the tokenizer has no `[CLS]` or `[END]`.
    """
    cls = special_id(tokenizer, "cls")
    end = special_id(tokenizer, "eos")
    return [cls, *text_ids(tokenizer, checked_text(row, "text")), end]


class DocumentTokens:
    """A map function for `datasets`, `batched=True`: column `text` to column `input_ids`, `[CLS] text [END]`.

    Args:
        tokenizer: A tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns in, columns out.

        Raises:
            ValueError: an empty text.
        """
        return {"input_ids": [document_ids(self.tokenizer, {"text": text}) for text in rows["text"]]}


class DocumentReader:
    """Cuts the documents of one shard into segments, for any number of rows side by side.

    Every epoch reads all documents in an order of its own. A row that is through with its document takes the next one
    that nobody has read.

    Args:
        documents: Where they come from: rows with `input_ids`, or with `text` where a tokenizer is given.
        tokenizer: Makes ids of texts; `None` for documents that have ids.
        packing: Whether documents share rows.
    """

    def __init__(self, documents: Source, tokenizer: Any | None, packing: bool = False) -> None:
        self.documents, self.tokenizer, self.packing = documents, tokenizer, packing
        self._open: dict[int, OpenDocument] = {}  # of each row that is inside a document

    def read(self, rows: int, length: int) -> list[dict[str, Any]]:
        """The next segment of each row.

        Args:
            rows: How many rows; those beyond wait where they are.
            length: Columns of a row at most, at least 2. A segment whose document goes on has one token less.

        Returns:
            For each row that still has something to read what [`document_row`] makes, and `stream_ids` (the row).

        Raises:
            ValueError: a document without tokens, or a length below 2.
        """
        segments = []
        for row in range(rows):
            segment, still_open = document_row(self._open.pop(row, None), self._following(), length, self.packing)
            if segment is not None:
                segments.append(segment | {"stream_ids": row})
            if still_open is not None:
                self._open[row] = still_open
        return segments

    def state_dict(self) -> dict[str, Any]:
        """Where each row is: of documents that can be read again their place, of others what is left of them."""
        rows = {}
        for row, document in self._open.items():
            known: dict[str, Any] = {"start": document.start, "place": document.place}
            if not self.documents.is_random_access(document.place):
                known["ids"] = [int(id_) for id_ in document.ids]
            rows[str(row)] = known
        return {"documents": self.documents.state_dict(), "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state says."""
        self.documents.load_state_dict(state["documents"])
        self._open = {}
        for row, known in state["rows"].items():
            place = known["place"]
            ids = known["ids"] if "ids" in known else self._ids(self.documents.row_at(place), place)
            self._open[int(row)] = OpenDocument(ids, known["start"], place)

    def _following(self) -> Iterator[OpenDocument]:
        for drawn in iter(self._drawn, None):
            yield OpenDocument(self._ids(drawn.row, drawn.place), 0, drawn.place)

    def _drawn(self) -> Drawn | None:
        try:
            return next(self.documents)
        except StopIteration:
            return None

    def _ids(self, document: Any, at: int) -> list[int]:
        try:
            if "input_ids" in document:
                if len(document["input_ids"]) == 0:
                    raise ValueError("input_ids is empty; leave the document out.")
                return list(document["input_ids"])
            if self.tokenizer is None:
                raise ValueError(f"no input_ids but {sorted(document)}, and no tokenizer was given to make them.")
            return document_ids(self.tokenizer, document)
        except ValueError as error:
            raise ValueError(f"{DOCUMENT_LM}, document {at}: {error}") from error


class DocumentStreams(ShardedStream):
    """Batches of document language modelling for one rank: as many documents side by side as there are rows.

    The rows of a batch go on in this worker's next batch; `stream_ids` says which row of which worker each is, so that
    whoever trains keeps the memories apart ([`MemoryBank`]). Arguments: those of [`ShardedStream`], and:

    Args:
        documents: Rows with `input_ids` ([`DocumentTokens`] makes them) or with `text`: any sequence, a
            `datasets.IterableDataset`, or [`WeightedSources`].
        tokenizer: For documents with `text`, and for its pad id.
        rows: Rows per batch, or a function of the batch's number.
        length: Columns per row at most, or a function of the batch's number.
        epochs: How often all documents are read; `None`: without end. Towards an end rows run out one by one.
        pad_to_multiple_of: Rows are padded up to a multiple of this.
        packing: Whether documents share rows. Then next to no column is padding, whatever their lengths; the model
            must take `document_ids`.

    Yields:
        `input_ids`, `attention_mask`, `labels` (B, T) int64, `memory_reset` (B,) bool, `stream_ids` (B,) int64, and
        with `packing` `document_ids` (B, T) int64.

    Raises:
        ValueError: fewer documents than shards, an empty document, rows below 1 or a length below 2.
    """

    def __init__(
        self,
        documents: Any,
        tokenizer: Any,
        *,
        rows: int | Callable[[int], int] = 8,
        length: int | Callable[[int], int] = 512,
        epochs: int | None = None,
        pad_to_multiple_of: int | None = None,
        packing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.documents, self.tokenizer, self.packing = documents, tokenizer, packing
        self.rows, self.length, self.epochs = rows, length, epochs
        self.pad_to_multiple_of = pad_to_multiple_of

    def reader(self, shard: Shard) -> "_StreamsReader":
        """Reads one shard, from its beginning."""
        return _StreamsReader(self, shard)


class _StreamsReader(BatchReader):
    def __init__(self, streams: DocumentStreams, shard: Shard) -> None:
        self.streams, self.shard = streams, shard
        source = source_of(
            streams.documents,
            shard,
            seed=streams.seed,
            task=DOCUMENT_LM,
            shuffle_buffer_size=streams.shuffle_buffer_size,
            epochs=streams.epochs,
        )
        self.segments = DocumentReader(source, streams.tokenizer, streams.packing)

    def read(self, number: int) -> dict[str, Any] | None:
        streams = self.streams
        rows, length = _at(streams.rows, number, "rows"), _at(streams.length, number, "length")
        segments = stream_segments(self.segments.read(rows, length), self.shard)
        pad = special_id(streams.tokenizer, "pad")
        return collate_rows(segments, pad, streams.pad_to_multiple_of) if segments else None

    def state_dict(self) -> dict[str, Any]:
        return self.segments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.segments.load_state_dict(state)


def stream_segments(segments: list[dict[str, Any]], shard: Shard) -> list[dict[str, Any]]:
    """Segments with `stream_ids` that no other worker of the rank uses, however many rows there come to be."""
    return [segment | {"stream_ids": segment["stream_ids"] * shard.workers + shard.worker} for segment in segments]


def _at(setting: int | Callable[[int], int], number: int, name: str) -> int:
    value = setting(number) if callable(setting) else setting
    if value < 1:
        raise ValueError(f"{name}={value} at batch {number} must be at least 1.")
    return value


__all__ = ["DocumentReader", "DocumentStreams", "DocumentTokens", "document_ids", "stream_segments"]
