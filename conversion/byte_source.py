"""What tensors are read from: numbered bytes that somebody else wrote, wherever they lie.

A file of a folder (`source_file.SourceFile`), a stretch that runs over several parts of an archive
(`source_span.SourceSpan`), an object in a store. All are read piece by piece and known again by what they were when
the conversion was planned; whoever reads them sees no difference.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, cast

from .operations import CheckpointError

WHOLE_BYTES = 2**20
"""Up to this size the sample is the whole file."""

SAMPLE_BYTES = 4096
"""Bytes of a sample: a page, the least that is read from a disk."""

SAMPLE_SPACING = 2**24
"""Bytes of a file for each sample: 16 MiB, but `FEWEST_SAMPLES` to `MOST_SAMPLES` a file."""

FEWEST_SAMPLES, MOST_SAMPLES = 8, 256

WORTHWHILE_GAP = 8192
"""Bytes between two rows of a rectangle that are read rather than passed over: about as long as a call takes."""


class SourceChangedError(CheckpointError):
    """A file of the source is not what it was when the conversion was planned: nothing made from it is of use."""

    def __init__(self, path: object, what: str):
        super().__init__(
            f"{path}: changed while it was converted: {what}. The result would be a mixture, so nothing of it is "
            "kept. Wait until nothing writes to the source any more, then run the same command again."
        )


class ByteSource(ABC):
    """Bytes of a source, numbered from 0.

    Args:
        path: Where they are, a `Path`, or another place of `places`.
        state: What `look` said before anything of them was read.

    Attributes:
        worthwhile_gap: Bytes between two pieces that are read rather than passed over.
    """

    worthwhile_gap = WORTHWHILE_GAP

    def __init__(self, path: Any, state: Any) -> None:
        self.path = path
        self.state = state
        self._sample: dict[int, bytes] = {}
        self._places: tuple[int, ...] = ()

    @property
    @abstractmethod
    def size(self) -> int:
        """How many bytes there are."""

    @abstractmethod
    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes from `offset` on.

        Raises:
            SourceChangedError: it ends before.
            CheckpointError: they cannot be read.
        """

    def available(self, offset: int, nbytes: int) -> int:
        """How many of some bytes can be read in one go; fewer than all only of a source that is being consumed."""
        return nbytes

    def read_bytes(self, offset: int, nbytes: int) -> bytearray:
        """Some bytes, in memory of their own; raises as `read`."""
        raw = bytearray(nbytes)
        self.read(memoryview(raw), offset)
        return raw

    def read_many(self, places: Sequence[tuple[int, int]]) -> list[bytearray]:
        """Many short stretches, (offset, bytes) each; a source that is far away asks for several at a time."""
        return [self.read_bytes(offset, nbytes) for offset, nbytes in places]

    def open(self) -> BinaryIO:
        """A file object on the bytes, for those who read a header front to back; raises as `read`."""
        return cast(BinaryIO, io.BufferedReader(_Reader(self)))

    @abstractmethod
    def close(self) -> None:
        """Lets go of what the system lends, until it is read again."""

    @abstractmethod
    def look(self) -> Any:
        """What can be told without reading; where it is not equal to the last time, the content is sampled again.

        Raises:
            SourceChangedError: it is another for sure.
        """

    def expire(self) -> None:  # noqa: B027  # what is looked at every time does not age
        """What was told a moment ago counts no more; nothing where `look` asks every time."""

    @property
    def tells_changes(self) -> bool:
        """Whether `look` sees every change, so that a few samples are enough; a file's owner can set its time back."""
        return False

    @property
    @abstractmethod
    def identity(self) -> tuple[str | int, ...]:
        """By what a resumed run knows it again."""

    @abstractmethod
    def will_read(self, offset: int, nbytes: int) -> None:
        """Has the system fetch bytes that are about to be read in pieces with gaps, where it can."""

    @abstractmethod
    def forget(self, offset: int, nbytes: int) -> None:
        """Tells that bytes will not be read again, so that they leave the system's cache."""

    def sample(self, starts: Iterable[int]) -> None:
        """Takes the sample of the content by which it is known from now on.

        Args:
            starts: Where its tensors begin.

        Raises:
            SourceChangedError: it is not as it was before anything of it was read.
        """
        self._places = sample_places(self.size, starts, few=self.tells_changes)
        self._sample = self.sampled()
        if self.look() != self.state:
            raise SourceChangedError(self.path, "it was written to while it was looked at")

    def check(self, content: bool = False) -> None:
        """Makes sure that it is what was sampled.

        Args:
            content: Sample it again in any case, not only where the system tells that something happened to it.

        Raises:
            SourceChangedError: it is not.
        """
        if content:
            self.expire()
        now = self.look()
        if now != self.state:
            self.close()  # what is read now is what has the name now
        if content or now != self.state:
            if any(self._sample.get(place) != digest for place, digest in self.sampled().items()):
                raise SourceChangedError(self.path, "its content is another, although its time was kept")
            self.state = now

    @property
    def sample_digest(self) -> str:
        """The hash of the samples as they were taken, hexadecimal."""
        return hashlib.sha256(b"".join(self._sample.values())).hexdigest()

    @property
    def samples(self) -> Mapping[int, str]:
        """Where each sample begins -> its hash as it was taken, hexadecimal."""
        return {place: digest.hex() for place, digest in self._sample.items()}

    def sampled(self) -> dict[int, bytes]:
        """Where each sample begins -> a hash of it as it is now, of those that can be read."""
        width = self.size if self.size <= WHOLE_BYTES else SAMPLE_BYTES
        stretches = [(place, min(width, self.size - place)) for place in self._places]
        stretches = [stretch for stretch in stretches if self.available(*stretch) == stretch[1]]
        contents = self.read_many(stretches)
        return {
            place: hashlib.sha256(content).digest() for (place, _), content in zip(stretches, contents, strict=True)
        }


class _Reader(io.RawIOBase):
    """The raw side of `ByteSource.open`."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if start + offset < 0:
            raise ValueError(f"a seek to byte {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]  # a Buffer, in newer stubs
        view = memoryview(buffer)[: max(0, self._source.size - self._at)]
        if view:
            view = view[: max(1, self._source.available(self._at, len(view)))]  # what is read ahead may be gone
            self._source.read(view, self._at)
        self._at += len(view)
        return len(view)


def sample_places(size: int, starts: Iterable[int], few: bool = False) -> tuple[int, ...]:
    """Where the samples of a file begin: evenly spread from its first byte to its last, and where tensors begin.

    Args:
        size: Of the file, in bytes; up to `WHOLE_BYTES` there is one sample, the whole file.
        starts: Where tensors begin.
        few: Take `FEWEST_SAMPLES`, wherever tensors begin.
    """
    if size <= WHOLE_BYTES:
        return (0,) if size else ()
    count = FEWEST_SAMPLES if few else min(max(size // SAMPLE_SPACING, FEWEST_SAMPLES), MOST_SAMPLES)
    last = size - SAMPLE_BYTES
    spread = {last * number // (count - 1) for number in range(count)}
    return tuple(sorted(spread if few else spread | {min(start, last) for start in starts}))


__all__ = ["SAMPLE_BYTES", "WHOLE_BYTES", "WORTHWHILE_GAP", "ByteSource", "SourceChangedError", "sample_places"]
