"""The benchmarks of ERNIE 3.0's pre-training: what is compared is of one size, and what the corpus is made of."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

pytest.importorskip("datasets", reason="needs datasets (extra `train`)")

import corpus_ernie3
import step_ernie3
import torch
import train_ernie3

CASE = step_ernie3.Case(
    layers=3, width=64, length=16, batch=2, vocabulary=50, dropout=0.0, bfloat16=False, padded=True
)
WIDTH, POSITIONS = CASE.width, CASE.length + step_ernie3.MEMORY


def norm() -> int:
    return 2 * WIDTH


def linear(outputs: int, bias: bool = True) -> int:
    return WIDTH * outputs + outputs * bias


def test_the_models_differ_by_what_the_module_says_and_by_nothing_else() -> None:
    sizes = {one.name: one.model.num_parameters() for one in step_ernie3.contestants(CASE)}
    projection, head = linear(WIDTH, bias=False), linear(WIDTH) + norm()
    # BERT: a norm and two token types at the embedding; ERNIE 3.0: a norm behind each stack
    assert sizes["ERNIE 3.0, understanding"] - sizes["BERT"] == projection + 2 * norm() - norm() - 2 * WIDTH
    # GPT-2: one norm behind its stack, no transform and no bias in its head
    assert sizes["ERNIE 3.0, generation"] - sizes["GPT-2"] == projection + norm() + head + CASE.vocabulary
    assert sizes["ERNIE 3.0, generation, 128 of memory"] == sizes["ERNIE 3.0, generation"]


def test_all_models_train_on_the_same_tokens() -> None:
    models = {one.name: one for one in step_ernie3.contestants(CASE)}
    theirs, ours = models["BERT"].inputs(), models["ERNIE 3.0, understanding"].inputs()
    assert all(torch.equal(theirs[name], ours[name]) for name in ("input_ids", "attention_mask", "labels"))
    scored = ours["labels"] != -100
    assert scored.any()
    assert bool((ours["input_ids"][scored] == 3).all())
    assert models["GPT-2"].tokens == int(models["GPT-2"].inputs()["attention_mask"].sum()) == 8 + 16
    carried = models["ERNIE 3.0, generation, 128 of memory"].inputs()["memories"]
    assert carried.mask.shape == (2, 16)  # a segment of 16 has no more to remember
    for one in models.values():
        before = [parameter.detach().clone() for parameter in one.model.parameters()]
        assert one.step(bfloat16=False) > 0
        after = list(one.model.parameters())
        assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True)), one.name


def test_docstrings_are_taken_from_python_files() -> None:
    source = '"""Module.\n\n    Indented.\n"""\nx = """no docstring"""\n\ndef f():\n    r"""Function."""\n'
    assert corpus_ernie3.docstrings(source) == "Module.\n\nIndented.\n\nFunction."


def test_long_texts_are_cut_and_lose_nothing() -> None:
    text = "\n".join(f"line {number} of a long text" for number in range(3000))
    cut = list(corpus_ernie3.pieces(text))
    assert "\n".join(cut) == text
    assert len(cut) > 1
    assert max(map(len, cut)) <= corpus_ernie3.MOST
    unbroken = list(corpus_ernie3.pieces("x" * (2 * corpus_ernie3.MOST + 5)))
    assert [len(one) for one in unbroken] == [corpus_ernie3.MOST, corpus_ernie3.MOST, 5]


def service() -> dict[str, Any]:
    return {
        "metadata": {"serviceFullName": "Box Service"},
        "operations": {
            "OpenBox": {"documentation": "<p>OpenBox of Box Service &amp; more.</p>", "input": {"shape": "I"}}
        },
        "shapes": {"I": {"members": {"Lid": {"documentation": "<b>Lid</b> is what OpenBox lifts."}}}},
    }


def test_service_descriptions_become_pages_and_triples(tmp_path: Path) -> None:
    for year in ("2015-01-01", "2020-01-01"):
        folder = tmp_path / "box" / year
        folder.mkdir(parents=True)
        described = service() if year.startswith("2020") else {}
        (folder / "service-2.json").write_text(json.dumps(described), "utf-8")
    (found,) = corpus_ernie3.services([tmp_path])  # the newest alone
    ((text, triples),) = corpus_ernie3.service_pages(found)
    assert text == "OpenBox of Box Service & more.\nLid is what OpenBox lifts."
    assert triples == [
        {"head": "OpenBox", "relation": "operation of", "tail": "Box Service"},
        {"head": "Lid", "relation": "parameter of", "tail": "OpenBox"},
    ]


def test_paragraphs_keep_every_sentence_until_the_last_short_one() -> None:
    sentences = [f"Sentence number {number} says a little more than nothing at all. " for number in range(40)]
    made = train_ernie3.paragraphs({"text": ["".join(sentences)], "genre": ["Web"], "topic": ["t"]})
    read = [one for some in made["sentences"] for one in some]
    assert read == sentences[: len(read)]
    assert len(sentences) - len(read) < train_ernie3.PARAGRAPH / len(sentences[0]) + 1
    assert made["text"] == ["".join(some) for some in made["sentences"]]
    assert {len(column) for column in made.values()} == {len(made["text"])}
    assert len(made["text"]) > 1


def test_shards_hold_every_row_once_and_mix_what_came_in_order(tmp_path: Path) -> None:
    shards = corpus_ernie3.Shards(tmp_path / "texts", seed=1)
    texts = [f"text\u2028{number}" for number in range(400)]  # a line for splitlines(), none for JSON
    for text in texts:
        shards.write({"text": text}, "source")
    shards.close()
    files = sorted(tmp_path.glob("*/*.jsonl"))
    read = [[json.loads(line)["text"] for line in path.read_text("utf-8").split("\n")[:-1]] for path in files]
    assert sorted(text for part in read for text in part) == sorted(texts)
    assert len(read) == corpus_ernie3.SHARDS
    numbers = [[texts.index(text) for text in part] for part in read]
    assert sum(part != sorted(part) for part in numbers) > corpus_ernie3.SHARDS // 2  # some 25 rows each
    assert shards.rows["source"] == 400
