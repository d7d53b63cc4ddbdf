"""Multiple choice: C3's and CHID's files as rows, rows as inputs as PaddleNLP prepares them, loss and scores."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ErnieConfig, ErnieForMultipleChoice

from hf_glm_ernie import ErnieTokenizer
from hf_glm_ernie.ernie_training.choice_features import (
    ChoiceCollator,
    assign_choices,
    choice_loss,
    cut_longest,
    encode_choices,
    take_around,
)
from hf_glm_ernie.ernie_training.choice_rows import chid_rows, plain_row, read_choices
from hf_glm_ernie.ernie_training.choice_task import MultipleChoice
from tests.support.ernie_training_goldens import tokenizer_of

pytest.importorskip("datasets", reason="the readers give rows as datasets")

IDIOMS = ["一二三四", "五六七八", "九十百千"]
LETTERS = [chr(ord("丁") + i) for i in range(200)]
NAMED = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[", "]", "unused", "##1", "。", '"', "-"]
VOCABULARY = list(dict.fromkeys([*NAMED, *"".join(IDIOMS), *LETTERS]))
C3 = [
    [["男：一二。", "女：三。"], [{"question": "谁？", "choice": ["男", "女"], "answer": "女"}], "d-1"],
    [["一"], [{"question": q, "choice": ["一", "二", "三"], "answer": "三"} for q in ("四", "五")], "m-1"],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("choice"), VOCABULARY)


def words(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_c3_as_downloaded_and_as_datasets_has_it(tmp_path) -> None:
    for name in ("d-train.json", "m-train.json"):
        (tmp_path / name).write_text(json.dumps(C3, ensure_ascii=False), encoding="utf-8")
    rows = list(read_choices(tmp_path / "[dm]-train.json"))
    assert len(rows) == 6
    assert rows[:3] == rows[3:]
    assert rows[0] == {"context": "男：一二。\n女：三。", "question": "谁？", "choices": ["男", "女"], "label": 1}
    flat = {"context": ["男：一二。", "女：三。"], "question": "谁？", "choice": ["男", "女"], "answer": "女", "id": 0}
    assert {**plain_row(flat, "here"), "group": None} == {**rows[0], "group": None}
    (tmp_path / "flat.jsonl").write_text(json.dumps({**rows[0]}) + "\n" + json.dumps(flat), encoding="utf-8")
    assert list(read_choices(tmp_path / "flat.jsonl")) == [rows[0], rows[0]]


def test_chid_as_downloaded_and_as_datasets_has_it(tmp_path) -> None:
    texts = ["甲#idiom000001#乙#idiom000002#", "丙#idiom000003#"]
    record = {"content": texts, "candidates": IDIOMS}
    (tmp_path / "train.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no train_answer.json beside it"):
        read_choices(tmp_path / "train.json")
    answers = {"#idiom000001#": 2, "#idiom000002#": 0, "#idiom000003#": 1}
    (tmp_path / "train_answer.json").write_text(json.dumps(answers), encoding="utf-8")
    rows = list(read_choices(tmp_path / "train.json"))
    assert [(row["context"], row["question"], row["label"], row["group"]) for row in rows] == [
        (texts[0], "#idiom000001#", 2, 0),
        (texts[0], "#idiom000002#", 0, 0),
        (texts[1], "#idiom000003#", 1, 0),
    ]
    own = {**record, "answers": {"text": ["", "", ""], "candidate_id": [2, 0, 1]}}
    assert list(chid_rows(own, 0, None, "here")) == rows


def by_the_originals_loop(text: list[int], question: list[int], choices: list[list[int]], room: int) -> list[Any]:
    """`run_c3.py`: a token at a time from the longest, the text and the question shared by the choices."""
    made = []
    for choice in choices:
        choice = list(choice)
        while len(text) + len(question) + len(choice) > room:
            if len(text) >= len(question) and len(text) >= len(choice):
                text.pop()
            elif len(question) >= len(text) and len(question) >= len(choice):
                question.pop()
            else:
                choice.pop()
        made.append((text, list(question), choice))
    return made


def test_questions_are_cut_as_by_the_original(tokenizer) -> None:
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(200):
        lengths = [int(rng.integers(1, 60)), int(rng.integers(0, 8)), *rng.integers(1, 9, rng.integers(2, 5)).tolist()]
        parts = ["".join(rng.choice(LETTERS, size)) for size in lengths]
        row = {"context": parts[0], "question": parts[1], "choices": parts[2:], "label": 0}
        encoded = encode_choices(tokenizer, [row], [0], 40)
        ids = [tokenizer.convert_tokens_to_ids(list(part)) for part in parts]
        expected = by_the_originals_loop(list(ids[0]), list(ids[1]), ids[2:], 36)
        cut += len(expected[0][0]) < lengths[0]
        for own, types, (text, question, choice) in zip(
            encoded["input_ids"][0], encoded["token_type_ids"][0], expected, strict=True
        ):
            assert own == [1, *text, 2, *question, 2, *choice, 2]
            assert types == [0] * (len(text) + 2) + [1] * (len(question) + len(choice) + 2)
        assert encoded["labels"] == [[0, len(lengths) - 2]]
    assert cut > 50


def around_by_the_original(tokens: list[str], place: int, room: int) -> tuple[list[str], list[str]]:
    """`run_chid.py`'s `add_tokens_for_around`; a slice that runs below 0 begins at 0."""
    left, right = room // 2, room - room // 2
    if place >= left and len(tokens) - 1 - place >= right:
        return tokens[place - left : place], tokens[place + 1 : place + 1 + right]
    if place <= left:
        return tokens[:place], tokens[place + 1 : place + 1 + room - place]
    behind = tokens[place + 1 :]
    return tokens[max(place - (room - len(behind)), 0) : place], behind


