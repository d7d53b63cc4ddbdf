"""Knowledge masked language modelling: words, phrases and entities are masked as wholes.

A row's tokens are first partitioned into units: every span that the data, a segmenter or a lexicon names is one unit,
every other word is one (an English word with all its pieces, a single Chinese character). Then every unit is chosen
with probability 15%, independently of the others, as in ERNIE 1.0's published code. All tokens of a unit share that
one coin, so each token is masked with a probability of exactly 15% however long the spans are. (Filling a budget of
15% of the tokens with spans, the other common way, masks less of what stands in long spans.)

Of a chosen unit each token becomes `[MASK]` in 80% of the cases, a random ordinary token in 10%, and stays in 10%.

Source: P10, section 3.2.1; ERNIE 1.0 (arXiv 1904.09223), section 3.2; `batching.py` of its program.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from hf_glm_ernie.configuration_ernie3 import KNOWLEDGE_MASKED_LM
from hf_glm_ernie.inference.token_ids import special_id

from .builders import IGNORED, RowBuilder, checked_text, fitted
from .tokens import Asking, Tokens

KINDS = ("word", "phrase", "entity")  # where spans overlap, later kinds win
PRECEDENCE = {kind: -place for place, kind in enumerate(KINDS)}
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stays as it is
LATIN = re.compile(r"[A-Za-z0-9]")
FREE_SLOTS = 8  # of a lexicon's table, for each that is taken, or up to twice as many


class Span(NamedTuple):
    """A stretch of a text: characters `start` to `end` (exclusive) and what it is, one of `KINDS`."""

    start: int
    end: int
    kind: str


_SPAN_OF: Any = partial(tuple.__new__, Span)  # `Span` calls Python for each of its spans, this does not


def find_mentions(text: str, mention: str) -> list[tuple[int, int]]:
    """Where a text mentions something.

    Args:
        text: Any text.
        mention: What to find, letter by letter; upper and lower case differ.

    Returns:
        (start, end) of every place in characters. A mention that starts or ends with a Latin letter or digit is found
        only where no further one adjoins: "art" is not in "party", 巴黎 is in 大巴黎区.
    """
    found, start = [], text.find(mention) if mention else -1
    while start >= 0:
        end = start + len(mention)
        found.append((start, end))
        start = text.find(mention, end)
    return [(start, end) for start, end in found if not _is_cut(text, start, end)] if _is_latin(mention) else found


def _is_latin(entry: str) -> bool:
    """Whether a text begins or ends with a Latin letter or digit, so that [`_is_cut`] may be true of it."""
    return bool(LATIN.match(entry[:1]) or LATIN.match(entry[-1:]))


def _is_cut(text: str, start: int, end: int) -> bool:
    """Whether a Latin letter or digit inside adjoins one outside."""
    return bool(
        (start > 0 and LATIN.match(text[start]) and LATIN.match(text[start - 1]))
        or (end < len(text) and LATIN.match(text[end]) and LATIN.match(text[end - 1]))
    )


class Lexicon:
    """Finds the entries of a list, such as the entities of a knowledge graph, in texts: the longest first.

    Args:
        entries: Each entry and its kind, one of `KINDS`.

    Raises:
        ValueError: an empty entry or an unknown kind.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        for entry, kind in entries.items():
            if not entry.strip():
                raise ValueError(f"The lexicon has an empty entry {entry!r} ({kind}); leave it out.")
            _check_kind(kind, f"Entry {entry!r} of the lexicon")
        self.entries = dict(entries)
        self._latin = {entry for entry in entries if _is_latin(entry)}
        # By an entry's first two characters, which far fewer places of a text have than its first one. An entry of one
        # character stands by itself, and with all pairs that begin with it.
        lengths: dict[str, set[int]] = {}
        for entry in entries:
            lengths.setdefault(entry[:2], set()).add(len(entry))
        for pair in lengths:
            if pair[0] in lengths:
                lengths[pair].add(1)
        self._lengths = {beginning: sorted(some, reverse=True) for beginning, some in lengths.items()}
        self._characters = np.array([ord(beginning) for beginning in lengths if len(beginning) == 1], np.uint32)
        pairs = [beginning for beginning in lengths if len(beginning) == 2]
        self._bits = max(10, (FREE_SLOTS * len(pairs)).bit_length())
        self._slots = np.zeros(2**self._bits, np.bool_)
        self._slots[self._slots_of("".join(pairs))[::2]] = True

    def spans(self, text: str) -> list[Span]:
        """The entries in a text, from left to right and without overlaps; at each place the longest one."""
        lengths, kinds, latin = self._lengths.get, self.entries.get, self._latin
        found, free = [], 0
        for start in self._places(text):
            if start < free:
                continue
            pair = text[start : start + 2]
            for length in lengths(pair) or lengths(pair[:1]) or ():
                entry = pair if length == 2 else text[start : start + length]  # fewer are left at the end of the text
                kind = kinds(entry)
                if kind is not None and not (latin and entry in latin and _is_cut(text, start, start + len(entry))):
                    free = start + len(entry)
                    found.append((start, free, kind))
                    break
        return list(map(_SPAN_OF, found))

    def _places(self, text: str) -> list[int]:
        """Where entries may begin: every place where one does, and a few others."""
        begins = self._slots[self._slots_of(text)]
        if len(self._characters):
            begins |= np.isin(_code_points(text), self._characters)
        return np.flatnonzero(begins).tolist()

    def _slots_of(self, text: str) -> np.ndarray:
        """(T,) for each character and the one behind it a number below `len(_slots)`, the same wherever they stand."""
        codes = _code_points(text + "\0")
        mixed: np.ndarray = codes[:-1] * np.uint32(0x9E3779B1) + codes[1:] * np.uint32(0x85EBCA6B)
        return mixed >> np.uint32(32 - self._bits)


