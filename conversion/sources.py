"""Opens what `--source` names: finds the place in which a checkpoint's files are looked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .archive_check import survey
from .archive_parts import find_parts
from .byte_source import SourceChangedError
from .consume_state import refuse_marked
from .inspect_report import ERROR
from .operations import CheckpointError
from .places import Place
from .source_span import Segment, SourceSpan
from .store_copy import beside
from .tar_archive import MemberPath, TarArchive

SHOWN = 8


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Attributes:
        place: The folder that its files are looked for in.
        home: The local folder where what belongs to it may lie beside: settings, a tokenizer. Of a source that is not
            local, a temporary one with copies of them.
    """

    place: Place
    home: Path


def open_source(path: Place, marks: tuple[str, ...], small: tuple[str, ...] = ()) -> Source:
    """Finds the checkpoint that a path names: the folder itself, or one in the archive whose parts are named.

    Args:
        path: A folder; a folder of an archive's parts, one of the parts, or a tar.
        marks: Names by which the checkpoint's folder is known, the surest first; a folder that holds one is not looked
            at for parts.
        small: Files that may lie beside it.

    Raises:
        CheckpointError: parts that are not all there, an archive that is damaged, or without such a folder; files that
            a conversion with --consume is deleting.
    """
    if isinstance(path, Path):
        refuse_marked(path)
    if path.is_dir() and any((path / mark).is_file() for mark in marks):
        return Source(path, beside(path, small))
    with explained(path):
        return _open_parts(path, marks, small)


def _open_parts(path: Place, marks: tuple[str, ...], small: tuple[str, ...]) -> Source:
    parts = find_parts(path)
    if parts is None:
        return Source(path, beside(path, small))
    segments = [Segment(file, 0, file.size) for file in parts.files]
    archive = TarArchive(parts.pattern, SourceSpan(parts.pattern, segments))
    return Source(_marked(archive, marks), beside(parts.folder, small))


@contextmanager
def explained(path: Place) -> Iterator[None]:
    """Adds to what a reader says of an archive, which is the first thing that does not fit, what all its parts show.

    Args:
        path: What was to be read; nothing is added to what is said of anything but parts.

    Raises:
        CheckpointError: the reader's, with the parts that are missing, damaged or under a wrong name.
    """
    try:
        yield
    except SourceChangedError:
        raise
    except CheckpointError as error:
        told = _told_by_parts(path)
        if told is None:
            raise
        if told.startswith(MIXED_UP):  # then what the reader met is a consequence, and may name a sound part
            raise CheckpointError(f"{told}\nReading stops at what may come of it: {error}") from error
        raise CheckpointError(f"{error}\n{told}") from error


MIXED_UP = "The parts are not what their names say"


def _told_by_parts(path: Place) -> str | None:
    try:
        found = survey(path)
    except (CheckpointError, OSError):
        return None
    findings = [] if found is None else [finding for finding in found.findings if finding.severity == ERROR]
    if found is None or not findings:
        return None
    lines = []
    for finding in findings[:SHOWN]:
        places = ", ".join(str(place) for place in finding.places[:SHOWN])
        lines.append(f"  {places}: {finding.text}. {finding.remedy}".rstrip())
    more = [f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else []
    is_mixed_up = any(finding.kind in ("swapped", "extra", "copy", "mismatch") for finding in findings)
    head = f"{MIXED_UP} ({path}):" if is_mixed_up else "What its parts show:"
    return "\n".join([head, *lines, *more])


def _marked(archive: TarArchive, marks: tuple[str, ...]) -> MemberPath:
    """The folder of an archive that a checkpoint's mark is in."""
    files = [PurePosixPath(name) for name in sorted(archive.members)]
    found: list[PurePosixPath] = []
    for mark in marks:
        found = found or [file.parent for file in files if file.name == mark]
    if len(found) > 1:
        raise CheckpointError(
            f"{archive.path}: holds {len(found)} checkpoints ({', '.join(map(str, found[:8]))}). Unpack it, and pass "
            "the folder of one of them."
        )
    if not found:
        members = ", ".join(sorted(archive.members)[:8]) or "none"
        raise CheckpointError(
            f"{archive.path}: no {' or '.join(marks)} among its members ({members}), so not a checkpoint's archive."
        )
    return archive.root.at(found[0])


__all__ = ["Source", "explained", "open_source"]
