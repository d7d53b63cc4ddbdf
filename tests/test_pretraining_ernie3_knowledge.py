"""Universal knowledge-text prediction: triples, sentences and what is masked."""

from collections import Counter

import pytest

from hf_glm_ernie.ernie3_training.knowledge import (
    DistantSupervision,
    KnowledgeTextPrediction,
    checked_triple,
    sentences_with,
)
from tests.support.ernie3_rows import small_tokenizer, within_three_sigma

ROW = {"head": "北京", "relation": "hello 价格", "tail": "公园", "sentence": "我们去北京的大公园玩吧。"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def test_rows_are_the_definition(tokenizer):
    ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in ROW.items()}
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    whole = [cls, *ids["head"], *ids["relation"], *ids["tail"], sep, *ids["sentence"], sep]
    relation = range(1 + len(ids["head"]), 1 + len(ids["head"]) + len(ids["relation"]))
    sentence = range(len(whole) - 1 - len(ids["sentence"]), len(whole) - 1)
    start = sentence[0]
    mentions = {"北京": (start + 3, start + 4), "公园": (start + 7, start + 8)}
    count = 4000
    rows = KnowledgeTextPrediction(tokenizer)({name: [text] * count for name, text in ROW.items()}, range(count))
    relations, chosen = 0, Counter()
    for row, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        assert [a if b == -100 else b for a, b in zip(row, labels, strict=True)] == whole
        places = [at for at, label in enumerate(labels) if label != -100]
        if set(places) & set(relation):
            relations += 1
            assert places == list(relation), "the whole relation and nothing else"
            assert [row[at] for at in places] == [mask] * len(places)
            continue
        assert set(places) <= set(sentence)
        for first, second in mentions.values():
            assert (first in places) == (second in places)
        chosen.update(places)
    assert within_three_sigma(relations, count, 0.5)
    of_words = count - relations
    marks = {at for at in sentence if whole[at] == tokenizer.sentence_token_id}
    for at in sentence:
        assert within_three_sigma(chosen[at], of_words, 0.15) if at not in marks else chosen[at] == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_relations(tokenizer, share):
    rows = KnowledgeTextPrediction(tokenizer, relation_share=share, rate=0.9)(
        {name: [text] * 40 for name, text in ROW.items()}, range(40)
    )
    assert {labels[3] != -100 for labels in rows["labels"]} == {share == 1.0}
    with pytest.raises(ValueError, match=r"relation_share=1\.5"):
        KnowledgeTextPrediction(tokenizer, relation_share=1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "长江"}, "row 3: the head '长江' does not stand in the sentence"),
        ({"tail": "world"}, "the tail 'world' does not stand"),
        ({"relation": " "}, "malformed triple .* its relation is ' '"),
        ({"head": None}, "malformed triple .* its head is None"),
        ({"sentence": ""}, "column 'sentence' is an empty text"),
        ({"sentence": ROW["sentence"] * 3}, "the sentence has 39 tokens and max_length leaves room for"),
    ],
)
def test_bad_rows(tokenizer, change, message):
    row = ROW | change
    with pytest.raises(ValueError, match=message):
        KnowledgeTextPrediction(tokenizer, max_length=30)({name: [text] for name, text in row.items()}, [3])


def test_a_triple_that_leaves_no_room_is_refused_even_when_cutting(tokenizer):
    builder = KnowledgeTextPrediction(tokenizer, truncation=True)
    assert len(builder.row(ROW, 0, 0, 14)["input_ids"]) == 14
    with pytest.raises(ValueError, match="max_length leaves no room for the sentence"):
        builder.row(ROW, 0, 0, 9)


@pytest.mark.parametrize("triple", [("a", "b"), "abc", {"head": "a", "tail": "b"}, ("a", "b", 3), ("a", "", "c"), 5])
def test_malformed_triples(triple):
    with pytest.raises(ValueError, match="malformed triple"):
        checked_triple(triple)


def test_good_triples():
    assert (
        checked_triple(["a", "b", "c"])
        == checked_triple({"head": "a", "relation": "b", "tail": "c"})
        == ("a", "b", "c")
    )


def test_distant_supervision(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    page = "北京有公园。 我们去北京。公园在北京！The art of Bob. The party of Bob."
    assert sentences_with(page, "北京", "公园") == ["北京有公园。", "公园在北京！"]
    assert sentences_with(page, "art", "Bob") == ["The art of Bob."]
    triples = [
        {"head": "北京", "relation": "有", "tail": "公园"},
        {"head": "art", "relation": "of", "tail": "Bob"},
        {"head": "长江", "relation": "of", "tail": "Bob"},
    ]
    data = datasets.Dataset.from_dict({"text": [page, "无。"], "triples": [triples, triples]})
    rows = data.map(DistantSupervision(), batched=True, remove_columns=data.column_names, num_proc=2)
    assert [(row["head"], row["sentence"]) for row in rows] == [
        ("北京", "北京有公园。"),
        ("北京", "公园在北京！"),
        ("art", "The art of Bob."),
    ]
    built = rows.map(KnowledgeTextPrediction(tokenizer), batched=True, with_indices=True, num_proc=2)
    assert len(built) == 3
    with pytest.raises(ValueError, match="page 0 of the batch: malformed triple"):
        DistantSupervision()({"text": ["今"], "triples": [[("a", "b")]]})
