"""Opens what `--source` names: finds the place in which a checkpoint's files are looked for."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .archive_parts import find_parts
from .consume_state import refuse_marked
from .operations import CheckpointError
from .places import Place
from .source_span import Segment, SourceSpan
from .store_copy import beside
from .tar_archive import MemberPath, TarArchive


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
    parts = find_parts(path)
    if parts is None:
        return Source(path, beside(path, small))
    segments = [Segment(file, 0, file.size) for file in parts.files]
    archive = TarArchive(parts.pattern, SourceSpan(parts.pattern, segments))
    return Source(_marked(archive, marks), beside(parts.folder, small))


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


__all__ = ["Source", "open_source"]