def _code_points(text: str) -> np.ndarray:
    """(T,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def segmenter_spans(text: str, segmenter: Callable[[str], Iterable[str]]) -> list[Span]:
    """The words that a segmenter finds in a text.

    Args:
        text: Any text.
        segmenter: Gives the words of a text in order, such as `jieba.lcut`. It may leave out white space.

    Raises:
        ValueError: a word that does not stand in the text where it should.
    """
    spans, at = [], 0
    for word in segmenter(text):
        if not word.strip():
            continue
        start = text.find(word, at)
        if start < 0:
            raise ValueError(
                f"The segmenter gives the word {word!r}, which the text does not have after its first {at} characters."
            )
        at = start + len(word)
        spans.append(Span(start, at, "word"))
    return spans


class Units(Sequence[list[int]]):
    """Indices of tokens, each in one unit at most; the units in the order of their first tokens.

    A list of each unit would take most of the time of masking; nearly all are only counted.

    Args:
        indices: Of all tokens that may be masked, in order.
        bounds: Where each unit begins among them, and where the last one ends.
    """

    def __init__(self, indices: list[int], bounds: list[int]) -> None:
        self.indices, self.bounds = indices, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, at: Any) -> Any:
        """One unit, counted from 0."""
        return self.indices[self.bounds[at] : self.bounds[at + 1]]

    def before(self, end: int) -> "Units":
        """What is left of a text of which only so many tokens are: of each unit those among them."""
        left = bisect.bisect_left(self.indices, end)
        return Units(self.indices[:left], [*self.bounds[: bisect.bisect_left(self.bounds, left)], left])


def units_of_tokens(tokens: Tokens, spans: Sequence[Span], never: frozenset[int]) -> Units:
    """Partitions the tokens that may be masked into units.

    Args:
        tokens: A text's.
        spans: Spans of the text. Each is widened to whole words. Of overlapping ones the later kind of `KINDS` wins,
            then the longer, then the first.
        never: Ids that are never masked: those of special tokens.
    """
    count = len(tokens.ids)
    places = np.fromiter(itertools.chain.from_iterable(tokens.offsets), np.int64, 2 * count).reshape(count, 2)
    words = np.array(tokens.words, np.float64)  # NaN: of no word
    barred = np.fromiter(map(never.__contains__, tokens.ids), np.bool_, count)
    kept = np.flatnonzero((places[:, 0] < places[:, 1]) & (words == words) & ~barred)
    if not len(kept):
        return Units([], [0])
    places, words = places[kept], words[kept]
    firsts = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))  # of each word, among the kept tokens
    if spans:
        starts, ends = places[firsts, 0], places[np.append(firsts[1:], len(kept)) - 1, 1]
        firsts = firsts[_beginnings(spans, starts, ends)]
    return Units(kept.tolist(), [*firsts.tolist(), len(kept)])


def _beginnings(spans: Sequence[Span], starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which words begin a unit.

    Args:
        spans: Spans of a text, at least one.
        starts: (W,) where each word begins in the text.
        ends: (W,) where it ends.

    Returns:
        (W,) bool.
    """
    all_starts, all_ends, kinds = zip(*spans, strict=True)
    span_starts, span_ends = np.array(all_starts), np.array(all_ends)
    first = np.searchsorted(ends, span_starts, side="right")
    stop = np.searchsorted(starts, span_ends, side="left")
    order = np.flatnonzero(first < stop)
    if _overlap(first[order], stop[order]):  # or are not in order
        order = order[np.argsort(first[order], kind="stable")]
        if _overlap(first[order], stop[order]):  # then it depends on what they are which ones count
            rank = np.array([PRECEDENCE[kind] for kind in kinds])
            order = np.lexsort((span_starts, span_starts - span_ends, rank))
            order = order[_taken(first[order].tolist(), stop[order].tolist(), len(starts))]
    first, stop = first[order], stop[order]
    # Counts a span up behind its first word and down behind its last one: within, a word begins no unit.
    inside = np.zeros(len(starts) + 1, np.int64)
    inside[first + 1] += 1
    inside[stop] -= 1
    return np.cumsum(inside[:-1]) == 0