def test_blanks_are_cut_out_as_by_the_original(tokenizer) -> None:
    rng = np.random.default_rng(1)
    mark = ["[", "unused", "##1", "]"]
    seen = set()
    for _ in range(200):
        size, room = int(rng.integers(1, 60)), 40 - 3 - 4 - len(mark)
        tokens = rng.choice(LETTERS, size).tolist()
        blanks = sorted(rng.choice(size, min(size, 2), replace=False).tolist())
        names = [f"#idiom00000{i}#" for i in range(len(blanks))]
        for name, blank in zip(names, blanks, strict=True):
            tokens[blank] = name
        row = {"context": "".join(tokens), "question": names[0], "choices": IDIOMS, "label": 1}
        sides = around_by_the_original(tokens, blanks[0], room)
        left, right = (
            [one for token in side for one in (["[MASK]"] * 4 if token.startswith("#") else [token])] for side in sides
        )
        left, right = left[len(left) - len(sides[0]) :], right[: len(sides[1])]
        encoded = encode_choices(tokenizer, [row], [0], 40)
        for own, idiom in zip(encoded["input_ids"][0], IDIOMS, strict=True):
            assert words(tokenizer, own).split() == ["[CLS]", *idiom, "[SEP]", *left, *mark, *right, "[SEP]"]
            assert len(own) <= 40
        assert encoded["token_type_ids"][0] == [[0] * len(one) for one in encoded["input_ids"][0]]
        seen.add((blanks[0] > room // 2, size - blanks[0] > room // 2, size > room))
    assert len(seen) >= 5


def test_quotation_marks_are_those_of_ascii(tokenizer) -> None:
    row = {"context": "“一”——#idiom1#—二", "question": "#idiom1#", "choices": ["三", "四"], "label": 0}
    own = encode_choices(tokenizer, [row], [0], 40)["input_ids"][0][0]
    assert words(tokenizer, own) == '[CLS] 三 [SEP] " 一 " - - [ unused ##1 ] - 二 [SEP]'


def test_small_rules() -> None:
    assert cut_longest([10, 3, 3], 9) == [3, 3, 3]
    assert cut_longest([4, 4, 1], 6) == [2, 3, 1]  # of several the first
    assert cut_longest([2, 2], 9) == [2, 2]
    assert take_around(50, 50, 10) == (5, 5)
    assert take_around(2, 50, 10) == (2, 8)
    assert take_around(50, 2, 10) == (8, 2)
    assert take_around(3, 2, 10) == (3, 2)


@pytest.fixture(scope="module")
def model() -> ErnieForMultipleChoice:
    torch.manual_seed(0)
    config = ErnieConfig(
        vocab_size=len(VOCABULARY), hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40
    )
    return ErnieForMultipleChoice(config).eval()


def test_missing_choices_count_nowhere(model, tokenizer) -> None:
    """The loss and the gradients of a batch are the means of its rows alone, whatever the batch fills up."""
    rows = [
        {"context": "一二", "question": "三", "choices": IDIOMS[:size], "label": label}
        for size, label in ((2, 1), (3, 0), (2, 0))
    ]
    encoded = encode_choices(tokenizer, rows, range(3), 40)
    rows = [{name: column[i] for name, column in encoded.items()} for i in range(3)]
    collator = ChoiceCollator(tokenizer)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        return choice_loss(model(**batch), labels)

    together = collator(rows)
    assert together["input_ids"].shape == together["attention_mask"].shape == (3, 3, 11)
    assert together["attention_mask"][0, 2].sum() == 2
    assert together["labels"].tolist() == [[1, 2], [0, 3], [0, 2]]
    loss = loss_of(together)
    (whole,) = torch.autograd.grad(loss, [model.ernie.embeddings.word_embeddings.weight])
    alone = sum(loss_of(collator([row])) for row in rows) / 3
    (single,) = torch.autograd.grad(alone, [model.ernie.embeddings.word_embeddings.weight])
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)  # 0 seen
    assert torch.allclose(whole, single, atol=1e-7)  # 4e-9 seen
    # What the host's own loss makes of rows without missing choices.
    batch = collator([rows[0], rows[2]])
    own = model(**{**batch, "labels": batch["labels"][:, 0]}).loss
    assert loss_of(batch).item() == pytest.approx(own.item(), abs=1e-6)


def test_the_loss_of_a_step_is_the_mean_over_its_rows() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([[0, 3], [1, 2], [2, 3], [0, 2]])
    outputs = [SimpleNamespace(), {"logits": logits[:2]}, {"logits": logits[2:]}]
    parts = sum(
        choice_loss(one, part, torch.tensor(8)) for one, part in zip(outputs[1:], labels.split(2), strict=True)
    )
    assert torch.allclose(parts, choice_loss({"logits": logits}, labels))
    assert torch.allclose(choice_loss((logits,), labels), choice_loss({"logits": logits}, labels))


def test_a_group_takes_no_choice_twice() -> None:
    logits = np.array([[5.0, 1.0, 0.0], [4.0, 3.0, 9.0], [6.0, 2.0, 9.0]])
    assert assign_choices(logits, [3, 2, 2]).tolist() == [0, 0, 0]
    assert assign_choices(logits, [3, 2, 2], [0, 0, 1]).tolist() == [0, 1, 0]
    assert assign_choices(logits, [3, 2, 2], [0, 0, 0]).tolist() == [2, 1, 0]
    assert assign_choices(logits, [2, 2, 2], [0, 0, 0]).tolist() == [0, 1, 0]  # more rows than choices
    assert assign_choices(logits, [3, 3, 3], [None, None, None]).tolist() == [0, 2, 2]


def test_scores_and_mistakes(tokenizer) -> None:
    from datasets import Dataset

    rows = Dataset.from_list(
        [
            {
                "context": f"{i}#idiom{i}#",
                "question": f"#idiom{i}#",
                "choices": IDIOMS[:size],
                "label": label,
                "group": 0,
            }
            for i, (size, label) in enumerate(((3, 2), (2, 1), (2, 0)))
        ]
    )
    prediction = SimpleNamespace(
        predictions=np.array([[5.0, 1.0, 0.0], [4.0, 3.0, -100], [6.0, 2.0, -100]]),
        label_ids=np.array([[2, 3], [1, 2], [1, 2]]),
    )
    task = MultipleChoice(tokenizer, 40)
    assert task.metrics(prediction) == {"accuracy": 0.0}
    task.measure_on(rows, None)
    assert task.metrics(prediction) == {"accuracy": pytest.approx(2 / 3), "accuracy_alone": 0.0}
    report = task.report(rows, None, prediction)
    assert report["by_class"]["2 choices"] == {"accuracy": 0.5, "correct": 1, "gold": 2}
    assert report["by_class"]["3 choices"]["correct"] == 1
    (mistake,) = report["mistakes"]
    assert (mistake["row"], mistake["question"], mistake["text"]) == (2, "#idiom2#", "2#idiom2#")
    assert (mistake["found"], mistake["gold"]) == ([{"text": IDIOMS[0]}], [{"text": IDIOMS[1]}])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"context": "一"}'], r"record 0 has context; wanted are context, question, choices and label"),
        (['{"context": "一", "choices": ["二"], "label": 0}'], r"has the choices \['二'\]: at least two texts"),
        (['{"context": "一", "choices": ["二", "三"], "label": 2}'], r"the label 2; it is a number from 0 to 1"),
        (['{"context": "一", "choices": ["二", "三"], "answer": "四"}'], r"the answer '四', which is none of its"),
        (['{"context": "一", "choices": ["二", "三"], "label": 0}', "{"], r"line 2 is no JSON"),
        (['{"content": "#idiom1#", "candidates": ["二", "三"], "answers": []}'], r"has 1 blanks and the answers \[\]"),
        (["[[1, 2], [3]]"], r"record 0 is no record of C3"),
        ([""], r"has no rows"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, lines: list[str], words: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_choices(file)
    with pytest.raises(FileNotFoundError, match=r"There is no file"):
        read_choices(Path(tmp_path / "none.json"))


def test_choices_that_leave_no_room(tokenizer) -> None:
    long = {"context": "一", "question": "一" * 40, "choices": ["一" * 40, "二"], "label": 0}
    blank = {"context": "一#idiom1#", "question": "#idiom1#", "choices": ["一" * 40, "二"], "label": 0}
    assert len(encode_choices(tokenizer, [long], [7], 20)["input_ids"][0][0]) == 20
    for row, size in ((long, 6), (blank, 40)):
        with pytest.raises(ValueError, match=r"Row 7 of the data: its .* leave no room for the text in max_length="):
            encode_choices(tokenizer, [row], [7], size)
