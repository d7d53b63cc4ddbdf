"""JSON from elsewhere is read within limits."""

import os
from pathlib import Path

import pytest

from conversion import json_files
from conversion.json_files import MAX_DEPTH, parse_json, read_json
from conversion.operations import LONGEST_MESSAGE, ConversionError


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_plain_json_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, null, "字"], "a": {}}', encoding="utf-8")
    assert read_json(path) == {"a": {}}
    assert parse_json(nested(MAX_DEPTH)) is not None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(100_000), "nested deeper"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper"),
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        ("\ufeff{}".encode(), "byte order mark"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": -1e999}', "too large for a number"),
        (b'["\\ud800x"]', "half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b"", "Expecting value"),
        (b"1" * 5000, "digits"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half a surrogate pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes {value[:8]!r}",
)
def test_what_is_no_json_or_too_much_is_a_value_error(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(data)


def test_names_that_stand_twice_can_be_refused() -> None:
    with pytest.raises(ValueError, match="twice: a, b"):
        parse_json(b'{"b": 1, "a": 1, "c": 1, "b": 1, "a": 2}', unique_names=True)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_BYTES", 10)
    path = tmp_path / "a.json"
    path.write_bytes(b" " * 11)
    with pytest.raises(ValueError, match="the limit is 10"):
        read_json(path)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "device"):
        with pytest.raises(ValueError, match="no file"):
            read_json(path)
    path = tmp_path / "a.json"
    path.write_bytes(b'"\\ud83d\\ude00"')
    assert read_json(path) == "😀"
    with pytest.raises(ValueError, match="14 bytes, the limit is 13"):
        read_json(path, most=13)


def test_messages_lose_the_middle_of_endless_names() -> None:
    message = str(ConversionError(f"folder: the name {'x' * 10**6} is wrong, {'and so on ' * 10**5}"))
    assert len(message) < LONGEST_MESSAGE + 100
    assert message.startswith("folder: the name xxx")
    assert "characters" in message
