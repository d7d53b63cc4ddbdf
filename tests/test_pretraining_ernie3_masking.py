"""Knowledge masking against its definition, word by word."""

import dataclasses
import zlib

import numpy as np
import pytest

from hf_glm_ernie.ernie3_training.builders import IGNORED, TOGETHER, row_generator
from hf_glm_ernie.ernie3_training.masking import (
    KnowledgeMasking,
    Lexicon,
    Span,
    Units,
    find_mentions,
    mask_units,
    segmenter_spans,
    units_of_tokens,
)
from hf_glm_ernie.ernie3_training.tokens import tokens_of
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.support.ernie3_rows import random_text, small_tokenizer, within_three_sigma
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

MASK = 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def units_by_hand(text, encoding, spans, never):
    """The definition, character by character: each character belongs to its word, or to the span over its word."""
    word_of = {}
    for at, (start, end) in enumerate(encoding.offsets):
        if encoding.ids[at] not in never:
            for character in range(start, end):
                word_of[character] = encoding.words[at]
    owner = {word: ("word alone", word) for word in word_of.values()}
    order = sorted(
        spans, key=lambda span: (["entity", "phrase", "word"].index(span.kind), -(span.end - span.start), span.start)
    )
    for number, span in enumerate(order):
        words = {word_of[character] for character in range(span.start, span.end) if character in word_of}
        if all(owner[word][0] == "word alone" for word in words):
            owner |= dict.fromkeys(words, ("span", number))
    groups = {}
    for at, word in enumerate(encoding.words):
        if encoding.ids[at] not in never and word is not None:
            groups.setdefault(owner[word], []).append(at)
    return sorted(groups.values())


def test_units_are_the_definitions(tokenizer):
    """Random spans over random texts of characters, English words in pieces, blanks and sentence marks."""
    random = np.random.default_rng(0)
    masking = KnowledgeMasking(tokenizer)
    pieces = ["今天", "unaffable", " ", "，", "world", "。", "strass", " 北京市 ", "[MASK]", "hello "]
    several = 0
    for _ in range(300):
        text = "".join(random.choice(pieces) for _ in range(random.integers(1, 15)))
        (encoding,) = tokens_of(tokenizer, [text])
        ends = (
            [sorted(random.choice(len(text) + 1, 2, replace=False)) for _ in range(random.integers(6))]
            if len(text) > 1
            else []
        )
        spans = [Span(int(start), int(end), str(random.choice(["word", "phrase", "entity"]))) for start, end in ends]
        units = units_of_tokens(encoding, spans, masking._special)
        assert list(units) == units_by_hand(text, encoding, spans, masking._special)
        several += any(len(unit) > 3 for unit in units)
    assert several > 100


def test_sentence_marks_and_special_tokens_are_never_masked(tokenizer):
    masking = KnowledgeMasking(tokenizer, rate=0.99)
    text = "今天[MASK]气。真好！我们"
    rows = masking({"text": [text] * 50}, range(50))
    original = tokens_of(tokenizer, [text])[0].ids
    assert tokenizer.sentence_token_id in original
    special = {MASK, tokenizer.sentence_token_id}
    for labels in rows["labels"]:
        for label, token in zip(labels[1:], original, strict=True):
            assert label in (IGNORED, token)
            if token in special:
                assert label == IGNORED


