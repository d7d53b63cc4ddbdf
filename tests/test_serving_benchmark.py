"""The load generator of `benchmarks/serving.py`: when requests arrive, who is asked, what is counted."""

import asyncio
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("aiohttp", reason="needs aiohttp, which the extra `test` brings (datasets)")

import serving_load


def test_arrivals_are_a_poisson_process_scaled_by_the_rate() -> None:
    times = serving_load.arrivals(4000, 8.0, seed=1)
    assert (
        times == sorted(times) == serving_load.arrivals(4000, 8.0, seed=1) != serving_load.arrivals(4000, 8.0, seed=2)
    )
    assert [2 * time for time in serving_load.arrivals(100, 8.0, 1)] == pytest.approx(
        serving_load.arrivals(100, 4.0, 1)
    )
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 8, rel=3 / math.sqrt(4000))  # 3 sigma
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.1)  # of an exponential distribution both are equal; 3 sigma is 0.07


@pytest.mark.parametrize("url", ["http://192.0.2.1:80", "http://[2001:db8::1]:80"])
def test_only_the_loopback_is_asked(url: str) -> None:
    with pytest.raises(ValueError, match="loopback addresses only"):
        asyncio.run(serving_load.load_server(url, [{}], [0.0], 1.0))
    serving_load.check_loopback("http://127.0.0.1:8000")
    serving_load.check_loopback("http://[::1]:8000")


def test_a_server_that_is_not_there_is_counted_as_failed() -> None:
    with serving_load.socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        answers = asyncio.run(serving_load.load_server(url, [{}, {}], [0.0, 0.01], 5.0))
    assert [answer.text for answer in answers] == [None, None]
    found = serving_load.figures(1.0, answers, [0.0, 0.01], ["", ""])
    assert (found.answered, found.failed, found.equal) == (0, 2, 0)


def test_a_function_takes_what_has_arrived() -> None:
    batches = []

    def answer(numbers: list[int]) -> list[tuple[str, int]]:
        batches.append(numbers)
        return [(f" {number}", 2) for number in numbers]

    times = [0.0, 0.0, 0.0, 0.2, 0.2]
    answers = serving_load.load_function(answer, times, 5.0, batch_size=2)
    assert batches == [[0, 1], [2], [3, 4]]
    found = serving_load.figures(9.0, answers, times, ["0", "1", "2", "3", "another"])
    assert (found.answered, found.failed, found.equal) == (5, 0, 4)
    assert found.latency_p50 <= found.latency_p90 <= found.latency_p99 < 0.2
    assert found.tokens_per_second == pytest.approx(10 / found.seconds)
    assert found.seconds >= 0.2


def test_what_is_late_is_not_waited_for() -> None:
    answers = serving_load.load_function(lambda numbers: [("", 1) for _ in numbers], [0.0, 60.0], 0.05, 2)
    assert [answer.text for answer in answers] == ["", None]
    assert "not answered within" in answers[1].error


def test_percentiles() -> None:
    ordered = [float(number) for number in range(101)]
    assert [serving_load.percentile(ordered, percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert serving_load.percentile([3.0], 99) == 3.0
    assert math.isnan(serving_load.percentile([], 50))
