"""The rules for single texts of a corpus: repeated characters and paragraphs, short sentences, and what is counted."""

import itertools
import random
from pathlib import Path

import pytest
from datasets import Dataset

from hf_glm_ernie import KnowledgeMasking, SentenceDistance, SentenceReordering
from hf_glm_ernie.ernie_corpus import CleanDocuments, CorpusReport, Tally, WordSpans
from hf_glm_ernie.ernie_corpus.report import TEXT_REASONS
from hf_glm_ernie.ernie_corpus.text_rules import (
    collapse_repeated_characters,
    drop_repeated_blocks,
    in_sequence,
    joined,
    split_paragraphs,
)
from hf_glm_ernie.ernie_corpus.words import has_words, words_of
from tests.reference import corpus_naive as naive
from tests.support.corpus_texts import corpus
from tests.support.ernie3_rows import small_tokenizer

jieba = pytest.importorskip("jieba", reason="needs jieba, which cuts Chinese text into words: pip install jieba")

TEXTS = corpus(600, seed=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("真的吗？？？", "真的吗？"),
        ("好！！！！太好了。。。", "好！太好了。"),
        ("a    b\t\tc", "a b\tc"),
        ("Really?!?! No!!!", "Really?!?! No!"),  # a run is of one character
        ("😂😂😂👍👍", "😂👍"),
        ("🇸🇸🇸🇸", "🇸🇸🇸🇸"),  # two flags of South Sudan, whose letters are the same
        ("看看，哈哈哈，book，2000，1000000", "看看，哈哈哈，book，2000，1000000"),
        ("他说……然后——走了………………", "他说……然后——走了……"),
        ("wait..... http://a.b/c//d C++++ ----", "wait... http://a.b/c//d C++ --"),
        ("f(g(x)) 《《书》》 “““ ''' \"\"", "f(g(x)) 《《书》》 “““ ''' \"\""),
        ("一一二二", "一一二二"),
        ("a__b ==== ~~~ ===", "a_b = ~ ="),
        ("\u3000\u3000段落", "\u3000段落"),
        ("", ""),
    ],
)
def test_characters(text: str, expected: str) -> None:
    assert collapse_repeated_characters(text) == expected == naive.collapsed(text)


def test_characters_like_the_reference() -> None:
    rng = random.Random(0)
    marks = "a好1！？。…—.-/+\"'()《》“” \t\n\u3000😂🇨\u0301\u200b_=*#"
    for _ in range(2000):
        text = "".join(rng.choice(marks) * rng.randint(1, 4) for _ in range(8))
        assert collapse_repeated_characters(text) == naive.collapsed(text)
        assert collapse_repeated_characters(collapse_repeated_characters(text)) == collapse_repeated_characters(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["甲。乙。", "甲。乙。"], ["甲。乙。"]),
        (["甲。甲。甲。乙。"], ["甲。乙。"]),
        (["甲。乙。", "丙。", "甲。乙。"], ["甲。乙。", "丙。", "甲。乙。"]),  # not one behind the other
        (["甲。乙。", "丙。", "甲。乙。", "丙。", "丁。"], ["甲。乙。", "丙。", "丁。"]),  # two paragraphs, twice
        (["甲。甲。乙。甲。甲。乙。"], ["甲。乙。"]),
        (["A b. C d. A b. C d. E."], ["A b. C d. E."]),
        (["标题", "标题", "正文。"], ["标题", "正文。"]),
    ],
)
def test_blocks(lines: list[str], expected: list[str]) -> None:
    assert joined(drop_repeated_blocks(split_paragraphs("\n".join(lines)))).splitlines() == expected


def test_the_paper_s_limit_of_a_block() -> None:
    for count, is_dropped in ((99, True), (100, False)):
        paragraph = [f"第{number}句。" for number in range(count)]
        left = drop_repeated_blocks([paragraph, paragraph])
        assert left == ([paragraph] if is_dropped else [paragraph, paragraph])


def test_blocks_like_the_reference_and_nothing_repeats_what_is_before_it() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        alphabet = rng.choice(("甲乙", "甲乙丙", "甲乙丙丁戊己"))
        sentences = [f"{rng.choice(alphabet)}。" for _ in range(rng.randint(0, 30))]
        longest = rng.choice((1, 2, 3, 99))
        found = [one for paragraph in drop_repeated_blocks([sentences], longest) for one in paragraph]
        assert found == naive.without_repeats(sentences, str, longest)
        for count, start in itertools.product(range(1, longest + 1), range(len(found))):
            again = found[start + count : start + 2 * count]
            assert len(again) < count or again != found[start : start + count]


@pytest.mark.parametrize(
    ("sentence", "count"),
    [
        ("研究人员在图书馆发现了新的方法。", 9),
        ("It's 3.5 km to the old mill -- isn't it?", 9),
        ("……！？", 0),
        ("one two three four five six seven eight nine ten", 10),
        ("one-two, three", 2),
        ("用Python写的程序", 5),
        ("", 0),
    ],
)
def test_words(sentence: str, count: int) -> None:
    assert len(list(words_of(sentence))) == count