def test_rates_are_the_published_ones_whatever_the_spans(tokenizer):
    """15% of the units and of the tokens in spans of every length; 80/10/10 of the chosen tokens."""
    random = np.random.default_rng(1)
    units_of = dict.fromkeys((1, 2, 5, 9), 0)
    chosen_of = dict.fromkeys(units_of, 0)
    fates = dict.fromkeys(("masked", "other", "kept"), 0)
    masking = KnowledgeMasking(tokenizer)
    ordinary = masking._ordinary
    for index in range(3000):
        lengths = random.choice(list(units_of), 12)
        ends = np.cumsum(lengths)
        units = [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]
        ids = random.choice(ordinary, ends[-1]).tolist()
        masked, labels = mask_units(
            ids, units, row_generator(0, "test", 0, index), rate=0.15, mask_token_id=MASK, ordinary_ids=ordinary
        )
        for unit in units:
            chosen = [labels[at] != IGNORED for at in unit]
            assert all(chosen) or not any(chosen), "a span is chosen whole"
            units_of[len(unit)] += 1
            chosen_of[len(unit)] += chosen[0]
        for at, label in enumerate(labels):
            if label == IGNORED:
                assert masked[at] == ids[at]
                continue
            assert label == ids[at]
            fates["masked" if masked[at] == MASK else "kept" if masked[at] == ids[at] else "other"] += 1
    for length, trials in units_of.items():
        assert within_three_sigma(chosen_of[length], trials, 0.15), (length, chosen_of[length] / trials)
    total = sum(fates.values())
    hit = 1 / len(ordinary)  # a random token may be the original
    assert within_three_sigma(fates["masked"], total, 0.8)
    assert within_three_sigma(fates["other"], total, 0.1 * (1 - hit))
    assert within_three_sigma(fates["kept"], total, 0.1 + 0.1 * hit)


def test_an_entry_is_found_wherever_it_stands_free():
    """Also right behind the end of another entry, where its first character repeats."""
    lexicon = Lexicon({"好哈": "entity", "哈哈": "phrase", "北京大学": "entity", "北京": "word"})
    assert lexicon.spans("好哈哈哈") == [Span(0, 2, "entity"), Span(2, 4, "phrase")]
    assert lexicon.spans("在北京") == [Span(1, 3, "word")]


def test_random_tokens_are_ordinary_and_all_of_them_come(tokenizer):
    masking = KnowledgeMasking(tokenizer)
    ordinary = masking._ordinary
    masked, _ = mask_units(
        [4] * 30_000,
        [[at] for at in range(30_000)],
        np.random.default_rng(2),
        rate=0.999,
        mask_token_id=MASK,
        ordinary_ids=ordinary,
    )
    drawn = set(masked) - {MASK, 4}
    assert drawn == set(ordinary.tolist()) - {4}
    assert not drawn & set(tokenizer.all_special_ids)


def test_rows_hold_the_whole_text(tokenizer):
    row = KnowledgeMasking(tokenizer).row({"text": "今天hello"}, 7, 0, 512)
    assert row["task"] == "knowledge_masked_lm"
    ids = [tokenizer.cls_token_id, *tokenizer("今天hello", add_special_tokens=False)["input_ids"]]
    restored = [
        token if label == IGNORED else label for token, label in zip(row["input_ids"], row["labels"], strict=True)
    ]
    assert restored == ids
    assert row["labels"][0] == IGNORED


def test_entities_of_the_data_and_of_a_lexicon_are_masked_whole(tokenizer):
    text = "我们去北京市公园玩"
    lexicon = Lexicon({"北京市": "entity", "公园": "word", "北京": "entity"})
    given = [{"start": 3, "end": 6, "kind": "entity"}, {"start": 6, "end": 8, "kind": "word"}]
    by_lexicon = KnowledgeMasking(tokenizer, lexicon=lexicon)
    by_data = KnowledgeMasking(tokenizer)
    indices = range(200)
    first = by_lexicon({"text": [text] * 200}, indices)
    assert first == by_data({"text": [text] * 200, "spans": [given] * 200}, indices)
    patterns = {tuple(label != IGNORED for label in labels[4:9]) for labels in first["labels"]}
    assert patterns == {(a, a, a, b, b) for a in (True, False) for b in (True, False)}


def test_kinds_choose_the_stage_of_ernie_1(tokenizer):
    text, lexicon = "我们去北京市", Lexicon({"北京市": "entity"})
    basic = KnowledgeMasking(tokenizer, lexicon=lexicon, kinds=())
    assert basic({"text": [text] * 50}, range(50)) == KnowledgeMasking(tokenizer)({"text": [text] * 50}, range(50))
    with pytest.raises(ValueError, match="kinds has the kind 'name'"):
        KnowledgeMasking(tokenizer, kinds=("name",))


