"""A prefix of a store as the target of a conversion: s3, gs, az and whatever fsspec can write to.

s3 tells of an object an ETag, which for a file sent in pieces is computed from the MD5 of each, and keeps a line of
ours, its SHA-256, with it. gs tells the MD5 of what was not composed. Where a store tells nothing that can be computed
here (other stores, s3 with keys of its own) the object is read again.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback
from fsspec.core import strip_protocol

from .operations import ConversionError
from .store import file_system, without_secrets
from .store_source import ObjectPath
from .target import Target
from .writer import WriteError

PIECE_BYTES, PIECES_AT_ONCE = 16 * 2**20, 4
"""Of a file that is sent to s3: what is in memory is their product."""

MOST_PIECES = 9_000
"""s3 takes 10,000; a larger file is sent in larger pieces."""

PROBE = ".being-filled"
"""Sent first, to see whether that is allowed; removed at the end."""

S3 = ("s3", "s3a")
SHA256 = "sha256"
BLOCK_BYTES = 16 * 2**20
OBJECT_STORES = (*S3, "gs", "gcs", "az", "abfs", "abfss", "oss", "tos", "oci")
"""These have no folders, so none is made: s3fs would make a bucket."""

READ_ONLY = ("http", "https", "data", "github", "git", "zip", "tar", "reference")


class StoreTarget(Target):
    """A prefix of a store.

    Args:
        url: Of the prefix.

    Raises:
        WriteError: no prefix of a store, or one of a store that cannot be written to.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._place = ObjectPath.of(self.url)
        except ConversionError as error:
            raise WriteError(str(error)) from error
        if self.scheme in READ_ONLY:
            raise WriteError(f"{without_secrets(url)}: {self.scheme} cannot be written to. Choose another --output.")
        if not self._place.key:
            self.name = self._place.store.root.partition("://")[2]
        self.url = without_secrets(self.url)

    @cached_property
    def fs(self) -> AbstractFileSystem:
        """The file system."""
        return file_system(self._place.store.root)

    def check(self) -> None:
        """Makes sure that the store can be opened, and listed."""
        self.names()

    def prepare(self) -> None:
        """Sends a few bytes."""
        self._make_folder(self._url(PROBE))
        self.asked(lambda: self.fs.pipe_file(self._url(PROBE), b"a conversion\n"), "cannot be written to")

    def names(self) -> set[str]:
        """Objects under the prefix."""
        return {name for name, entry in self._listed().items() if name != PROBE}

    def _listed(self) -> dict[str, dict[str, Any]]:
        def request() -> dict[str, dict[str, Any]]:
            try:
                found = self.fs.find(self._url(""), detail=True)
            except FileNotFoundError:
                return {}
            base = strip_protocol(self._url("")).strip("/") + "/"
            named = ((str(name).strip("/"), entry) for name, entry in found.items())
            return {name[len(base) :]: entry for name, entry in named if name.startswith(base)}

        return self.asked(request, "its objects cannot be listed")

    def _make_folder(self, url: str) -> None:
        """Makes the folder of a name, in stores that have folders."""
        if self.scheme not in OBJECT_STORES:
            folder = url.rpartition("/")[0]
            self.asked(lambda: self.fs.makedirs(folder, exist_ok=True), f"{folder} cannot be made")

    def _url(self, name: str) -> str:
        place = self._place / name if name else self._place
        return place.store.url(place.key) if isinstance(place, ObjectPath) else ""

    def holds(self, name: str, sha256: str, path: Path | None) -> bool:
        """By what the store tells of the object, or its content; see above."""
        try:
            told = self.asked(lambda: self._told(name), f"{name} cannot be looked at")
        except WriteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise
        if path is not None:
            if told.get("size") != path.stat().st_size:
                return False
            for hash_of in (_s3_hash, _gs_hash):
                if (is_same := hash_of(told, path)) is not None:
                    return is_same
        elif told.get(SHA256) is not None:
            return bool(told[SHA256] == sha256)  # as whole as when it was looked at with the file at hand
        return self.asked(lambda: self._read_hash(name), f"{name} cannot be read again") == sha256

    def _told(self, name: str) -> dict[str, Any]:
        """What the store tells of an object; raises `FileNotFoundError`."""
        if self.scheme in S3:
            bucket, _, key = self._url(name).partition("://")[2].partition("/")
            head = self.fs.call_s3("head_object", Bucket=bucket, Key=key)
            has_key = head.get("SSECustomerAlgorithm") or "kms" in head.get("ServerSideEncryption", "")
            etag = None if has_key else head.get("ETag", "").strip('"')
            return {"size": head["ContentLength"], "etag": etag, SHA256: head.get("Metadata", {}).get(SHA256)}
        info = self.fs.info(self._url(name))
        return {**info, SHA256: (info.get("metadata") or {}).get(SHA256)}

    def _read_hash(self, name: str) -> str:
        """SHA-256 of an object, read again."""
        place = ObjectPath.of(self._url(name))
        source = place.bytes()
        digest = hashlib.sha256()
        for start in range(0, source.size, BLOCK_BYTES):
            digest.update(source.read_bytes(start, min(BLOCK_BYTES, source.size - start)))
        return digest.hexdigest()

    def send(self, path: Path, name: str, sha256: str, on_bytes: Callable[[int], object]) -> None:
        """Sends a file, in pieces where the store takes them."""
        kwargs: dict[str, Any] = {}
        if self.scheme in S3:
            kwargs = {"chunksize": piece_bytes(path.stat().st_size), "max_concurrency": PIECES_AT_ONCE}
            kwargs["Metadata"] = {SHA256: sha256}
        elif self.scheme in ("gs", "gcs"):
            kwargs = {"chunksize": PIECE_BYTES, "metadata": {SHA256: sha256}}

        def request() -> None:
            self._make_folder(self._url(name))
            self.fs.put_file(str(path), self._url(name), callback=_Counting(on_bytes), **kwargs)

        self.asked(request, f"{name} cannot be sent")
        if not self.holds(name, sha256, path):
            raise WriteError(f"{self.url}: {name} did not arrive as it was sent. Run the same command again.")

    def send_small(self, folder: Path, names: Sequence[str], sha256: dict[str, str]) -> None:
        """Sends one after the other, then removes the mark."""
        for name in names:
            if not self.holds(name, sha256[name], folder / name):
                self.send(folder / name, name, sha256[name], lambda nbytes: None)
        if PROBE in self._listed():
            self.remove([PROBE])

    def remove(self, names: Collection[str]) -> None:
        """Removes objects."""
        for name in sorted(names):
            self.asked(lambda name=name: self.fs.rm_file(self._url(name)), f"{name} cannot be removed")  # type: ignore[misc]


