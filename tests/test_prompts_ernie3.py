"""Controllable prompts and the rows of controllable language modelling."""

from collections import Counter

import numpy as np
import pytest
import torch

from hf_glm_ernie.ernie3_training.control import ControllableLM
from hf_glm_ernie.ernie_tasks.prompts import GENRES, SENTIMENTS, add_control_marks, build_control_prompt
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie3 import Ernie3Tokenizer
from tests.support.ernie3_rows import small_tokenizer, within_three_sigma
from tests.support.ernie_vocabulary import SMALL, write_vocabulary
from tests.support.tiny_ernie3 import tiny_model

ROW = {
    "text": "今天天气真好hello",
    "genre": "Novel",
    "topic": "大桥",
    "keywords": ["公园", "hello"],
    "sentiment": "neutral",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def words(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def by_hand(tokenizer, soft=0, topic=None, keywords=None, sentiment=None, length=None):
    ids = [tokenizer.cls_token_id] + [tokenizer.convert_tokens_to_ids("[soft]")] * soft
    for name, text in (
        ("t", topic),
        ("k", keywords and ", ".join(keywords)),
        ("senti", sentiment),
        ("w", length and f"About {length} words"),
    ):
        if text:
            ids += words(tokenizer, f"[{name}]") + words(tokenizer, text) + words(tokenizer, f"[/{name}]")
    return ids


def test_the_layout_is_the_papers(tokenizer):
    prompt = build_control_prompt(
        tokenizer,
        genre="Novel",
        num_soft_prompts=3,
        topic="大桥",
        keywords=["公园", "hello"],
        sentiment="neutral",
        length=12,
    )
    assert prompt.genre_id == 7
    assert prompt.input_ids == by_hand(tokenizer, 3, "大桥", ["公园", "hello"], "neutral", 12)
    assert build_control_prompt(tokenizer) == ([tokenizer.cls_token_id], 0)
    assert build_control_prompt(tokenizer, genre="Web").input_ids == by_hand(tokenizer, 63)
    assert len(GENRES) == 11


def test_marks_in_the_vocabulary_are_one_token(tmp_path):
    marks = [f"[{slash}{name}]" for name in ("t", "k", "senti", "w") for slash in ("", "/")]
    tokenizer = small_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = build_control_prompt(tokenizer, topic="大桥", length=9).input_ids
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[1:5] == ["[t]", "大", "桥", "[/t]"]
    assert (names[5], names[-1]) == ("[w]", "[/w]")


def test_marks_are_added_with_rows_for_them(tokenizer, tmp_path):
    in_pieces, tokenizer = tokenizer, small_tokenizer(tmp_path)
    size = len(tokenizer)
    model = tiny_model(Ernie3ForPreTraining, vocab_size=size)
    given = {"topic": "大桥", "keywords": ["公园"], "sentiment": "neutral", "length": 9}
    before = build_control_prompt(tokenizer, **given).input_ids
    assert add_control_marks(tokenizer, model) == 8
    after = build_control_prompt(tokenizer, **given).input_ids
    marks = [f"[{slash}{name}]" for name in ("t", "k", "senti", "w") for slash in ("", "/")]
    names = tokenizer.convert_ids_to_tokens(after)
    assert [name for name in names if name in marks] == marks
    assert len(before) - len(after) == sum(len(words(in_pieces, mark)) - 1 for mark in marks) > 16
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(tokenizer) == size + 8
    logits = model(torch.tensor([after]), branch="nlg").logits
    assert logits.shape == (1, len(after), size + 8)
    assert add_control_marks(tokenizer, model) == 0
    tokenizer.save_pretrained(tmp_path / "saved")
    reopened = Ernie3Tokenizer.from_pretrained(tmp_path / "saved")
    assert build_control_prompt(reopened, **given).input_ids == after


def test_a_tokenizer_without_the_placeholder(tmp_path):
    tokenizer = ErnieTokenizer(str(write_vocabulary(tmp_path, SMALL["vocabulary"])))
    with pytest.raises(ValueError, match=r"no token '\[soft\]'"):
        build_control_prompt(tokenizer, genre="Law")
    assert build_control_prompt(tokenizer, genre="Law", soft_prompt_token_id=99).input_ids == [1] + [99] * 63


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"genre": "News"}, "genre='News' is unknown; the choices are 'general', 'Web'"),
        ({"sentiment": "happy"}, "sentiment='happy' is unknown; the choices are 'positive'"),
        ({"num_soft_prompts": 3}, "num_soft_prompts=3 needs a genre"),
        ({"genre": "Web", "num_soft_prompts": 65}, "must be from 0 to 64"),
        ({"topic": " "}, "topic holds ' ', which is no text"),
        ({"topic": "a [/t] b"}, r"topic holds .* with '\[/t\]', a mark of the prompt"),
        ({"keywords": "公园"}, "must be a list of texts"),
        ({"keywords": []}, "must be a list of texts, at least one"),
        ({"keywords": ["今", ""]}, "keywords holds ''"),
        ({"keywords": ["[soft]"]}, r"with '\[soft\]', a mark"),
        ({"length": 0}, "length=0 must be a whole number"),
        ({"length": 2.5}, "length=2.5 must be a whole number"),
    ],
)
def test_bad_prompts(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        build_control_prompt(tokenizer, **settings)


def test_rows_have_the_published_probabilities(tokenizer):
    text = [*words(tokenizer, ROW["text"]), tokenizer.eos_token_id]
    size = len(text) - 1
    soft = tokenizer.convert_tokens_to_ids("[soft]")
    count = 12000
    rows = ControllableLM(tokenizer)({name: [value] * count for name, value in ROW.items()}, range(count))
    plain, kept, soft_counts, together = 0, Counter(), Counter(), Counter()
    opening = {name: words(tokenizer, f"[{name}]") for name in ("t", "k", "senti", "w")}
    for ids, labels, genre in zip(rows["input_ids"], rows["labels"], rows["genre_ids"], strict=True):
        prompt = len(ids) - len(text)
        assert ids[prompt:] == labels[prompt:] == text
        assert labels[:prompt] == [-100] * prompt
        number = ids.count(soft)
        rest = ids[1 + number : prompt]
        has = {name: has_run(rest, opening[name]) for name in opening}
        assert ids[:prompt] == by_hand(
            tokenizer,
            number,
            has["t"] and ROW["topic"],
            has["k"] and ROW["keywords"],
            has["senti"] and ROW["sentiment"],
            has["w"] and size,
        )
        assert genre in (0, 7)
        assert not number or genre == 7
        plain += prompt == 1
        kept.update(name for name in has if has[name])
        kept.update(["genre"] * (genre == 7))
        soft_counts[number] += genre == 7
        together[has["t"], has["w"]] += prompt > 1
    # Of the prompted half, 1/2^5 keeps no attribute and looks plain.
    assert within_three_sigma(plain, count, 0.5 + 0.5 / 32)
    for name in ("t", "k", "senti", "w", "genre"):
        assert within_three_sigma(kept[name], count, 0.25), name
    assert within_three_sigma(together[True, True], count, 0.125), "attributes are dropped independently"
    assert set(soft_counts) - {0} == set(range(1, 64))
    # A chi square with 63 degrees of freedom: mean 63, standard deviation 11.2.
    genres = kept["genre"]
    square = sum((soft_counts[number] - genres / 64) ** 2 / (genres / 64) for number in range(64))
    assert square < 63 + 3 * np.sqrt(2 * 63)


def has_run(ids, run):
    return any(ids[at : at + len(run)] == run for at in range(len(ids)))


def test_missing_attributes_are_left_out(tokenizer):
    rows = ControllableLM(tokenizer)(
        {"text": ["今天"] * 200, "topic": [None] * 200, "keywords": [[]] * 200}, range(200)
    )
    lengths = {len(ids) for ids in rows["input_ids"]}
    assert lengths == {4, 4 + len(by_hand(tokenizer, length=2)) - 1}


def test_map_gives_the_same_with_two_processes(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    data = datasets.Dataset.from_list(
        [ROW | {"sentiment": SENTIMENTS[at % 3], "genre": GENRES[at % 11]} for at in range(20)]
    )
    options = {
        "batched": True,
        "with_indices": True,
        "remove_columns": data.column_names,
        "load_from_cache_file": False,
    }
    builder = ControllableLM(tokenizer, seed=3)
    assert data.map(builder, **options).to_list() == data.map(builder, num_proc=2, **options).to_list()


def test_long_texts_are_cut_behind_the_prompt(tokenizer):
    builder = ControllableLM(tokenizer, truncation=True)
    row = {"text": "今天" * 60}
    built = [builder.row(row, index, 0, 60) for index in range(40)]
    assert {len(one["input_ids"]) for one in built} == {60}
    prompts = {sum(label == -100 for label in one["labels"]) for one in built}
    assert len(prompts) == 2
    prompted = next(one for one in built if one["labels"][1] == -100)
    start = sum(label == -100 for label in prompted["labels"])
    assert prompted["input_ids"][:start] == by_hand(tokenizer, length=60 - start)


def test_a_prompt_without_room_for_a_text_is_left_out(tokenizer):
    builder = ControllableLM(tokenizer, truncation=True)
    row = {"text": "今天" * 20, "genre": "Web"}
    built = [builder.row(row, index, 0, 24) for index in range(200)]
    soft = [one["input_ids"].count(tokenizer.convert_tokens_to_ids("[soft]")) for one in built]
    assert 10 < max(soft) < 23
    assert {len(one["input_ids"]) for one in built} == {24}
    strict = ControllableLM(tokenizer)
    crowded = next(index for index, one in enumerate(soft) if one > 10)
    with pytest.raises(ValueError, match="max_length leaves no room for the text"):
        strict.row({"text": "今", "genre": "Web"}, crowded, 0, 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "今天", "style": "old"}, r"row 2: unknown attribute \['style'\]; the columns are"),
        ({"text": ""}, "row 2: column 'text' is an empty text"),
        ({"text": "今天" * 300}, "the text has 601 tokens and max_length leaves room for"),
    ],
)
def test_bad_rows(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        ControllableLM(tokenizer)({name: [value] for name, value in row.items()}, [2])


def test_an_unknown_genre_is_refused_in_every_row(tokenizer):
    for index in range(20):
        with pytest.raises(ValueError, match=f"row {index}: genre='News' is unknown"):
            ControllableLM(tokenizer)({"text": ["今天"], "genre": ["News"]}, [index])