def _overlap(first: np.ndarray, stop: np.ndarray) -> bool:
    """Whether a range begins before the one in front of it has ended."""
    return bool((first[1:] < stop[:-1]).any())


def _taken(firsts: Sequence[int], stops: Sequence[int], count: int) -> list[int]:
    """Of ranges of `count` words, the places of those that no earlier one has a word of."""
    used, taken = bytearray(count), []
    for at, (first, stop) in enumerate(zip(firsts, stops, strict=True)):
        if first < stop and used.find(1, first, stop) < 0:
            used[first:stop] = b"\1" * (stop - first)
            taken.append(at)
    return taken


def mask_units(
    ids: Sequence[int],
    units: Sequence[Sequence[int]],
    generator: np.random.Generator,
    *,
    rate: float,
    mask_token_id: int,
    ordinary_ids: np.ndarray,
) -> tuple[list[int], list[int]]:
    """Masks whole units.

    Args:
        ids: (T) ids of a row.
        units: Indices of tokens that are chosen together.
        generator: Decides.
        rate: Probability of every unit, and so of every token in one.
        mask_token_id: Id of `[MASK]`.
        ordinary_ids: (N,) ids that random tokens are drawn from.

    Returns:
        The ids with what replaces the chosen ones, and the labels: the original id where one was chosen, else -100.
    """
    masked, labels = list(ids), [IGNORED] * len(ids)
    chosen = np.flatnonzero(generator.random(len(units)) < rate).tolist()
    places = [at for unit in map(units.__getitem__, chosen) for at in unit]
    fates = generator.random(len(places))
    for at in places:
        labels[at], masked[at] = ids[at], mask_token_id
    others = np.flatnonzero(fates >= MASK_SHARE)
    is_random = fates[others] < MASK_SHARE + RANDOM_SHARE
    drawn = iter(ordinary_ids[generator.integers(len(ordinary_ids), size=is_random.sum())].tolist())
    for other, replaced in zip(others.tolist(), is_random.tolist(), strict=True):
        at = places[other]
        masked[at] = next(drawn) if replaced else ids[at]
    return masked, labels


