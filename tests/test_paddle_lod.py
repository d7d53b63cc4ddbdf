"""Static-graph parameters: files of single variables and combined ones, read as Paddle wrote them, and written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion import lazy_files
from conversion.lazy_files import CheckpointError, NamedFiles
from conversion.operations import TensorSpec
from conversion.paddle_lod import (
    LodFile,
    looks_like_lod,
    open_lod_combined,
    open_lod_file,
    open_lod_folder,
    read_program,
)
from conversion.state_map import PlannedTensor
from conversion.writer import WriteError
from tests.support.paddle_writing import as_torch, lod_record, numbers, program, same, varint

from .conftest import GOLDEN

PADDLE = GOLDEN / "paddle_files"


def expected_values(kind: str) -> dict[str, np.ndarray]:
    values = np.load(PADDLE / "values.npz")
    return {name.split("|")[1]: values[name] for name in values.files if name.startswith(f"{kind}|")}


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: file.tensor(name) for file in open_lod_folder(folder) for name in file.tensors}


# Files of single variables


@pytest.mark.parametrize("kind", ["variables", "dtypes"])
def test_folders_of_paddle_itself_are_read_bit_for_bit(kind: str) -> None:
    expected, found = expected_values(kind), read_folder(PADDLE / kind)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert same(found[name], array), name


def test_every_dtype_is_read(tmp_path: Path) -> None:
    arrays = numbers()
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(lod_record(array))
    for file in open_lod_folder(tmp_path):
        (name,) = file.tensors
        assert same(file.tensor(name), arrays[name]), name
        assert same(file.tensor(name), arrays[name]), name
        file.forget(name)
        assert same(file.tensor(name), arrays[name]), name


@pytest.mark.parametrize("form", [{"packed": True}, {"levels": (b"\0" * 16,)}, {"levels": (b"\0" * 8, b"\0" * 24)}])
def test_other_forms_of_the_header_are_read(tmp_path: Path, form: dict[str, Any]) -> None:
    array = numbers()["single"]
    (tmp_path / "w").write_bytes(lod_record(array, **form))
    assert same(open_lod_file(tmp_path / "w", "w").tensor("w"), array)


def test_a_name_with_slashes_is_a_file_in_folders_and_what_is_known_is_passed_over(tmp_path: Path) -> None:
    array = numbers()["half"]
    (tmp_path / "scope/inner").mkdir(parents=True)
    for name in ("scope/inner/w_0", "b_0"):
        (tmp_path / name).write_bytes(lod_record(array))
    for name in ("__model__", "vocab.txt", "ernie_config.json", "README", ".gitattributes"):
        (tmp_path / name).write_bytes(b"something else")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/index").write_bytes(b"something else")
    assert sorted(read_folder(tmp_path)) == ["b_0", "scope/inner/w_0"]


def test_more_variables_than_a_process_may_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 10B has over a thousand files, the usual limit is 1,024 open ones."""
    resource = pytest.importorskip("resource", reason="needs a limit of open files, which only Unix has")
    for number in range(60):
        (tmp_path / f"w_{number}").write_bytes(lod_record(np.full(3, number, "f4")))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 100
    monkeypatch.setattr(lazy_files, "MAX_OPEN", 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 30, before[1]))
    try:
        source = NamedFiles(open_lod_folder(tmp_path), tmp_path)
        for name in [*source.specs, "w_0"]:
            assert source.tensor(0, name).tolist() == [float(name[2:])] * 3
        source.check_content()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


