"""The authors' task files, their data and metrics, the example and the page, on the shipped sample."""

import contextlib
import io
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import evaluate as example
from hf_glm_ernie.__main__ import main as command
from hf_glm_ernie.glm130b_evaluation import metrics
from hf_glm_ernie.glm130b_evaluation.answers import lambada_bans, last_words
from hf_glm_ernie.glm130b_evaluation.evaluate import cond_log_probs, evaluate_task
from hf_glm_ernie.glm130b_evaluation.tasks import GenerationTaskConfig, MultiChoiceTaskConfig, read_task
from hf_glm_ernie.glm130b_evaluation.texts import token_ids
from tests.reference import evaluation_naive as naive
from tests.support.evaluation_sample import CONTEXT, ROOT, converted_sample, slow_forward

PAGE = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
HEART, THUNDER = (
    "The heart pumps [MASK] through the whole body.",
    "Thunder is the sound that follows a flash of [MASK].",
)
# Sums of a few log-probabilities in fp32, in another order of additions: 4e-6 seen.
SCORES = 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted_sample(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder), slow_forward(model)


def write_task(folder: Path, data: dict[str, Any], text: str = "", **settings: Any) -> Path:
    """A task file `task.yaml`, and its data: each a text, or rows of JSON."""
    for name, rows in data.items():
        path = folder / "data" / "facts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    settings = {"name": "facts", "path": "facts", "max_seq_length": CONTEXT} | settings
    (folder / "task.yaml").write_text(text or json.dumps(settings))  # JSON is YAML
    return folder / "task.yaml"


def choice(text: str, choices: list[str], label: Any = 0, **more: Any) -> dict[str, Any]:
    return {"inputs_pretokenized": text, "choices_pretokenized": choices, "label": label} | more


def run(opened: Any, task: Path, **settings: Any) -> Any:
    return evaluate_task(opened[0], opened[1], task, task.parent / "data", progress=False, **settings)


def test_a_multiple_choice_task_in_groups(opened: Any, tmp_path: Path) -> None:
    right, wrong = choice(HEART, ["blood", "salt"]), choice(THUNDER, ["lightning", "snow and ice"], 1)
    data = {"a/test.jsonl": [right, wrong], "b/test.jsonl": [right], "b/dev.jsonl": [right, right, wrong]}
    patterns = {"test": "**/test.jsonl", "dev": "**/dev.jsonl"}
    task = write_task(tmp_path, data, type="mul", **{"file-pattern": patterns, "micro-batch-size": 2})
    result = run(opened, task)
    assert result.groups["test"]["Accuracy"] == {"max": 100.0, "median": 75.0, "average": pytest.approx(200 / 3)}
    assert result.files["test"]["a/test.jsonl"].predictions == [0, 0]
    assert result.overall["Accuracy"]["average"] == pytest.approx(400 / 6)
    assert "group test Accuracy: max = 100.000, median = 75.000, average = 66.667" in result.describe()


