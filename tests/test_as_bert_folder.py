"""What a folder of an ERNIE encoder as BERT holds, every setting of it; sums and plans; and what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForNextSentencePrediction,
    BertModel,
    BertTokenizer,
    ErnieConfig,
    PreTrainedTokenizerFast,
)

from conversion.bert_names import BERT_TASKS, KEPT_FILE, KEPT_POSITIONS, KEPT_TASKS
from conversion.bert_settings import ENTRY, FALSE, FIELDS, KEPT_IN_ENTRY, SAME, bert_config, ernie_config
from conversion.operations import WHOLE, DefaultRow, FoldedRow, Replicated, SplitError, TensorSpec, with_row_added
from conversion.state_map import CoverageError, Plan, PlannedTensor, Row, StateMap
from conversion.writer import copy_peak_bytes
from hf_glm_ernie import ErnieTokenizer
from tests.support.converting_ernie import convert, small_arrays, small_settings, weights, write_checkpoint
from tests.support.ernie_goldens import SMALL
from tests.support.ernie_vocabulary import FULL, paddle_folder
from tests.support.ernie_vocabulary import SMALL as VOCABULARY

FEATURES = BERT_TASKS[0]
OTHER: dict[str, Any] = {
    "vocab_size": 77,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 55,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.5,
    "classifier_dropout": 0.125,
    "max_position_embeddings": 99,
    "type_vocab_size": 4,
    "initializer_range": 0.5,
    "layer_norm_eps": 1e-3,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 7,
    "use_cache": False,
    "output_hidden_states": True,
    "return_dict": False,
    "chunk_size_feed_forward": 2,
    "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    "label2id": {"no": 0, "yes": 1, "perhaps": 2},
    "problem_type": "multi_label_classification",
    "task_type_vocab_size": 9,
    "use_task_id": True,
    "task_id": 2,
    "pool_act": "tanh",
    "num_choices": 4,
}
"""Field of ERNIE's configuration -> a value that is not its default."""


def test_every_field_of_both_configurations_has_a_rule() -> None:
    """A field that a new version of transformers brings shows here."""
    ernie, bert = ({field.name for field in dataclasses.fields(one)} for one in (ErnieConfig, BertConfig))
    assert ernie <= FIELDS.keys()
    assert bert <= FIELDS.keys()
    assert {name for name, rule in FIELDS.items() if rule in (SAME, KEPT_IN_ENTRY)} - {
        "tie_word_embeddings"
    } == OTHER.keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_goes_there_and_comes_back(name: str) -> None:
    value = OTHER[name]
    config = ErnieConfig(**{key: OTHER[key] for key in ("hidden_size", "num_attention_heads")})
    assert getattr(config, name, None) != value or name in ("hidden_size", "num_attention_heads")
    together = ("id2label", "label2id") if name in ("id2label", "label2id") else (name,)
    for key in together:
        setattr(config, key, OTHER[key])
    made = bert_config(config, FEATURES, 0, 0)
    assert getattr(made, ENTRY)[name] == value if FIELDS[name] == KEPT_IN_ENTRY else getattr(made, name) == value
    back = ernie_config(BertConfig.from_dict(json.loads(made.to_json_string())), FEATURES, has_tasks=True)
    assert getattr(back, name) == value


@pytest.mark.parametrize("field", [name for name, rule in FIELDS.items() if rule == FALSE])
def test_what_is_more_than_an_encoder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    assert f"{field} is True; it must be false" in refused(edited(tmp_path, **{field: True}), tmp_path, capsys)


def refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The message of a refused conversion, after making sure that nothing is left."""
    output = tmp_path / "out" / "bert"
    capsys.readouterr()
    assert convert(source, output, "--as-bert", *options) == 1
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def ernie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ernie") / "features"
    assert convert(SMALL / "features", folder) == 0
    return folder


def edited(tmp_path: Path, name: str = "features", **settings: Any) -> Path:
    """A converted folder with other settings; None takes one away."""
    folder = tmp_path / "edited"
    assert convert(SMALL / name, folder) == 0
    config = json.loads((folder / "config.json").read_text()) | settings
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a BERT": ({"model_type": "bert"}, ["it is a BERT already; --reverse makes an ERNIE folder of one"]),
    "the unified model": ({"model_type": "ernie3"}, ["unified model is no BERT", "docs/ernie3.md"]),
    "GLM-130B": ({"model_type": "glm130b"}, ["holds no encoder"]),
    "another model": ({"model_type": "gpt2"}, ["not the configuration of an ERNIE encoder", "'gpt2'"]),
    "quantized weights": (
        {"quantization_config": {"quant_method": "weight_only_int", "bits": 8}},
        ["the weights are quantized", "convert the floating-point folder"],
    ),
    "untied heads": ({"tie_word_embeddings": False}, ["tie_word_embeddings is false"]),
    "relative positions": ({"position_embedding_type": "relative_key"}, ["position_embedding_type is 'relative_key'"]),
    "a class neither has": ({"architectures": ["ErnieForNothing"]}, ["ErnieForNothing", "known are ErnieModel, "]),
    "no class": ({"architectures": None}, ["architectures should name one class"]),
    "no task embeddings that are there": ({"use_task_id": False}, ["task_type_embeddings"]),
    "more layers than there are": ({"num_hidden_layers": 7}, ["num_hidden_layers is 7, the weights hold 2"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_folders_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    settings, messages = SETTINGS[case]
    error = refused(edited(tmp_path, **settings), tmp_path, capsys)
    assert all(message in error for message in messages), error


@pytest.mark.parametrize("name", ["uie_task_type_1", "utc"])
def test_heads_without_a_bert_class(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """What to do instead is said, and works: the encoder alone, of the file and of the folder."""
    assert convert(SMALL / name, tmp_path / "ernie") == 0
    for source in (SMALL / name, tmp_path / "ernie"):
        error = refused(source, tmp_path, capsys)
        assert "has no BERT class" in error
        assert "--task features" in error
        assert convert(source, tmp_path / f"bert_of_{source.parent.name}", "--as-bert", "--task=features") == 0
    assert "linear_" in capsys.readouterr().out
    one, other = (weights(tmp_path / f"bert_of_{parent.name}") for parent in (SMALL, tmp_path))
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in one)
    assert one.keys() == other.keys()
    kept = [(tmp_path / f"bert_of_{parent.name}" / KEPT_FILE).read_bytes() for parent in (SMALL, tmp_path)]
    assert kept[0] == kept[1]


OPTIONS: dict[str, tuple[list[str], str]] = {
    "a task type there is not": (["--task-type=3"], "has the task types 0 to 2"),
    "another head": (["--task=masked-lm"], "--task can only choose `features`"),
    "a vocabulary": (["--vocab=vocab.txt"], "leave --vocab, --config and --prefix out"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit(ernie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, message = OPTIONS[case]
    assert message in refused(ernie, tmp_path, capsys, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--task-type=1"],
        ["--as-bert", "--reverse", "--task-type=1"],
        ["--as-bert", "--task-type=-1"],
        ["--as-bert", "--layer-norm-eps=1e-5"],
        ["--as-bert", "--reference"],
        ["--pooling=mean"],
        ["--as-bert", "--reverse", "--pooling=mean"],
        ["--as-bert", "--no-normalize"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(ernie: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit):
        convert(ernie, tmp_path / "bert", *options)


def test_a_task_type_asked_of_an_encoder_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {name: array for name, array in small_arrays("features").items() if "task_type" not in name}
    source = write_checkpoint(tmp_path / "source", arrays, small_settings("features") | {"use_task_id": False})
    assert "has no task embeddings" in refused(source, tmp_path, capsys, "--task-type=1")


def test_an_existing_output_is_refused(ernie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bert").mkdir()
    assert convert(ernie, tmp_path / "bert", "--as-bert") == 1
    assert "already exists" in capsys.readouterr().err


def test_ways_back_that_are_none(ernie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model_type is 'ernie', expected 'bert'" in refused(ernie, tmp_path, capsys, "--reverse")
    bert = tmp_path / "bert"
    assert convert(ernie, bert, "--as-bert") == 0
    assert convert(bert, tmp_path / "paddle", "--reverse") == 1
    assert "model_type is 'bert'" in capsys.readouterr().err
    foreign = {KEPT_POSITIONS: torch.zeros(3, 24), KEPT_TASKS: torch.zeros(3, 24)}
    save_file(foreign, bert / KEPT_FILE)
    assert "not the tables of this model" in refused(bert, tmp_path, capsys, "--reverse")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {ENTRY: {"folded_row": -1}}))
    assert "folded_row is -1" in refused(bert, tmp_path, capsys, "--reverse")
    model = BertForNextSentencePrediction(
        BertConfig(vocab_size=24, hidden_size=24, num_attention_heads=2, num_hidden_layers=1)
    )
    model.save_pretrained(tmp_path / "nsp")
    assert "for which ERNIE has no class" in refused(tmp_path / "nsp", tmp_path, capsys, "--reverse")


def test_a_bert_that_never_was_an_ernie_becomes_one_that_computes_the_same(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=50, **sizes))
    bert.save_pretrained(tmp_path / "bert")
    assert convert(tmp_path / "bert", tmp_path / "ernie", "--as-bert", "--reverse") == 0
    ids = torch.randint(50, (2, 9))
    model = AutoModel.from_pretrained(tmp_path / "ernie").eval()
    assert type(model).__name__ == "ErnieModel"
    assert torch.equal(model(ids).last_hidden_state, bert.eval()(ids).last_hidden_state)


def test_what_is_left_out_of_the_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = edited(tmp_path, gradient_checkpointing=True)
    assert convert(source, tmp_path / "bert", "--as-bert") == 0
    assert "not read by either class and left out: gradient_checkpointing" in capsys.readouterr().out


@pytest.fixture(scope="module")
def with_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A BERT folder with the tokenizer of the small vocabulary, lowercasing or not."""
    folders: dict[bool, Path] = {}

    def make(do_lower_case: bool) -> Path:
        if do_lower_case not in folders:
            root = tmp_path_factory.mktemp("tokenizer")
            lines = VOCABULARY["vocabulary"]
            arrays, settings = small_arrays("features"), small_settings("features")
            words = arrays["embeddings.word_embeddings.weight"]
            arrays["embeddings.word_embeddings.weight"] = words[[row % len(words) for row in range(len(lines))]]
            source = write_checkpoint(root / "source", arrays, settings | {"vocab_size": len(lines)})
            paddle_folder(source, lines, do_lower_case=do_lower_case)
            assert convert(source, root / "bert", "--as-bert") == 0
            folders[do_lower_case] = root / "bert"
        return folders[do_lower_case]

    return make


