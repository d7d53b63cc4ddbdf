"""Parts of an archive that took one another's place, told from the headers that should be in them.

Where a tar header, the header of a record or the end of a rank's archive should be, every archive has a signature. A
part in which such places do not hold is compared with the others: the one in which all of them do is the one that
belongs there. Nothing else is read.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from .byte_source import ByteSource
from .inspect_parts import FoundParts
from .operations import CheckpointError
from .source_file import SourceFile
from .tar_archive import TarArchive
from .torch_zip import END_BYTES, END_SIGNATURE, LOCAL_HEADER_BYTES, LOCAL_SIGNATURE, ZipError, header_places

TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
MOST_PLACES = 64
"""Of one part, so many are tried."""

Expected = tuple[int, bytes]
"""Where in a part bytes should be, and which."""


def swapped_parts(found: FoundParts, archive: TarArchive) -> dict[int, int]:
    """Number of a place -> number of the part whose headers are those that should be there, where it is another.

    Args:
        found: The parts.
        archive: What could be read of them, one behind the other.
    """
    if not found.whole:
        return {}
    expected = _by_part(found, archive)
    sources = {number: SourceFile.of(found.paths[number]) for number in found.paths if number not in found.unread}
    bad = [number for number, places in expected.items() if number in sources and not _holds(sources[number], places)]
    order: dict[int, int] = {}
    for place in bad:
        others = [n for n in sources if n != place and found.sizes[n] == found.sizes[place]]
        fitting = [n for n in others if _holds(sources[n], expected[place])]
        if len(fitting) == 1:
            order[place] = fitting[0]
    for source in sources.values():
        source.close()
    whole = set(order) == set(order.values())
    if not whole:  # the part without headers, or with few, that took the other's place
        order |= {taken: place for place, taken in list(order.items()) if taken not in order}
    return order if sorted(order) == sorted(order.values()) else {}


def _by_part(found: FoundParts, archive: TarArchive) -> Mapping[int, Sequence[Expected]]:
    """Part -> what should be where in it."""
    places: dict[int, list[Expected]] = defaultdict(list)
    for at, content in _signatures(archive):
        number, within = divmod(at, found.whole)
        if within + len(content) <= found.whole and len(places[number]) < MOST_PLACES:
            places[number].append((within, content))
    return places


def _signatures(archive: TarArchive) -> Iterator[Expected]:
    """Where in the archive bytes should be, and which; as far as its headers tell."""
    yield archive.end + TAR_MAGIC_AT, TAR_MAGIC
    for name, member in archive.members.items():
        if not name.endswith(".pt"):
            continue
        yield member.offset, LOCAL_SIGNATURE
        yield member.offset + member.nbytes - END_BYTES, END_SIGNATURE
        part = archive.source.part(archive.root / name, member.offset, member.nbytes)
        try:
            for start, record in header_places(part):
                yield member.offset + start, LOCAL_SIGNATURE
                yield member.offset + start + LOCAL_HEADER_BYTES, record
        except (ZipError, CheckpointError):  # its directory is in a part that is not there, or in one that is wrong
            continue


def _holds(source: ByteSource, places: Sequence[Expected]) -> bool:
    return all(
        at + len(content) <= source.size and source.read_bytes(at, len(content)) == content for at, content in places
    )


__all__ = ["swapped_parts"]