def test_micro_averages_are_sklearn_s(opened: Any, tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn, which lm-eval brings")
    rows = [choice(HEART, ["blood", "salt", "sand"], label) for label in (0, 1, 0, 2, 0)]
    names = ["Accuracy", "Precision", "Recall", "F1_mul"]
    result = run(opened, write_task(tmp_path, {"x.jsonl": rows}, type="mul", metrics=names)).files["all"]["x.jsonl"]
    truths = [row["label"] for row in rows]
    for name, function in zip(names[1:], ("precision_score", "recall_score", "f1_score"), strict=True):
        expected = 100 * getattr(sklearn, function)(truths, result.predictions, average="micro")
        assert result.metrics[name] == pytest.approx(expected)


def test_ids_in_the_data_go_before_texts(opened: Any, tmp_path: Path) -> None:
    ids = token_ids(opened[1], [HEART, "blood", "salt"])
    row = {"inputs": ids[0], "choices": ids[1:], "label": 0, "inputs_pretokenized": "?", "choices_pretokenized": ["?"]}
    task = write_task(tmp_path, {"x.json": [row, choice(HEART, ["blood", "salt"])]}, type="mul")
    assert run(opened, task).files["all"]["x.json"].predictions == [0, 0]


def test_generation_in_both_strategies(opened: Any, tmp_path: Path) -> None:
    rows = [
        {"inputs_pretokenized": HEART, "targets_pretokenized": ["Sand", "The Blood!"]},
        {"inputs_pretokenized": HEART, "targets_pretokenized": "red blood"},
    ]
    for strategy in ("BaseStrategy", "BeamSearchStrategy"):
        settings = {"sampling_strategy": strategy, "max_gen_length": 8, "num_beams": 2}
        result = run(opened, write_task(tmp_path, {"x.jsonl": rows}, type="gen", **settings)).files["all"]["x.jsonl"]
        assert result.predictions == ["blood", "blood"]
        assert result.metrics == {"EM": 50.0, "F1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_lambada(opened: Any, tmp_path: Path) -> None:
    model, tokenizer, _ = opened
    invalid, prefixes = lambada_bans(tokenizer)
    assert token_ids(tokenizer, ["!"])[0] in prefixes
    assert not set(invalid) & {20068, 146010, 146337}  # those are of the released vocabulary
    texts = ["The heart pumps", "A camel stores fat in its"]
    settings = {"num_beams": 4, "max_gen_length": 5, "no_repeat_ngram_size": 3, "use_task_mask": True}
    words = last_words(model, tokenizer, texts, **settings)
    assert all(len(word.split(" ")) == 1 for word in words)
    rows = [
        {"inputs_pretokenized": text, "targets_pretokenized": [f" {word} "]}
        for text, word in zip(texts, words, strict=True)
    ]
    task = write_task(
        tmp_path,
        {"x.jsonl": rows},
        type="gen",
        module="tasks.lambada.task.LAMBADA",
        sampling_strategy="BeamSearchStrategy",
        **settings,
    )
    result = run(opened, task).files["all"]["x.jsonl"]
    assert result.predictions == words
    assert result.metrics == {"Accuracy": 100.0}


def test_language_modelling_equals_the_slow_reference(opened: Any, tmp_path: Path) -> None:
    _, tokenizer, slow = opened
    text = "Thunder is the sound that follows a flash of lightning.\nThe heart pumps blood through the whole body. \n"
    settings = {"use_task_mask": True, "max_seq_length": 16, "generation_length": 5, "metrics": ["PPL", "BPB"]}
    task = write_task(tmp_path, {"x.txt": text}, type="lm", file_pattern="*.txt", **settings)
    result = run(opened, task).files["all"]["x.txt"]
    ids = token_ids(tokenizer, [text])[0]
    losses = naive.window_losses(slow, ids, tokenizer.gmask_token_id, tokenizer.sop_token_id, 16, 5)
    assert result.size == len(losses) > 2
    assert result.predictions == pytest.approx([sum(losses)], abs=SCORES)
    assert result.metrics["PPL"] == pytest.approx(math.exp(sum(losses) / len(text.strip().split(" "))), rel=1e-5)
    assert result.metrics["BPB"] == pytest.approx(sum(losses) / len(text.encode()) / math.log(2), rel=1e-5)


def test_the_pile_is_grouped(opened: Any, tmp_path: Path) -> None:
    _, tokenizer, slow = opened
    texts = {"A": "The heart pumps blood.", "B": "鸟会飞。"}
    rows = [{"text": text, "meta": {"pile_set_name": name}} for name, text in texts.items()]
    rows[0] |= {"text": token_ids(tokenizer, [texts["A"]])[0], "text_pretokenized": texts["A"]}
    module = "tasks.language-modeling.pile.Pile"
    task = write_task(
        tmp_path, {"x.jsonl": rows}, type="lm", module=module, use_task_mask=True, **{"generation-length": 64}
    )
    result = run(opened, task).files["all"]["x.jsonl"]
    for name, text in texts.items():
        ids = token_ids(tokenizer, [text])[0]
        (loss,) = naive.window_losses(slow, ids, tokenizer.gmask_token_id, tokenizer.sop_token_id, CONTEXT, 64)
        assert result.metrics[f"BPB:{name}"] == pytest.approx(loss / len(text.encode()) / math.log(2), rel=1e-5)


def test_biases(opened: Any, tmp_path: Path) -> None:
    pair = [
        choice("The heart pumps", [text], pair_ID=1, sent_ID=i, bias_type="x") for i, text in ((1, "blood"), (2, "s"))
    ]
    module = "tasks.ethnic.crows-pair.tasks.CrowsPairTask"
    assert run(opened, write_task(tmp_path, {"x.jsonl": pair}, type="mul", module=module)).overall["x"]["max"] == 100.0
    rows = [choice(HEART, ["blood", "salt"], bias_type="x", goal_label=[label, "unrelated"]) for label in LABELS]
    module = "tasks.ethnic.stereoset.tasks.StereoSetTask"
    found = run(opened, write_task(tmp_path, {"x.jsonl": rows}, type="mul", module=module)).files["all"]["x.jsonl"]
    # Of four, one unrelated; of the three others two stereotypes: 75 * min(2/3, 1/3) / 0.5.
    for kind in ("x", "overall"):
        assert found.metrics[f"LMS:{kind}"] == 75.0
        assert found.metrics[f"SS:{kind}"] == pytest.approx(200 / 3)
        assert found.metrics[f"ICAT:{kind}"] == pytest.approx(50.0)


LABELS = ("stereotype", "stereotype", "anti-stereotype", "unrelated")


def test_answers_are_compared_as_squad_does() -> None:
    assert metrics.normalize_answer("  The Cat's, a   hat! ") == "cats hat"
    assert metrics.word_f1("a red cat", "the red dog sat") == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert metrics.word_f1("x", "y") == 0.0
    assert metrics.best_over_truths(metrics.exact_match, ["x", "y"], [["z", "X."], []]) == 50.0
    assert metrics.perplexity(1e9, 1) == math.exp(20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"type": "mul", "metric": ["EM"]},
            r"task\.yaml: unknown key 'metric'.*Allowed keys: name, type, path,.*metrics",
        ),
        ({"type": "mul", "num_beams": 2}, "unknown key 'num_beams' in a task of type 'mul'"),
        ({"type": "other"}, "type='other' must be one of mul, gen, lm"),
        ({"type": "mul", "metrics": ["EM"]}, "unknown metric 'EM'.*Allowed: Accuracy"),
        ({"type": "mul", "module": "my.Task"}, r"module='my\.Task' is not known.*MMLU"),
        ({"type": "gen", "module": "tasks.mmlu.task.MMLU"}, "is not known for a task of type 'gen'"),
        ({"type": "gen", "sampling_strategy": "Beam"}, "must be one of BaseStrategy, BeamSearchStrategy"),
        ({"type": "gen", "num_beams": "4"}, "num_beams='4' must be a whole number"),
        ({"type": "gen", "length_penalty": True}, "length_penalty=True must be a number"),
        ({"type": "mul", "use_task_mask": "yes"}, "use_task_mask='yes' must be true or false"),
        ({"type": "mul", "file_pattern": []}, "file_pattern=.* must be a glob"),
        ({"type": "mul", "unidirectional": True}, "unidirectional needs use_task_mask"),
        ({"type": "mul", "path": None}, "path=None must be text"),
    ],
)
def test_mistakes_in_task_files(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_task(write_task(tmp_path, {}, **settings))


def test_task_files_of_the_authors_are_read(tmp_path: Path) -> None:
    """Two of theirs, in their own words."""
    lambada = 'name: "LAMBADA"\ntype: "gen"\nmodule: "tasks.lambada.task.LAMBADA"\npath: "lambada/lambada"\n'
    lambada += 'file-pattern:\n  test: "**/test.jsonl"\n\nsampling_strategy: "BeamSearchStrategy"\nnum_beams: 16\n'
    config = read_task(write_task(tmp_path, {}, lambada + "max_gen_length: 5\nuse_task_mask: true\n"))
    assert isinstance(config, GenerationTaskConfig)
    assert (config.num_beams, config.max_gen_length, config.no_repeat_ngram_size) == (16, 5, 3)
    assert config.file_pattern == {"test": "**/test.jsonl"}
    afqmc = "name: 'AFQMC'\ntype: 'mul'\npath: 'CLUE/afqmc'\nmicro_batch_size: 16\n"
    config = read_task(write_task(tmp_path, {}, afqmc))
    assert config == MultiChoiceTaskConfig("AFQMC", "mul", "CLUE/afqmc", metrics=["Accuracy"], micro_batch_size=16)


@pytest.mark.parametrize("text", ["a: [", "- x", "name: x\ntype: mul\n"])
def test_files_that_are_no_tasks(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"task\.yaml.* is not YAML|must hold keys|'path' is missing"):
        read_task(write_task(tmp_path, {}, text))
    with pytest.raises(FileNotFoundError, match=r"no task file .*none\.yaml"):
        read_task(tmp_path / "none.yaml")


GOOD = json.dumps(choice(HEART, ["blood", "salt"]))


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("mul", {"choices_pretokenized": ["x"], "label": 0}, "neither 'inputs' .* nor 'inputs_pretokenized'"),
        ("mul", choice("", ["x"]), "the text is empty"),
        ("mul", choice("x", ["x", "y"], 2), r"label=2 must be the number of one of the 2 choices, 0\.\.1"),
        ("mul", choice("x", ["x", "y"], "0"), "label='0' must be"),
        ("mul", choice("x", ["x", ""]), "none of them empty"),
        ("mul", choice("x", []), "at least one"),
        (
            "mul",
            {"inputs_pretokenized": 3, "choices_pretokenized": ["x"], "label": 0},
            "must be text or a list of texts",
        ),
        ("mul", {"inputs": [99999], "choices": [[5]], "label": 0}, r"inputs holds 99999.*0\.\.1791"),
        ("mul", [1], "is not an object"),
        ("mul", "{", "is not JSON"),
        ("gen", {"inputs_pretokenized": "x"}, "neither 'targets'"),
    ],
)
def test_mistakes_in_data_name_file_and_line(opened: Any, tmp_path: Path, kind: str, line: Any, message: str) -> None:
    good = GOOD if kind == "mul" else json.dumps({"inputs_pretokenized": "x", "targets_pretokenized": ["y"]})
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 3.*{message}"):
        run(opened, write_task(tmp_path, {"x.jsonl": f"{good}\n\n{text}\n"}, type=kind))


