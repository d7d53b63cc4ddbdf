"""Objects of a store as a source: read in ranges, several at a time, and known again by what the store tells of them.

A range that fails is asked for again, and so is one that comes back short. Two signs tell that an object is another
than the one that was planned from: the store's marks (an ETag, a time), which nobody sets back, looked at every few
seconds and before anything is published; and a sample of the content. s3 and web servers with ETags are asked for a
range of the object with that ETag and of no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fsspec.spec import AbstractBufferedFile

from .byte_source import ByteSource, SourceChangedError
from .operations import CheckpointError
from .places import Place, VirtualPath
from .store import HTTP, HUB, HUB_ROOT, PLAIN, ObjectState, Store, StoreError, is_url, retried, without_secrets

LARGEST_RANGE, SMALLEST_RANGE = 4 * 2**20, 2**19
"""Bytes of one request: a stretch is cut into `RANGES` unless the pieces would be smaller or larger."""

RANGES = 8
Fetch = Callable[[int, int], bytes]
"""(first byte, byte behind the last) -> what the store sends of an object."""


class _ShortError(OSError):
    """Fewer bytes came than were asked for."""


class ObjectPath(VirtualPath):
    """A name in a store.

    Args:
        store: The store.
        inside: The name, of which there may be nothing.
    """

    def __init__(self, store: Store, inside: PurePosixPath) -> None:
        super().__init__(inside)
        self.store = store

    @classmethod
    def of(cls, url: str) -> ObjectPath:
        """What a URL names.

        Raises:
            StoreError: it is of no form that a store has.
        """
        root, inside = _split(url.rstrip("/"))
        if ".." in inside.split("/") or "\0" in url:
            raise StoreError(f"{without_secrets(url)!r}: no name in a store.")
        return cls(Store(root), PurePosixPath(inside))

    @property
    def key(self) -> str:
        """The name as the store has it."""
        inside = str(self.inside)
        return "" if inside == "." else inside

    def __str__(self) -> str:
        return f"{self.store}/{self.key}" if self.key else str(self.store)

    def at(self, inside: PurePosixPath) -> ObjectPath:
        """Another name in the same store."""
        return ObjectPath(self.store, inside)

    def is_dir(self) -> bool:
        """Whether objects are under it."""
        return self.store.kind(self.key) == "directory"

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self.store.kind(self.key) == "file"

    def names(self) -> Iterator[str]:
        """Of what is under it."""
        yield from self.store.names(self.key)

    def bytes(self) -> ObjectSource:
        """The bytes of an object."""
        return ObjectSource(self, self.store.state(self.key))


class ObjectSource(ByteSource):
    """An object.

    Args:
        path: Its name.
        state: What the store told of it before anything of it was read.
    """

    path: ObjectPath

    state: ObjectState

    worthwhile_gap = 2**20

    def __init__(self, path: ObjectPath, state: ObjectState) -> None:
        super().__init__(path, state)
        self._store = path.store
        self._idle: list[Fetch] = []
        self._turn = threading.Lock()

    @property
    def size(self) -> int:
        """In bytes, as it was."""
        return self.state.size

    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes from `offset` on, several ranges at a time.

        Raises:
            SourceChangedError: the object is gone or another.
            CheckpointError: it cannot be read.
        """
        step = min(max(-(-len(view) // RANGES), SMALLEST_RANGE), LARGEST_RANGE)
        self._fill([(view[start : start + step], offset + start) for start in range(0, len(view), step)])

    def read_many(self, places: Sequence[tuple[int, int]]) -> list[bytearray]:
        """Many short stretches, several at a time; raises as `read`."""
        found = [bytearray(nbytes) for _, nbytes in places]
        self._fill([(memoryview(raw), offset) for raw, (offset, _) in zip(found, places, strict=True) if raw])
        return found

    def _fill(self, ranges: Sequence[tuple[memoryview, int]]) -> None:
        try:
            if len(ranges) == 1:
                self._fill_one(*ranges[0])
            else:
                self._store.all_of([partial(self._fill_one, view, offset) for view, offset in ranges])
        except Exception as error:  # of whichever store
            if isinstance(error, CheckpointError):
                raise
            self._store.expire(self.path.key, at_once=True)
            self.look()  # what is wrong may be that it is another
            if isinstance(error, _ShortError):
                raise CheckpointError(
                    f"{self.path}: {error}. The store or the network cuts it short; run the same command again later."
                ) from error
            raise self._store.explained(error, self.path.key) from error

    def _fill_one(self, view: memoryview, offset: int) -> None:
        def request() -> None:
            fetch = self._reader()
            content = fetch(offset, offset + len(view))  # a reader that failed is not used again
            if len(content) != len(view):
                raise _ShortError(f"{len(view):,} bytes at {offset:,} were asked for, {len(content):,} came")
            view[:] = content
            with self._turn:
                self._idle.append(fetch)

        if offset + len(view) > self.size:
            raise SourceChangedError(self.path, f"it ends at byte {self.size:,}")
        retried(request)

    def _reader(self) -> Fetch:
        """A reader that nobody uses at the moment."""
        with self._turn:
            if self._idle:
                return self._idle.pop()
        url = self._store.url(self.path.key)
        marks = dict(self.state.marks)
        options: dict[str, Any] = {}
        if self._store.scheme in HTTP:
            etag = marks.get("ETag", "")
            options["headers"] = {**PLAIN, **({"If-Match": etag} if etag.startswith('"') else {})}  # W/ is no match
            options["size"] = self.size  # or it asks for it
        file = self._store.fs.open(url, "rb", cache_type="none", **options)
        if not isinstance(file, AbstractBufferedFile):  # memory's files are one and the same
            return partial(self._store.fs.cat_file, url)
        told = {mark: str(value) for mark, value in file.details.items() if mark in marks}
        if file.details["size"] != self.size or told.items() - marks.items():
            raise SourceChangedError(self.path, "it was replaced")

        def fetch(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return fetch

    def close(self) -> None:
        """Lets go of the readers."""
        with self._turn:
            self._idle.clear()

    def look(self) -> ObjectState:
        """What the store tells of the object that has the name now; all of it is as it was.

        Raises:
            SourceChangedError: it is not, or there is none.
        """
        try:
            now = self._store.state(self.path.key)
        except FileNotFoundError as error:
            raise SourceChangedError(self.path, "it is not there any more") from error
        if what := self.state.difference(now):
            raise SourceChangedError(self.path, what)
        return now

    def expire(self) -> None:
        """What the store told a moment ago counts no more."""
        self._store.expire(self.path.key)

    @property
    def tells_changes(self) -> bool:
        """Whether the store has a mark for the object."""
        return bool(self.state.marks)

    @property
    def identity(self) -> tuple[str | int, ...]:
        """URL, size, marks and sample, by which a resumed run knows the object again."""
        return str(self.path), self.state.size, repr(self.state.marks), self.sample_digest

    def will_read(self, offset: int, nbytes: int) -> None:
        """Nothing: what has gaps in between is read whole, or asked for piece by piece."""

    def forget(self, offset: int, nbytes: int) -> None:
        """Nothing: nothing of it is kept."""


def parse_place(text: str) -> Place:
    """A local path, or a name in a store.

    Raises:
        StoreError: a URL of no form that a store has.
    """
    return ObjectPath.of(text) if is_url(text) else Path(text.removeprefix("file://"))


def _split(url: str) -> tuple[str, str]:
    """What is one store of a URL (a bucket, a server, a repository), and the name in it."""
    scheme, _, rest = url.partition("://")
    if scheme == HUB:
        found = HUB_ROOT.fullmatch(rest)
        if found is None:
            raise StoreError(
                f"{url}: a repository is hf://models/OWNER/NAME, with @REVISION behind it if need be. Data sets and "
                "Spaces hold no checkpoints."
            )
        inside = found["path"] or ""
        return url[: len(url) - len(inside)].rstrip("/"), inside
    if urlsplit(url).query and scheme in HTTP:
        raise StoreError(f"{without_secrets(url).partition('?')[0]}: a URL with a `?` names no folder or file here.")
    authority, _, inside = rest.partition("/")
    return f"{scheme}://{authority}", inside


__all__ = ["ObjectPath", "ObjectSource", "parse_place"]
