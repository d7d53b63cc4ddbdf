"""Answers of UIE: starts and ends paired, read as places in the text, and the answers of windows put together.

Flat pairs are the original's: an end goes to the nearest start before it, and no two answers of a window overlap.

Nested pairs read likely starts and ends like brackets: an end closes the innermost start that is open. An end for
which none is open shares the start closed last (北京 and 北京大学: one start, two ends), and a start that nothing
closes shares the end of the next one (北京大学 and 大学: two starts, one end). So they are the flat pairs and more,
never more than starts and ends together, and they do not cross. Beyond the flat pairs nothing is paired over the end
of a sentence. (All pairs of a start with a later end would join the first and the last name of every list.)

Where windows overlap, both may find an answer. The same place counts once, with the higher probability. Otherwise an
answer gives way to those of a window that sees more around it, where they overlap; so what the edge of a window cut
through gives way to what the next window holds whole. If flat answers still overlap, one away from its window's edge
comes first, then the likelier one.

Source: PaddleNLP 2.8.1, `paddlenlp/utils/tools.py` (`get_span`), `paddlenlp/taskflow/utils.py` (`get_id_and_prob`) and
`paddlenlp/taskflow/information_extraction.py` (`_auto_joiner`). Letters in shape comments: B rows, T tokens.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .uie_windows import EncodedWindow, Window

SENTENCE_MARKS = re.compile(r"[。！？!?；;\n]")

Place = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """An answer in a window: characters `start` to `end` of its prompt or of the whole text."""

    start: int
    end: int
    probability: float
    in_prompt: bool

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.start, self.end


def pair_rows(is_start: np.ndarray, is_end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs starts with ends in every row.

    Each start takes the nearest end at or behind it; of the starts that took one end, the last keeps it.

    Args:
        is_start: (B, T) bool.
        is_end: (B, T) bool.

    Returns:
        Row, first and last token (included) of every pair, in order.
    """
    width = is_start.shape[1]
    starts, ends = np.flatnonzero(is_start), np.flatnonzero(is_end)
    nearest = np.searchsorted(ends, starts)
    kept = (np.diff(nearest, append=len(ends)) != 0) & (nearest < len(ends))
    starts, ends = starts[kept], ends[nearest[kept]]
    same = starts // width == ends // width
    return starts[same] // width, starts[same] % width, ends[same] % width


