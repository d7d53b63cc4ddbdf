"""ErnieTokenizer against a slow rendering of PaddleNLP's rules, on all of Unicode."""

import unicodedata
from pathlib import Path

import pytest

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie_unicode import ACCENTS, HAN, MARKS, REMOVED
from tests.reference import ernie_tokenizer as rules
from tests.reference.ernie_tokenizer import ErnieReference, random_texts
from tests.support.ernie_vocabulary import needs_unicode_14, released_lines, write_vocabulary


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return released_lines()


@needs_unicode_14
@pytest.mark.parametrize(
    ("lower", "count", "seed"),
    [
        (True, 15_000, 1),
        (False, 5_000, 2),
        pytest.param(True, 70_000, 3, marks=pytest.mark.slow),
        pytest.param(False, 30_000, 4, marks=pytest.mark.slow),
    ],
)
def test_random_texts(lower: bool, count: int, seed: int, lines: list[str], tmp_path: Path) -> None:
    """Texts over all of Unicode, 120,000 of them with the slow rows: ids, tokens and places."""
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, lines), do_lower_case=lower, exact_offsets=False)
    reference = ErnieReference(lines, lower)
    texts = random_texts(count, seed, lines)
    raised = 0
    for start in range(0, count, 10_000):
        found = tokenizer(texts[start : start + 10_000], return_offsets_mapping=True)
        for text, ids, spans, encoding in zip(
            texts[start:], found["input_ids"], found["offset_mapping"], found.encodings, strict=False
        ):
            try:
                expected = reference.encode(text)
            except (ValueError, IndexError):  # PaddleNLP raises: the true places, then
                raised += 1
                expected = {
                    "tokens": ["[CLS]", *reference.tokenize(text), "[SEP]"],
                    "offset_mapping": encoding.offsets,
                }
                expected["input_ids"] = reference.ids(expected["tokens"])
            assert encoding.tokens == expected["tokens"], text
            assert ids == expected["input_ids"], text
            assert spans == expected["offset_mapping"], text
    assert 0 < raised < count / 50


@needs_unicode_14
@pytest.mark.parametrize("lower", [True, False])
def test_every_code_point(lower: bool, lines: list[str], tmp_path: Path) -> None:
    """Alone and between two letters. Planes 4 to 13, where nothing is assigned, by every 64th."""
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, lines), do_lower_case=lower)
    reference = ErnieReference(lines, lower)
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0xE0000, 64), *range(0xE0000, 0xE1000)]
    texts = [f"{chr(code)} a{chr(code)}b" for code in codes]
    for start in range(0, len(texts), 500):
        text = "\n".join(texts[start : start + 500])
        assert tokenizer.tokenize(text) == reference.tokenize(text), f"U+{codes[start]:04X}.."


@pytest.mark.slow
@needs_unicode_14
@pytest.mark.parametrize("lower", [True, False])
def test_every_code_point_by_itself(lower: bool, lines: list[str], tmp_path: Path) -> None:
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, lines), do_lower_case=lower, exact_offsets=False)
    reference = ErnieReference(lines, lower)
    codes = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    texts = [text for code in codes for text in (chr(code), f"a{chr(code)}b")]
    for start in range(0, len(texts), 50_000):
        found = tokenizer(texts[start : start + 50_000], return_offsets_mapping=True)
        for text, ids, spans in zip(texts[start:], found["input_ids"], found["offset_mapping"], strict=False):
            expected = reference.encode(text)
            assert ids == expected["input_ids"], text
            assert spans == expected["offset_mapping"], text


def code_points(ranges: str) -> set[int]:
    bounds = [one.split("-") for one in ranges.split()]
    return {code for bound in bounds for code in range(int(bound[0], 16), int(bound[-1], 16) + 1)}


@needs_unicode_14
def test_classes_are_unicode_14s() -> None:
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    assert code_points(REMOVED) == {ord(char) for char in chars if rules.removed(char)}
    assert code_points(MARKS) == {ord(char) for char in chars if rules.alone(char)}
    assert code_points(ACCENTS) == {ord(char) for char in chars if unicodedata.category(char) == "Mn"}
    assert code_points(HAN) == {code for first, last in rules.HAN for code in range(first, last + 1)}


@needs_unicode_14
def test_cleaning_of_every_character(lines: list[str], tmp_path: Path) -> None:
    """What becomes of a character, not only the tokens it makes: the library's NFD and lowercase agree."""
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF and chr(code) != "\n"]
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, lines))
    cleaned = tokenizer.backend_tokenizer.normalizer.normalize_str("\n".join(chars)).split("\n")
    for char, found in zip(chars, cleaned, strict=True):
        expected = rules.without_accents(char.lower())
        assert found == "".join(part for part in expected if not rules.removed(part)), f"U+{ord(char):04X}"
