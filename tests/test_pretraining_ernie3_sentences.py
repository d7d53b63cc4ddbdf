"""Sentence reordering and sentence distance against brute force."""

import itertools
from collections import Counter

import numpy as np
import pytest

from hf_glm_ernie.ernie3_training.splitting import complete_sentences, ends_a_sentence, split_sentences
from hf_glm_ernie.ernie3_training.structure import (
    SentenceDistance,
    SentenceReordering,
    label_permutation,
    permutation_classes,
    permutation_label,
)
from tests.support.ernie3_rows import random_text, small_tokenizer, within_three_sigma


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_classes_are_all_permutations_in_order(segments):
    listed = [one for count in range(1, segments + 1) for one in itertools.permutations(range(count))]
    assert permutation_classes(segments) == len(listed)
    assert [permutation_label(one) for one in listed] == list(range(len(listed)))
    assert [label_permutation(label) for label in range(len(listed))] == listed


def test_four_segments_have_the_published_33_classes():
    assert permutation_classes(4) == 33


@pytest.mark.parametrize("bad", [(), (1,), (0, 0), (0, 2)])
def test_what_is_no_permutation(bad):
    with pytest.raises(ValueError, match="is no permutation"):
        permutation_label(bad)
    with pytest.raises(ValueError, match="label=-1"):
        label_permutation(-1)


def recovered(ids, sentences, permutation):
    """All ways to cut the paragraph into segments that give these ids when they are ordered by the permutation."""
    ways = []
    for inner in itertools.combinations(range(1, len(sentences)), len(permutation) - 1):
        cuts = [0, *inner, len(sentences)]
        segments = [list(itertools.chain(*sentences[a:b])) for a, b in itertools.pairwise(cuts)]
        if list(itertools.chain(*(segments[place] for place in permutation))) == ids:
            ways.append(inner)
    return ways


@pytest.mark.parametrize("uniform", ["segments", "classes"])
def test_reordering_is_the_definition(tokenizer, uniform):
    sentences = ["今天", "天气真好", "我们", "去公园", "玩吧", "hello world"]
    ids = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in sentences]
    builder = SentenceReordering(tokenizer, uniform=uniform)
    count = 8000
    rows = builder({"sentences": [sentences] * count}, range(count))
    labels, cuts = Counter(), Counter()
    known = {}
    for row, label in zip(rows["input_ids"], rows["reorder_labels"], strict=True):
        assert row[0] == tokenizer.cls_token_id
        key = (tuple(row), label)
        if key not in known:
            known[key] = recovered(row[1:], ids, label_permutation(label))
        assert known[key], "the label's permutation explains the row"
        labels[label] += 1
        permutation = label_permutation(label)
        if len(permutation) == 4 and all(b != a + 1 for a, b in itertools.pairwise(permutation)):
            (inner,) = known[key]  # no two segments stayed together, so that the row tells every cut
            cuts[inner] += 1
    for label in range(33):
        segments = len(label_permutation(label))
        probability = 1 / 33 if uniform == "classes" else 1 / 4 / permutation_classes_of(segments)
        assert within_three_sigma(labels[label], count, probability), (label, labels[label])
    assert len(cuts) == 10
    for times in cuts.values():
        assert within_three_sigma(times, cuts.total(), 1 / 10)


def permutation_classes_of(segments):
    return len(list(itertools.permutations(range(segments))))


def test_short_paragraphs_have_fewer_segments(tokenizer):
    builder = SentenceReordering(tokenizer)
    rows = builder({"sentences": [["今天", "真好"]] * 400 + [["今天"]] * 20}, range(420))
    assert set(rows["reorder_labels"][:400]) == {0, 1, 2}
    assert set(rows["reorder_labels"][400:]) == {0}


def test_a_long_paragraph_loses_whole_sentences_before_it_is_split(tokenizer):
    builder = SentenceReordering(tokenizer, max_length=7, truncation=True)
    rows = builder({"sentences": [["今天", "气真好", "我们去公园"]] * 50}, range(50))
    allowed = {tuple(tokenizer(text)["input_ids"]) for text in ("今天气真好", "气真好今天")}
    assert {tuple(ids) for ids in rows["input_ids"]} == allowed
    alone = builder.row({"sentences": ["今天气真好我们去", "玩"]}, 0, 0, 7)
    assert (len(alone["input_ids"]), alone["reorder_labels"]) == (7, 0)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ([], "has 0 sentences, at least 1"),
        ("今天。", "must be a list of strings, got '今天。'"),
        (["今天", " "], r"sentences\[1\] is an empty text"),
        (["今天"] * 9, "the paragraph has 18 tokens and max_length leaves room for 9"),
    ],
)
def test_bad_paragraphs(tokenizer, sentences, message):
    with pytest.raises(ValueError, match=message):
        SentenceReordering(tokenizer, max_length=10)({"sentences": [sentences]}, [0])


def test_bad_settings(tokenizer):
    with pytest.raises(ValueError, match="max_segments=0"):
        SentenceReordering(tokenizer, max_segments=0)
    with pytest.raises(ValueError, match="uniform='rank'"):
        SentenceReordering(tokenizer, uniform="rank")


