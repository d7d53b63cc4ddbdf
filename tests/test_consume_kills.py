"""`--consume` killed again and again: whatever is left, no tensor is lost, and the same command ends it."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.consuming import SHARD, Original, consume_small_weights, count_calls, in_child, original, random_kill

FEW, MANY = 24, 200
CHAINS = {"parts": (True, (SHARD,)), "folder, quantized": (False, ("--max-shard-size=60000", "--bits=4"))}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    consume_small_weights(monkeypatch)


def survive(made: Original, folder: Path, kills: int, choice: random.Random) -> int:
    """Runs conversions to their end, killed on the way until there were so many kills; the number of conversions."""
    first = made.write(folder / "count")
    began = time.monotonic()
    calls = count_calls(lambda: made.run(first, folder / "counted"))
    seconds = time.monotonic() - began
    runs = 0
    while kills > 0:
        source, output = made.write(folder / f"source{runs}"), folder / f"made{runs}" / "out"
        output.parent.mkdir()
        status, most = None, choice.randrange(1, 9)
        for _ in range(min(most, kills)):
            status = random_kill(lambda: made.run(source, output), calls, seconds, choice)
            assert not made.lost(source, output)
            if status is not None:
                break
            kills -= 1
        if status is None:
            status = in_child(lambda: made.run(source, output))
        assert status == 0
        assert made.is_done(source, output)
        runs += 1
    return runs


@pytest.mark.parametrize("kind", CHAINS)
def test_no_kill_loses_a_tensor(tmp_path: Path, kind: str) -> None:
    in_parts, options = CHAINS[kind]
    made = original(tmp_path / "original", in_parts, *options)
    assert survive(made, tmp_path, FEW // 2, random.Random(kind)) > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CHAINS)
def test_two_hundred_kills(tmp_path: Path, kind: str) -> None:
    in_parts, options = CHAINS[kind]
    made = original(tmp_path / "original", in_parts, *options)
    survive(made, tmp_path, MANY // 2, random.Random(f"{kind} once more"))
