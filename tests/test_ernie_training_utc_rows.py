"""UTC's training rows: PaddleNLP's template, loss, and what rows may not be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_glm_ernie import ErnieForUTC, ErnieTokenizer, ErnieUTCConfig
from hf_glm_ernie.ernie_training.utc_rows import (
    UTCCollator,
    add_option_token,
    encode_utc_rows,
    option_token_id,
    read_utc_row,
)
from hf_glm_ernie.modeling_ernie_utc import tag_loss
from tests.support.ernie_training_goldens import full_lines, golden, needs_full_set, tokenizer_of

UTC = golden("utc")
COLUMNS = ("token_type_ids", "position_ids", "omask_positions", "cls_positions")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    made = tokenizer_of(tmp_path_factory.mktemp("utc"), UTC["vocabulary"])
    add_option_token(made)
    return made


def row_of(example: dict[str, Any]) -> dict[str, Any]:
    return example | {"labels": [i for i, label in enumerate(example["labels"]) if label]}


def encoded(tokenizer: Any, example: dict[str, Any], max_length: int) -> dict[str, Any]:
    columns = encode_utc_rows(tokenizer, [read_utc_row(row_of(example), 0)], max_length)
    return {name: values[0] for name, values in columns.items()}


def mask_of(case: dict[str, Any]) -> np.ndarray:
    mask = np.zeros(case["attention_mask_shape"])
    for run in case["attention_mask_runs"]:
        for first, last in run["masked_columns"]:
            mask[run["rows"][0] : run["rows"][1] + 1, first : last + 1] = -10000
    return mask


@pytest.mark.parametrize("case", UTC["rows"], ids=lambda case: case["example"]["text_a"][:8].strip())
def test_the_template_is_that_of_the_original(tokenizer: ErnieTokenizer, case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(ValueError, match=r"Row 0 of the data: The \d+ choices take \d+ tokens and leave no room"):
            encoded(tokenizer, case["example"], 64)
        return
    row = encoded(tokenizer, case["example"], 64)
    assert {name: row[name] for name in COLUMNS} == {name: case[name] for name in COLUMNS}
    assert row["labels"] == case["example"]["labels"]
    assert [i for i, token in enumerate(row["input_ids"]) if token == option_token_id(tokenizer)] == row[
        "omask_positions"
    ]
    assert (UTCCollator(tokenizer)([row])["attention_mask"][0, 0].numpy() == mask_of(case)).all()


@needs_full_set
def test_every_template_of_the_full_set(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    add_option_token(tokenizer)
    # There [O-MASK] gets the id of [UNK] with this vocabulary, and every unknown character is an option.
    assert (option_token_id(tokenizer), tokenizer.unk_token_id) == (39980, 39979)
    cases = [case for case in full_lines("utc/template.jsonl") if "error" not in case]
    for max_length in (64, 128, 256):
        own = [case for case in cases if case["max_seq_length"] == max_length]
        rows = [read_utc_row(row_of(case["example"]), i) for i, case in enumerate(own)]
        columns = encode_utc_rows(tokenizer, rows, max_length)
        for name in (*COLUMNS, "input_ids"):
            assert columns[name] == [case[name] for case in own]
    assert len(cases) > 70


def test_rows_with_different_choices_share_a_batch(tokenizer: ErnieTokenizer) -> None:
    """A row of a batch gives what it gives alone: its choices, its text, and nothing of the padding."""
    cases = [case for case in UTC["rows"] if "error" not in case]
    rows = [
        encoded(tokenizer, case["example"] | {"choices": names, "labels": [1.0] + [0.0] * (len(names) - 1)}, 64)
        for case, names in zip(
            cases, (["催单", "退款"], ["退款", "开发票", "查物流"], ["other", "催单"]), strict=False
        )
    ]
    config = ErnieUTCConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = ErnieForUTC(config).eval()
    collate = UTCCollator(tokenizer)
    batch = collate(rows)
    assert batch["labels"].tolist() == [[1, 0, -100], [1, 0, 0], [1, 0, -100]]
    assert batch["omask_positions"].shape == (3, 3)
    with torch.no_grad():
        together = model(**batch)
        alone = [model(**collate([row])) for row in rows]
    for i, (row, one) in enumerate(zip(rows, alone, strict=True)):
        # fp32 sums over rows of another width: 3e-9 seen
        torch.testing.assert_close(together.logits[i, : len(row["labels"])], one.logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.loss, torch.stack([one.loss for one in alone]).mean(), rtol=0, atol=1e-5)


def test_the_loss_is_that_of_the_original() -> None:
    for case in UTC["loss"]:
        loss = tag_loss(torch.tensor(case["logits"]), torch.tensor(case["labels"]))
        assert float(loss) == pytest.approx(case["loss"], rel=1e-6)  # fp32; equal here


def test_a_model_without_a_row_for_the_option_token_gets_one(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, UTC["vocabulary"])
    with pytest.raises(ValueError, match=r"has no token \[O-MASK\]: add_option_token gives it one"):
        option_token_id(tokenizer)
    size = len(UTC["vocabulary"])
    model = ErnieForUTC(ErnieUTCConfig(vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    before = model.get_input_embeddings().weight[:size].clone()
    add_option_token(tokenizer, model)
    assert option_token_id(tokenizer) == size
    assert model.config.vocab_size == size + 1
    assert torch.equal(model.get_input_embeddings().weight[:size], before)
    add_option_token(tokenizer, model)
    assert model.config.vocab_size == size + 1


FINE: dict[str, Any] = {"text_a": "快点发货", "text_b": "", "question": "", "choices": ["催单", "退款"], "labels": [0]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_a": None}, r"Row 4 of the data has no text in column 'text_a': found None, and '' in 'text_b'"),
        ({"text_a": "", "text_b": " "}, r"has no text in column 'text_a'"),
        ({"choices": ["催单"]}, r"Row 4 of the data has no list of at least two choices: found \['催单'\]"),
        ({"choices": ["催单", ""]}, r"choices that are empty, no text, or the same"),
        ({"choices": ["催单", "催单"]}, r"choices that are empty, no text, or the same"),
        ({"labels": None}, r"Row 4 of the data has no labels: found None; they are numbers of choices, \[\] for none"),
        ({"labels": [2]}, r"Row 4 of the data has the label 2, which is no number of its 2 choices \(0 to 1\)"),
        ({"labels": ["催单"]}, r"has the label '催单'"),
        ({"labels": [-1]}, r"has the label -1"),
    ],
)
def test_rows_that_are_not_what_they_should_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_utc_row(FINE | change, 4)


def test_rows_that_are_fine() -> None:
    assert read_utc_row(FINE | {"labels": 1, "text_a": "好", "text_b": None}, 0).labels == (1,)
    assert read_utc_row(FINE | {"labels": [], "text_a": "", "text_b": "好"}, 0).text_b == "好"
    assert encode_utc_rows(None, [], 64)["input_ids"] == []
