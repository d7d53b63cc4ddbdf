"""`--consume` killed again and again: whatever is left, no tensor is lost, and the same command ends it."""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.consuming import (
    SHARD,
    Original,
    consume_small_weights,
    count_calls,
    original,
    random_kill,
    without_sync,
)
from tests.support.forked import in_child

FEW, MANY = 12, 200
CHAINS = {"parts": (True, (SHARD,)), "folder, quantized": (False, ("--max-shard-size=60000", "--bits=4"))}

Work = Callable[[], int]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    consume_small_weights(monkeypatch)


def survive(
    made: Original,
    folder: Path,
    kills: int,
    choice: random.Random,
    prepared: Callable[[Work], Work] = lambda work: work,
) -> int:
    """Runs conversions to their end, killed on the way until there were so many kills; the number of conversions."""
    first = made.write(folder / "count")
    began = time.monotonic()
    calls = count_calls(prepared(partial(made.run, first, folder / "counted")))
    seconds = time.monotonic() - began
    runs = 0
    while kills > 0:
        source, output = made.write(folder / f"source{runs}"), folder / f"made{runs}" / "out"
        output.parent.mkdir()
        work = prepared(partial(made.run, source, output))
        for _ in range(min(kills, choice.randrange(1, 9))):
            status = random_kill(work, calls, seconds, choice)
            assert not made.lost(source, output)
            if status is not None:
                assert status == 0
                break
            kills -= 1
            if output.exists():  # killed behind the last step
                break
        if not output.exists():
            assert in_child(work) == 0
        assert made.is_done(source, output)
        runs += 1
    return runs


@pytest.mark.parametrize("kind", CHAINS)
def test_no_kill_loses_a_tensor(tmp_path: Path, kind: str) -> None:
    in_parts, options = CHAINS[kind]
    made = original(tmp_path / "original", in_parts, *options)
    assert survive(made, tmp_path, FEW // 2, random.Random(kind), without_sync) > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", CHAINS)
def test_two_hundred_kills(tmp_path: Path, kind: str) -> None:
    in_parts, options = CHAINS[kind]
    made = original(tmp_path / "original", in_parts, *options)
    survive(made, tmp_path, MANY // 2, random.Random(f"{kind} once more"))
