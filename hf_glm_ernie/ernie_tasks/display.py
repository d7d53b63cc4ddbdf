"""Answers of `uie` as a picture: the text with every answer marked, and what was found about what.

Every answer has a line of its label's colour under its text, in a lane of its own where answers overlap or nest, and
its label where it ends. Below stand the answers, each with its probability; what was found about one stands below it,
behind an arrow with the name that was asked.

Text and labels come from anywhere, so all of them are escaped; there are no scripts, no links and nothing that is
fetched. Colours are mixed into those around them, so that light and dark pages both fit. In a notebook the picture is
shown; elsewhere the same stands there as plain text.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from .records import text_records

HUES = ("#0d9488", "#d97706", "#4f6bed", "#db2777", "#7c3aed", "#4d7c0f", "#dc2626", "#0284c7")
"""Of labels, in the order in which they come."""

LANE = 5  # pixels that a lane of lines takes

STYLE = """\
.uie-view{font-family:system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;margin:.6em 0 1.4em}
.uie-view .uie-text{white-space:pre-wrap;overflow-wrap:anywhere;font-size:1.1em;unicode-bidi:isolate}
.uie-view .uie-piece{-webkit-box-decoration-break:clone;box-decoration-break:clone;background-repeat:no-repeat}
.uie-view .uie-tag{display:inline-block;margin:0 .3em 0 .25em;padding:0 .5em;border-radius:1em;font-size:.68em;\
line-height:1.6;vertical-align:.15em;white-space:nowrap;unicode-bidi:isolate;\
background:color-mix(in srgb,var(--hue) 24%,transparent);border:1px solid var(--hue)}
.uie-view ul{list-style:none;margin:.5em 0 0;padding:0 0 0 1.6em;font-size:.95em;line-height:1.9}
.uie-view ul ul{margin:0}
.uie-view>ul{padding:0}
.uie-view .uie-about{opacity:.75}
.uie-view .uie-what{unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere}
.uie-view .uie-number{opacity:.6;font-variant-numeric:tabular-nums;font-size:.85em;margin-left:.5em}
"""

PAGE = """\
<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>:root{{color-scheme:light dark}}body{{max-width:60em;margin:2em auto;padding:0 1em}}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Mark:
    """An answer with a place in the text, and the lane that its line runs in, 0 next to the text."""

    start: int
    end: int
    label: str
    title: str
    lane: int


@dataclass(frozen=True)
class Picture:
    """Answers to be shown: HTML to a notebook, plain text to everything else."""

    html: str
    plain: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.plain


def display(found: Any, text: Any) -> None:
    """Shows answers of `uie`: as a picture in a notebook, as plain text elsewhere.

    Args:
        found: What `uie` gave, or one text's answers.
        text: The text, or as many as there are answers.

    Raises:
        TypeError: answers or texts of another kind.
        ValueError: not as many texts as answers, or an answer outside its text: they belong to other texts.
    """
    picture = Picture(to_html(found, text), to_text(found, text))
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        ipython.display.display(picture)
    else:
        print(picture)  # noqa: T201  # what it is for


def to_html(found: Any, text: Any) -> str:
    """Answers of `uie` as a piece of HTML that needs nothing else; see [`display`].

    Args:
        found: What `uie` gave, or one text's answers.
        text: The text, or as many as there are answers.

    Raises:
        TypeError: as `display`.
        ValueError: as `display`.
    """
    rows = _rows(found, text)
    hues = _hues([answers for answers, _ in rows])
    views = "".join(
        f'<div class="uie-view tex2jax_ignore mathjax_ignore">{_text_html(one, _marks(answers), hues)}'
        f"{_list_html(answers, hues)}</div>"
        for answers, one in rows
    )
    return f"<style>{STYLE}</style>{views}"


def save_html(path: str | Path, found: Any, text: Any, title: str = "UIE") -> None:
    """Writes answers of `uie` as a page of its own; see [`display`].

    Args:
        path: File to write.
        found: What `uie` gave, or one text's answers.
        text: The text, or as many as there are answers.
        title: Of the page.

    Raises:
        TypeError: as `display`.
        ValueError: as `display`.
    """
    page = PAGE.format(title=escape(title), body=to_html(found, text))
    # Half a surrogate pair, which UTF-8 cannot hold, becomes a reference that browsers show as unknown.
    Path(path).write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def to_text(found: Any, text: Any) -> str:
    """Answers of `uie` as plain text: every text, and its answers as a tree; see [`display`].

    Args:
        found: What `uie` gave, or one text's answers.
        text: The text, or as many as there are answers.

    Raises:
        TypeError: as `display`.
        ValueError: as `display`.
    """
    return "\n\n".join("\n".join([one, *_lines(answers, "  ")]) for answers, one in _rows(found, text))


def _rows(found: Any, text: Any) -> list[tuple[Mapping[str, Any], str]]:
    """Every text with its answers, checked."""
    texts = text_records(text)
    answers = [found] if isinstance(found, Mapping) else list(found) if isinstance(found, list | tuple) else None
    if answers is None or not all(isinstance(one, Mapping) for one in answers):
        raise TypeError(f"found is a {type(found).__name__}; it must be what uie gives: dicts of answers, or one.")
    if len(answers) != len(texts):
        raise ValueError(
            f"found holds the answers of {len(answers)} texts, but {len(texts)} were given: pass the same."
        )
    for i, (own, one) in enumerate(zip(answers, texts, strict=True)):
        for answer in _every(own):
            start, end = answer.get("start"), answer.get("end")
            if start is not None and (end is None or not 0 <= start < end <= len(one)):
                raise ValueError(
                    f"found[{i}] has an answer at {start}..{end}, but text {i} has {len(one)} characters: these are "
                    "the answers of another text."
                )
    return list(zip(answers, texts, strict=True))