def test_a_lexicon_finds_what_a_look_at_every_place_finds():
    """Random lexicons, with entries of one character and Latin ones, in random texts."""
    random = np.random.default_rng(4)
    letters = np.array(list("北京大学abA1 哈é😀。"))

    def word(most):
        return "".join(random.choice(letters, random.integers(1, most)))

    def is_cut(text, at):
        return 0 < at < len(text) and text[at - 1] in "abA1" and text[at] in "abA1"

    def slow(entries, text):
        found, start = [], 0
        while start < len(text):
            here = [end for end in range(len(text), start, -1) if text[start:end] in entries]
            whole = [end for end in here if not is_cut(text, start) and not is_cut(text, end)]
            if whole:
                found.append(Span(start, whole[0], entries[text[start : whole[0]]]))
            start = whole[0] if whole else start + 1
        return found

    several = 0
    for _ in range(300):
        kinds = dict.fromkeys(word(5) for _ in range(random.integers(1, 12)))
        entries = {entry: str(random.choice(["word", "phrase", "entity"])) for entry in kinds if entry.strip()}
        text = word(100)
        spans = Lexicon(entries).spans(text)
        assert spans == slow(entries, text), (entries, text)
        assert all(isinstance(span, Span) for span in spans)
        several += len(spans) > 5
    assert several > 50


def test_of_a_text_that_is_cut_each_unit_keeps_what_is_left():
    units = Units([0, 2, 3, 5, 8], [0, 1, 3, 5])
    assert list(units) == [[0], [2, 3], [5, 8]]
    for end in range(10):
        kept = [[at for at in unit if at < end] for unit in units]
        assert list(units.before(end)) == [unit for unit in kept if unit]


def test_the_numbers_of_a_row_are_numpys_for_its_list(tokenizer):
    for seed, epoch, index in ((0, 0, 0), (2**32 - 1, 1, 5), (2**32, 0, 7), (3, 2**40, 2**33)):
        expected = np.random.default_rng([seed, zlib.crc32(b"some task"), epoch, index])
        assert row_generator(seed, "some task", epoch, index).random(4).tolist() == expected.random(4).tolist()


def test_rows_do_not_depend_on_how_many_are_built_together(tokenizer):
    random = np.random.default_rng(6)
    rows = [{"text": random_text(random, 5 + at % 7)} for at in range(TOGETHER + 9)]
    masking = KnowledgeMasking(tokenizer, lexicon=Lexicon({"公园": "word"}))
    together = masking.rows(rows, [(at, 0) for at in range(len(rows))], 16)
    assert together == [masking.row(row, at, 0, 16) for at, row in enumerate(rows)]
    rows[TOGETHER + 2] = {"text": ""}
    with pytest.raises(ValueError, match=f"row {TOGETHER + 2 + 100}: column 'text' is an empty text"):
        masking.rows(rows, [(at + 100, 0) for at in range(len(rows))], 16)


def test_a_segmenters_words():
    assert segmenter_spans("今天 天气", lambda text: ["今天", " ", "天气"]) == [Span(0, 2, "word"), Span(3, 5, "word")]
    with pytest.raises(ValueError, match="'明天', which the text does not have after its first 2 characters"):
        segmenter_spans("今天天气", lambda text: ["今天", "明天"])


def test_mentions_end_at_word_boundaries():
    assert find_mentions("art, party and artart. Art art", "art") == [(0, 3), (27, 30)]
    assert find_mentions("大巴黎区巴黎", "巴黎") == [(1, 3), (4, 6)]
    assert find_mentions("3.5 a+b", "a+b") == [(4, 7)]
    assert find_mentions("anything", "") == []


