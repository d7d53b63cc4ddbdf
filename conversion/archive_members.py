"""The members of a tar that may be damaged: whatever can still be told of where each begins and ends.

A header that cannot be read hides where the next one is. Then, in this order: what the header itself says, though its
checksum is wrong; the sizes of the other members, of which the ranks have one; from the end backwards, where the end
of a torch archive tells how long it is. A guess counts only if a sound header, or the end of the tar, is where it
says.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from .archive_places import peek
from .source_span import SourceSpan
from .tar_archive import BLOCK, MAX_HEADER_BYTES, MAX_MEMBERS
from .torch_zip import END_64_BYTES, END_64_SIGNATURE, END_BYTES, END_SIGNATURE, LOCATOR_64_BYTES

TORCH_END = END_64_BYTES + LOCATOR_64_BYTES + END_BYTES
"""Bytes behind the directory of an archive that torch wrote."""

TAIL_BYTES = (2**10, 2**12, 2**14, 2**16)
"""Of the end of a tar, until something that is not empty is among them."""

MAX_HEADER_BLOCKS = 8
MAX_SMALL_BLOCKS = 16
"""Of a member that is no torch archive, looked for from its end."""

LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Kinds of headers that another one belongs to."""

RECORD_BYTES = 20 * BLOCK
"""tar fills its output up to a multiple of this with zeros."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member, or the place of one.

    Attributes:
        name: Empty where its header cannot be read.
        header_at: Where its headers begin.
        offset: Where its bytes begin.
        nbytes: How many there are.
        is_file: Whether it is a file.
        is_sparse: Whether its gaps are left out.
        is_sound: Whether its header was read.
    """

    name: str
    header_at: int
    offset: int
    nbytes: int
    is_file: bool = True
    is_sparse: bool = False
    is_sound: bool = True

    @property
    def stop(self) -> int:
        """Behind its bytes."""
        return self.offset + self.nbytes

    @property
    def next_at(self) -> int:
        """Where the next header is."""
        return self.offset + -(-self.nbytes // BLOCK) * BLOCK


@dataclass
class Members:
    """What is known of a tar.

    Attributes:
        members: In order.
        end: Where the closing blocks begin; None where it is not known.
        is_end_sound: Whether the closing blocks were read.
        unknown: First byte of what nothing is known of, and the byte behind it, where members may be.
    """

    members: list[TarMember] = field(default_factory=list)
    end: int | None = None
    is_end_sound: bool = False
    unknown: list[tuple[int, int]] = field(default_factory=list)


END = TarMember("", 0, 0, 0)
"""Stands for an empty block."""


def member_at(span: SourceSpan, at: int) -> TarMember | None:
    """The member whose headers begin at a byte; `END` for an empty block, None for anything else."""
    needed = BLOCK
    while True:
        raw = peek(span, at, needed)
        if raw is None:
            return None
        try:
            info = tarfile.TarInfo.frombuf(raw[-BLOCK:], tarfile.ENCODING, "strict")  # type: ignore[arg-type]
        except (tarfile.TarError, UnicodeError, ValueError, OverflowError):
            return END if needed == BLOCK and not any(raw) else None
        if info.type not in LONG_HEADERS:
            break
        needed += -(-info.size // BLOCK) * BLOCK + BLOCK
        if not 0 < needed <= MAX_HEADER_BYTES:
            return None
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:", errors="strict") as archive:
            whole = archive.next()
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError):
        return None
    if whole is None or whole.size < 0:
        return None
    nbytes = whole.size if whole.isreg() else 0
    return TarMember(whole.name, at, at + whole.offset_data, nbytes, whole.isreg(), whole.issparse())


def damaged_blocks(span: SourceSpan, at: int) -> tuple[int, int]:
    """The first byte of what is damaged in the headers of a member that begin at a byte, and the byte behind it."""
    first = _parsed(span, at)
    if first is None or first.type not in LONG_HEADERS:
        return at, at + BLOCK
    behind = at + BLOCK + -(-first.size // BLOCK) * BLOCK
    if not 0 < behind - at <= MAX_HEADER_BYTES:
        return at, at + BLOCK
    return (at + BLOCK, behind) if _parsed(span, behind) is not None else damaged_blocks(span, behind)


def _parsed(span: SourceSpan, at: int) -> tarfile.TarInfo | None:
    """One block of a header; None where it is none."""
    raw = peek(span, at, BLOCK)
    try:
        return None if raw is None else tarfile.TarInfo.frombuf(raw, tarfile.ENCODING, "strict")
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError):
        return None


def find_members(span: SourceSpan) -> Members:
    """Finds the members of a tar, from its beginning and, where a header is missing or damaged, on any other way."""
    found = Members()
    at = 0
    while len(found.members) < MAX_MEMBERS and found.end is None:
        member = member_at(span, at)
        if member is not None and member is not END:
            found.members.append(member)
            at = member.next_at
            continue
        if at + BLOCK > span.size:
            found.end = at  # of the last member that is known; its header is not behind a hole
            break
        beyond = _by_guess(span, at, found) or _by_end(span, at, found)
        if not beyond and member is END:  # and not zeros in the place of a header
            found.end, found.is_end_sound = at, True
        elif beyond or (beyond := _unproved(span, at, found)):
            found.members += beyond
            at = beyond[-1].next_at
        else:
            found.unknown.append((at, span.size))
            break
    return found


def _by_guess(span: SourceSpan, at: int, found: Members) -> list[TarMember]:
    """The member whose header at a byte cannot be read, if a sound header is where a guess says; or none."""
    for guess in _guesses(span, at, found):
        behind = member_at(span, guess.next_at) if guess.next_at > at else None
        if behind is not None and (behind is not END or guess.next_at == _last_end(span)):
            return [guess]
    return []


def _by_end(span: SourceSpan, at: int, found: Members) -> list[TarMember]:
    """The members from the one at a byte, or behind it, to the last; none if they cannot be followed backwards."""
    members = list(_backwards(span, at))[::-1]
    if members and members[0].header_at > at:
        found.unknown.append((at, members[0].header_at))
    return members


def _unproved(span: SourceSpan, at: int, found: Members) -> list[TarMember]:
    """A guess that nothing can be held against, because what is behind it may be in a hole as well; or none."""
    return next(([guess] for guess in _guesses(span, at, found) if _is_open(span, guess)), [])


def _guesses(span: SourceSpan, at: int, found: Members) -> Iterator[TarMember]:
    header = peek(span, at, BLOCK)
    if header is not None and header[257:262] == b"ustar":
        own = _own_words(header, at)
        if own is not None:
            yield own
    sizes = {(one.offset - one.header_at, one.nbytes) for one in found.members if one.is_sound and one.nbytes > BLOCK}
    for header_bytes, nbytes in sorted(sizes, key=lambda pair: -pair[1]):
        yield TarMember("", at, at + header_bytes, nbytes, is_sound=False)


def _own_words(header: bytes, at: int) -> TarMember | None:
    """What a header says whose checksum is wrong."""
    field_ = header[124:136]
    try:
        nbytes = int.from_bytes(field_[4:], "big") if field_[0] in (0o200, 0o377) else int(field_.rstrip(b"\0 "), 8)
    except ValueError:
        return None
    if header[156:157] not in (b"0", b"\0", b"5") or nbytes >= 2**60:
        return None
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    is_file = header[156:157] != b"5"
    return TarMember(name, at, at + BLOCK, nbytes if is_file else 0, is_file=is_file, is_sound=False)


def _is_open(span: SourceSpan, guess: TarMember) -> bool:
    """Whether a guess cannot be refuted: what is behind it is not there, and where it ends a torch archive may end."""
    if guess.next_at + BLOCK > span.size or peek(span, guess.next_at, BLOCK) is not None:
        return False
    end = peek(span, guess.stop - END_BYTES, END_BYTES)
    return end is None or end[:4] == END_SIGNATURE


def _backwards(span: SourceSpan, first: int) -> Iterator[TarMember]:
    """Members from the last one to the one at or behind a byte, as far as they can be followed."""
    end = _last_end(span)
    while end is not None and end > first:
        member = _ending_at(span, end, first)
        if member is None:
            return
        yield member
        end = member.header_at


def _last_end(span: SourceSpan) -> int | None:
    """Where the last member's blocks end; None where the end of the tar is not there."""
    for nbytes in TAIL_BYTES:  # no more than it takes: there may be a hole before
        start = max(0, span.size - nbytes)
        tail = peek(span, start, span.size - start)
        if tail is None:
            return None
        at = tail.rfind(END_SIGNATURE)
        used = max(len(tail.rstrip(b"\0")), at + END_BYTES if at >= 0 else 0)
        if used > END_BYTES:
            end = -(-(start + used) // BLOCK) * BLOCK
            return end if end + BLOCK <= span.size else None
    return None


def _ending_at(span: SourceSpan, end: int, first: int) -> TarMember | None:
    """The member whose blocks end at a byte."""
    start = zip_start(span, end)
    if start is not None and start[0] >= first:
        nbytes = start[1] - start[0]
        for blocks in range(MAX_HEADER_BLOCKS, 0, -1):
            member = member_at(span, start[0] - blocks * BLOCK) if start[0] >= blocks * BLOCK else None
            if member is not None and member is not END and (member.offset, member.nbytes) == (start[0], nbytes):
                return member
        return TarMember("", max(first, start[0] - BLOCK), start[0], nbytes, is_sound=False)
    for blocks in range(MAX_SMALL_BLOCKS + MAX_HEADER_BLOCKS, 0, -1):  # the first of a long header's blocks
        member = member_at(span, end - blocks * BLOCK) if end - blocks * BLOCK >= first else None
        if member is not None and member is not END and member.next_at == end:
            return member
    return None


def zip_start(span: SourceSpan, end: int) -> tuple[int, int] | None:
    """First byte of the torch archive in the member whose blocks end at a byte, and the byte behind its last."""
    begin = max(0, end - BLOCK - TORCH_END)
    tail = peek(span, begin, end - begin)
    at = -1 if tail is None else tail.rfind(END_SIGNATURE)
    if tail is None or at < 0 or len(tail) - at < END_BYTES:
        return None
    stop = begin + at + END_BYTES
    end_64 = tail[at + END_BYTES - TORCH_END :][:END_64_BYTES] if at + END_BYTES >= TORCH_END else b""
    if end_64[:4] == END_64_SIGNATURE:
        directory = int.from_bytes(end_64[40:48], "little") + int.from_bytes(end_64[48:56], "little")
        start = stop - TORCH_END - directory
    else:
        field_ = tail[at : at + END_BYTES]
        start = stop - END_BYTES - int.from_bytes(field_[12:16], "little") - int.from_bytes(field_[16:20], "little")
    return (start, stop) if 0 <= start < stop and stop > end - BLOCK else None


__all__ = [
    "END",
    "RECORD_BYTES",
    "TORCH_END",
    "Members",
    "TarMember",
    "damaged_blocks",
    "find_members",
    "member_at",
    "zip_start",
]