def _every(answers: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for found in answers.values():
        for answer in found:
            yield answer
            yield from _every(answer.get("relations", {}))


def _hues(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Label -> its colour."""
    labels: dict[str, None] = {}

    def add(answers: Mapping[str, Any]) -> None:
        for name, found in answers.items():
            labels.setdefault(name)
            for answer in found:
                add(answer.get("relations", {}))

    for answers in rows:
        add(answers)
    return {label: HUES[i % len(HUES)] for i, label in enumerate(labels)}


def _marks(answers: Mapping[str, Any]) -> list[Mark]:
    """The answers that have a place, in lanes: the shorter next to the text, none over another in one lane."""
    titles: dict[tuple[int, int, str], str] = {}

    def add(answers: Mapping[str, Any], above: str) -> None:
        for name, found in answers.items():
            for answer in found:
                path = f"{above}{name}"
                if answer.get("start") is not None:
                    titles.setdefault((answer["start"], answer["end"], name), f"{path}{_percent(answer)}")
                add(answer.get("relations", {}), f"{path} ({answer['text']}) → ")

    add(answers, "")
    lanes: dict[int, int] = {}  # character -> lanes taken over it, as bits
    marks = []
    for (start, end, label), title in sorted(titles.items(), key=lambda one: (one[0][1] - one[0][0], one[0])):
        taken, lane = 0, 0
        for at in range(start, end):
            taken |= lanes.get(at, 0)
        while taken >> lane & 1:
            lane += 1
        for at in range(start, end):
            lanes[at] = lanes.get(at, 0) | 1 << lane
        marks.append(Mark(start, end, label, title, lane))
    return marks


def _text_html(text: str, marks: Sequence[Mark], hues: Mapping[str, str]) -> str:
    """The text, cut wherever an answer begins or ends."""
    begins: dict[int, list[Mark]] = {}
    ends: dict[int, list[Mark]] = {}
    for mark in marks:
        begins.setdefault(mark.start, []).append(mark)
        ends.setdefault(mark.end, []).append(mark)
    lanes = 1 + max((mark.lane for mark in marks), default=0)
    shown, over = "", list[Mark]()
    for start, end in pairwise(sorted({0, len(text), *begins, *ends})):
        over += begins.get(start, [])
        piece = escape(text[start:end])
        shown += _piece_html(piece, over, hues) if over else piece
        ending = sorted(ends.get(end, []), key=lambda mark: mark.lane)
        over = [mark for mark in over if mark.end != end]
        tags = "".join(_tag(mark.label, hues, mark.title) for mark in ending)
        shown += _piece_html(tags, over, hues) if over and tags else tags  # a longer answer's line goes on under them
    return f'<div class="uie-text" dir="auto" style="line-height:calc(2em + {LANE * lanes}px)">{shown}</div>'


def _piece_html(piece: str, over: Sequence[Mark], hues: Mapping[str, str]) -> str:
    lanes = 1 + max(mark.lane for mark in over)
    lines = ",".join(f"linear-gradient({hues[mark.label]},{hues[mark.label]})" for mark in over)
    places = ",".join(f"0 calc(100% - {LANE * (lanes - 1 - mark.lane)}px)" for mark in over)
    tint = hues[min(over, key=lambda mark: mark.lane).label]
    style = (
        f"padding-bottom:{LANE * lanes - 2}px;background-image:{lines};background-position:{places};"
        f"background-size:100% 3px;background-color:color-mix(in srgb,{tint} 12%,transparent)"
    )
    return f'<span class="uie-piece" style="{style}">{piece}</span>'


def _tag(label: str, hues: Mapping[str, str], title: str = "") -> str:
    said = f' title="{escape(title)}"' if title else ""
    return f'<span class="uie-tag" style="--hue:{hues[label]}"{said}>{escape(label)}</span>'


def _list_html(answers: Mapping[str, Any], hues: Mapping[str, str], arrow: str = "") -> str:
    rows = "".join(
        f'<li>{arrow}{_tag(name, hues)}{arrow and "→ "}<span class="uie-what">{escape(answer["text"])}</span>'
        f'<span class="uie-number">{_place(answer)}{_percent(answer)}</span>'
        f"{_list_html(answer.get('relations', {}), hues, '<span class=uie-about>└─</span>')}</li>"
        for name, found in answers.items()
        for answer in found
    )
    return f"<ul>{rows}</ul>" if rows else ""


def _lines(answers: Mapping[str, Any], indent: str, arrow: str = "") -> Iterator[str]:
    for name, found in answers.items():
        for answer in found:
            numbers = f"{_place(answer, ' ')}{_percent(answer)}"
            yield f"{indent}{arrow}{name}{' → ' if arrow else ': '}{answer['text']}{numbers}"
            yield from _lines(answer.get("relations", {}), indent + "   ", "└─ ")


def _place(answer: Mapping[str, Any], before: str = "") -> str:
    return "" if answer.get("start") is None else f"{before}{answer['start']}-{answer['end']}"


def _percent(answer: Mapping[str, Any]) -> str:
    return "" if answer.get("probability") is None else f" {answer['probability']:.1%}"


__all__ = ["Picture", "display", "save_html", "to_html", "to_text"]