RECORD = lod_record(np.arange(12, dtype="f4").reshape(3, 4))
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty, 0 bytes"),
    "cut in the data": (lambda path: path.write_bytes(RECORD[:-1]), "should end at byte .* but has .*cut short"),
    "cut in the header": (lambda path: path.write_bytes(RECORD[:18]), "no variable in Paddle's format at byte 0"),
    "more behind the end": (lambda path: path.write_bytes(RECORD + b"x"), "1 bytes behind the tensor.*combined"),
    "two variables": (lambda path: path.write_bytes(RECORD * 2), "behind the tensor.*needs the program"),
    "text": (lambda path: path.write_text("notes, nothing else"), "a text file, not weights; it begins with 'notes"),
    "bytes": (lambda path: path.write_bytes(bytes(range(200))), "no variable in Paddle's format.*move it elsewhere"),
    "git-lfs pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "other version": (lambda path: path.write_bytes(b"\1" + RECORD[1:]), "version 1"),
    "endless levels": (lambda path: path.write_bytes(RECORD[:4] + b"\xff" * 8 + RECORD[12:]), "levels of detail"),
    "long level": (
        lambda path: path.write_bytes(RECORD[:4] + b"\1" + bytes(7) + b"\xff" * 8 + RECORD[12:]),
        "a level of detail of 18446744073709551615 bytes",
    ),
    "long description": (
        lambda path: path.write_bytes(RECORD[:16] + b"\xff\xff\xff\x7f"),
        "description of 2147483647",
    ),
    "negative description": (lambda path: path.write_bytes(RECORD[:16] + b"\xff" * 4), "description of -1 bytes"),
    "unknown dtype": (
        lambda path: path.write_bytes(RECORD.replace(b"\x08\x05\x10", b"\x08\x17\x10")),
        "dtype number 23; known: 0, 1, 2",
    ),
    "no dtype": (
        lambda path: path.write_bytes(RECORD.replace(b"\x08\x05\x10", b"\x18\x05\x10")),
        "a tensor without dtype",
    ),
    "negative length": (
        lambda path: path.write_bytes(bytes(16) + b"\x0d\0\0\0\x08\x05\x10" + varint(2**64 - 1) + bytes(48)),
        "a shape that is no list of lengths",
    ),
    "impossible shape": (
        lambda path: path.write_bytes(bytes(16) + b"\x16\0\0\0\x08\x05" + (b"\x10" + varint(2**62)) * 2 + bytes(48)),
        r"the shape \[4611686018427387904, 4611686018427387904\]",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fc.w_0"
    path.write_bytes(RECORD)
    spoil, message = BAD_FILES[kind]
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_lod_file(path, "fc.w_0")
    assert str(path) in str(caught.value)


def test_a_file_cut_or_changed_anywhere_is_refused_or_opens(tmp_path: Path) -> None:
    path = tmp_path / "w"
    for length in range(len(RECORD)):
        path.write_bytes(RECORD[:length])
        with pytest.raises(CheckpointError):
            open_lod_file(path, "w")
    refused = 0
    for position in range(len(RECORD)):
        for value in (0, RECORD[position] ^ 1, 0xFF):
            path.write_bytes(RECORD[:position] + bytes([value]) + RECORD[position + 1 :])
            try:
                open_lod_file(path, "w").tensor("w")
            except CheckpointError:
                refused += 1
    assert refused > 30


def test_a_stranger_among_the_variables_is_named(tmp_path: Path) -> None:
    (tmp_path / "fc.w_0").write_bytes(RECORD)
    (tmp_path / "notes").write_text("these are not weights at all")
    with pytest.raises(
        CheckpointError, match=r"notes: a text file, not weights; it begins with 'these are.*move this file elsewhere"
    ):
        open_lod_folder(tmp_path)


def test_a_folder_without_variables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]")
    with pytest.raises(CheckpointError, match="no files of variables"):
        open_lod_folder(tmp_path)


# Combined files and their programs


def test_a_combined_file_of_paddle_itself_is_read_with_its_program() -> None:
    for kind, name, model in (
        ("combined", "__params__", "__model__"),
        ("inference", "model.pdiparams", "model.pdmodel"),
    ):
        file = open_lod_combined(PADDLE / kind / name, PADDLE / kind / model)
        expected = expected_values(kind)
        assert sorted(file.tensors) == sorted(expected)
        assert all(same(file.tensor(name), array) for name, array in expected.items())
        assert file.static_names == {}


def test_a_saved_layer_has_the_names_of_its_parameters_again() -> None:
    folder = PADDLE / "jit"
    file = open_lod_combined(folder / "model.pdiparams", folder / "model.pdmodel")
    expected = expected_values("jit")
    assert sorted(file.tensors) == sorted(expected)
    assert all(same(file.tensor(name), array) for name, array in expected.items())
    assert file.static_names["embedding.weight"] == "embedding_0.w_0"


def test_without_its_info_a_saved_layer_has_the_names_of_the_program(tmp_path: Path) -> None:
    shutil.copytree(PADDLE / "jit", tmp_path / "jit")
    (tmp_path / "jit/model.pdiparams.info").unlink()
    file = open_lod_combined(tmp_path / "jit/model.pdiparams", tmp_path / "jit/model.pdmodel")
    assert sorted(file.tensors)[1:] == ["embedding_0.w_0", "linear_0.b_0", "linear_0.w_0"]


def test_the_variables_of_a_program_are_the_persistable_ones(tmp_path: Path) -> None:
    shapes = {"b": (3,), "a": (2, 3), "scalar": ()}
    (tmp_path / "p.pdmodel").write_bytes(program(shapes))
    assert read_program(tmp_path / "p.pdmodel") == shapes
    assert read_program(PADDLE / "combined" / "__model__") == {
        "word_embedding": (6, 4),
        "encoder_layer_0_fc.w_0": (4, 3),
        "encoder_layer_0_fc.b_0": (3,),
        "scope/w": (3, 2),
    }


def write_combined(folder: Path, arrays: dict[str, np.ndarray]) -> tuple[Path, Path]:
    path, model = folder / "model.pdiparams", folder / "model.pdmodel"
    path.write_bytes(b"".join(lod_record(arrays[name]) for name in sorted(arrays)))
    model.write_bytes(program({name: array.shape for name, array in arrays.items()}))
    return path, model