@dataclasses.dataclass(frozen=True)
class MaskingBuilder(RowBuilder):
    """What the two tasks that mask words have in common. Further arguments:

    Args:
        segmenter: Gives the words of a text in order, such as `jieba.lcut`; without one Chinese words are characters.
        lexicon: Names further words, phrases and entities.
        kinds: Spans of these kinds count, others fall apart into words and characters. ERNIE 1.0's three stages are
            `()`, `("word", "phrase")` and all.
        rate: Share of the tokens that are to be found.
    """

    segmenter: Callable[[str], Iterable[str]] | None = dataclasses.field(default=None, kw_only=True)
    lexicon: Lexicon | None = dataclasses.field(default=None, kw_only=True)
    kinds: tuple[str, ...] = dataclasses.field(default=KINDS, kw_only=True)
    rate: float = dataclasses.field(default=0.15, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate} must be between 0 and 1.")
        for kind in self.kinds:
            _check_kind(kind, "kinds")

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids that are never masked, sentence marks among them."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {id_ for id_, token in added.items() if token.special}

    @cached_property
    def _cls(self) -> int:
        return special_id(self.tokenizer, "cls")

    @cached_property
    def _mask(self) -> int:
        return special_id(self.tokenizer, "mask")

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """Ids a random token is drawn from: all but the special and the added ones."""
        added = set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        return np.array(sorted(set(self.tokenizer.get_vocab().values()) - self._special - added))

    def spans(self, text: str, given: Any) -> list[Span]:
        """All spans of a text that count: those given with it, the segmenter's and the lexicon's.

        Args:
            text: The text.
            given: A list of {"start", "end", "kind"}, or `None`.

        Raises:
            ValueError: a given span outside the text or of an unknown kind.
        """
        spans = [_checked_span(text, one, place) for place, one in enumerate(given or ())]
        if self.segmenter is not None:
            spans += segmenter_spans(text, self.segmenter)
        if self.lexicon is not None:
            spans += self.lexicon.spans(text)
        return spans if set(KINDS) <= set(self.kinds) else [span for span in spans if span.kind in self.kinds]

    def masked(
        self, tokens: Tokens, ids: Sequence[int], spans: Sequence[Span], generator: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """[`mask_units`] on what is left of a text: its `ids`, and of each unit the tokens among them."""
        units = units_of_tokens(tokens, spans, self._special)
        if len(ids) < len(tokens.ids):
            units = units.before(len(ids))
        return mask_units(
            ids,
            units,
            generator,
            rate=self.rate,
            mask_token_id=self._mask,
            ordinary_ids=self._ordinary,
        )


@dataclasses.dataclass(frozen=True)
class KnowledgeMasking(MaskingBuilder):
    """Rows of knowledge masked language modelling: `[CLS] text`, 15% of the tokens to be found.

    Columns read: `text`, and if present `spans`, a list of {"start", "end", "kind"} in characters of the text.
    Columns made: `input_ids`, `labels` (-100 where nothing is to be found). Arguments: those of [`RowBuilder`] and
    [`MaskingBuilder`].

    ```python
    >>> from hf_glm_ernie import KnowledgeMasking, Lexicon

    >>> masking = KnowledgeMasking(tokenizer, lexicon=Lexicon({"巴黎": "entity", "法国": "entity"}))
    >>> rows = dataset.map(masking, batched=True, with_indices=True, remove_columns=dataset.column_names)
    ```
    """

    task = KNOWLEDGE_MASKED_LM

    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """`[CLS] text` with whole units masked; of a text that is cut, a unit's tokens up to the cut."""
        text = checked_text(row, "text")
        (tokens,) = yield [text]
        ids = fitted(tokens.ids, max_length - 1, self.truncation, "the text")
        masked, labels = self.masked(tokens, ids, self.spans(text, row.get("spans")), generator)
        return {"input_ids": [self._cls, *masked], "labels": [IGNORED, *labels]}


def _check_kind(kind: Any, where: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{where} has the kind {kind!r}; the kinds are {', '.join(map(repr, KINDS))}.")


def _checked_span(text: str, given: Any, place: int) -> Span:
    if not isinstance(given, Mapping) or not {"start", "end", "kind"} <= set(given):
        raise ValueError(f"spans[{place}] must be a dict with 'start', 'end' and 'kind', got {given!r}.")
    span = Span(given["start"], given["end"], given["kind"])
    _check_kind(span.kind, f"spans[{place}]")
    if not 0 <= span.start < span.end <= len(text):
        raise ValueError(
            f"spans[{place}] goes from {span.start} to {span.end}, the text from 0 to {len(text)}; offsets count "
            "characters, and the end is not part of the span."
        )
    return span


__all__ = [
    "KINDS",
    "KnowledgeMasking",
    "Lexicon",
    "MaskingBuilder",
    "Span",
    "Units",
    "find_mentions",
    "mask_units",
    "segmenter_spans",
    "units_of_tokens",
]
