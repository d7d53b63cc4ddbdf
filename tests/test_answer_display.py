"""Answers as a picture: every text whole, every answer marked, nothing of a text or a label read as markup."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_glm_ernie.ernie_tasks.display import _marks, display, save_html, to_html, to_text

TEXT = "2001年，陈晓雯在杭州创办了北京大学附属医院。"
EVIL = '<script>alert(1)</script><img src=x onerror="y">&amp;\'"$x$'


def answer(text: str, found: str, **more: Any) -> dict[str, Any]:
    start = text.index(found)
    return {"text": found, "start": start, "end": start + len(found), "probability": 0.875, **more}


FOUND = {
    "机构": [
        answer(TEXT, "北京大学"),
        answer(TEXT, "北京大学附属医院", relations={"创始人": [answer(TEXT, "陈晓雯")]}),
        answer(TEXT, "大学附属"),
    ],
    "地点": [answer(TEXT, "杭州"), answer(TEXT, "北京")],
    "评价维度": [{"text": "服务", "relations": {"倾向[正向,负向]": [{"text": "正向", "probability": 0.5}]}}],
}


class Read(HTMLParser):
    """What a browser makes of it: tags, attributes, and the text's characters with the lines under each."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, int]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in ("meta",):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        classes = [attributes.get("class") for _, attributes in self.open]
        if "uie-text" in classes and "uie-tag" not in classes:
            lines = [str(attributes["style"]).count("linear-gradient") for _, attributes in self.open[-1:]
                     if attributes.get("class") == "uie-piece"]  # fmt: skip
            self.text += [(letter, sum(lines)) for letter in data]


def test_the_text_is_whole_and_every_answer_marked() -> None:
    read = Read(to_html(FOUND, TEXT))
    assert "".join(letter for letter, _ in read.text) == TEXT
    over = [0] * len(TEXT)
    for one in [*FOUND["机构"], *FOUND["地点"], *FOUND["机构"][1]["relations"]["创始人"]]:
        for at in range(one["start"], one["end"]):
            over[at] += 1
    assert [lines for _, lines in read.text] == over
    assert max(over) == 3
    assert set(read.tags) <= {"style", "div", "span", "ul", "li"}


def test_answers_that_overlap_have_lanes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = "字" * 30
        places = {tuple(sorted(rng.choice(31, 2, replace=False).tolist())) for _ in range(8)}
        found = {"甲": [{"text": text[a:b], "start": a, "end": b, "probability": 0.5} for a, b in places]}
        marks = _marks(found)
        assert {(mark.start, mark.end) for mark in marks} == places
        for one in marks:
            for other in marks:
                apart = one.end <= other.start or other.end <= one.start
                assert one is other or apart or one.lane != other.lane
        read = Read(to_html(found, text))
        assert [lines for _, lines in read.text] == [sum(a <= at < b for a, b in places) for at in range(30)]


def test_nothing_is_read_as_markup(tmp_path: Path) -> None:
    found = {EVIL: [{"text": EVIL, "start": 0, "end": len(EVIL), "probability": 1.0,
                     "relations": {EVIL: [{"text": EVIL, "probability": 0.5}]}}]}  # fmt: skip
    save_html(tmp_path / "page.html", found, EVIL + "\ud83d", title=EVIL)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Read(page)
    allowed = {"html", "head", "meta", "title", "style", "body", "div", "span", "ul", "li"}
    assert set(read.tags) <= allowed
    assert set(read.attributes) <= {"charset", "http-equiv", "content", "name", "class", "style", "dir", "title"}
    assert "".join(letter for letter, _ in read.text)[: len(EVIL)] == EVIL
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|https?:|@import|src=[^x]", page)
    assert "mathjax_ignore" in page  # $x$ stays as it is in a notebook


def test_several_texts_and_none() -> None:
    html = to_html([FOUND, {}], [TEXT, "无"])
    assert html.count('class="uie-view') == 2
    assert to_html([], []).count("uie-text") == 1  # the style alone
    assert to_text({}, {"text": TEXT}) == TEXT


def test_plain_text() -> None:
    assert to_text(FOUND, TEXT).splitlines() == [
        TEXT,
        "  机构: 北京大学 15-19 87.5%",
        "  机构: 北京大学附属医院 15-23 87.5%",
        "     └─ 创始人 → 陈晓雯 6-9 87.5%",
        "  机构: 大学附属 17-21 87.5%",
        "  地点: 杭州 10-12 87.5%",
        "  地点: 北京 15-17 87.5%",
        "  评价维度: 服务",
        "     └─ 倾向[正向,负向] → 正向 50.0%",
    ]


def test_a_notebook_shows_the_picture_and_a_terminal_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    display(FOUND, TEXT)
    assert capsys.readouterr().out == to_text(FOUND, TEXT) + "\n"
    shown: list[Any] = []
    ipython = SimpleNamespace(get_ipython=lambda: None, display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", ipython)  # type: ignore[arg-type]  # stands in for the module
    display(FOUND, TEXT)  # imported, but no shell
    assert capsys.readouterr().out
    assert shown == []
    ipython.get_ipython = object
    display(FOUND, TEXT)
    assert capsys.readouterr().out == ""
    [picture] = shown
    assert picture._repr_html_() == to_html(FOUND, TEXT)
    assert repr(picture) == to_text(FOUND, TEXT)


@pytest.mark.parametrize(
    ("found", "text", "error", "message"),
    [
        (3, "文", TypeError, "found is a int; it must be what uie gives"),
        ([3], "文", TypeError, "found is a list"),
        ([{}, {}], "文", ValueError, "answers of 2 texts, but 1 were given"),
        ({}, 3, TypeError, "texts is a int"),
        (FOUND, "文", ValueError, r"found\[0\] has an answer at 15\.\.19, but text 0 has 1 characters"),
    ],
)
def test_refusals(found: Any, text: Any, error: type[Exception], message: str) -> None:
    for show in (to_html, to_text, display):
        with pytest.raises(error, match=message):
            show(found, text)
