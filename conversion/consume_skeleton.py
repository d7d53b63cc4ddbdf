"""What is kept of a source that is being consumed: enough to plan the same conversion again without its files.

One file, `skeleton`, in the state of the output folder: the length of the header (8 bytes, little-endian), the header
(JSON), the kept bytes of all files one behind the other, and the SHA-256 of all that. It is on the disk before
anything of the source is released, and is not changed afterwards.
"""

import contextlib
import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from .byte_ranges import count
from .byte_source import ByteSource
from .consume_layout import FileLayout, Stretch
from .output_path import flush
from .source_file import FileState
from .writer import WriteError

SKELETON, FRESH_SKELETON = "skeleton", "skeleton.new"
FORMAT = 1
LENGTH_BYTES, DIGEST_BYTES = 8, 32
MAX_HEADER_BYTES = 2**26
"""The released archive takes some 2 MB."""

BLOCK_BYTES = 2**22
MAX_FILES, MAX_NAME_CHARACTERS = 20_000, 4096
HEXADECIMAL = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Former:
    """A file of the source as it was.

    Attributes:
        name: Relative to the source.
        state: What the system told of it.
        layout: Its stretches.
    """

    name: str
    state: FileState
    layout: FileLayout


@dataclass(frozen=True)
class Header:
    """What a skeleton says.

    Attributes:
        known_as: By what the source is known, `TensorFiles.identity` in words.
        fingerprint: Of the job.
        outputs: Names of the files of the output.
        files: Of the source.
        samples: Of each file that tensors are read from: where a sample begins -> its hash.
    """

    known_as: str
    fingerprint: str
    outputs: Sequence[str]
    files: Sequence[Former]
    samples: Sequence[Mapping[int, str]]

    def encode(self) -> bytes:
        """As JSON."""
        numbers = {name: number for number, name in enumerate(self.outputs)}
        files = [
            {
                "name": file.name,
                "state": [file.state.size, file.state.mtime_ns, file.state.inode],
                "stretches": [[s.start, s.stop, sorted(numbers[n] for n in s.readers)] for s in file.layout.stretches],
            }
            for file in self.files
        ]
        content = {
            "format": FORMAT,
            "known_as": self.known_as,
            "fingerprint": self.fingerprint,
            "outputs": list(self.outputs),
            "files": files,
            "samples": [sorted(samples.items()) for samples in self.samples],
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, text: bytes) -> "Header":
        """The header in JSON.

        Raises:
            ValueError: it is none.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            outputs = [_text(name) for name in content["outputs"]]
            files = [_former(file, outputs) for file in content["files"]]
            samples = [{_number(at): _digest(value) for at, value in pairs} for pairs in content["samples"]]
            return cls(_text(content["known_as"]), _digest(content["fingerprint"]), outputs, files, samples)
        except (KeyError, IndexError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _former(content: Any, outputs: Sequence[str]) -> Former:
    size, mtime_ns, inode = map(_number, content["state"])
    stretches = []
    end = 0
    for start, stop, readers in content["stretches"]:
        if not end <= _number(start) < _number(stop) <= size:
            raise ValueError(f"a stretch {start} to {stop}")
        stretches.append(Stretch(start, stop, frozenset(outputs[_number(number)] for number in readers)))
        end = stop
    name = _text(content["name"])
    if name.startswith("/") or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        raise ValueError(f"a file called {name!r}")
    return Former(name, FileState(size, mtime_ns, inode, 0, 0), FileLayout(size, tuple(stretches)))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"{value!r} for a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} for a text")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not HEXADECIMAL.fullmatch(value):
        raise ValueError(f"{value!r} for a hash")
    return value


class Skeleton:
    """A skeleton that was written.

    Args:
        path: Where it is; it is found there also when its folder gets another name.

    Attributes:
        header: What it says.
        digest: Its SHA-256, hexadecimal.
        bases: Where the kept bytes of each file begin.

    Raises:
        WriteError: it is damaged, so the files that are gone cannot be read any more.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        length = int.from_bytes(os.pread(self._descriptor, LENGTH_BYTES, 0), "little")
        if size < LENGTH_BYTES + DIGEST_BYTES or length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES - DIGEST_BYTES):
            raise self._damaged(f"{size:,} bytes, {length:,} of them a header")
        digest = hashlib.sha256()
        for block in _blocks(self._descriptor, size - DIGEST_BYTES):
            digest.update(block)
        if digest.digest() != os.pread(self._descriptor, DIGEST_BYTES, size - DIGEST_BYTES):
            raise self._damaged("its checksum is another")
        self.digest = digest.hexdigest()
        try:
            self.header = Header.decode(os.pread(self._descriptor, length, LENGTH_BYTES))
        except ValueError as error:
            raise self._damaged(str(error)) from error
        sizes = [count(file.layout.kept) for file in self.header.files]
        self.bases = list(accumulate(sizes, initial=LENGTH_BYTES + length))
        if self.bases[-1] + DIGEST_BYTES != size:
            raise self._damaged(f"{size:,} bytes, there should be {self.bases[-1] + DIGEST_BYTES:,}")

    def read(self, view: memoryview, position: int) -> None:
        """Fills `view` with kept bytes; raises `WriteError` where the disk fails."""
        while view:
            try:
                found = os.preadv(self._descriptor, [view], position)
            except OSError as error:
                raise self._damaged(error.strerror or str(error)) from error
            if not found:
                raise self._damaged("it became shorter")
            view, position = view[found:], position + found

    def positions(self, number: int) -> list[int]:
        """Where each kept range of a file begins in the skeleton."""
        kept = self.header.files[number].layout.kept
        return list(accumulate((stop - start for start, stop in kept[:-1]), initial=self.bases[number]))

    def _damaged(self, what: str) -> WriteError:
        return WriteError(
            f"{self.path}: damaged ({what}). It holds what is needed to go on with a source that --consume has "
            "deleted a part of. Look after the disk; then download the source again, into an empty folder, and "
            "convert it to another --output."
        )


def write_skeleton(
    folder: Path, header: Header, sources: Sequence[ByteSource], on_bytes: Callable[[int], object]
) -> Skeleton:
    """Writes a skeleton; it is on the disk when this returns.

    Args:
        folder: Where.
        header: What it says.
        sources: The files of the header, as they can be read now.
        on_bytes: Called with the number of bytes just written.

    Raises:
        SourceChangedError: a file is not what it was.
        OSError: the system refuses.
    """
    fresh, path = folder / FRESH_SKELETON, folder / SKELETON
    text = header.encode()
    digest = hashlib.sha256()
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    with fresh.open("xb") as out:

        def write(block: bytes | bytearray) -> None:
            digest.update(block)
            out.write(block)

        write(len(text).to_bytes(LENGTH_BYTES, "little"))
        write(text)
        for file, source in zip(header.files, sources, strict=True):
            for start, stop in file.layout.kept:
                for at in range(start, stop, BLOCK_BYTES):
                    write(source.read_bytes(at, min(BLOCK_BYTES, stop - at)))
                on_bytes(stop - start)
            source.look()
        out.write(digest.digest())
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    flush(folder)
    return Skeleton(path)


def _blocks(descriptor: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, BLOCK_BYTES):
        yield os.pread(descriptor, min(BLOCK_BYTES, size - start), start)


__all__ = ["FRESH_SKELETON", "SKELETON", "Former", "Header", "Skeleton", "write_skeleton"]
