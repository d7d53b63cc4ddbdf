"""Conversions that delete their source, killed wherever the tests want: in a process forked from this one.

A child is killed at its n-th call that changes a disk (`CALLS`), before or behind it, or half way through a write; or
after some time, wherever it is then. What is left is looked at with nothing but the original bytes.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conversion import consume_file, consume_layout, glm130b, holes, output_path
from conversion.classes import expected_shapes
from conversion.consume import Consumption
from conversion.consume_layout import TAIL_BYTES, is_large, segments
from conversion.job import Job
from conversion.writer import sources_of

from .archives import released_members, write_archive
from .converting import convert
from .forked import die, in_child
from .tiny import ITERATION, Sizes, rank_path, whole_state, write_released

SIZES = Sizes(layers=2, hidden=128, heads=8, inner=256, vocabulary=512)
"""Some 0.8 MB, each weight of several pages."""

SHARD = "--max-shard-size=100000"
LARGE_BYTES = 8192
"""In the place of 1 MiB."""

CALLS = ("pwrite", "write", "fsync", "unlink", "rename", "replace", "mkdir", "rmdir", "ftruncate", "open")
WRITES = ("pwrite", "write")


def consume_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the tests' size are consumed."""
    monkeypatch.setattr(consume_layout, "LARGE_BYTES", LARGE_BYTES)


