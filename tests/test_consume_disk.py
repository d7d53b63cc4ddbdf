"""What `--consume` takes of the disk, measured at every write, against what its plan says; and the bookkeeping."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversion import consume, consume_file, writer
from conversion.byte_ranges import count, free_until, merged, whole_blocks, without
from conversion.consume_layout import FileLayout, Stretch, peak_bytes
from tests.support.consuming import Original, original
from tests.support.tiny import Sizes

SIZES = Sizes(layers=2, hidden=1024, heads=8, inner=2048, vocabulary=4096)
"""51 MB, of which 50 lie in matrices of 1 MiB and more."""

OPTIONS = ("--max-shard-size=6000000",)
PART_BYTES = 7_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return original(tmp_path_factory.mktemp("parts"), True, *OPTIONS, sizes=SIZES, part_bytes=PART_BYTES)


def taken(*folders: Path) -> int:
    """Bytes that the files of some folders take on the disk."""
    nbytes = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                nbytes += path.stat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:  # moved or deleted in this instant
                continue
    return nbytes


@pytest.mark.parametrize("punches", [True, False], ids=["holes", "no holes"])
def test_the_disk_takes_no_more_than_planned(
    made: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], punches: bool
) -> None:
    source, output = made.write(tmp_path / "source"), tmp_path / "made" / "out"
    at_first = taken(source)
    most, lowest = 0, at_first

    def measuring(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal most, lowest
            result = real(*arguments)
            most = max(most, taken(source, output.parent) - at_first)
            lowest = min(lowest, taken(source))
            return result

        return call

    monkeypatch.setattr(writer, "pwrite_all", measuring(writer.pwrite_all))
    monkeypatch.setattr(consume_file, "punch", measuring(consume_file.punch))
    monkeypatch.setattr(consume, "can_punch", lambda folder: punches)
    assert made.run(source, output) == 0
    assert made.is_done(source, output)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "with --consume, beside" in line]
    planned = int(line.split()[2].replace(",", ""))
    small = sum(path.stat().st_blocks * 512 for path in output.iterdir() if path.suffix != ".safetensors")
    assert planned / 2 < most <= planned + small
    assert lowest < at_first / 2  # before the last file is verified
    whole = sum(len(content) for name, content in made.expected.items() if name.endswith(".safetensors"))
    assert planned < whole * (0.4 if punches else 0.9)


# The bookkeeping


def bytes_in(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, stop in ranges for byte in range(start, stop)}


def test_sets_of_bytes() -> None:
    choice = random.Random(0)

    def some() -> list[tuple[int, int]]:
        starts = [choice.randrange(40) for _ in range(choice.randrange(6))]
        return [(start, start + choice.randrange(6)) for start in starts]

    for _ in range(500):
        one, other = merged(some()), merged(some())
        assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(one))
        assert bytes_in(without(one, other)) == bytes_in(one) - bytes_in(other)
        assert count(one) == len(bytes_in(one))
        blocks = bytes_in(whole_blocks(one, 3))
        assert blocks == {byte for byte in range(60) if {byte // 3 * 3 + at for at in range(3)} <= bytes_in(one)}
        offset = choice.randrange(50)
        assert free_until(one, offset, 48) == min([48, *(byte for byte in bytes_in(one) if byte >= offset)])


def test_what_becomes_free_when() -> None:
    a, b = frozenset("a"), frozenset("b")
    file = FileLayout(100, (Stretch(10, 40, a), Stretch(40, 60, a | b), Stretch(70, 90, frozenset())))
    assert file.kept == [(0, 10), (60, 70), (90, 100)]
    assert file.free([]) == []
    assert file.free(["a"]) == [(10, 40)]
    assert file.free(["a", "b"]) == [(10, 60)]
    assert not file.is_free(["a", "b"])  # nobody reads the last, so it stays to the end
    assert FileLayout(100, file.stretches[:2]).is_free("ab")
    assert not FileLayout(100, ()).is_free("ab")
    assert file.freed_bytes("ab", 8, punches=True) == 40  # 16 to 56
    assert file.freed_bytes("ab", 8, punches=False) == 0
    assert FileLayout(100, file.stretches[:2]).freed_bytes("ab", 8, punches=False) == 104


def test_the_most_that_is_taken() -> None:
    """Three files of the output from one of the source: the next is written before the last is free."""
    thirds = [Stretch(100 * n, 100 * n + 100, frozenset(name)) for n, name in enumerate("abc")]
    source = FileLayout(300, tuple(thirds))
    left = dict.fromkeys("abc", 100)
    assert peak_bytes(left, [], [source], 1, punches=True) == 200
    assert peak_bytes(left, [], [source], 1, punches=False) == 300
    assert peak_bytes({"c": 40}, ["a", "b"], [source], 1, punches=True) == 40
    apart = [FileLayout(100, (Stretch(0, 100, frozenset(name)),)) for name in "abc"]
    assert peak_bytes(left, [], apart, 1, punches=False) == 200
