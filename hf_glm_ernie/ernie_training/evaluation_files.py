"""What an evaluation leaves: a table to look at, a JSON report, the rows with mistakes as JSON lines and as a page.

The page is one HTML file that fetches nothing: every row with its text, in which answers are marked as right, missing,
wrong or spurious, and a list of them. Whatever a row holds is shown as text, never read as HTML.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from hf_glm_ernie.ernie_data.spool import publish, refuse_existing, work_folder

from .evaluation import Evaluation

SCORES = ("precision", "recall", "f1", "exact_match", "accuracy")
SIDES = ("missing", "wrong", "spurious")
PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em; max-width: 60em; line-height: 1.7 }}
section {{ border-top: 1px solid #ccc; padding: .6em 0 }}
p {{ margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere }}
mark {{ padding: 0 .15em; border-radius: .2em; color: inherit }}
.right {{ background: #cde8cd }} .missing {{ background: #ffe08a }}
.wrong {{ background: #ffc9a3 }} .spurious {{ background: #f5b5b5 }}
small {{ color: #666 }}
</style></head><body>
<h1>{title}</h1>
<p>{rows} rows with mistakes. <mark class="right">right</mark> <mark class="missing">missing</mark>
<mark class="wrong">wrong</mark> <mark class="spurious">spurious</mark></p>
{sections}
</body></html>
"""


def names_beside(report: Path) -> list[str]:
    """Names of the files of a report: the report, the rows with mistakes, and their page."""
    return [report.name, f"{report.stem}.mistakes.jsonl", f"{report.stem}.mistakes.html"]


def check_place(report: Path, overwrite: bool = False) -> None:
    """Raises ValueError where the files of a report cannot be put, so that nothing is measured in vain."""
    if report.suffix != ".json":
        raise ValueError(f"The report {report} is no .json file: give one, such as {report.with_suffix('.json')}.")
    refuse_existing(report.parent, names_beside(report), overwrite)


def write_evaluation(found: Evaluation, report: Path, overwrite: bool = False) -> None:
    """Writes the three files of [`names_beside`], all or none.

    Args:
        found: What was measured.
        report: The JSON file.
        overwrite: Whether those of an earlier run are replaced.

    Raises:
        ValueError: they are there already; no .json file.
        OSError: they cannot be written.
    """
    check_place(report, overwrite)
    whole = found.as_dict()
    mistakes = whole.pop("mistakes")
    listed = [dict(one) for one in mistakes]
    if found.end_to_end is not None:
        listed += [{"end_to_end": True, **one} for one in whole["end_to_end"].pop("mistakes")]
    whole["rows_with_mistakes"] = len(mistakes)
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in listed)
    title = f"{found.task}: {found.model} on {found.data}"
    texts = [json.dumps(whole, ensure_ascii=False, indent=1) + "\n", lines, mistakes_page(title, listed)]
    names = names_beside(report)
    with work_folder(report.parent) as work:
        for name, text in zip(names, texts, strict=True):
            (work / name).write_text(text, encoding="utf-8")
        publish(work, report.parent, names, names)


def describe(found: Evaluation) -> str:
    """The scores as tables of plain text."""
    lines = [f"{found.rows:,} rows, {len(found.mistakes):,} with mistakes", _line(found.scores)]
    lines += _table(found.by_class)
    if found.end_to_end is not None:
        whole = found.end_to_end
        lines += ["", f"end to end, {len(whole['mistakes']):,} texts with mistakes", _line(whole["scores"])]
        lines += _table(whole["by_class"])
        if whole["rows_not_asked"]:
            lines.append(f"note: {whole['rows_not_asked']:,} rows with answers are asked for by nothing in the schema")
    return "\n".join(lines)


def _line(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def _table(by_class: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Scores with four digits, counts with none."""
    if not by_class:
        return []
    columns = list(dict.fromkeys(column for scores in by_class.values() for column in scores))
    width = max(map(_columns, by_class))
    lines = [" " * width + "".join(f"  {column:>9}" for column in columns)]
    for name, scores in by_class.items():
        cells = (f"  {_cell(scores.get(column)):>{max(len(column), 9)}}" for column in columns)
        lines.append(name + " " * (width - _columns(name)) + "".join(cells))
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _columns(text: str) -> int:
    """How wide a terminal shows a text."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def mistakes_page(title: str, mistakes: Sequence[Mapping[str, Any]]) -> str:
    """The rows with mistakes as an HTML page."""
    sections = "\n".join(_section(one) for one in mistakes)
    return PAGE.format(title=escape(title), rows=len(mistakes), sections=sections)


def _section(mistake: Mapping[str, Any]) -> str:
    shown = {"row", "text", "prompt", "gold", "found", *SIDES}
    parts = [f"<section><small>row {escape(str(mistake.get('row')))}</small>"]
    if "prompt" in mistake:
        parts.append(f"<p><b>{escape(mistake['prompt'])}</b></p>")
    if "text" in mistake:
        parts.append(f"<p>{_marked_text(mistake)}</p>")
    for side in SIDES:
        for one in mistake.get(side) or ():
            told = f"{_told(one['found'])} for {_told(one['gold'])}" if side == "wrong" else _told(one)
            parts.append(f'<p><mark class="{side}">{side}</mark> {escape(told)}</p>')
    if not any(side in mistake for side in SIDES):
        parts += [f"<p>{name}: {escape(_plain(mistake[name]))}</p>" for name in ("gold", "found") if name in mistake]
    parts += [f"<p><small>{escape(n)}: {escape(_plain(v))}</small></p>" for n, v in mistake.items() if n not in shown]
    return "".join(parts) + "</section>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _told(mark: Mapping[str, Any]) -> str:
    """An answer in one line."""
    label = f"{mark['label']}: " if "label" in mark else ""
    place = f" ({mark['start']} to {mark['end']})" if "start" in mark else ""
    return f"{label}{mark['text']}{place}"


def _marked_text(mistake: Mapping[str, Any]) -> str:
    """The text with its answers marked; where answers overlap, a character has the class of the worst."""
    text = mistake["text"]
    kinds = ["" for _ in text]
    wrong = [one["found"] for one in mistake.get("wrong") or ()]
    found = [one for one in mistake.get("found") or () if isinstance(one, Mapping)]
    bad = [*wrong, *(mistake.get("spurious") or ())]
    sides = {"right": [one for one in found if one not in bad], "missing": mistake.get("missing") or ()}
    sides |= {"wrong": wrong, "spurious": mistake.get("spurious") or ()}
    for side, marks in sides.items():
        for mark in marks:
            start, end = mark.get("start"), mark.get("end")
            if start is not None and start >= 0 and text[start:end] == mark["text"]:  # words, options: no characters
                kinds[start:end] = [side] * (end - start)
    parts, before = [], ""
    for char, kind in zip(text, kinds, strict=True):
        if kind != before:
            parts.append(("</mark>" if before else "") + (f'<mark class="{kind}">' if kind else ""))
            before = kind
        parts.append(escape(char))
    return "".join(parts) + ("</mark>" if before else "")


__all__ = ["check_place", "describe", "mistakes_page", "names_beside", "write_evaluation"]
