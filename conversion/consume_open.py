"""Opens a source that is to be consumed, or is: through what was kept of it, where a former run has begun.

What a former run released is found from its log and from the files: a stretch is gone where the log says that it was
about to go and a hole is in it, or its file is not there. A file that was put there again, whole, is used again.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .byte_ranges import Range, count, merged
from .consume_file import ChangedPartError, ConsumableFile, ConsumableFiles, ConsumablePath, Kept
from .consume_log import LOG, ReleaseLog
from .consume_skeleton import SKELETON, Former, Skeleton
from .consume_state import CONSUMED, marked, read_mark
from .holes import has_hole
from .job import progress_bar
from .journal import STATE
from .operations import CheckpointError
from .output_path import incomplete_of
from .places import Place
from .publication import finished_folders
from .source_file import FileState, SourceFile

COMPARED_BYTES = 2**20


@dataclass
class Opened:
    """A source to be consumed.

    Attributes:
        place: What it is opened by.
        base: The local folder that its files' names are relative to.
        skeleton: What a former run kept; None: nothing was released yet.
        log: What it released; None likewise.
        notices: What the user should know, one line each.
    """

    place: ConsumablePath
    base: Path
    skeleton: Skeleton | None
    log: ReleaseLog | None
    notices: Sequence[str]


def open_to_consume(source: Place, output: Path, show_progress: bool = True) -> Opened:
    """Opens a source, through the state that an interrupted run left in the output.

    Args:
        source: What the user names.
        output: What is made of it; the folder that it is made in, or is about to get its name, is looked at.
        show_progress: Whether a bar goes to stderr.

    Raises:
        CheckpointError: it is not on this machine; another conversion consumes it; a file is not the one it was.
        WriteError: the state is damaged.
    """
    if not isinstance(source, Path):
        raise CheckpointError(
            f"{source}: --consume deletes files of this machine, and that one lies elsewhere. Leave it out."
        )
    folder = _state_of(output)
    if folder is None:
        base = source.parent if source.is_file() else source
        _refuse_others(base, [], "", output)
        return Opened(ConsumableFiles({}).at(source), base, None, None, [])
    skeleton, log = Skeleton(folder / SKELETON), ReleaseLog(folder)
    names = [former.name for former in skeleton.header.files]
    base = source.parent if source.name in names and not source.is_dir() else source
    _refuse_others(base, names, skeleton.digest, output)
    files, notices = {}, []
    total = sum(count(former.layout.kept) for former in skeleton.header.files)
    with progress_bar("comparing", total, 0, show_progress) as progress:
        for number, former in enumerate(skeleton.header.files):
            path = base / former.name
            kept = Kept(former.layout.kept, skeleton.positions(number), skeleton)
            file, notice = _former_file(path, former, kept, log)
            files[os.path.abspath(path)] = file
            notices += notice
            progress(count(former.layout.kept))
    return Opened(ConsumableFiles(files).at(source), base, skeleton, log, notices)


def refuse_begun(output: Path) -> None:
    """Makes sure that an output was not begun by a run that has deleted a part of its source.

    Raises:
        CheckpointError: it was.
    """
    made = incomplete_of(output)
    if os.path.lexists(made / STATE / CONSUMED / LOG):
        raise CheckpointError(
            f"{made}: begun with --consume, and a part of its source is deleted. Run the same command again, with "
            "--consume."
        )


def _state_of(output: Path) -> Path | None:
    """The folder with the skeleton of an interrupted run."""
    for folder in (incomplete_of(output), *finished_folders(output)):
        inside = folder / STATE / CONSUMED
        if (inside / SKELETON).is_file():
            return inside
    return None


def _refuse_others(base: Path, names: Sequence[str], digest: str, output: Path) -> None:
    """Raises `CheckpointError` where another conversion's mark is, or that of one whose state is gone."""
    folders = {base, *((base / name).parent for name in names)}
    if not names and base.is_dir():
        folders |= {base / name for name in os.listdir(base) if (base / name).is_dir()}
    for folder in sorted(folders):
        found = read_mark(folder)
        if found is None or found[1] == digest:
            continue
        if found[0] == os.path.abspath(output):
            raise CheckpointError(
                f"{folder}: --consume has deleted a part of the files in there, and what it had kept in "
                f"{incomplete_of(output)} is gone. Download the source again, into an empty folder."
            )
        raise marked(folder, found[0])


def _former_file(path: Path, former: Former, kept: Kept, log: ReleaseLog) -> tuple[ConsumableFile, list[str]]:
    """A file of the source as it is after an interrupted run, and notices on it."""
    stretches = former.layout.stretches
    try:
        state = FileState.of(path)
    except (FileNotFoundError, NotADirectoryError):
        gone = merged((stretch.start, stretch.stop) for stretch in stretches)
        return ConsumableFile(path, former.state, kept, gone, is_deleted=True), []
    if not stat.S_ISREG(os.stat(path).st_mode) or state.size != former.state.size:
        raise ChangedPartError(path, f"it had {former.state.size:,} bytes and has {state.size:,}")
    released = [s for s in stretches if s.readers and s.readers <= log.said.verified]
    gone = merged(_with_holes(path, [(stretch.start, stretch.stop) for stretch in released]))
    known = log.said.states.get(former.name, (former.state.mtime_ns, former.state.inode))
    is_pending = log.said.pending and former.name not in log.said.told and bool(released)
    notices = []
    if (state.mtime_ns, state.inode) != known and not is_pending:
        # Refusing it, as a run that can start over does, would end this one for good.
        notices.append(f"{path} was written to or replaced; its headers and the samples of it are the same")
    file = ConsumableFile(path, state, kept, gone)
    _compare(file, kept)
    return file, notices


def _with_holes(path: Path, ranges: Sequence[Range]) -> list[Range]:
    """Those that have a hole, however small; blocks that also hold kept bytes are never released."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [one for one in ranges if has_hole(descriptor, *one)]
    finally:
        os.close(descriptor)


def _compare(file: ConsumableFile, kept: Kept) -> None:
    """Makes sure that a file has, around its tensors, the bytes that were kept of it."""
    there = SourceFile(file.path, file.state)
    for (start, stop), position in zip(kept.ranges, kept.positions, strict=True):
        for at in range(start, stop, COMPARED_BYTES):
            nbytes = min(COMPARED_BYTES, stop - at)
            before = bytearray(nbytes)
            kept.store.read(memoryview(before), position + at - start)
            if there.read_bytes(at, nbytes) != before:
                raise ChangedPartError(file.path, f"its bytes at {at:,} are others")
    there.close()


__all__ = ["Opened", "open_to_consume", "refuse_begun"]