def test_tasks_that_cannot_run(opened: Any, tmp_path: Path) -> None:
    task = write_task(tmp_path, {"x.jsonl": f"{GOOD}\n"}, type="mul", max_seq_length=2048)
    with pytest.raises(ValueError, match="max_seq_length=2048, and the model's context is 256"):
        run(opened, task)
    assert run(opened, task, max_seq_length=CONTEXT).overall["Accuracy"]["max"] == 100.0
    with pytest.raises(FileNotFoundError, match=r"no file below .*facts matches '\*\.txt' \(group 'all'\)"):
        run(opened, write_task(tmp_path, {}, type="lm", file_pattern="*.txt"))
    for rows, message in (("\n", "is empty"), ('{"meta": {}}', "line 1: a row needs text")):
        module = None if message == "is empty" else "tasks.language-modeling.pile.Pile"
        with pytest.raises(ValueError, match=message):
            run(opened, write_task(tmp_path, {"x.jsonl": rows}, type="lm", module=module))


def test_adapters_are_scored_with_what_they_add(folder: Path, opened: Any) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    _, tokenizer, _ = opened
    text, choices = token_ids(tokenizer, ["The heart pumps"])[0], token_ids(tokenizer, ["blood", "salt water"])
    before = cond_log_probs(*opened[:2], [text], [choices], use_task_mask=True)[0]
    adapters = (
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    )
    for config in adapters:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapted = peft.get_peft_model(model, config).eval()
        found = cond_log_probs(adapted, tokenizer, [text], [choices], use_task_mask=True)[0]
        assert found[1] != pytest.approx(before[1], abs=0.01)
        for choice_ids, got in zip(choices, found, strict=True):
            ids = torch.tensor([[*text, tokenizer.gmask_token_id, tokenizer.sop_token_id, *choice_ids[:-1]]])
            with torch.no_grad():
                logits = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(text) + 1 :]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(choice_ids)[:, None]).sum().item()
            assert got == pytest.approx(expected, abs=SCORES)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="PROMPT_TUNING adapter puts embeddings before every row"):
        cond_log_probs(adapted, tokenizer, [text], [choices])


