"""Which file of a folder is the checkpoint, and that it is one source whatever its layout."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from conversion.lazy_files import CheckpointError
from conversion.operations import matrix_shape
from conversion.output_folder import OutputFolder
from conversion.paddle_files import PaddleFiles, open_paddle_source
from conversion.paddle_lod import LodFile, open_lod_folder
from conversion.paddle_pickle import PaddleArchive
from conversion.state_map import Piece, PlannedTensor
from tests.support.paddle_writing import lod_record, numbers, program, same, write_pdparams, write_sharded

from .conftest import GOLDEN

PADDLE = GOLDEN / "paddle_files"
SHARED = Path(__file__).parents[2] / "shared" / "goldens" / "ernie"
ARRAYS = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(4, "f4"), "c": np.arange(3)}


def holds(source: PaddleFiles, arrays: dict[str, np.ndarray]) -> bool:
    return set(source.specs) == set(arrays) and all(
        same(source.tensor(0, name), array) and source.specs[name].shape == array.shape
        for name, array in arrays.items()
    )


def write_static_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in ARRAYS.items():
        (folder / name).write_bytes(lod_record(array))


def write_combined(folder: Path, name: str, model: str) -> None:
    (folder / name).write_bytes(b"".join(lod_record(ARRAYS[key]) for key in sorted(ARRAYS)))
    (folder / model).write_bytes(program({key: array.shape for key, array in ARRAYS.items()}))


def write_two_shards(folder: Path, ending: str) -> Path:
    stem = "model" if ending == "safetensors" else "model_state"
    first, second = (f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2))
    return write_sharded(folder, {first: {"a": ARRAYS["a"]}, second: {"b": ARRAYS["b"], "c": ARRAYS["c"]}})


# (how the folder is made, the file that can be passed as well, kind)
LAYOUTS: dict[str, tuple[Callable[[Path], object], str | None, str]] = {
    "PaddleNLP": (
        lambda folder: write_pdparams(folder / "model_state.pdparams", ARRAYS),
        "model_state.pdparams",
        "pdparams",
    ),
    "other name": (
        lambda folder: write_pdparams(folder / "ernie_3.0.pdparams", ARRAYS),
        "ernie_3.0.pdparams",
        "pdparams",
    ),
    "shards": (
        lambda folder: write_two_shards(folder, "pdparams"),
        "model_state.pdparams.index.json",
        "pdparams",
    ),
    "safetensors": (
        lambda folder: save_file(ARRAYS, folder / "model.safetensors", metadata={"format": "np"}),
        "model.safetensors",
        "safetensors",
    ),
    "safetensors of Paddle": (
        lambda folder: save_file(ARRAYS, folder / "model.safetensors", metadata={"format": "pd"}),
        "model.safetensors",
        "safetensors",
    ),
    "safetensors without metadata": (
        lambda folder: save_file(ARRAYS, folder / "model.safetensors"),
        "model.safetensors",
        "safetensors",
    ),
    "safetensors shards": (
        lambda folder: write_two_shards(folder, "safetensors"),
        "model.safetensors.index.json",
        "safetensors",
    ),
    "ERNIE-kit": (lambda folder: write_pdparams(folder / "params", ARRAYS, 2), "params", "pdparams"),
    "inference": (
        lambda folder: write_combined(folder, "model.pdiparams", "model.pdmodel"),
        "model.pdiparams",
        "static combined",
    ),
    "old inference": (
        lambda folder: write_combined(folder, "__params__", "__model__"),
        "__params__",
        "static combined",
    ),
    "old inference, named params": (
        lambda folder: write_combined(folder, "params", "__model__"),
        "params",
        "static combined",
    ),
    "variables": (write_static_folder, None, "static folder"),
    "variables one level down": (lambda folder: write_static_folder(folder / "params"), None, "static folder"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_in_its_folder_and_by_its_file(tmp_path: Path, layout: str) -> None:
    make, file, kind = LAYOUTS[layout]
    make(tmp_path)
    for name in ("vocab.txt", "ernie_config.json", "README.md", ".gitattributes"):
        (tmp_path / name).write_text("something else")
    for path in [tmp_path] if file is None else [tmp_path, tmp_path / file]:
        source = open_paddle_source(path)
        assert source.kind == kind
        assert source.folder == tmp_path
        assert holds(source, ARRAYS)
        for name in ARRAYS:
            source.forget(0, name)
        assert holds(source, ARRAYS)
        assert {Path(path).name for path, *_ in source.identity()} <= {
            path.name for path in tmp_path.rglob("*") if path.is_file()
        }


@pytest.mark.parametrize("layout", sorted(path.name for path in PADDLE.iterdir() if path.is_dir()))
def test_folders_of_paddle_itself_are_opened(layout: str) -> None:
    values = np.load(PADDLE / "values.npz")
    expected = {key.split("|")[1]: values[key] for key in values.files if key.startswith(f"{layout}|")}
    assert holds(open_paddle_source(PADDLE / layout), expected)


def golden_cases() -> list[Path]:
    return sorted(path.parent for path in SHARED.glob("*/*/case.json"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the full golden sets (../shared/goldens/ernie)")
@pytest.mark.parametrize("folder", golden_cases(), ids=lambda folder: folder.name)
def test_every_golden_checkpoint_opens_with_the_names_and_shapes_of_its_model(folder: Path) -> None:
    source = open_paddle_source(folder)
    case = json.loads((folder / "case.json").read_text())
    stored = "bfloat16" if "bfloat16" in folder.name else None
    for entry in case.get("params", []):
        spec = source.specs[entry["name"]]
        assert spec.shape == tuple(entry["shape"])
        assert str(spec.dtype) == f"torch.{stored or entry.get('dtype', 'float32')}"
    assert len(source.specs) == len(case.get("params", source.specs))
    assert source.extras == {}
    assert len(source.static_names) == (0 if source.kind == "safetensors" else len(source.specs))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the full golden sets (../shared/goldens/ernie)")
def test_the_golden_shards_hold_what_numpy_reads_from_them() -> None:
    folder = SHARED / "models" / "fmt_sharded_pdparams_tokcls"
    loaded: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.pdparams")):
        loaded |= pickle.loads(path.read_bytes(), encoding="latin1")
        loaded.pop("StructuredToParameterName@@")
    assert holds(open_paddle_source(folder), loaded)


def test_bfloat16_in_safetensors_is_uint16(tmp_path: Path) -> None:
    """PaddleNLP saves through numpy, which has no bfloat16."""
    arrays = numbers()
    kept = {name: np.ascontiguousarray(arrays[name]) for name in ("bfloat", "half", "long")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "np"})
    source = open_paddle_source(tmp_path)
    assert source.specs["bfloat"].dtype == torch.bfloat16
    assert holds(source, kept)


def test_the_order_of_the_layouts_decides_between_them(tmp_path: Path) -> None:
    other = {"x": np.zeros(2, "f4")}
    write_static_folder(tmp_path / "params")
    save_file(other, tmp_path / "model.safetensors", metadata={"format": "np"})
    assert open_paddle_source(tmp_path).kind == "safetensors"
    write_pdparams(tmp_path / "model_state.pdparams", ARRAYS)
    write_pdparams(tmp_path / "other.pdparams", other)
    assert holds(open_paddle_source(tmp_path), ARRAYS)


def test_what_stands_beside_the_tensors_is_told(tmp_path: Path) -> None:
    source = open_paddle_source(PADDLE / "mixed.pdparams")
    assert source.extras == {"epoch": 3, "lr": 0.5, "note": "text", "none": None}
    assert source.static_names["half"] == "generated_tensor_1"


# What is refused


def with_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        index = write_two_shards(folder, "pdparams")
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return spoil


def shards_and(spoil: Callable[[Path], object], ending: str = "pdparams") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_two_shards(folder, ending)
        spoil(folder)

    return make


def two_shards_with_one_name(folder: Path) -> None:
    names = [f"model_state-0000{number}-of-00002.pdparams" for number in (1, 2)]
    write_sharded(folder, {names[0]: {"a": ARRAYS["a"], "b": ARRAYS["b"]}, names[1]: {"b": ARRAYS["b"]}})


def safetensors_of(metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda folder: save_torch_file({"a": torch.zeros(2)}, folder / "model.safetensors", metadata=metadata)


def header(text: str) -> Callable[[Path], object]:
    raw = len(text).to_bytes(8, "little") + text.encode() + bytes(64)
    return lambda folder: (folder / "model.safetensors").write_bytes(raw)


ENTRY = '{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such file or folder"),
    "empty": (lambda folder: None, r"no Paddle weights. Looked for model_state\.pdparams.*There is: nothing"),
    "only settings": (
        lambda folder: [(folder / name).write_text("{}") for name in ("config.json", "vocab.txt")],
        "There is: config.json, vocab.txt",
    ),
    "torch": (
        lambda folder: torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin"),
        "There is: pytorch_model.bin. Pass the folder",
    ),
    "many other files": (
        lambda folder: [(folder / f"notes_{number:02d}").write_text("x") for number in range(20)],
        r"notes_11, \.\.\. and 8 more",
    ),
    "transformers": (safetensors_of({"format": "pt"}), "already a torch file .*'pt'.*Open it with transformers"),
    "flax": (safetensors_of({"format": "flax"}), "metadata format 'flax'; PaddleNLP's files have 'np' or 'pd'"),
    "several": (
        lambda folder: [write_pdparams(folder / f"{name}.pdparams", ARRAYS) for name in ("best", "last")],
        "several weights files, best.pdparams, last.pdparams. Pass the file meant",
    ),
    "shards without index": (
        shards_and(lambda folder: (folder / "model_state.pdparams.index.json").unlink()),
        "several weights files.*restore its .index.json",
    ),
    "missing shard": (
        shards_and(lambda folder: (folder / "model_state-00002-of-00002.pdparams").unlink()),
        "missing model_state-00002-of-00002.pdparams, which the index names",
    ),
    "extra shard": (
        shards_and(lambda folder: write_pdparams(folder / "model_state-00003-of-00003.pdparams", ARRAYS)),
        "model_state-00003-of-00003.pdparams are not in model_state.pdparams.index.json",
    ),
    "missing safetensors shard": (
        shards_and(lambda folder: (folder / "model-00001-of-00002.safetensors").unlink(), "safetensors"),
        "missing model-00001-of-00002.safetensors",
    ),
    "name in two shards": (two_shards_with_one_name, "b stands in model_state-00001.* and in model_state-00002"),
    "name not in the index": (
        with_index(lambda weight_map: weight_map.pop("b")),
        r"1 names do not lie where it says, e\.g\. b \(index: None, shards: model_state-00002",
    ),
    "name only in the index": (
        with_index(lambda weight_map: weight_map.update(x="model_state-00001-of-00002.pdparams")),
        r"1 names do not lie where it says, e\.g\. x .*shards: None",
    ),
    "name in another shard": (
        with_index(
            lambda weight_map: weight_map.update(
                a="model_state-00002-of-00002.pdparams", b="model_state-00001-of-00002.pdparams"
            )
        ),
        r"2 names do not lie where it says, e\.g\. a",
    ),
    "index that points outside": (
        with_index(lambda weight_map: weight_map.update(a="../model_state.pdparams")),
        r"names \.\./model_state\.pdparams",
    ),
    "index without names": (with_index(lambda weight_map: weight_map.clear()), "names no shards"),
    "index of something else": (
        shards_and(lambda folder: (folder / "model_state.pdparams.index.json").write_text("[1]")),
        "not an index of weights",
    ),
    "combined without program": (
        lambda folder: (folder / "model.pdiparams").write_bytes(lod_record(ARRAYS["a"])),
        r"model\.pdiparams: holds parameters without their names; model\.pdmodel, which has them, is not beside it",
    ),
    "old combined without program": (
        lambda folder: (folder / "__params__").write_bytes(lod_record(ARRAYS["a"])),
        "__model__, which has them, is not beside it",
    ),
    "combined of Paddle 3": (
        lambda folder: (
            (folder / "inference.pdiparams").write_bytes(lod_record(ARRAYS["a"])),
            (folder / "inference.json").write_text("{}"),
        ),
        "inference.json is the program in Paddle 3's format",
    ),
    "two combined": (
        lambda folder: [write_combined(folder, f"{name}.pdiparams", f"{name}.pdmodel") for name in "ab"],
        "several weights files, a.pdiparams, b.pdiparams",
    ),
    "cut variable": (
        lambda folder: (write_static_folder(folder), (folder / "a").write_bytes(lod_record(ARRAYS["a"])[:-3])),
        "a: should end at byte .* but has",
    ),
    "cut safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{}"),
        "cut short or not a safetensors file",
    ),
    "pointer for safetensors": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git-lfs pointer",
    ),
    "malformed safetensors": (header('{"a":'), "malformed safetensors header"),
    "safetensors with a name twice": (header(f'{{"a":{ENTRY},"a":{ENTRY}}}'), "names that stand twice: a"),
    "safetensors dtype": (header('{"a":{"dtype":"U32","shape":[1],"data_offsets":[0,4]}}'), "dtype U32; handled: F64"),
    "safetensors length": (
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'),
        "bytes 0 to 4 for a tensor of 8",
    ),
    "safetensors beyond the end": (
        header('{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}'),
        "a should end at byte",
    ),
    "safetensors before the start": (
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-8,-4]}}'),
        "bytes -8 to -4 for a tensor of 4",
    ),
    "safetensors without tensors": (header("{}"), "holds no tensors"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    make, message = BAD_FOLDERS[kind]
    make(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_paddle_source(folder)
    assert str(folder) in str(caught.value)


BAD_FILES: dict[str, tuple[str, str]] = {
    "program": ("model.pdmodel", "a program, without weights. Pass the folder"),
    "old program": ("__model__", "a program, without weights"),
    "variable": ("a", "a file of static variables. Pass the folder it lies in"),
    "torch": ("pytorch_model.bin", "a torch checkpoint, which is not a Paddle one"),
    "settings": ("config.json", "a JSON file, not weights"),
    "other index": ("pytorch_model.bin.index.json", "not the index of a Paddle checkpoint"),
    "missing": ("nothing.pdparams", "no such file or folder"),
    "missing index": ("model_state.pdparams.index.json", "no such file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_named_with_what_it_is(tmp_path: Path, kind: str) -> None:
    write_static_folder(tmp_path)
    write_combined(tmp_path, "__params__", "__model__")
    write_combined(tmp_path, "model.pdiparams", "model.pdmodel")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "pytorch_model.bin.index.json"):
        (tmp_path / name).write_text("{}")
    name, message = BAD_FILES[kind]
    with pytest.raises(CheckpointError, match=message):
        open_paddle_source(tmp_path / name)


# As source and target of the writer


def whole(source: PaddleFiles) -> list[PlannedTensor]:
    """A plan that copies every tensor as it is."""
    return [
        PlannedTensor(0, name, spec, (Piece(0, name, (0, 0), (0, 0), matrix_shape(spec.shape)),))
        for name, spec in source.specs.items()
    ]


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_writer_copies_any_source_into_a_pdparams_file(tmp_path: Path, protocol: int) -> None:
    arrays = numbers()
    del arrays["empty"], arrays["scalar"]  # the writer works in rows, which these have not
    source = open_paddle_source(write_pdparams(tmp_path / "a.pdparams", arrays, protocol))
    archive = PaddleArchive("model_state.pdparams", whole(source), source.static_names)
    with OutputFolder(tmp_path / "out", [archive], "test") as folder:
        folder.fill([(archive.name, position) for position in range(len(archive.tensors))], source, lambda count: None)
        folder.publish()
    written = open_paddle_source(tmp_path / "out")
    assert holds(written, arrays)
    assert written.static_names == source.static_names


def test_the_writer_copies_any_source_into_a_static_folder(tmp_path: Path) -> None:
    source = open_paddle_source(PADDLE / "sliced_p2.pdparams")
    del source.specs["scalar"]  # the writer works in rows, which it has not
    files = [LodFile(tensor, "params") for tensor in whole(source)]
    with OutputFolder(tmp_path / "out", files, "test") as folder:
        folder.fill([(file.name, 0) for file in files], source, lambda count: None)
        folder.publish()
    assert len(open_lod_folder(tmp_path / "out" / "params")) == len(source.specs)
    written = open_paddle_source(tmp_path / "out")
    assert written.kind == "static folder"
    assert set(written.specs) == set(source.specs)
    for name in source.specs:
        bits = [part.tensor(0, name).contiguous().reshape(-1).view(torch.uint8) for part in (source, written)]
        assert torch.equal(bits[0], bits[1])
