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
from functools import cached_property
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


class Span(NamedTuple):
    """A stretch of a text: characters `start` to `end` (exclusive) and what it is, one of `KINDS`."""

    start: int
    end: int
    kind: str


def find_mentions(text: str, mention: str) -> list[tuple[int, int]]:
    """Where a text mentions something.

    Args:
        text: Any text.
        mention: What to find, letter by letter; upper and lower case differ.

    Returns:
        (start, end) of every place in characters. A mention that starts or ends with a Latin letter or digit is found
        only where no further one adjoins: "art" is not in "party", 巴黎 is in 大巴黎区.
    """
    found = (match.span() for match in re.finditer(re.escape(mention), text)) if mention in text and mention else ()
    return [(start, end) for start, end in found if not _is_cut(text, start, end)]


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
        lengths: dict[str, set[int]] = {}
        for entry in entries:
            lengths.setdefault(entry[0], set()).add(len(entry))
        self._latin = {entry for entry in entries if LATIN.match(entry[0]) or LATIN.match(entry[-1])}
        self._lengths = {first: sorted(some, reverse=True) for first, some in lengths.items()}

    def spans(self, text: str) -> list[Span]:
        """The entries in a text, from left to right and without overlaps; at each place the longest one."""
        spans, free = [], 0
        for start, first in enumerate(text):
            if start < free or first not in self._lengths:
                continue
            for length in self._lengths[first]:
                entry = text[start : start + length]
                if entry in self.entries and not (entry in self._latin and _is_cut(text, start, start + len(entry))):
                    free = start + len(entry)  # at the end of the text fewer characters are left
                    spans.append(Span(start, free, self.entries[entry]))
                    break
        return spans


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


def units_of_tokens(tokens: Tokens, spans: Sequence[Span], never: frozenset[int]) -> list[list[int]]:
    """Partitions the tokens that may be masked into units.

    Args:
        tokens: A text's.
        spans: Spans of the text. Each is widened to whole words. Of overlapping ones the later kind of `KINDS` wins,
            then the longer, then the first.
        never: Ids that are never masked: those of special tokens.

    Returns:
        Indices of tokens, each in one unit at most; the units in the order of their first tokens.
    """
    words: list[list[int]] = []
    starts: list[int] = []  # of each word, in characters, and its end
    ends: list[int] = []
    last = None
    for at, (token, word, (start, end)) in enumerate(zip(tokens.ids, tokens.words, tokens.offsets, strict=True)):
        if word is None or start >= end or token in never:
            continue
        if word != last:
            last = word
            words.append([at])
            starts.append(start)
            ends.append(end)
        else:
            words[-1].append(at)
            ends[-1] = end
    ranges = [(bisect.bisect_right(ends, one.start), bisect.bisect_left(starts, one.end), one) for one in spans]
    taken = _taken(ranges, len(words))
    if taken is None:  # some overlap: then their order decides
        ranges.sort(key=lambda one: (PRECEDENCE[one[2].kind], one[2].start - one[2].end, one[2].start))
        taken = _taken(ranges, len(words), overlapping=True)
        assert taken is not None
    units, done = [], 0
    for first, stop in sorted(taken):
        units += words[done:first]
        units.append(list(itertools.chain.from_iterable(words[first:stop])))
        done = stop
    return units + words[done:]


def _taken(
    ranges: Sequence[tuple[int, int, Span]], count: int, overlapping: bool = False
) -> list[tuple[int, int]] | None:
    """Of ranges of words, those that no earlier one has a word of; `None` where one has, unless they may overlap."""
    used, taken = bytearray(count), []
    for first, stop, _ in ranges:
        if first >= stop:
            continue
        if used.find(1, first, stop) >= 0:
            if not overlapping:
                return None
            continue
        used[first:stop] = b"\1" * (stop - first)
        taken.append((first, stop))
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
    chosen = generator.random(len(units)) < rate
    for unit in (unit for unit, is_chosen in zip(units, chosen, strict=True) if is_chosen):
        for at, fate in zip(unit, generator.random(len(unit)), strict=True):
            labels[at] = ids[at]
            if fate < MASK_SHARE:
                masked[at] = mask_token_id
            elif fate < MASK_SHARE + RANDOM_SHARE:
                masked[at] = int(ordinary_ids[generator.integers(len(ordinary_ids))])
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
        return [span for span in spans if span.kind in self.kinds]

    def masked(
        self, tokens: Tokens, ids: Sequence[int], spans: Sequence[Span], generator: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """[`mask_units`] on what is left of a text: its `ids`, and of each unit the tokens among them."""
        units = units_of_tokens(tokens, spans, self._special)
        if len(ids) < len(tokens.ids):
            kept = [[at for at in unit if at < len(ids)] for unit in units]
            units = [unit for unit in kept if unit]
        return mask_units(
            ids,
            units,
            generator,
            rate=self.rate,
            mask_token_id=special_id(self.tokenizer, "mask"),
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
        cls = special_id(self.tokenizer, "cls")
        return {"input_ids": [cls, *masked], "labels": [IGNORED, *labels]}


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
    "find_mentions",
    "mask_units",
    "segmenter_spans",
    "units_of_tokens",
]
