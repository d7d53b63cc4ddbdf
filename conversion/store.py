"""A store that is not a local disk: opened by a URL through fsspec, asked again where the network fails.

fsspec knows the stores (s3, gs, http, hf, memory, ...); what is here is what a conversion needs beside: an error that
says which package is missing, requests that are tried again after a while, several at a time, and what a store tells
of an object, asked again every few seconds and of all objects at once, because a conversion looks after each tensor.

A repository on the Hub is read at the commit that its branch names when it is opened, whatever is pushed meanwhile.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from .operations import CheckpointError, ConversionError

URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.+)", re.DOTALL)
HTTP = ("http", "https")
PLAIN = {"Accept-Encoding": "identity"}
"""Headers of every request to a web server: a part of what was compressed is of no use."""

HUB = "hf"
HUB_ROOT = re.compile(
    r"(?:models/)?(?!(?:datasets|spaces|buckets)/)(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?"
)
MARKS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "generation", "blob_id", "version_id"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "created", "updated"),
)
"""What stores tell of an object that is another when the object is; none tells all of it."""

WORKERS = 16
"""Requests at a time."""

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds before a request is made again; twice as long each time."""

FRESH_SECONDS = 10.0
"""How long what a store told of an object counts as its state; `Store.expire` ends it."""

REFUSED = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError),
    *(ConversionError, ImportError, OfflineModeIsEnabled),
    AttributeError,  # fsspec's package of a store, in another version
)
"""Errors that stay what they are, however often one asks."""

TRY_AGAIN = (408, 425, 429)
"""Statuses below 500 that say so."""

Result = TypeVar("Result")


class StoreError(ConversionError):
    """A store cannot be opened, or does not do what is asked of it. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What a store tells of an object: its size, and its marks (see `MARKS`) in order."""

    size: int
    marks: tuple[tuple[str, str], ...]

    def difference(self, now: ObjectState) -> str:
        """What is another, in words; empty where nothing is."""
        if now.size != self.size:
            return f"it had {self.size:,} bytes and has {now.size:,}"
        return "it was replaced" if now.marks != self.marks else ""


def is_url(text: str) -> bool:
    """Whether a text names a place that is not local."""
    return URL.fullmatch(text) is not None and not text.startswith("file://")


def without_secrets(url: str) -> str:
    """A URL without the user and password that some hold."""
    return re.sub(r"://[^/@]*@", "://", url)


def is_transient(error: BaseException | None) -> bool:
    """Whether a request may do when it is made again: not where the store has answered that it will not."""
    cause = error.__cause__ if error is not None else None
    if isinstance(error, FileNotFoundError) and (isinstance(cause, OSError) or hasattr(cause, "status")):
        return is_transient(cause)  # fsspec's http says so of whatever happens
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in TRY_AGAIN
    return isinstance(error, Exception) and not isinstance(error, REFUSED)


def retried(request: Callable[[], Result]) -> Result:
    """Makes a request until it does, some times, and longer after the one before each time; raises its last error."""
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except Exception as error:  # every store has errors of its own
            if attempt == ATTEMPTS or not is_transient(error):
                raise
        time.sleep(min(wait, LONGEST_WAIT))
        wait *= 2
    raise AssertionError("unreachable")