def pair_spans(start_prob: np.ndarray, end_prob: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs likely starts with likely ends of one row, as [`pair_rows`].

    Args:
        start_prob: (T,) float64.
        end_prob: (T,) float64.
        threshold: Probabilities above it count.

    Returns:
        (start, end) indices of tokens, both included, in order.
    """
    _, firsts, lasts = pair_rows(start_prob[None] > threshold, end_prob[None] > threshold)
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def pair_nested(starts: Sequence[int], ends: Sequence[int], together: Callable[[int, int], bool]) -> list[Place]:
    """Pairs starts with ends like brackets, see the module.

    Args:
        starts: In order.
        ends: In order.
        together: Whether a start and an end may be paired that are not next to each other among the two lists.

    Returns:
        (start, end) indices, both included, in order.
    """
    marks = sorted([(place, False) for place in starts] + [(place, True) for place in ends])
    opened: list[int] = []
    left: list[int] = []
    pairs: set[Place] = set()
    closed, behind_start = None, False
    for place, is_end in marks:
        if not is_end:
            opened.append(place)
        else:
            while opened and not behind_start and not together(opened[-1], place):
                left.append(opened.pop())
            if opened:
                closed = opened.pop()
                pairs.add((closed, place))
            elif closed is not None and together(closed, place):
                pairs.add((closed, place))
        behind_start = not is_end
    furthest: dict[int, int] = {}
    for start, end in pairs:
        furthest[start] = max(end, furthest.get(start, end))
    for start in sorted(left + opened, reverse=True):  # the next mark is a start: an end would have closed this one
        at = bisect_right(starts, start)
        inner = furthest.get(starts[at]) if at < len(starts) else None
        if inner is not None and together(start, inner):
            furthest[start] = inner
            pairs.add((start, inner))
    return sorted(pairs)


def batch_spans(
    encoded: Sequence[EncodedWindow], start_prob: np.ndarray, end_prob: np.ndarray, threshold: float, nested: bool
) -> list[list[Span]]:
    """Reads the answers off the probabilities of a batch.

    Args:
        encoded: B windows.
        start_prob: (B, T) float64; what stands behind a window's tokens is not read.
        end_prob: (B, T) float64.
        threshold: Probabilities above it count.
        nested: Whether answers of a window may overlap.

    Returns:
        For each window the spans that begin and end in the text, offsets into the whole text, and those that begin and
        end in the prompt. What begins or ends at a special token is no answer.
    """
    lengths = np.array([len(one.input_ids) for one in encoded])
    inside = np.arange(start_prob.shape[1]) < lengths[:, None]
    is_start, is_end = (start_prob > threshold) & inside, (end_prob > threshold) & inside
    pairs = zip(*(part.tolist() for part in pair_rows(is_start, is_end)), strict=True)
    spans: list[list[Span]] = [[] for _ in encoded]
    for row, first, last in _nested_pairs(encoded, is_start, is_end) if nested else pairs:
        one = encoded[row]
        segment = one.segments[first]
        if segment is None or segment != one.segments[last]:
            continue
        offset = one.window.offset if segment == 1 else 0
        start, end = one.offsets[first][0] + offset, one.offsets[last][1] + offset
        spans[row].append(Span(start, end, float(start_prob[row, first] * end_prob[row, last]), segment == 0))
    return spans


def _nested_pairs(
    encoded: Sequence[EncodedWindow], is_start: np.ndarray, is_end: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    for row in np.flatnonzero(is_start.any(1) & is_end.any(1)).tolist():
        one = encoded[row]

        def together(first: int, last: int, one: EncodedWindow = one) -> bool:
            if one.segments[first] != 1 or one.segments[last] != 1:
                return False  # options do not nest
            return SENTENCE_MARKS.search(one.window.text, one.offsets[first][0], one.offsets[last][0]) is None

        starts, ends = np.flatnonzero(is_start[row]).tolist(), np.flatnonzero(is_end[row]).tolist()
        yield from ((row, first, last) for first, last in pair_nested(starts, ends, together))


def merge_windows(windows: Sequence[Window], spans: Sequence[Sequence[Span]], nested: bool) -> list[Span]:
    """Puts the answers of a text's windows together, see the module.

    Args:
        windows: Of one question, in order.
        spans: Of each window; those in the prompt are left out.
        nested: Whether answers may overlap.

    Returns:
        The answers in the text, by place.
    """
    found = [{span.place: span for span in own if not span.in_prompt} for own in spans]
    kept: dict[Place, tuple[bool, float, Span]] = {}  # place -> at an edge, minus the probability: the least is kept
    for i, own in enumerate(found):
        for place, span in own.items():
            if not _gives_way(i, place, windows, found):
                rank = (_context(windows[i], place) == 0, -span.probability, span)
                likelier = min(kept.get(place, rank), rank, key=lambda one: one[1])
                kept[place] = (rank[0] and kept.get(place, rank)[0], *likelier[1:])
    merged = sorted(kept.values(), key=lambda one: one[:2])
    return sorted((span for *_, span in (merged if nested else _disjoint(merged))), key=lambda span: span.place)


def _context(window: Window, place: Place) -> float:
    """How many characters a window sees around a place, on the side where it is cut off sooner."""
    before = place[0] - window.offset if window.goes_on_before else float("inf")
    behind = window.end - place[1] if window.goes_on_behind else float("inf")
    return min(before, behind)


def _gives_way(i: int, place: Place, windows: Sequence[Window], found: Sequence[dict[Place, Span]]) -> bool:
    """Whether a window that sees more around an answer found others there."""
    own = _context(windows[i], place)
    others = []
    j = i - 1
    while j >= 0 and windows[j].end >= place[1]:
        others.append(j)
        j -= 1
    j = i + 1
    while j < len(windows) and windows[j].offset <= place[0]:
        others.append(j)
        j += 1
    return any(
        place not in found[j]
        and _context(windows[j], place) > own
        and any(start < place[1] and place[0] < end for start, end in found[j])
        for j in others
        if windows[j].offset <= place[0] and place[1] <= windows[j].end
    )


def _disjoint(ranked: Sequence[tuple[bool, float, Span]]) -> list[tuple[bool, float, Span]]:
    """Without those that overlap an earlier one."""
    taken: list[Place] = []  # in order
    kept = []
    for one in ranked:
        place = one[2].place
        at = bisect_left(taken, place)
        if (at == 0 or taken[at - 1][1] <= place[0]) and (at == len(taken) or place[1] <= taken[at][0]):
            taken.insert(at, place)
            kept.append(one)
    return kept


def elect_option(prompt: str, windows: Sequence[Sequence[Span]]) -> dict[str, Any] | None:
    """Puts the windows of one text to the vote.

    Args:
        prompt: Prompt that holds the options.
        windows: The spans of each window.

    Returns:
        The option most windows chose (then the likelier one), with its mean probability over those windows, or `None`
        where no window chose one. A window chooses its likeliest option.
    """
    votes: dict[str, list[float]] = {}
    for spans in windows:
        options = [span for span in spans if span.in_prompt]
        if options:
            choice = max(options, key=lambda span: span.probability)
            votes.setdefault(prompt[choice.start : choice.end], []).append(choice.probability)
    if not votes:
        return None
    option = max(votes, key=lambda text: (len(votes[text]), sum(votes[text])))
    return {"text": option, "probability": sum(votes[option]) / len(votes[option])}


__all__ = ["Span", "batch_spans", "elect_option", "merge_windows", "pair_nested", "pair_rows", "pair_spans"]