@dataclass
class Original:
    """A source that is there once more each time it is needed.

    Attributes:
        contents: Of each file, by its name in the source's folder.
        rest: Files that are no part of it, and stay.
        settings: The option that names the settings.
        expected: Name -> content of what the plain conversion makes.
        options: Of the conversion.
        large: (output's tensor, its file, [(source's file, first byte, bytes)]) of all that is consumed.
    """

    contents: dict[str, bytes]
    rest: dict[str, bytes]
    settings: str
    expected: dict[str, bytes]
    options: Sequence[str]
    large: list[tuple[str, str, list[tuple[str, int, int]]]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """The source, whole."""
        for name, content in (self.contents | self.rest).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def run(self, source: Path, output: Path, *more: str) -> int:
        """The command."""
        return convert(source, output, self.settings, *self.options, "--consume", "--yes", *more)

    def lost(self, source: Path, output: Path) -> list[str]:
        """Tensors of the output that are neither in it, whole, nor can be made from what is left of the source."""
        made = [output, output.with_name(f"{output.name}.incomplete"), *output.parent.glob(".*.finished")]
        whole = {
            name
            for folder in made
            for name, content in self.expected.items()
            if (folder / name).is_file() and (folder / name).read_bytes() == content
        }
        lost = []
        for tensor, file, places in self.large:
            if file not in whole and not all(self._is_there(source, *place) for place in places):
                lost.append(tensor)
        return lost

    def _is_there(self, source: Path, name: str, start: int, nbytes: int) -> bool:
        path = source / name
        if not path.is_file():
            return False
        with path.open("rb") as file:
            file.seek(start)
            return file.read(nbytes) == self.contents[name][start : start + nbytes]

    def is_done(self, source: Path, output: Path) -> bool:
        """Whether the output is whole, the source is gone, and nothing else is there or missing."""
        made = {path.name: path.read_bytes() for path in output.iterdir()}
        left = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        beside = [path.name for path in output.parent.iterdir() if output.name in path.name or path.name[0] == "."]
        return made == self.expected and left == self.rest and beside == [output.name]


def original(folder: Path, in_parts: bool, *options: str, sizes: Sizes = SIZES, part_bytes: int = 200_000) -> Original:
    """A source of two ranks, as parts of an archive with other files beside them, or unpacked."""
    unpacked = write_released(folder / "unpacked", whole_state(sizes), 2)
    if in_parts:
        ranks = [(rank, rank_path(unpacked, rank)) for rank in (1, 0)]
        archive = write_archive(folder / "parts", released_members(ranks, ITERATION), part_bytes=part_bytes)
        contents = {path.name: path.read_bytes() for path in archive.parts}
        rest = {"README": b"mine", "glm-130b-sat.tar.sha256": b"sums", "other.zip": b"mine, too"}
    else:
        contents = {f"{ITERATION}/{path.name}": path.read_bytes() for path in (unpacked / ITERATION).iterdir()}
        rest = {"latest": ITERATION.encode(), f"{ITERATION}/notes.txt": b"mine"}
    settings = folder / "settings.json"
    settings.write_text(str(sizes.settings).replace("'", '"'))
    plain = folder / "plain"
    assert convert(unpacked, plain, f"--config={settings}", *options) == 0
    expected = {path.name: path.read_bytes() for path in plain.iterdir()}
    made = Original(contents, rest, f"--config={settings}", expected, options)
    source = made.write(folder / "source")
    made.large = _large(_plan(source, settings, options), source)
    return made


def _plan(source: Path, settings: Path, options: Sequence[str]) -> Job:
    shard = next((int(one.partition("=")[2]) for one in options if one.startswith("--max-shard-size")), 10**9)
    bits = next((int(one.partition("=")[2]) for one in options if one.startswith("--bits")), None)
    chosen = glm130b.ForwardOptions(settings=settings, max_shard_bytes=shard, bits=bits)
    return glm130b.plan_forward(source, chosen, expected_shapes)


def _large(job: Job, source: Path) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
    found = []
    for file in job.files:
        for tensor in file.tensors:
            places = []
            for part, name in sorted(sources_of(tensor)):
                stored, whole = job.source.files[part].tensors[name], job.source.files[part].bytes
                if is_large(stored):
                    consumed = min(stored.extent, whole.size - TAIL_BYTES - stored.offset)  # the end is kept
                    for one in segments(whole, stored.offset, max(0, consumed)):
                        places.append((str(one.source.path.relative_to(source)), one.start, one.nbytes))
            if places:
                found.append((tensor.name, file.name, places))
    return found


# Killing


def without_sync(work: Callable[[], int]) -> Callable[[], int]:
    """Some work of a child that does not wait for the disk, which kills, unlike a loss of power, do not show."""

    def working() -> int:
        os.fsync = lambda descriptor: None
        return work()

    return working


@contextmanager
def counted(at: Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]) -> Iterator[None]:
    """Every call that changes a disk goes through `at`: (number, name, does it, arguments) -> its result."""
    number = 0

    def through(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal number
            if name == "open" and not arguments[1] & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
                return real(*arguments, **named)
            number += 1
            return at(number, name, lambda: real(*arguments, **named), arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, through(name, getattr(os, name)))
        patch.setattr(consume_file, "punch", through("punch", holes.punch))
        renames = output_path._rename_by_the_system
        patch.setattr(output_path, "_rename_by_the_system", through("renameat2", renames))
        yield


def count_calls(work: Callable[[], int]) -> int:
    """How many calls some work makes that change a disk; done in a child."""
    reading, writing = os.pipe()
    write = os.write

    def counting() -> int:
        last = 0

        def at(number: int, name: str, does: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
            nonlocal last
            last = number
            return does()

        with counted(at):
            status = work()
        write(writing, str(last).encode())
        return status

    assert in_child(counting) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return int(file.read())


def killed_at(work: Callable[[], int], call: int, how: str) -> int | None:
    """Does some work in a child that is killed at a call: `before` it, `behind` it, or `within` it if it writes."""

    def at(number: int, name: str, does: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        if number != call:
            return does()
        if how == "within" and name in WRITES and len(arguments[1]) > 1:
            descriptor, data, *offset = arguments
            half = bytes(data)[: len(data) // 2]
            if offset:
                _real_pwrite(descriptor, half, *offset)
            else:
                _real_write(descriptor, half)
        elif how == "behind":
            does()
        die()

    def working() -> int:
        with counted(at):
            return work()

    return in_child(working)


_real_pwrite, _real_write = os.pwrite, os.write


def stop_after(made: Original, source: Path, output: Path, files: int) -> None:
    """Runs the command in a child that is killed when so many files of the output were verified and acted on."""

    def working() -> int:
        real, told = Consumption.verified, 0

        def verified(self: Consumption, *arguments: Any) -> bool:
            nonlocal told
            real(self, *arguments)
            told += 1
            if told == files:
                die()
            return False

        Consumption.verified = verified  # type: ignore[method-assign]  # in this child only
        return made.run(source, output)

    assert in_child(without_sync(working)) is None


def refusing(work: Callable[[], int], call: int, number: int = errno.ENOSPC) -> int | None:
    """Does some work in a child for which the system refuses everything that needs disk from a call on."""

    def at(count: int, name: str, does: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        if count >= call and name in ("pwrite", "write", "fsync", "mkdir"):
            raise OSError(number, os.strerror(number))
        return does()

    def working() -> int:
        with counted(at):
            return work()

    return in_child(working)


def random_kill(work: Callable[[], int], calls: int, seconds: float, choice: random.Random) -> int | None:
    """Kills some work at a random call, or after a random time; its status if it ended before."""
    if choice.random() < 0.3:
        return in_child(work, choice.random() * seconds)
    return killed_at(work, choice.randrange(1, calls + 1), choice.choice(("before", "behind", "within")))
