"""`inspect` on every form there is: what it says it is, what is missing, which command it gives."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.__main__ import build_parser, main
from conversion.inspect_command import inspect
from conversion.inspect_look import Question
from conversion.inspect_report import Finding, Report
from conversion.journal import Journal
from tests.support.converting import SIZES, released, write_settings
from tests.support.converting_ernie import small_arrays
from tests.support.original_forms import HEAD, ORIGINALS, ernie
from tests.support.paddle_writing import write_pdparams
from tests.support.publishing import make_source
from tests.support.tiny import Hostile, change_rank, rank_path, whole_state, write_released

SAMPLES = Path(__file__).parents[1] / "examples"
BERT = "BERT: BertForMaskedLM"
FOLDER = "a folder's name"


def look(source: Path, deep: bool = False, **choices: Any) -> Report:
    return inspect(Question(source, **choices), deep)


def errors(report: Report) -> list[tuple[str, str]]:
    """(kind, file) of what stands in the way."""
    return [(found.kind, found.places[0].file if found.places else "") for found in report.errors]


def only(report: Report) -> Finding:
    (found,) = report.errors
    return found


@pytest.mark.parametrize("form", ORIGINALS)
def test_originals_are_known_and_the_command_converts_them(form: str, tmp_path: Path) -> None:
    make, family, words, command = ORIGINALS[form]
    report = look(make(tmp_path / FOLDER))
    assert (report.family, report.form, report.status) == (family, words, "complete")
    assert report.sizes["hidden_size"] in (24, 32, 12)
    assert report.needs[0].disk_bytes > report.needs[0].read_bytes // 2
    words_of_it = shlex.split(report.command)
    assert words_of_it[:4] == ["python", "-m", "conversion", command]
    assert words_of_it[4] == f"--source={tmp_path / FOLDER}"
    if form not in ("ranks", "pdparams", "10B"):
        return
    options = build_parser().parse_args([*words_of_it[3:], "--no-reference"])
    assert main([*words_of_it[3:], "--no-reference"]) == 0
    assert look(options.output).status == "complete"
    assert look(options.output).family == family
    # What was promised of the disk holds, and the next output has another name.
    written = sum(path.stat().st_size for path in options.output.rglob("*.safetensors"))
    assert written <= report.needs[0].disk_bytes
    assert shlex.split(look(options.source).command)[-1] == f"--output={options.output}-2"


CONVERTED = {
    "glm": ("GLM-130B", "floats"),
    "glm_int4": ("GLM-130B", "quantized by weight_only_int"),
    "uie_int8": ("ERNIE", "quantized by weight_only_int"),
    "utc": ("ERNIE", "floats"),
    "gplinker": ("ERNIE", "floats"),
    "compact": ("ERNIE", "floats"),
    "ernie3_int4": ("ERNIE 3.0 10B", "quantized by weight_only_int"),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_folders_for_transformers(name: str, tmp_path: Path) -> None:
    folder = make_source(name, tmp_path / "out")
    report = look(folder)
    family, how = CONVERTED[name]
    assert (report.family, report.form, report.status) == (family, f"folder for from_pretrained, {how}", "complete")
    assert shlex.split(report.command)[3:5] == ["publish", str(folder)]
    # A tensor taken out is missed, by its name.
    path = folder / "model.safetensors"
    tensors = load_file(path)
    gone = sorted(name for name in tensors if name.endswith("weight"))[-1]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, path, metadata={"format": "pt"})
    found = next(found for found in look(folder).errors if found.kind == "missing")
    assert gone in found.text


def test_an_encoder_as_bert(tmp_path: Path) -> None:
    source, output = SAMPLES / "sample-ernie" / "masked-lm", tmp_path / "out"
    assert main(["ernie", "--as-bert", f"--source={source}", f"--output={output}"]) == 0
    report = look(output)
    assert (report.family, report.name, report.status) == (
        "BERT",
        "an ERNIE encoder as BERT: BertForMaskedLM",
        "complete",
    )
    kept = output / "ernie" / "before_folding.safetensors"
    kept.write_bytes(kept.read_bytes()[:-8])
    assert errors(look(output)) == [("damaged", "ernie/before_folding.safetensors")]


def test_adapters(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "glm-130b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    halves = {"x.q_proj.lora_A.weight": torch.zeros(2, 8), "x.q_proj.lora_B.weight": torch.zeros(8, 2)}
    assert errors(look(folder)) == [("missing", "adapter_model.safetensors")]
    save_file(halves, folder / "adapter_model.safetensors")
    report = look(folder)
    assert (report.form, report.status, report.sizes) == ("adapter of PEFT's", "complete", {"rank": 2})
    assert "trained on glm-130b" in report.name
    save_file({"x.q_proj.lora_A.weight": torch.zeros(2, 8)}, folder / "adapter_model.safetensors")
    assert "only one of lora_A and lora_B for 1 modules, e.g. x.q_proj" in only(look(folder)).text
    (folder / "adapter_model.safetensors").unlink()
    torch.save(halves, folder / "adapter_model.bin")
    assert look(folder, deep=True).status == "complete"


def test_paddles_adapters_ask_for_their_base(tmp_path: Path) -> None:
    base = ernie(tmp_path / "base")
    weight = small_arrays(HEAD)["ernie.pooler.dense.weight"]
    folder = tmp_path / "lora"
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = {
        "ernie.pooler.dense.lora_A": random.standard_normal((weight.shape[0], 2)).astype("f4"),
        "ernie.pooler.dense.lora_B": random.standard_normal((2, weight.shape[1])).astype("f4"),
    }
    write_pdparams(folder / "lora_model_state.pdparams", arrays)
    (folder / "lora_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    report = look(folder)
    assert (report.form, report.status) == ("a LoRA adapter of PaddleNLP's", "complete")
    assert report.command.endswith("--base=CHECKPOINT")
    report = look(folder, base=base)
    assert report.status == "complete"
    assert f"--base={base}" in shlex.split(report.command)
    assert report.needs


def test_every_missing_and_damaged_rank_is_named(tmp_path: Path) -> None:
    folder = released(tmp_path / "glm", ranks=8)
    rank_path(folder, 1).unlink()
    rank_path(folder, 6).unlink()
    rank_path(folder, 7).unlink()
    path = rank_path(folder, 3)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole // 2])
    report = look(folder)
    names = [f"49300/mp_rank_{rank:02d}_model_states.pt" for rank in (1, 6, 7)]
    assert errors(report) == [*(("missing", name) for name in names), ("short", "49300/mp_rank_03_model_states.pt")]
    short = report.errors[-1].places[0]
    assert (short.start, short.stop) == (whole // 2, whole)
    assert report.sizes["hidden_size"] == 32  # the ranks that are there tell
    assert report.command == ""
    assert [found.text for found in look(rank_path(folder, 0)).errors] == [found.text for found in report.errors]


def test_ranks_of_another_iteration_are_found_from_the_headers(tmp_path: Path) -> None:
    """By the checksums in the archives' directories of what all ranks hold alike."""
    folder = released(tmp_path / "glm", ranks=4)
    other = released(tmp_path / "other", ranks=4)
    write_released(tmp_path / "third", whole_state(SIZES, seed=7), 4)
    shutil.copyfile(rank_path(tmp_path / "third", 2), rank_path(folder, 2))
    found = only(look(folder))
    assert (found.kind, found.places[0].file) == ("mismatch", "49300/mp_rank_02_model_states.pt")
    assert "tensors that every rank should hold alike" in found.text
    change_rank(other, 1, {"transformer.final_layernorm.bias": None})
    found = only(look(other))
    assert found.places[0].file == "49300/mp_rank_01_model_states.pt"
    assert found.tensor == "transformer.final_layernorm.bias"


