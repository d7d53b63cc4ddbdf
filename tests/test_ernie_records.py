"""Texts given as dicts: the record of one text each, never a collection whose keys are read."""

from typing import Any

import pytest

from hf_glm_ernie.ernie_tasks.records import text_records


def test_a_dict_is_the_record_of_one_text() -> None:
    assert text_records({"text": "文"}) == text_records("文") == text_records([{"content": "文"}]) == ["文"]
    assert text_records(["文", {"text": "本"}]) == ["文", "本"]
    assert text_records(iter(["文"])) == ["文"]
    assert text_records([]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"title": "文"}, r"texts\[0\] is a dict with \['title'\]; a dict holds one text, {'text': \.\.\.} or"),
        ({"text": "文", "title": "本"}, r"texts\[0\] is a dict with \['text', 'title'\]"),
        (["文", {}], r"texts\[1\] is a dict with \[\]"),
        ([{"text": 3}], r"texts\[0\] is a int, not a string: 3"),
        ({"文"}, r"texts is a set .*; it must be a string, a dict {'text': \.\.\.}, or a list of them"),
        (None, r"texts is a NoneType"),
    ],
)
def test_what_is_no_text(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        text_records(texts)
