"""What `inspect` says of the public facts of released models, its JSON, and the text to paste into an issue."""

import getpass
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.make_checkpoint_glm130b import RELEASED as RELEASED_SIZES
from benchmarks.make_checkpoint_glm130b import Shape, write_checkpoint
from conversion.__main__ import main
from conversion.ernie_released import RELEASED
from conversion.ernie_settings import Sizes
from conversion.inspect_command import inspect
from conversion.inspect_look import Question
from conversion.inspect_paste import as_paste
from conversion.inspect_released import released_ernie, tokenizer_checks
from conversion.inspect_report import KINDS, SCHEMA, Check, Deep, Finding, Needs, Released, Report, Stretch
from conversion.inspect_text import as_json, as_text
from tests.support.converting import SIZES, write_settings
from tests.support.tiny import rank_path, whole_state, write_ice_text_model, write_released

SAMPLE = Path(__file__).parents[1] / "examples" / "sample-glm130b"
TOKENIZER = SAMPLE / "ice_text.model"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released size: eight files of 32 GB that take no disk."""
    folder = tmp_path_factory.mktemp("released") / "glm-130b-sat"
    write_checkpoint(folder, RELEASED_SIZES, 8, headers_only=True)
    return folder


def test_the_released_size_in_seconds(headers: Path) -> None:
    begun = time.perf_counter()
    report = inspect(Question(headers))
    seconds = time.perf_counter() - begun
    assert report.status == "complete"
    assert report.nbytes == (8, 257_470_624_552)
    assert report.released is not None
    assert report.released.holds
    assert {check.what: check.found for check in report.released.checks}["tensors of a rank"] == "843"
    as_stored, four, eight = report.needs
    assert 257_395_589_120 < as_stored.disk_bytes < 257_500_000_000
    assert (four.options, eight.options) == ("--bits 4", "--bits 8")
    assert four.disk_bytes < 68e9 < 130e9 < eight.disk_bytes < 131e9
    assert max(need.memory_bytes for need in report.needs) < 0.7e9
    assert seconds < 60  # a machine that is ten times slower; seen: 2.5 s


def test_what_is_not_as_released_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "glm"
    write_checkpoint(folder, replace(RELEASED_SIZES, vocabulary=150_000), 4, headers_only=True)
    (folder / "49300").rename(folder / "my-run")
    (folder / "latest").write_text("my-run")
    report = inspect(Question(folder))
    assert report.released is not None
    assert {check.what for check in report.released.checks if not check.holds} == {
        "words",
        "iteration",
        "rank files",
        "tensors of another shape",
    }
    pasted = as_paste(report)
    assert "NO  rank files: 8; here 4" in pasted
    assert "my-run" not in pasted


def test_other_sizes_are_not_held_against_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "glm", Shape(hidden=256, inner=512, layers=2, vocabulary=1024), 2, headers_only=True)
    assert inspect(Question(tmp_path / "glm")).released is None


def test_the_published_tokenizations(tmp_path: Path) -> None:
    """The released file is not at hand, so none holds; a tokenizer that gives the published ids would."""
    pytest.importorskip("sentencepiece")
    for path in (TOKENIZER, write_ice_text_model(tmp_path / "ice_text.model")):
        checks = tokenizer_checks(path)
        assert len(checks) == 4
        assert checks[0].expected == "130,000"
        assert not any(check.holds for check in checks)
        assert all(number.isdigit() for number in checks[3].found.split())
    (tmp_path / "damaged.model").write_bytes(b"none")
    assert [check.holds for check in tokenizer_checks(tmp_path / "damaged.model")] == [False]


def test_a_tokenizer_that_gives_the_published_ids_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from conversion import inspect_released

    ids = dict(inspect_released.TOKENIZATIONS)

    class Icetk:
        @classmethod
        def from_ice_text_model(cls, path: Path) -> "Icetk":
            return cls()

        def convert_tokens_to_ids(self, token: str) -> int:
            return inspect_released.SPECIAL_IDS[token]

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": list(ids[text])}

    monkeypatch.setattr(inspect_released, "Glm130bTokenizer", Icetk)
    monkeypatch.setattr(inspect_released, "read_ice_text", lambda path: b"")
    monkeypatch.setattr(inspect_released, "parse_ice_text", lambda data: type("Model", (), {"pieces": range(130_000)}))
    assert [check.holds for check in inspect_released.tokenizer_checks(TOKENIZER)] == [True] * 4


@pytest.mark.parametrize("name", ["ernie-3.0-nano-zh", "uie-base", "utc-xbase", "ernie-2.0-large-en", "ernie-1.0"])
def test_released_encoders_are_known_by_their_sizes(name: str) -> None:
    one = RELEASED[name]
    stack = one.stack
    sizes = Sizes(one.words, stack.hidden, one.positions, one.types, one.tasks, stack.layers, stack.inner, 0)
    task = {"uie": "uie", "utc": "utc"}.get(name.split("-")[0], "masked-lm")
    settings = {"num_attention_heads": stack.heads, "hidden_act": one.activation}
    pieces = ["[PAD]"] * 39_979 + ["[UNK]"]
    found = released_ernie(sizes, task, settings, ["float32"], pieces if one.words == 40_000 else [])
    assert found is not None
    assert found.holds, found.checks
    alike = [other for other, its in RELEASED.items() if its == one]
    assert set(found.name.partition(" (or")[0].split(", ")) <= set(alike)
    for change in ({"max_position_embeddings": 77}, {"type_vocab_size": 9}):
        other = released_ernie(replace(sizes, **change), task, settings, ["float32"], [])
        assert other is not None
        assert not other.holds
    assert released_ernie(replace(sizes, hidden_size=100), task, settings, ["float32"], []) is None


def full_report() -> Report:
    """Everything that a report may hold."""
    finding = Finding("damaged", "text", (Stretch("49300/mp_rank_00_model_states.pt", 1, 2),), tensor="data.pkl")
    return Report(
        source="source",
        family="GLM-130B",
        form="form",
        name="name",
        sizes={"hidden_size": 1},
        dtype="float16",
        findings=(finding, Finding("information", "text", severity="note")),
        needs=(Needs("", 10**9, 2 * 10**9, 10**9),),
        command="command",
        advice="advice",
        released=Released("GLM-130B", (Check("words", "1", "2"),)),
        deep=Deep(10**9, 2.0),
    )


def test_the_keys_of_the_json_stay() -> None:
    """Programs count on them: this list may grow, and nothing of it may go."""
    content = json.loads(as_json(full_report()))
    assert content["schema"] == SCHEMA == 1
    keys = {
        "": "schema source family form name status exit_status sizes dtype files findings needs rate released deep "
        "command advice",
        "findings": "kind text places severity tensor remedy",
        "needs": "options read_bytes disk_bytes memory_bytes seconds",
        "rate": "bytes_per_second measured",
        "released": "name holds checks",
        "deep": "nbytes seconds",
    }
    for key, names in keys.items():
        held = content[key] if key else content
        assert set((held[0] if isinstance(held, list) else held).keys()) == set(names.split())
    assert content["findings"][0]["places"] == [{"file": "49300/mp_rank_00_model_states.pt", "start": 1, "stop": 2}]
    assert content["released"]["checks"] == [{"what": "words", "expected": "1", "found": "2", "holds": False}]
    assert content["needs"][0]["seconds"] == 10.0
    assert (content["status"], content["exit_status"]) == ("damaged", 1)
    assert set(json.loads(as_json(inspect(Question(SAMPLE))))["files"][0]) == {
        "name",
        "nbytes",
        "tensors",
        "is_member",
    }


def test_the_json_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(SAMPLE), "--json", "--deep"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "GLM-130B"
    assert main(["inspect", str(SAMPLE / "nothing"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["family"] is None


def test_kinds_and_statuses() -> None:
    statuses = {
        "missing": "incomplete",
        "unfinished": "incomplete",
        "settings": "incomplete",
        "downloading": "downloading",
        "damaged": "damaged",
        "short": "damaged",
        "mismatch": "damaged",
        "unknown": "unknown",
    }
    for kind, status in statuses.items():
        assert kind in KINDS
        assert Report("", "", "", "", findings=(Finding(kind, ""),)).status == status
    assert Report("", "", "", "", findings=(Finding("damaged", "", severity="warning"),)).exit_status == 0
    assert "damaged" in as_text(full_report())


def test_the_report_to_paste_tells_nothing_of_who_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No path, no name of user, home or machine, no names or words out of the files."""
    secret = "s3cret"
    folder = tmp_path / f"{secret}-folder"
    write_released(folder, whole_state(SIZES), 2, iteration=f"{secret}-run")
    settings = tmp_path / f"{secret}.json"
    write_settings(settings, **{f"{secret}_key": secret})
    assert main(["inspect", str(folder), "--report", f"--config={settings}"]) == 0
    texts = [capsys.readouterr().out]
    path = rank_path(folder, 1, f"{secret}-run")
    path.write_bytes(path.read_bytes()[:9000])
    (path.parent / f"{secret}.part").write_bytes(b"")
    (path.parent / "mp_rank_07_model_states.pt").write_bytes(b"PK")
    assert main(["inspect", str(folder), "--report", "--deep"]) == 1
    texts.append(capsys.readouterr().out)
    assert "error, short: mp_rank_01_model_states.pt, bytes 9,000 to" in texts[1]
    for name in ("adapter", "model"):
        other = tmp_path / f"{secret}-{name}"
        other.mkdir()
        content = {"peft_type": secret, "base_model_name_or_path": f"/home/{secret}", "model_type": "glm130b"}
        (other / ("adapter_config.json" if name == "adapter" else "config.json")).write_text(json.dumps(content))
        (other / f"model-00001-of-{secret}.safetensors").write_bytes(b"x")
        assert main(["inspect", str(other), "--report"]) == 1
        texts.append(capsys.readouterr().out)
    forbidden = [secret, str(tmp_path), str(Path.home()), getpass.getuser(), platform.node(), "/"]
    about_nothing = as_paste(Report("", "", "", ""))  # a user may be called "torch"
    for text in texts:
        assert text.startswith("hf-glm-ernie, inspect --report\nhf-glm-ernie ")
        for word in forbidden:
            assert word in about_nothing or word not in text, (word, text)