def test_iterations(tmp_path: Path) -> None:
    folder = released(tmp_path / "glm")
    (folder / "latest").unlink()
    assert [kind for kind, _ in errors(look(folder))] == ["missing"]
    (folder / "latest").write_text("50000")
    assert "names the iteration '50000'" in only(look(folder)).text
    assert look(folder / "49300", config=folder / "config.json").status == "complete"


def test_settings_that_are_needed(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "glm", whole_state(SIZES), 2)
    assert only(look(folder)).kind == "settings"
    settings = tmp_path / "given.json"
    write_settings(settings)
    report = look(folder, config=settings)
    assert report.status == "complete"
    assert f"--config={settings}" in shlex.split(report.command)


def test_shards_missing_extra_and_misplaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    source = SAMPLES / "sample-glm130b"
    assert (
        main(["glm130b", f"--source={source}", f"--output={folder}", "--max-shard-size=500kB", "--no-reference"]) == 0
    )
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 3
    shards[1].unlink()
    shutil.copyfile(shards[0], folder / "model-00009-of-00009.safetensors")
    report = look(folder)
    assert errors(report) == [("missing", shards[1].name)]
    assert [found.places[0].file for found in report.findings if found.kind == "extra"] == [
        "model-00009-of-00009.safetensors"
    ]
    (folder / "model-00009-of-00009.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert errors(look(folder)) == [("missing", "model.safetensors.index.json"), ("missing", shards[1].name)]


def test_downloads_in_progress(tmp_path: Path) -> None:
    """Named as such, not as damage, whatever the file looks like by now."""
    folder = released(tmp_path / "glm", ranks=4)
    path = rank_path(folder, 2)
    path.with_name(path.name + ".aria2").write_bytes(b"control")
    path.write_bytes(bytes(path.stat().st_size))
    gone = rank_path(folder, 3)
    gone.rename(gone.with_name(gone.name + ".part"))
    report = look(folder)
    assert report.status == "downloading"
    assert errors(report) == [("downloading", f"49300/mp_rank_0{rank}_model_states.pt") for rank in (2, 3)]
    converted = tmp_path / "hub"
    (converted / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (converted / ".cache" / "huggingface" / "download" / "abc.0123.incomplete").write_bytes(b"x")
    (converted / ".cache" / "huggingface" / "download" / "model.safetensors.lock").write_bytes(b"")
    (converted / "config.json").write_text(json.dumps({"model_type": "glm130b"}))
    report = look(converted)
    assert report.status == "downloading"
    assert errors(report) == [("downloading", "model.safetensors")]
    (tmp_path / "file.pdparams.crdownload").write_bytes(b"x")
    assert errors(look(tmp_path / "file.pdparams")) == [("downloading", "file.pdparams")]


def test_nothing_in_a_pickle_runs_and_nothing_raises(tmp_path: Path) -> None:
    folder = released(tmp_path / "glm")
    torch.save({"module": Hostile(tmp_path / "trace")}, rank_path(folder, 1))
    report = look(folder, deep=True)
    assert errors(report) == [("damaged", "49300/mp_rank_01_model_states.pt")]
    assert not (tmp_path / "trace").exists()
    for number, content in enumerate((b"", b"PK", b"{", b"\x80\x02.", bytes(100), b"\xff" * 1000)):
        for name in ("config.json", "model.safetensors", "model_state.pdparams", "adapter_config.json", "x.tar"):
            place = tmp_path / f"{number}-{name}"
            place.mkdir()
            (place / name).write_bytes(content)
            assert look(place).exit_status == 1
            assert look(place / name).exit_status == 1


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    assert errors(look(tmp_path / "nothing")) == [("missing", "nothing")]
    (tmp_path / "photo.jpg").write_bytes(b"x")
    report = look(tmp_path)
    assert report.status == "unknown"
    assert "There is: photo.jpg." in only(report).text


def test_unfinished_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that failed half way: how far it is, and whether what is written holds."""
    source = released(tmp_path / "glm")
    output = tmp_path / "out"
    real, seen = Journal.note, []

    def note(self: Any, line: dict[str, Any]) -> None:
        seen.append(line)
        if sum("tensor" in one for one in seen) > 12:
            raise OSError(28, "no space")
        real(self, line)

    monkeypatch.setattr(Journal, "note", note)
    arguments = [f"--source={source}", f"--output={output}", "--no-reference", "--max-shard-size=20kB"]
    assert main(["glm130b", *arguments]) == 1
    monkeypatch.undo()
    for named in (output, tmp_path / "out.incomplete"):
        report = look(named, deep=True)
        assert (report.family, report.status) == ("GLM-130B", "incomplete")
        found = only(report)
        assert found.kind == "unfinished"
        assert "0 of 2 weight files are finished, 0 verified; 12 tensors are written" in found.text
        assert shlex.split(report.command)[3:] == ["glm130b", "--source=SOURCE", f"--output={output}"]
    path = tmp_path / "out.incomplete" / ".conversion" / "partial" / "model-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # the first byte of the first tensor
    path.write_bytes(content)
    damaged = [found for found in look(output, deep=True).errors if found.kind == "damaged"]
    assert [found.places[0].file for found in damaged] == [path.name]
    assert damaged[0].tensor
    assert main(["glm130b", *arguments]) == 0
    assert look(output).status == "complete"


def test_room_for_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = released(tmp_path / "glm")
    needs = {need.options: need.disk_bytes for need in look(folder).needs}
    free = needs["--bits 8"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    (found,) = [found for found in look(folder).findings if found.kind == "space"]
    assert found.text.endswith("not enough for: as stored")
    assert look(folder).exit_status == 0


def test_files_of_a_converted_folder_are_the_folder(tmp_path: Path) -> None:
    folder = make_source("uie", tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        assert look(folder / name).form == "folder for from_pretrained, floats"


def test_exit_status_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = released(tmp_path / "glm")
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "GLM-130B, iteration 49300, 2 ranks, float16" in said
    assert "converting takes (time at 0.5 GB/s)" in said
    rank_path(folder, 1).unlink()
    assert main(["inspect", str(folder), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["exit_status"] == 1
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder), "--json", "--report"])
    assert ended.value.code == 2
    capsys.readouterr()
    (folder / "\x1b[31mred").mkdir()
    assert main(["inspect", str(folder / "\x1b[31mred")]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_the_installed_command_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/glm-ernie-convert"])
    assert look(released(tmp_path / "glm")).command.startswith("glm-ernie-convert glm130b ")