def test_records_are_in_the_order_of_the_sorted_names(tmp_path: Path) -> None:
    arrays = {
        "fc_10.w_0": np.ones(2, "f4"),
        "fc_2.w_0": np.zeros(2, "f4"),
        "Z": np.full(2, 5, "f4"),
        "名": np.full(2, 6, "f4"),
    }
    file = open_lod_combined(*write_combined(tmp_path, arrays))
    assert list(file.tensors) == ["Z", "fc_10.w_0", "fc_2.w_0", "名"]
    assert all(same(file.tensor(name), array) for name, array in arrays.items())


SMALL = {"a": np.ones((2, 3), "f4"), "b": np.zeros(3, "f4"), "c": np.zeros(1, "f4")}
BAD_PAIRS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no program": (lambda path, model: model.unlink(), r"model\.pdmodel: no such file. It holds the names"),
    "empty program": (lambda path, model: model.write_bytes(b""), "a program without parameters"),
    "program without parameters": (
        lambda path, model: model.write_bytes(program({"a": (2, 3)}, persistable=False)),
        "a program without parameters",
    ),
    "text for a program": (lambda path, model: model.write_text("not a program"), "not a Paddle program"),
    "program cut short": (lambda path, model: model.write_bytes(model.read_bytes()[:60]), "not a Paddle program"),
    "fewer variables": (
        lambda path, model: path.write_bytes(lod_record(SMALL["a"])),
        "holds 1 variables, .*names 3; the first one missing is b",
    ),
    "more variables": (
        lambda path, model: path.write_bytes(path.read_bytes() + RECORD),
        "bytes behind the 3 variables that",
    ),
    "other variables": (
        lambda path, model: path.write_bytes(b"".join(lod_record(SMALL[name]) for name in "bac")),
        r"variable 1 has shape \[3\], but a in .* has \[2, 3\]",
    ),
    "other length": (
        lambda path, model: model.write_bytes(program({"a": (2, 4), "b": (3,), "c": (1,)})),
        r"variable 1 has shape \[2, 3\], but a in .* has \[2, 4\]",
    ),
    "cut short": (lambda path, model: path.write_bytes(path.read_bytes()[:-2]), "should end at byte .* but has"),
    "no parameters": (lambda path, model: path.unlink(), "no such file"),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_combined_file_and_a_program_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    path, model = write_combined(tmp_path, SMALL)
    spoil, message = BAD_PAIRS[kind]
    spoil(path, model)
    with pytest.raises(CheckpointError, match=message):
        open_lod_combined(path, model)


def test_a_program_cut_or_changed_anywhere_is_refused_in_words(tmp_path: Path) -> None:
    path, model = write_combined(tmp_path, SMALL)
    whole = model.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for changed in (whole[:position], whole[:position] + b"\xff" + whole[position + 1 :]):
            model.write_bytes(changed)
            try:
                open_lod_combined(path, model)
            except CheckpointError:
                refused += 1
    assert refused > len(whole)


def test_lengths_that_the_program_leaves_open_fit_any(tmp_path: Path) -> None:
    path, model = write_combined(tmp_path, SMALL)
    model.write_bytes(program({"a": (-1, 3), "b": (3,), "c": (1,)}))
    assert open_lod_combined(path, model).tensors["a"].spec.shape == (2, 3)


def test_what_looks_like_a_variable(tmp_path: Path) -> None:
    assert looks_like_lod(PADDLE / "variables" / "word_embedding")
    assert not looks_like_lod(PADDLE / "state_p4.pdparams")


# Writing


@pytest.mark.parametrize("kind", ["variables", "dtypes"])
def test_written_files_are_those_of_paddle_byte_for_byte(tmp_path: Path, kind: str) -> None:
    for name, array in expected_values(kind).items():
        tensor = as_torch(array)
        file = LodFile(PlannedTensor(0, name, TensorSpec(tuple(tensor.shape), tensor.dtype), ()), "params")
        assert file.name == f"params/{name}"
        path = tmp_path / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        file.create(path)
        assert path.stat().st_size == file.size
        with path.open("r+b") as stream:
            stream.seek(file.offsets(path)[name])
            stream.write(bytes(tensor.reshape(-1).view(torch.uint8).numpy()))
        file.finish(path, {})
        assert path.read_bytes() == (PADDLE / kind / name).read_bytes(), name
        assert same(open_lod_file(path, name).tensor(name), array)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../outside", "a/../../b"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(WriteError, match="cannot be the name of a file"):
        LodFile(PlannedTensor(0, name, TensorSpec((2,), torch.float32), ()))


def test_a_dtype_that_paddle_has_not_is_refused() -> None:
    with pytest.raises(WriteError, match=r"a is torch\.complex64; Paddle's files hold one of bool"):
        LodFile(PlannedTensor(0, "a", TensorSpec((2,), torch.complex64), ()))