def test_a_lexicon_takes_the_longest_and_never_cuts_words():
    lexicon = Lexicon({"北京": "entity", "北京大学": "entity", "art": "word", "大学生": "word"})
    assert lexicon.spans("北京大学生party art北京") == [
        Span(0, 4, "entity"),
        Span(11, 14, "word"),
        Span(14, 16, "entity"),
    ]
    with pytest.raises(ValueError, match="empty entry ' '"):
        Lexicon({" ": "word"})
    with pytest.raises(ValueError, match="Entry '北京' of the lexicon has the kind 'city'"):
        Lexicon({"北京": "city"})


def test_map_gives_the_same_with_any_number_of_processes(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    random = np.random.default_rng(3)
    data = datasets.Dataset.from_list([{"text": random_text(random, 20)} for _ in range(25)])
    masking = KnowledgeMasking(tokenizer, lexicon=Lexicon({"公园": "word"}), seed=5)
    options = {"batched": True, "with_indices": True, "remove_columns": data.column_names}
    one = data.map(masking, **options, batch_size=4, load_from_cache_file=False)
    two = data.map(masking, **options, num_proc=2, load_from_cache_file=False)
    assert one.to_list() == two.to_list()
    assert sorted(one.column_names) == ["input_ids", "labels", "task"]


def test_seed_epoch_and_index_decide(tokenizer):
    text = "今天天气真好我们去公园玩吧" * 4

    def labels(builder, index=0):
        return builder({"text": [text]}, [index])["labels"]

    masking = KnowledgeMasking(tokenizer)
    assert labels(masking) == labels(KnowledgeMasking(tokenizer))
    others = [
        labels(masking, 1),
        labels(dataclasses.replace(masking, epoch=1)),
        labels(dataclasses.replace(masking, seed=1)),
    ]
    assert all(other != labels(masking) for other in others)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        labels(dataclasses.replace(masking, seed=-1))


def test_works_with_the_released_encoders_tokenizer(tmp_path):
    tokenizer = ErnieTokenizer(str(write_vocabulary(tmp_path, SMALL["vocabulary"])))
    row = KnowledgeMasking(tokenizer).row({"text": "今天hello world"}, 0, 0, 16)
    assert len(row["input_ids"]) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " "}, r"knowledge_masked_lm, row 4: column 'text' is an empty text"),
        ({"text": None}, r"row 4: column 'text' holds None, not a string"),
        ({"words": "今"}, r"row 4: there is no column 'text'; the row has \['words'\]"),
        ({"text": "今天" * 8}, r"row 4: the text has 16 tokens and max_length leaves room for 9"),
        (
            {"text": "今天", "spans": [{"start": 1, "end": 3, "kind": "word"}]},
            r"spans\[0\] goes from 1 to 3, the text from 0 to 2",
        ),
        ({"text": "今天", "spans": [{"start": 0, "end": 1, "kind": "place"}]}, r"spans\[0\] has the kind 'place'"),
        ({"text": "今天", "spans": [(0, 1, "word")]}, r"spans\[0\] must be a dict"),
    ],
)
def test_bad_rows_are_named(tokenizer, row, message):
    masking = KnowledgeMasking(tokenizer, max_length=10)
    with pytest.raises(ValueError, match=message):
        masking({name: [value] for name, value in row.items()}, [4])


def test_bad_settings_and_a_tokenizer_without_words(tokenizer):
    for rate in (0, 1, -0.1):
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            KnowledgeMasking(tokenizer, rate=rate)

    class Plain:
        all_special_ids = ()

        def __call__(self, texts, **options):
            return {"input_ids": [[5] for _ in texts]}

    with pytest.raises(ValueError, match="Plain does not say which tokens are one word"):
        KnowledgeMasking(Plain()).row({"text": "今"}, 0, 0, 8)


def test_a_text_that_is_cut_keeps_its_front(tokenizer):
    masking = KnowledgeMasking(tokenizer, max_length=6, truncation=True, lexicon=Lexicon({"气真好我们": "entity"}))
    rows = masking({"text": ["今天气真好我们"] * 100}, range(100))
    assert {len(ids) for ids in rows["input_ids"]} == {6}
    assert {tuple(label != IGNORED for label in labels[3:]) for labels in rows["labels"]} == {
        (True,) * 3,
        (False,) * 3,
    }