class _Counting(Callback):
    """Tells how much was sent."""

    def __init__(self, on_bytes: Callable[[int], object]) -> None:
        super().__init__()
        self._on_bytes = on_bytes

    def relative_update(self, inc: int = 1) -> None:
        """As fsspec calls it."""
        self._on_bytes(inc)


def piece_bytes(size: int) -> int:
    """Of the pieces in which a file is sent to s3."""
    return max(PIECE_BYTES, -(-size // MOST_PIECES))


def s3_etag(path: Path, piece: int) -> str:
    """The ETag that s3 gives a file: its MD5, or of one in pieces the MD5 of theirs and their number.

    Args:
        path: The file.
        piece: Size of a piece; a file of fewer than two is sent whole.
    """
    size = path.stat().st_size
    digests = []
    with path.open("rb") as file:
        if size < 2 * piece:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        while block := file.read(piece):
            digests.append(hashlib.md5(block, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _s3_hash(told: dict[str, Any], path: Path) -> bool | None:
    """Whether an ETag is that of a file; None where it is none that can be computed."""
    etag = told.get("etag")
    if not isinstance(etag, str) or not re.fullmatch(r"[0-9a-f]{32}(-\d+)?", etag):
        return None
    return etag == s3_etag(path, piece_bytes(path.stat().st_size))


def _gs_hash(told: dict[str, Any], path: Path) -> bool | None:
    """Whether an MD5 is that of a file; None where there is none."""
    if not isinstance(told.get("md5Hash"), str):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    return bool(told["md5Hash"] == base64.b64encode(digest).decode())


__all__ = ["PROBE", "StoreTarget", "piece_bytes", "s3_etag"]