class Store:
    """A bucket, a server, a repository: everything under one URL.

    Args:
        root: The URL, without a slash at its end.

    Attributes:
        root: As given, for messages and for knowing it again.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.scheme = root.partition("://")[0].lower()
        self._told: dict[str, tuple[float, ObjectState | Exception]] = {}
        self._listed: dict[str, tuple[float, dict[str, str]]] = {}
        self._turn = threading.Lock()

    def __str__(self) -> str:
        return without_secrets(self.root)

    @cached_property
    def fs(self) -> AbstractFileSystem:
        """The file system.

        Raises:
            StoreError: its package is not installed, or it is none.
        """
        return file_system(self.root)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Where several requests run at a time."""
        return ThreadPoolExecutor(WORKERS, thread_name_prefix="store")

    @cached_property
    def scratch(self) -> TemporaryDirectory[str]:
        """A local folder for small files, which goes with the last who uses the store."""
        return TemporaryDirectory(prefix="glm-ernie-")

    @cached_property
    def _base(self) -> str:
        """What names are put behind: of a repository, at the commit its branch names now."""
        if self.scheme != HUB:
            return self.root
        found = HUB_ROOT.fullmatch(self.root.partition("://")[2])
        if found is None:
            raise StoreError(f"{self}: a repository is hf://models/OWNER/NAME, with @REVISION behind it if need be.")
        info = self.asked(
            lambda: HfApi(endpoint=self.fs.endpoint).model_info(found["repo"], revision=found["revision"]), ""
        )
        return f"hf://models/{found['repo']}@{info.sha}"

    def url(self, inside: str) -> str:
        """What the file system calls a name."""
        return f"{self._base}/{inside}" if inside not in ("", ".") else self._base

    def asked(self, request: Callable[[], Result], inside: str) -> Result:
        """The answer to a request, tried again where it fails; see `explained` for what it raises."""
        try:
            return retried(request)
        except Exception as error:  # of whichever store; `explained` keeps ours
            raise self.explained(error, inside) from error

    def explained(self, error: Exception, inside: str) -> Exception:
        """The error for a request that failed: one that was answered stays `FileNotFoundError`."""
        place = f"{self}/{inside}" if inside else str(self)
        if isinstance(error, ConversionError):
            return error
        if isinstance(error, FileNotFoundError) and not is_transient(error):
            return FileNotFoundError(errno.ENOENT, "the store has no such file", place)
        failed = error.__cause__ if isinstance(error, FileNotFoundError) else error
        what = " ".join(str(failed).split())[:300] or type(failed).__name__
        if isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403):
            what += ". The credentials do not allow it, or there are none"
        return CheckpointError(
            f"{place}: {what}. Tried {ATTEMPTS if is_transient(error) else 1} times; see whether the store can be "
            "reached from here, and run the same command again."
        )

    def state(self, inside: str) -> ObjectState:
        """What the store tells of an object, or told a moment ago.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it cannot be asked, or does not tell the size.
        """
        with self._turn:
            told_at, told = self._told.get(inside, (-FRESH_SECONDS, FileNotFoundError(inside)))
            if time.monotonic() - told_at >= FRESH_SECONDS:
                names = [*(self._told.keys() - {inside}), inside]  # asked at once, because they will be asked for
                answers = list(self.pool.map(self._asked_state, names))
                now = time.monotonic()
                self._told.update((name, (now, answer)) for name, answer in zip(names, answers, strict=True))
                told = answers[-1]
        if isinstance(told, Exception):
            raise told
        return told

    def expire(self, inside: str, at_once: bool = False) -> None:
        """What the store told of an object counts no more; of this very second it does, unless `at_once`."""
        told_at, told = self._told.get(inside, (0.0, FileNotFoundError(inside)))
        if at_once or time.monotonic() - told_at > 1:
            self._told[inside] = (told_at - FRESH_SECONDS, told)

    def _asked_state(self, inside: str) -> ObjectState | Exception:
        if self.scheme == HUB and inside in self._told:
            return self._told[inside][1]  # of a commit nothing changes
        try:
            return self._state_of(inside, self.asked(lambda: self.fs.info(self.url(inside)), inside))
        except (OSError, ConversionError) as error:
            return error

    def _state_of(self, inside: str, info: dict[str, Any]) -> ObjectState:
        if info.get("type") == "directory" or str(info.get("url", "")).endswith("/"):
            raise IsADirectoryError(f"{self}/{inside}")
        size = info.get("size")
        if not isinstance(size, int) or info.get("partial") is False:
            raise StoreError(
                f"{self}/{inside}: the server does not tell its size, or sends no parts of files. Download it, and "
                "pass the local copy."
            )
        return ObjectState(size, tuple((mark, str(info[mark])) for mark in MARKS if info.get(mark) is not None))

    def kind(self, inside: str) -> str:
        """`"file"`, `"directory"`, or nothing where there is neither."""
        parent, _, name = inside.rpartition("/")
        listed_at, listed = self._listed.get(parent, (0.0, {}))
        if inside and listed and time.monotonic() - listed_at < FRESH_SECONDS:
            return listed.get(name, "")
        try:
            info = self.asked(lambda: self.fs.info(self.url(inside)), inside)
        except FileNotFoundError:
            return ""
        is_folder = info.get("type") == "directory" or str(info.get("url", "")).endswith("/")
        return "directory" if is_folder else "file"

    def names(self, inside: str) -> Iterable[str]:
        """The names in a folder; raises `FileNotFoundError` where there is none."""
        entries = self.asked(lambda: self.fs.ls(self.url(inside), detail=True), inside)
        named = [(str(entry["name"]).rstrip("/").rpartition("/")[2], entry["type"]) for entry in entries]
        listed = {name: kind for name, kind in named if name and not name.startswith("?")}  # columns to sort by
        self._listed["" if inside == "." else inside] = (time.monotonic(), listed)
        return listed.keys()

    def all_of(self, requests: Sequence[Callable[[], Result]]) -> list[Result]:
        """The answers to several requests made at a time; at the first that fails the others are given up."""
        futures = [self.pool.submit(request) for request in requests]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def file_system(url: str) -> AbstractFileSystem:
    """The file system that a URL is of; it remembers no listing.

    Raises:
        StoreError: its package is not installed, or there is none.
    """
    scheme = url.partition("://")[0].lower()
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in HTTP:
        options["headers"] = PLAIN
    if "::" in url:
        raise StoreError(f"{without_secrets(url)}: a chain of URLs. Name one place.")
    try:
        return url_to_fs(url, **options)[0]
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get("class", "").split(".")[0]
        package = "fsspec[http]" if package == "fsspec" else package
        install = f"pip install {package}" if package else "install what it needs"
        raise StoreError(f"{without_secrets(url)}: {error or scheme}. Run: {install}") from error
    except Exception as error:  # what a store says of an address differs from store to store
        known = "s3, gs, abfs, http, https, hf and others of fsspec's"
        raise StoreError(
            f"{without_secrets(url)}: cannot be opened ({' '.join(str(error).split())}). Known are {known}."
        ) from error


__all__ = [
    "ATTEMPTS",
    "FRESH_SECONDS",
    "HTTP",
    "HUB",
    "HUB_ROOT",
    "PLAIN",
    "ObjectState",
    "Store",
    "StoreError",
    "file_system",
    "is_transient",
    "is_url",
    "retried",
    "without_secrets",
]