def test_words_are_counted_only_as_far_as_needed() -> None:
    asked = []

    def segmenter(text: str):
        for mark in text:
            asked.append(mark)
            yield mark

    assert has_words("一二三四五六七八九十一二三四五", 10, segmenter)
    assert len(asked) == 10
    assert not has_words("一二三，四五六。", 10, segmenter)
    assert len(asked) == 10  # fewer letters than words


def test_whether_there_are_words_like_the_reference() -> None:
    sentences = [one for text in TEXTS for paragraph in split_paragraphs(text) for one in paragraph]
    counts = [naive.word_count(one, jieba.lcut) for one in sentences]
    for least in (1, 9, 10, 11):
        assert [has_words(one, least) for one in sentences] == [count >= least for count in counts]
    assert min(counts) < 9 < 10 in counts


def test_whole_texts_like_the_reference() -> None:
    clean = CleanDocuments()
    made = clean({"text": TEXTS})
    assert made["text"] == [naive.cleaned(text, jieba.lcut) for text in TEXTS]
    assert [one if one is None else int.from_bytes(one) for one in made["signature"]] == [
        naive.signature(text) if text else None for text in made["text"]
    ]
    assert ["".join(sentences) for sentences in made["sentences"]] == made["text"]
    assert [len(sentences) > 0 for sentences in made["sentences"]] == [text != "" for text in made["text"]]
    assert all(text == text.strip() and "\n\n" not in text for text in made["text"])
    assert clean({"text": made["text"]})["text"] != TEXTS  # something was to do


def test_short_sentences_go_where_they_stand() -> None:
    long, other = "one two three four five six seven eight nine ten.", "a b c d e f g h i j!"
    clean = CleanDocuments(list)
    text = f"Title\n{long} Yes. {other} No.\n\nNo.\n{other}"
    made = clean({"text": [text]})
    assert made["text"] == [f"{long} {other}\n{other}"]
    assert made["sentences"] == [[f"{long} ", f"{other}\n", other]]


def test_counts_say_where_every_character_went() -> None:
    clean = CleanDocuments(list)
    made = clean({"text": TEXTS})
    for text, left, sentences, counts in zip(TEXTS, made["text"], made["sentences"], made["counts"], strict=True):
        report = CorpusReport.from_counts([counts])
        assert report.read.characters == len(text)
        lines = left.count("\n") + 1 if left else 0
        assert report.written == Tally(int(left != ""), lines, len(sentences), len(left))
        assert all(number >= 0 for tally in report.dropped.values() for number in tally.numbers)
    total = CorpusReport.from_counts(made["counts"])
    assert total == sum(map(CorpusReport.from_counts, [made["counts"][:100], made["counts"][100:]]), CorpusReport())
    assert all(total.dropped[reason] != Tally() for reason in TEXT_REASONS)
    assert CorpusReport.from_json(total.to_json()) == total
    lines = total.describe().splitlines()
    assert len({len(line) for line in lines}) == 2  # the head has no last column
    assert f"{total.read.characters:,}" in lines[1]


def test_counts_of_one_text() -> None:
    counts = CleanDocuments(list, min_words=3)({"text": ["  甲乙丙！！！丁。\n\n甲乙丙！丁。 \n戊己庚。"]})["counts"]
    report = CorpusReport.from_counts(counts)
    dropped = {reason: tally.numbers for reason, tally in report.dropped.items() if tally != Tally()}
    assert report.read.numbers == (1, 3, 5, 24)
    assert dropped == {
        "repeated characters": (0, 0, 0, 4),  # two marks, a blank, a line's end
        "white space around lines": (0, 0, 0, 2),
        "repeated paragraphs": (0, 1, 2, 7),
        "short sentences": (0, 0, 1, 2),
    }
    assert report.written.numbers == (1, 2, 2, 9)


def test_the_builders_take_what_is_made(tmp_path: Path) -> None:
    texts = [text for text in TEXTS if len(CleanDocuments(list)({"text": [text]})["sentences"][0]) > 2]
    dataset = Dataset.from_dict({"text": texts})
    cleaned = dataset.map(CleanDocuments(list), batched=True).map(WordSpans(), batched=True)
    tokenizer = small_tokenizer(tmp_path)
    documents = cleaned["sentences"]
    options = {"max_length": 64, "truncation": True}
    for builder in (
        SentenceReordering(tokenizer, **options),
        SentenceDistance(tokenizer, documents=documents, **options),
        KnowledgeMasking(tokenizer, **options),
    ):
        rows = cleaned.map(builder, batched=True, with_indices=True, remove_columns=cleaned.column_names)
        assert len(rows) == len(texts)
        assert max(map(len, rows["input_ids"])) > 20
    spans = [(text, span) for text, spans in zip(cleaned["text"], cleaned["spans"], strict=True) for span in spans]
    assert {text[span["start"] : span["end"]] for text, span in spans} >= {"图书馆", "语言"}
    assert all(span["end"] - span["start"] > 1 for _, span in spans)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"min_words": -1}, "min_words=-1"), ({"longest_sentences": 0}, "longest_sentences=0")],
)
def test_refused_settings(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CleanDocuments(**arguments)


def test_a_row_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="column 'text' holds None"):
        CleanDocuments()({"text": ["好", None]})


def test_sentences_of_a_text_in_sequence() -> None:
    assert in_sequence([["甲。", "乙。"], ["丙"]]) == ["甲。", "乙。\n", "丙"]
    assert in_sequence([]) == []
