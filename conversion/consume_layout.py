"""What of a source's files becomes free when: pure bookkeeping on stretches of bytes, for `--consume`.

A file of the source (a rank's file, a part of the archive) consists of stretches that the tensors of the output are
made from, and of everything between and around them, which is small and is kept elsewhere. A stretch is free once
every file of the output that reads its tensors was verified; the file goes when all its stretches are free.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .byte_ranges import Range, count, merged, whole_blocks, without
from .byte_source import ByteSource
from .lazy_files import StoredTensor, TensorFiles
from .source_span import Segment, SourceSpan
from .tar_archive import MemberPath
from .torch_zip import END_BYTES, MAX_COMMENT_BYTES
from .writer import OutputFile, sources_of

LARGE_BYTES = 2**20
"""Matrices from this size on are consumed; everything else is kept until the end, some 100 MB of the released."""

TAIL_BYTES = END_BYTES + MAX_COMMENT_BYTES
"""Where an archive of torch's is read to find its directory."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes [start, stop) of tensors that the same files of the output read.

    Attributes:
        readers: Their names; nobody's bytes go with the file, at the end.
    """

    start: int
    stop: int
    readers: frozenset[str]


@dataclass(frozen=True)
class FileLayout:
    """The stretches of a file of the source, in order.

    Attributes:
        size: Of the file, in bytes.
        stretches: What can become free before the file goes.
    """

    size: int
    stretches: tuple[Stretch, ...]

    @cached_property
    def kept(self) -> list[Range]:
        """The bytes around the stretches."""
        return without([(0, self.size)], merged((stretch.start, stretch.stop) for stretch in self.stretches))

    def free(self, verified: Collection[str]) -> list[Range]:
        """The bytes that no file but the verified ones is made from, in stretches."""
        known = set(verified)
        return merged((s.start, s.stop) for s in self.stretches if s.readers and s.readers <= known)

    def is_free(self, verified: Collection[str]) -> bool:
        """Whether the file can go: there were stretches, and all are free."""
        known = set(verified)
        return bool(self.stretches) and all(s.readers and s.readers <= known for s in self.stretches)

    def freed_bytes(self, verified: Collection[str], block: int, punches: bool) -> int:
        """The disk that is given back by what is free.

        Args:
            verified: Names of verified files of the output.
            block: In what units the file system gives disk back.
            punches: Whether it does so for a part of a file.
        """
        if self.is_free(verified):
            return -(-self.size // block) * block
        return count(whole_blocks(self.free(verified), block)) if punches else 0


def layouts(source: TensorFiles, files: Iterable[OutputFile]) -> dict[ByteSource, FileLayout]:
    """The layout of every file that a source consists of: the ranks' files, or all parts of their archive.

    Args:
        source: The tensors.
        files: What is made of them.
    """
    readers: dict[tuple[int, str], set[str]] = defaultdict(set)
    for output in files:
        for tensor in output.tensors:
            for part, name in sources_of(tensor):
                readers[source.number_of(part, name), name].add(output.name)
    claims: dict[ByteSource, list[Stretch]] = {}
    small: dict[ByteSource, list[Range]] = defaultdict(list)
    for number, lazy in enumerate(source.files):
        whole = lazy.path.archive.source if isinstance(lazy.path, MemberPath) else lazy.bytes
        for segment in segments(whole, 0, whole.size):
            claims.setdefault(segment.source, [])
        tail = min(TAIL_BYTES, lazy.bytes.size)
        for segment in segments(lazy.bytes, lazy.bytes.size - tail, tail):
            small[segment.source].append((segment.start, segment.start + segment.nbytes))
        for name, stored in lazy.tensors.items():
            for segment in segments(lazy.bytes, stored.offset, stored.extent):
                start, stop = segment.start, segment.start + segment.nbytes
                if is_large(stored):
                    claims[segment.source].append(Stretch(start, stop, frozenset(readers[number, name])))
                else:
                    small[segment.source].append((start, stop))
    return {
        file: FileLayout(file.size, tuple(_around(_swept(claimed), merged(small[file]))))
        for file, claimed in claims.items()
    }


def is_large(stored: StoredTensor) -> bool:
    """Whether a tensor is consumed: no bias, norm or scale, which planning compares, and not small."""
    return len(stored.spec.shape) == 2 and stored.extent >= LARGE_BYTES


def segments(source: ByteSource, offset: int, nbytes: int) -> Iterator[Segment]:
    """Where bytes lie in files."""
    if isinstance(source, SourceSpan):
        for segment in source.locate(offset, nbytes):
            yield from segments(segment.source, segment.start, segment.nbytes)
    elif nbytes:
        yield Segment(source, offset, nbytes)


def _swept(claims: Sequence[Stretch]) -> Iterator[Stretch]:
    """Stretches that do not overlap: what several claim has the readers of all."""
    borders = sorted({border for claim in claims for border in (claim.start, claim.stop)})
    begins: dict[int, list[Stretch]] = defaultdict(list)
    for claim in claims:
        begins[claim.start].append(claim)
    active: list[Stretch] = []
    for start, stop in itertools.pairwise(borders):
        active = [claim for claim in active if claim.stop > start] + begins[start]
        if active:
            read = [claim.readers for claim in active]
            yield Stretch(start, stop, frozenset().union(*read) if all(read) else frozenset())


def _around(stretches: Iterable[Stretch], small: Sequence[Range]) -> Iterator[Stretch]:
    """Stretches without the bytes that are small tensors' as well."""
    for stretch in stretches:
        for start, stop in without([(stretch.start, stretch.stop)], small):
            yield Stretch(start, stop, stretch.readers)


def peak_bytes(
    left: Mapping[str, int], done: Collection[str], files: Collection[FileLayout], block: int, punches: bool
) -> int:
    """The most disk that is taken at any time beside what is taken now.

    A file of the output is written while the one before it is verified, and it is begun when the one before that was
    verified and what it alone needed is free (`FileHooks.files_at_once` is 2).

    Args:
        left: File of the output -> bytes that are to be written, in that order.
        done: Files of the output that are finished.
        files: Of the source.
        block: In what units the file system gives disk back.
        punches: Whether it does so for a part of a file.
    """
    verified = set(done)
    before = sum(file.freed_bytes(verified, block, punches) for file in files)
    written, freed, peak = 0, 0, 0
    waiting = None
    for name, nbytes in left.items():
        written += nbytes
        peak = max(peak, written - freed)
        if waiting is not None:
            verified.add(waiting)
            freed = sum(file.freed_bytes(verified, block, punches) for file in files) - before
        waiting = name
    return peak


__all__ = ["LARGE_BYTES", "FileLayout", "Stretch", "is_large", "layouts", "peak_bytes", "segments"]
