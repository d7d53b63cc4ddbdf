"""Answers as HTML: marks in a text, bars for probabilities. Pure functions from results to strings.

Gradio's own `HighlightedText` cannot show spans that overlap, and a founder is also a person; so the page has a few
lines of HTML of its own, drawn by `page.css`. Everything that a person or a model wrote is escaped here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from page_answers import Candidate, Choice, FilledPage

COLOURS = 8
"""How many classes `c0`, `c1`, .. page.css has for labels."""

PATH = " › "
SHORT = 24  # characters of a span that is not broken over two lines


@dataclass(frozen=True)
class Found:
    """An answer of `uie`, with the names that lead to it.

    Attributes:
        names: From the top of the schema down.
        about: The answer that it was asked about, if any.
        text: Its text.
        start: First character in the text; None for an option that was chosen.
        end: One past the last.
        probability: Of it.
    """

    names: tuple[str, ...]
    about: str | None
    text: str
    start: int | None
    end: int | None
    probability: float

    @property
    def label(self) -> str:
        """The name that was asked."""
        return self.names[-1]


@dataclass(frozen=True)
class Segment:
    """A piece of a text over which the same answers lie.

    Attributes:
        text: The piece.
        over: The answers that lie over it, the shortest first.
        ending: Those of them that end with it.
    """

    text: str
    over: tuple[Found, ...]
    ending: tuple[Found, ...]


def percent(probability: float) -> str:
    """A probability as a person reads it."""
    if 0 < probability < 0.001:
        return "<0.1%"
    if 0.999 < probability < 1:
        return ">99.9%"
    return f"{probability:.1%}"


def _bar(probability: float) -> str:
    width = max(0.0, min(1.0, probability)) * 100
    return (
        f'<td class="bar"><span style="width:{width:.2f}%"></span></td><td class="percent">{percent(probability)}</td>'
    )


# Fill blanks.


def filled_html(page: FilledPage) -> str:
    """The text with what was filled in marked and numbered."""
    shown = escape(page.pieces[0])
    for number, (blank, piece) in enumerate(zip(page.blanks, page.pieces[1:], strict=True), 1):
        index = f"<sup>{number}</sup>" if len(page.blanks) > 1 else ""
        shown += f"<mark>{escape(blank) or '&nbsp;'}{index}</mark>{escape(piece)}"
    return f'<div class="page-text">{shown}</div>'


def candidates_html(candidates: Sequence[Sequence[Candidate]], words: Mapping[str, str]) -> str:
    """A table for each blank: what may stand there, how likely, and what is left for all else.

    Args:
        candidates: Of each blank.
        words: What the page calls things: `alternatives`, `blank`, `chosen`, `cut_off`, `nothing`, `else`.
    """
    tables = []
    for number, of_blank in enumerate(candidates, 1):
        title = f"{words['blank']} {number}" if len(candidates) > 1 else words["alternatives"]
        rows = "".join(_candidate_row(one, words) for one in of_blank)
        left = 1 - sum(one.probability for one in of_blank)
        if left > 0.0005:
            rows += f'<tr class="else"><td class="what">{escape(words["else"])}</td>{_bar(left)}</tr>'
        tables.append(f'<table class="page-bars"><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>')
    return "".join(tables)


def _candidate_row(one: Candidate, words: Mapping[str, str]) -> str:
    text = escape(one.text) if one.text.strip() else f"<i>{escape(words['nothing'])}</i>"
    if one.is_cut_off:
        text += f'<span title="{escape(words["cut_off"])}"> …</span>'
    kind, title = (' class="chosen"', f' title="{escape(words["chosen"])}"') if one.is_chosen else ("", "")
    return f'<tr{kind}{title}><td class="what">{text}</td>{_bar(one.probability)}</tr>'


# Extraction.


def flattened(answers: Mapping[str, Any], above: tuple[str, ...] = (), about: str | None = None) -> Iterator[Found]:
    """The answers of `uie` in the order of its tree, each before what was found about it."""
    for name, found in answers.items():
        for one in found:
            names = (*above, name)
            yield Found(names, about, one["text"], one.get("start"), one.get("end"), one["probability"])
            yield from flattened(one.get("relations", {}), names, one["text"])


def label_colours(found: Sequence[Found]) -> dict[str, int]:
    """A colour for each label, in the order in which they come."""
    labels = list(dict.fromkeys(one.label for one in found))
    return {label: number % COLOURS for number, label in enumerate(labels)}


def segments(text: str, found: Sequence[Found]) -> list[Segment]:
    """Cuts a text wherever an answer begins or ends.

    Args:
        text: The text.
        found: Answers; those without a place are left out. They may overlap.

    Returns:
        Pieces that make up the text, none of them empty.
    """
    placed = sorted(
        (one for one in found if one.start is not None and one.end is not None and one.start < one.end),
        key=lambda one: (one.end or 0) - (one.start or 0),
    )
    cuts = sorted({0, len(text), *(place for one in placed for place in (one.start or 0, one.end or 0))})
    pieces = []
    for start, end in pairwise(cuts):
        over = tuple(one for one in placed if (one.start or 0) <= start and end <= (one.end or 0))
        pieces.append(Segment(text[start:end], over, tuple(one for one in over if one.end == end)))
    return pieces


def spans_html(text: str, found: Sequence[Found]) -> str:
    """The text with every answer coloured, and its labels behind it."""
    colours = label_colours(found)
    shown = ""
    for piece in segments(text, found):
        if not piece.over:
            shown += escape(piece.text)
            continue
        named = {one.label: one for one in piece.ending}  # a label once, though asked about two answers
        tags = "".join(
            f'<span class="tag c{colours[label]}" title="{escape(_title(one))}">{escape(label)}</span>'
            for label, one in sorted(named.items(), key=lambda item: colours[item[0]])
        )
        kind = f"span c{colours[_first(piece.over, colours).label]}" + (" short" if len(piece.text) <= SHORT else "")
        shown += f'<mark class="{kind}">{escape(piece.text)}{tags}</mark>'
    return f'<div class="page-text spans">{shown}</div>'


def _first(over: Sequence[Found], colours: Mapping[str, int]) -> Found:
    """Whose colour a piece has: the shortest answer's; of like ones, that of the label that came first."""
    shortest = min((one.end or 0) - (one.start or 0) for one in over)
    like = [one for one in over if (one.end or 0) - (one.start or 0) == shortest]
    return min(like, key=lambda one: (len(one.names), colours[one.label]))


