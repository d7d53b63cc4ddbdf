"""An open-loop load: requests arrive when they arrive, whether or not the ones before were answered.

A closed loop (the next request is sent when the last is answered) slows down with the server and hides its queue. Here
arrivals are a Poisson process of a given rate with a fixed seed, scaled from the same exponential gaps at every rate,
so that all engines get the same requests at the same times. Latency counts from the arrival, time in a queue included.

Only loopback addresses are asked. A run is bounded in requests and in seconds; what is not answered in time counts as
failed.
"""

import asyncio
import ipaddress
import json
import random
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp


@dataclass(frozen=True)
class Answer:
    """What one request got.

    Attributes:
        text: The answer; `None` where there was none.
        latency: Seconds from arrival to the last byte.
        first: Seconds from arrival to the first text; of a server that does not stream, the latency.
        tokens: Of the answer, as the server counts them.
        error: What went wrong, or "".
    """

    text: str | None
    latency: float
    first: float
    tokens: int
    error: str = ""


@dataclass(frozen=True)
class Figures:
    """One run: rates per second from its begin to the last answer, percentiles in seconds.

    A server keeps up with a rate where `seconds_after_last_arrival` is about one request's latency.
    """

    rate: float
    answered: int
    failed: int
    equal: int
    requests_per_second: float
    tokens_per_second: float
    latency_p50: float
    latency_p90: float
    latency_p99: float
    first_p50: float
    first_p90: float
    seconds: float
    seconds_after_last_arrival: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds at which requests arrive: a Poisson process.

    Args:
        count: How many.
        rate: Requests per second.
        seed: The same seed gives the same gaps, scaled by the rate.

    Returns:
        Ascending times; the first gap counts from 0.
    """
    rng, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(1.0) / rate
        times.append(now)
    return times


def check_loopback(url: str) -> None:
    """Refuses an address that is not this machine's loopback.

    Raises:
        ValueError: another address.
    """
    host = urlsplit(url).hostname or ""
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    if not all(ipaddress.ip_address(address).is_loopback for address in found):
        raise ValueError(f"{url} is {sorted(found)}: the load is sent to loopback addresses only.")


async def complete(session: aiohttp.ClientSession, url: str, body: dict[str, Any], arrived: float) -> Answer:
    """One streamed completion of an OpenAI-compatible server."""
    first, parts, tokens = 0.0, [], 0
    async with session.post(f"{url}/v1/completions", json=body | {"stream": True}) as response:
        if response.status != 200:
            return Answer(None, 0, 0, 0, f"{response.status}: {(await response.text())[:200]}")
        async for line in response.content:
            text = line.decode().removeprefix("data: ").strip()
            if not text.startswith("{"):
                continue
            event = json.loads(text)
            if "error" in event:
                return Answer(None, 0, 0, 0, str(event["error"]))
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            piece = event["choices"][0]["text"] if event["choices"] else ""
            if piece and not first:
                first = time.perf_counter() - arrived
            parts.append(piece)
    latency = time.perf_counter() - arrived
    return Answer("".join(parts), latency, first or latency, tokens)


async def load_server(
    url: str, bodies: Sequence[dict[str, Any]], times: Sequence[float], limit: float
) -> list[Answer]:
    """Sends each request at its time, and waits for the answers.

    Args:
        url: `http://127.0.0.1:PORT`.
        bodies: JSON of each request.
        times: Of each, in seconds from now.
        limit: Seconds after which what is missing counts as failed.

    Returns:
        An answer for each request, in their order.

    Raises:
        ValueError: an address that is not the loopback's.
    """
    check_loopback(url)
    connector = aiohttp.TCPConnector(limit=len(bodies))
    timeout = aiohttp.ClientTimeout(total=limit)
    start = time.perf_counter()

    async def at(moment: float, body: dict[str, Any]) -> Answer:
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        try:
            return await complete(session, url, body, start + moment)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Answer(None, 0, 0, 0, f"{type(error).__name__}: {error}")

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await _in_time([at(*pair) for pair in zip(times, bodies, strict=True)], limit)


async def _in_time(waiting: Sequence[Awaitable[Answer]], limit: float) -> list[Answer]:
    tasks = [asyncio.ensure_future(one) for one in waiting]
    await asyncio.wait(tasks, timeout=limit)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = Answer(None, 0, 0, 0, f"not answered within {limit:.0f} s")
    return [late if task.cancelled() or task.exception() else task.result() for task in tasks]


def load_function(
    answer: Callable[[list[int]], list[tuple[str, int]]], times: Sequence[float], limit: float, batch_size: int
) -> list[Answer]:
    """The same load on a function in this process that answers a batch: each call takes what has arrived.

    Args:
        answer: Takes numbers of requests, gives their texts and token counts.
        times: Of each request, in seconds from now.
        limit: Seconds after which what is missing counts as failed.
        batch_size: The most requests of a call.

    Returns:
        An answer for each request, in their order.
    """
    start, done = time.perf_counter(), 0
    answers = [Answer(None, 0, 0, 0, f"not answered within {limit:.0f} s")] * len(times)
    while done < len(times) and (now := time.perf_counter() - start) < limit:
        batch = [i for i in range(done, len(times)) if times[i] <= now][:batch_size]
        if not batch:
            time.sleep(min(max(0.0, times[done] - now), limit))
            continue
        texts = answer(batch)
        end = time.perf_counter() - start
        for i, (text, tokens) in zip(batch, texts, strict=True):
            answers[i] = Answer(text, end - times[i], end - times[i], tokens)
        done = batch[-1] + 1
    return answers


def figures(rate: float, answers: Sequence[Answer], times: Sequence[float], expected: Sequence[str]) -> Figures:
    """Sums a run up.

    Args:
        rate: Requests per second that arrived.
        answers: Of each request.
        times: At which they arrived.
        expected: What `generate` answers, without spaces at its ends.

    Returns:
        Percentiles over what was answered.
    """
    good = [(time_, one) for time_, one in zip(times, answers, strict=True) if one.text is not None]
    latencies, firsts = sorted(one.latency for _, one in good), sorted(one.first for _, one in good)
    end = max((time_ + one.latency for time_, one in good), default=0.0)
    pairs = zip(answers, expected, strict=True)
    return Figures(
        rate=rate,
        answered=len(good),
        failed=len(answers) - len(good),
        equal=sum(one.text is not None and one.text.strip() == text for one, text in pairs),
        requests_per_second=len(good) / end if end else 0.0,
        tokens_per_second=sum(one.tokens for _, one in good) / end if end else 0.0,
        latency_p50=percentile(latencies, 50),
        latency_p90=percentile(latencies, 90),
        latency_p99=percentile(latencies, 99),
        first_p50=percentile(firsts, 50),
        first_p90=percentile(firsts, 90),
        seconds=end,
        seconds_after_last_arrival=max(0.0, end - times[-1]),
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """A percentile of values in ascending order; nan of none."""
    if len(ordered) < 2:
        return ordered[0] if ordered else float("nan")
    return statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1]