@pytest.fixture(scope="module")
def documents():
    """Sentences that occur once in all documents, so that a row tells where its two stood."""
    characters = "今天气真好我们去公园玩吧百度飞桨是一个开源的深学习平台价格元北京市长江大桥"
    pairs = itertools.product(characters, repeat=3)
    sizes = [3, 4, 5, 8, 3, 6]
    return [["".join(next(pairs)) for _ in range(size)] for size in sizes]


def test_distance_is_the_definition(tokenizer, documents):
    place = {
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]): (number, at)
        for number, document in enumerate(documents)
        for at, text in enumerate(document)
    }
    builder = SentenceDistance(tokenizer, documents=documents)
    count = 6000
    rows = builder({"sentences": [documents[i % 6] for i in range(count)]}, range(count))
    labels, pairs, others = Counter(rows["distance_labels"]), Counter(), Counter()
    for i, (ids, label) in enumerate(zip(rows["input_ids"], rows["distance_labels"], strict=True)):
        assert ids[0] == tokenizer.cls_token_id
        middle = ids.index(tokenizer.sep_token_id)
        (first, low), (second, high) = place[tuple(ids[1:middle])], place[tuple(ids[middle + 1 :])]
        assert first == i % 6
        assert label == (2 if first != second else 0 if high == low + 1 else 1)
        if label == 1:
            assert high - low >= 2
        pairs[first, label, low, high] += label < 2
        others[second] += label == 2
    for label in range(3):
        assert within_three_sigma(labels[label], count, 1 / 3)
    for label, expected in ((0, 7), (1, 21)):  # of the document with 8 sentences
        found = {key: times for key, times in pairs.items() if key[:2] == (3, label) and times}
        assert len(found) == expected
        for times in found.values():
            assert within_three_sigma(times, sum(found.values()), 1 / expected)
    for number in range(6):
        assert within_three_sigma(others[number], labels[2], 1 / 6)


def test_the_other_document_is_never_an_equal_one(tokenizer):
    same, other = ["今天", "真好", "玩吧"], ["百度", "飞桨", "平台"]
    builder = SentenceDistance(tokenizer, documents=[same, list(same), other])
    rows = builder({"sentences": [same] * 300}, range(300))
    texts = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in other}
    seconds = {
        tuple(ids[ids.index(tokenizer.sep_token_id) + 1 :])
        for ids, label in zip(rows["input_ids"], rows["distance_labels"], strict=True)
        if label == 2
    }
    assert seconds == texts


def test_distance_maps_in_two_processes_over_a_column(tokenizer, documents):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    data = datasets.Dataset.from_dict({"sentences": documents * 3})
    builder = SentenceDistance(tokenizer, documents=data["sentences"])
    options = {"batched": True, "with_indices": True, "remove_columns": ["sentences"], "load_from_cache_file": False}
    assert data.map(builder, **options).to_list() == data.map(builder, num_proc=2, **options).to_list()


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((9, 2), (6, 2)), ((2, 9), (2, 6)), ((9, 9), (4, 4)), ((4, 4), (4, 4)), ((5, 4), (4, 4)), ((5, 3), (5, 3))],
)
def test_the_longer_sentence_is_cut(tokenizer, lengths, kept):
    random = np.random.default_rng(0)
    pair = [random_text(random, length) for length in lengths]
    builder = SentenceDistance(tokenizer, documents=[], truncation=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
    assert tuple(map(len, builder._pair(ids, 8))) == kept
    strict = SentenceDistance(tokenizer, documents=[])
    if sum(lengths) > 8:
        with pytest.raises(ValueError, match="a sentence of the pair has"):
            strict._pair(ids, 8)


def test_bad_documents(tokenizer):
    builder = SentenceDistance(tokenizer, documents=[["今天", "真好", "玩吧"]])
    with pytest.raises(ValueError, match="row 0: column 'sentences' has 2 sentences, at least 3"):
        builder({"sentences": [["今天", "真好"]]}, [0])
    with pytest.raises(ValueError, match="no other document: of 1 in `documents`"):
        builder({"sentences": [["今天", "真好", "玩吧"]] * 50}, range(50))
    with pytest.raises(ValueError, match="max_length=3 leaves no room for two sentences"):
        builder._pair([[5], [6]], 1)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("今天。明天！后天", ["今天。", "明天！", "后天"]),
        ("他说：“好。”然后走了……", ["他说：“好。”", "然后走了……"]),
        ("It costs 3.5. Yes?! (No.) end", ["It costs 3.5. ", "Yes?! ", "(No.) ", "end"]),
        ("一。 \n二。  ", ["一。 \n", "二。  "]),
        ("", []),
        ("   ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
    if text.strip():
        assert "".join(sentences) == text
        assert all(one.strip() for one in sentences)


def test_complete_sentences():
    assert complete_sentences("今天。明天") == "今天。"
    assert complete_sentences("今天。明天。 ") == "今天。明天。 "
    assert complete_sentences("今天") == ""
    assert [ends_a_sentence(text) for text in ("He left.", "好！” ", "3.5", "")] == [True, True, False, False]