def _title(one: Found) -> str:
    path = PATH.join(one.names)
    return f"{path} ({one.about}), {percent(one.probability)}" if one.about else f"{path}, {percent(one.probability)}"


def found_html(found: Sequence[Found], words: Mapping[str, str]) -> str:
    """A table of the answers; what was found about one stands indented below it.

    Args:
        found: In the order of the tree.
        words: What the page calls things: `label`, `text`, `place`, `probability`, `nothing_found`.
    """
    if not found:
        return f'<p class="page-note">{escape(words["nothing_found"])}</p>'
    colours = label_colours(found)
    rows = ""
    for one in found:
        place = "" if one.start is None else f"{one.start}-{one.end}"
        rows += (
            f'<tr><td class="label"><span class="deep" style="width:{1.1 * (len(one.names) - 1):.1f}em"></span>'
            f'<span class="tag c{colours[one.label]}" title="{escape(_title(one))}">{escape(one.label)}</span></td>'
            f'<td class="what">{escape(one.text)}</td><td class="place">{place}</td>{_bar(one.probability)}</tr>'
        )
    names = ("label", "text", "place")
    head = "".join(f"<th>{escape(words[name])}</th>" for name in names)
    head += f'<th colspan="2">{escape(words["probability"])}</th>'
    return f'<table class="page-bars found"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def schema_html(schema: Any) -> str:
    """A schema as a tree of labels, as the editor has understood it."""
    if isinstance(schema, str):
        return f'<span class="tag">{escape(schema)}</span>'
    if isinstance(schema, dict):
        arrow = PATH.strip()
        return "".join(
            f'<span class="branch"><span class="tag">{escape(str(name))}</span>{arrow}{schema_html(below)}</span>'
            for name, below in schema.items()
        )
    return "".join(schema_html(part) for part in schema)


# Classification.


def choices_html(choices: Sequence[Choice], words: Mapping[str, str]) -> str:
    """A bar for each choice; those that hold stand out.

    Args:
        choices: The likeliest first.
        words: What the page calls things: `holds`, `none_holds`.
    """
    rows = ""
    for one in choices:
        kind, title = (' class="chosen"', f' title="{escape(words["holds"])}"') if one.holds else ("", "")
        rows += f'<tr{kind}{title}><td class="what">{escape(one.label)}</td>{_bar(one.probability)}</tr>'
    note = "" if any(one.holds for one in choices) else f'<p class="page-note">{escape(words["none_holds"])}</p>'
    return f'<table class="page-bars"><tbody>{rows}</tbody></table>{note}'


__all__ = [
    "Found",
    "Segment",
    "candidates_html",
    "choices_html",
    "filled_html",
    "flattened",
    "found_html",
    "percent",
    "schema_html",
    "segments",
    "spans_html",
]