def test_the_example_writes_what_it_prints(folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path, {"x.jsonl": f"{GOOD}\n"}, type="mul")
    options = ["--model", str(folder), "--data_path", str(tmp_path / "data"), "--output", str(tmp_path / "out.json")]
    options += ["--device", "cpu", "--bits", "8"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        example.main([*options, "--tasks", str(tmp_path)])
    assert "group all Accuracy: max = 100.000" in printed.getvalue()
    (result,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert result["files"]["all"]["x.jsonl"]["predictions"] == [0]
    with pytest.raises(SystemExit, match="is no YAML file"):
        example.main([*options, "--tasks", str(tmp_path / "none")])


def test_the_page_runs_as_printed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands and code, in a folder where its files lie under the names it uses."""
    pytest.importorskip("lm_eval", reason="needs lm_eval", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "glm-130b").symlink_to(folder)
    task, harness = (body for kind, body in BLOCKS if kind == "yaml")
    data = next(body for kind, body in BLOCKS if kind == "json")
    for name, text in (("tasks/facts.yaml", task), ("harness/facts.yaml", harness), ("data/facts/test.jsonl", data)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def printed(program: Callable[[], Any]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            program()
        return output.getvalue()

    code = "\n".join(body for kind, body in BLOCKS if kind == "python")
    assert printed(lambda: exec(code, {})) == "".join(body for kind, body in BLOCKS if kind == "text")
    ours, theirs = (shlex.split(body) for kind, body in BLOCKS if kind == "bash")
    assert ours[:2] == ["python", "examples/evaluate.py"]
    assert "group test Accuracy: max = 100.000" in printed(lambda: example.main([*ours[2:], "--device", "cpu"]))
    assert theirs[:4] == ["python", "-m", "hf_glm_ernie", "lm-eval"]
    monkeypatch.setattr(sys, "argv", theirs)  # which the command changes
    assert "|facts|" in printed(lambda: command(theirs[3:])).replace(" ", "")
    assert {kind for kind, _ in BLOCKS} == {"python", "text", "yaml", "json", "bash"}