POOLINGS = [("mean", None), ("cls", "--no-normalize"), ("max", None), ("mean_sqrt", "--no-normalize")]


@pytest.mark.parametrize(("pooling", "normalize"), POOLINGS)
def test_pooling_is_said_as_sentence_transformers_says_it(
    ernie: Path, tmp_path: Path, pooling: str, normalize: str | None
) -> None:
    options = [f"--pooling={pooling}", *([normalize] if normalize else [])]
    assert convert(ernie, tmp_path / "bert", "--as-bert", *options) == 0
    modules = json.loads((tmp_path / "bert" / "modules.json").read_text())
    names = ["Transformer", "Pooling", *([] if normalize else ["Normalize"])]
    assert [row["type"].rpartition(".")[2] for row in modules] == names
    how = json.loads((tmp_path / "bert" / "1_Pooling" / "config.json").read_text())
    assert how == {
        "word_embedding_dimension": 24,
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": pooling == "max",
        "pooling_mode_mean_sqrt_len_tokens": pooling == "mean_sqrt",
        "pooling_mode_cls_token": pooling == "cls",
    }


def test_what_other_engines_read_otherwise_is_said(
    ernie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for pooling, normalize in POOLINGS:
        options = [f"--pooling={pooling}", *([normalize] if normalize else [])]
        assert convert(ernie, tmp_path / pooling, "--as-bert", "--dry-run", *options) == 0
        said[pooling] = [line for line in capsys.readouterr().out.splitlines() if "vLLM" in line]
    assert {pooling: len(lines) for pooling, lines in said.items()} == {"mean": 0, "cls": 0, "max": 1, "mean_sqrt": 1}
    assert "takes the state of [CLS]" in said["max"][0]
    assert "takes mean_sqrt for mean" in said["mean_sqrt"][0]


def test_pooling_is_of_the_bare_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(SMALL / "masked_lm", tmp_path, capsys, "--pooling=mean")
    assert "Add --task features" in error
    assert convert(SMALL / "masked_lm", tmp_path / "bert", "--as-bert", "--pooling=mean", "--task=features") == 0


def half_pairs(text: str | None) -> bool:
    return any(0xD800 <= ord(char) < 0xE000 for char in text or "")


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_ids_over_the_golden_texts(with_vocabulary: Callable[[bool], Path], do_lower_case: bool) -> None:
    """What takes tokenizer.json gives PaddleNLP's ids; `BertTokenizer` cuts anew, and not where symbols are."""
    folder = with_vocabulary(do_lower_case)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    rows = [
        row for row in VOCABULARY["single"] if row["do_lower_case"] is do_lower_case and not half_pairs(row["text"])
    ]
    rows = [row for row in rows if row["pair"] is None]
    assert len(rows) > 50
    for tokenizer in (
        AutoTokenizer.from_pretrained(folder),
        PreTrainedTokenizerFast.from_pretrained(folder),
        ErnieTokenizer.from_pretrained(folder),
    ):
        for row in rows:
            found = tokenizer(row["text"])
            assert found["input_ids"] == row["input_ids"], row["text"]
            assert found["token_type_ids"] == row["token_type_ids"], row["text"]
    right, anew = (one.from_pretrained(folder) for one in (AutoTokenizer, BertTokenizer))
    assert anew("今天天气真好，")["input_ids"] == right("今天天气真好，")["input_ids"]
    assert anew("25℃")["input_ids"] != right("25℃")["input_ids"]


@pytest.mark.skipif(not FULL.is_dir(), reason="needs the released vocabulary in ../shared/goldens/ernie/vocab")
def test_the_vocabulary_comes_back(tmp_path: Path) -> None:
    source = FULL / "e2e" / "mlm_real_vocab"
    assert convert(source, tmp_path / "bert", "--as-bert") == 0
    assert convert(tmp_path / "bert", tmp_path / "ernie", "--as-bert", "--reverse") == 0
    assert (tmp_path / "ernie" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    assert convert(source, tmp_path / "expected") == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        found, expected = (json.loads((tmp_path / one / name).read_text()) for one in ("ernie", "expected"))
        assert found == expected, name


# --- the operation and plans behind one another, without files ---

POSITIONS, TASKS = TensorSpec((5, 3), torch.float32), TensorSpec((4, 3), torch.float32)
FOLD = StateMap(
    "test", (Row("positions", ("sum", "kept"), FoldedRow("tasks", 2)), Row("tasks", ("kept tasks",), Replicated()))
)
MADE = {"sum": (5, 3), "kept": (5, 3), "kept tasks": (4, 3)}


def carry_out(tensor: PlannedTensor, sources: dict[str, torch.Tensor]) -> torch.Tensor:
    """Copies the pieces of a planned tensor one by one, and computes."""
    spec = tensor.spec if tensor.computation is None else tensor.computation.gathered
    gathered = torch.full(spec.shape, torch.nan)
    for piece in tensor.pieces:
        (top, left), (to_top, to_left), (height, width) = piece.source_start, piece.target_start, piece.size
        source = sources[piece.source].t() if piece.transposed else sources[piece.source]
        rows = source[top : top + (1 if piece.repeated else height), left : left + width]
        gathered[to_top : to_top + height, to_left : to_left + width] = rows
    return gathered if tensor.computation is None else tensor.computation.rows(0, lambda: gathered)()


def made(plan: Plan, sources: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {tensor.name: carry_out(tensor, sources) for tensor in plan.tensors}


def test_a_row_is_added_and_taken_back() -> None:
    sources = {"positions": torch.randn(5, 3), "tasks": torch.randn(4, 3)}
    there = made(FOLD.forward({"positions": POSITIONS, "tasks": TASKS}, WHOLE, MADE), sources)
    assert torch.equal(there["sum"], sources["positions"] + sources["tasks"][2])
    assert torch.equal(there["kept"], sources["positions"])
    specs = {name: TensorSpec(shape, torch.float32) for name, shape in MADE.items()}
    back = made(FOLD.reverse(specs, WHOLE, MADE), there)
    assert all(torch.equal(back[name], sources[name]) for name in sources)


@pytest.mark.parametrize(("row", "tasks"), [(4, TASKS), (2, TensorSpec((4, 2), torch.float32)), (2, None)])
def test_a_row_that_cannot_be_added(row: int, tasks: TensorSpec | None) -> None:
    table = StateMap("test", (Row("positions", ("sum", "kept"), FoldedRow("tasks", row)), *FOLD.rows[1:]))
    parts = {"positions": POSITIONS} | ({} if tasks is None else {"tasks": tasks})
    with pytest.raises(CoverageError, match=f"row {row} of tasks is to be added to rows of 3"):
        table.forward(parts, WHOLE, MADE)
    with pytest.raises(SplitError, match="with the row added it is"):
        FoldedRow("tasks", 0).part_shape([(5, 3), (4, 3)], WHOLE)
    with pytest.raises(SplitError, match="rows of a matrix"):
        FoldedRow("tasks", 0).whole_shapes((5,), WHOLE)


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_plan_behind_one_that_moves_rows(row: int) -> None:
    """Of a table of four rows, with its second put first, five are folded from: as if the first plan were written."""
    first = StateMap("test", (Row("p", ("positions",), Replicated()), Row("t", ("tasks",), DefaultRow(1))))
    sources = {"p": torch.randn(5, 3), "t": torch.randn(4, 3)}
    between = first.forward({"p": POSITIONS, "t": TASKS}, WHOLE, {"positions": (5, 3), "tasks": (5, 3)})
    table = StateMap("test", (Row("positions", ("sum", "kept"), FoldedRow("tasks", row)), *FOLD.rows[1:]))
    held = {tensor.name: tensor.spec for tensor in between.tensors}
    second = table.forward(held, WHOLE, MADE | {"kept tasks": (5, 3)})
    at_once, in_turn = made(second.behind(between), sources), made(second, made(between, sources))
    assert {piece.source for tensor in second.behind(between).tensors for piece in tensor.pieces} == {"p", "t"}
    assert all(torch.equal(at_once[name], in_turn[name]) for name in in_turn)
    assert torch.equal(at_once["sum"], sources["p"] + [sources["t"][1], *sources["t"][1:], sources["t"][0]][row])


def test_memory_does_not_grow_with_the_positions() -> None:
    """Of 2,048 positions or a million: the sums are made a block of rows at a time."""

    def peak(positions: int) -> int:
        parts = {
            "positions": TensorSpec((positions, 768), torch.float32),
            "tasks": TensorSpec((16, 768), torch.float32),
        }
        shapes = {"sum": (positions, 768), "kept": (positions, 768), "kept tasks": (16, 768)}
        return copy_peak_bytes(FOLD.forward(parts, WHOLE, shapes).tensors)

    assert peak(2048) < peak(10**6) <= 5 * 32 * 2**20


def test_the_sum_is_of_both_halves() -> None:
    assert with_row_added(torch.tensor([[1.0, 2.0, 10.0, 20.0]])).tolist() == [[11.0, 22.0]]
