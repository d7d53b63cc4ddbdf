"""Lazy tensors from files: what is read, what is refused, and that nothing in a pickle runs."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from conversion import lazy_files
from conversion.byte_source import ByteSource
from conversion.lazy_files import CheckpointError
from conversion.operations import matrix_shape
from conversion.rank_files import RankCheckpoint
from conversion.safetensors_files import SafetensorsFolder, open_safetensors_file
from conversion.torch_files import open_torch_file
from tests.support.tiny import (
    Hostile,
    Sizes,
    change_rank,
    equal_bits,
    load_rank,
    rank_path,
    rank_state,
    whole_state,
    write_released,
)


def read_all(path: Path) -> dict[str, torch.Tensor]:
    file, _ = open_torch_file(path, "module")
    return {name: file.tensor(name).clone() for name in file.tensors}


# Torch files


def test_tensors_of_a_file_equal_those_torch_reads(tmp_path: Path) -> None:
    wide = torch.randn(6, 8)
    tensors = {
        "half": torch.randn(5, 3).half(),
        "bfloat": torch.randn(7).bfloat16(),
        "single": wide,
        "slice": wide[1:4, 2:5],  # shares its storage, with an offset and gaps
        "transposed": wide.T,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    torch.save({"iteration": 7, "module": tensors}, tmp_path / "a.pt")
    file, rest = open_torch_file(tmp_path / "a.pt", "module")
    assert rest == {"iteration": 7}
    for name, tensor in tensors.items():
        assert torch.equal(file.tensor(name), tensor)
        file.forget(name)
        assert torch.equal(file.tensor(name), tensor)  # forgotten pages come back
        assert file.tensors[name].spec.dtype == tensor.dtype


def test_a_file_saved_from_a_gpu_is_read_on_a_machine_without_one(tmp_path: Path) -> None:
    with FakeTensorMode():
        fake = torch.empty(4, 2, dtype=torch.float16, device="cuda")
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"module": {"a": fake}}, tmp_path / "a.pt")
    assert b"cuda:0" in (tmp_path / "a.pt").read_bytes()
    assert read_all(tmp_path / "a.pt")["a"].shape == (4, 2)


def test_a_file_of_an_older_torch_is_read(tmp_path: Path) -> None:
    """Before torch 2.1 the archive had no format version, alignment and byte order records."""
    tensors = {"a": torch.randn(3, 2).half(), "b": torch.randn(5).half()}
    torch.save({"module": tensors}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for info in new.infolist():
            if not info.filename.endswith((".format_version", ".storage_alignment", "byteorder", "serialization_id")):
                old.writestr(info.filename, new.read(info))
    assert equal_bits(read_all(tmp_path / "old.pt"), tensors)


def test_what_else_torch_saves_may_stand_beside_the_weights(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 2)).state_dict()  # with attributes of its own
    marked = torch.nn.Parameter(torch.randn(2, 2))
    marked.tensor_model_parallel = True
    state["marked"] = marked
    beside = {
        "iteration": "49300",
        "loss": 1.5,
        "size": torch.Size([2]),
        "states": [torch.get_rng_state(), {"seen": {1, 2}, 3: bytearray(b"x"), "device": torch.device("cpu")}],
        "other": (torch.eye(2).to_sparse(), torch.zeros(2).to(torch.complex64), torch.zeros(2).to(torch.float8_e5m2)),
        "dtype": torch.float16,
    }
    torch.save({"module": state} | beside, tmp_path / "a.pt")
    file, rest = open_torch_file(tmp_path / "a.pt", "module")
    assert rest == {"iteration": "49300", "loss": 1.5}
    assert list(file.tensors) == list(state)
    for name, value in state.items():
        assert torch.equal(file.tensor(name), value)


def test_records_may_lie_anywhere_in_an_archive(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(100), "b": torch.randn(3)}
    torch.save({"module": tensors}, tmp_path / "a.pt")
    repacked(tmp_path / "a.pt")
    assert equal_bits(read_all(tmp_path / "a.pt"), tensors)


def overlapping(path: Path, names: list[str], place: int) -> None:
    """Lets the directory place some records where another lies."""
    data = bytearray(path.read_bytes())
    for name in names:
        entry = data.rindex(name.encode()) - 46
        data[entry + 42 : entry + 46] = place.to_bytes(4, "little")
    path.write_bytes(data)


def test_records_that_are_not_where_the_directory_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for names, place, message in (
        (["a/data/1"], 0, "a/data/1 is not at byte 0"),
        (["a/data/1"], 2**31, "behind the records"),
        (["a/data/1"], 2**32 - 1, "lacks a number"),
    ):
        torch.save({"module": {"a": torch.zeros(100), "b": torch.zeros(3)}}, path)
        overlapping(path, names, place)
        with pytest.raises(CheckpointError, match=message):
            open_torch_file(path, "module")


def test_lengths_in_the_directory_are_held_against_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for at, value, message in (
        (20, 4000, "4000 bytes stored for 400"),
        (8, 0x0801, "a/data/0 is encrypted"),
        (28, 60000, "its directory is damaged"),
    ):
        torch.save({"module": {"a": torch.zeros(100), "b": torch.zeros(3)}}, path)
        data = bytearray(path.read_bytes())
        entry = data.rindex(b"a/data/0") - 46
        data[entry + at : entry + at + 2] = value.to_bytes(2, "little")
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            open_torch_file(path, "module")
    torch.save({"module": {"a": torch.zeros(100), "b": torch.zeros(3)}}, path)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"a/data/0") - 46
    data[entry + 20 : entry + 28] = (4000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a/data/0 reaches to byte .*, into what begins at"):
        open_torch_file(path, "module")


@pytest.mark.parametrize("place", ["instead of the dictionary", "beside the tensors", "among the tensors"])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, place: str) -> None:
    trace = tmp_path / "executed"
    hostile = Hostile(trace)
    content = {
        "instead of the dictionary": hostile,
        "beside the tensors": {"module": {"a": torch.zeros(2)}, "args": hostile},
        "among the tensors": {"module": {"a": torch.zeros(2), "b": hostile}},
    }[place]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"a\.pt: the pickle holds \S+system, .*Nothing in it was executed.*if you trust"
    ):
        open_torch_file(tmp_path / "a.pt", "module")
    assert not trace.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)  # the trap is real
    assert trace.exists()


def compressed(path: Path) -> None:
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(path.with_name("packed"), "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    path.with_name("packed").replace(path)


def repacked(path: Path) -> None:
    """Plain records, but not where torch's layout rules put them."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(path.with_name("packed"), "w") as target:
        for info in sorted(source.infolist(), key=lambda info: info.filename, reverse=True):
            target.writestr(info.filename, source.read(info))
    path.with_name("packed").replace(path)


def with_record(name: str, content: bytes) -> Callable[[Path], None]:
    """The same archive with another record, which `torch.load` would see."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(path.with_name("changed"), "w") as target:
            kept = {info.filename: source.read(info) for info in source.infolist()}
            for inside, old in (kept | {f"a/{name}": content}).items():
                target.writestr(inside, old)
        path.with_name("changed").replace(path)

    return spoil


def with_pickle(program: bytes) -> Callable[[Path], None]:
    return with_record("data.pkl", program)


def call(function: str, arguments: bytes) -> bytes:
    """The opcodes of a call, as protocol 2 writes them."""
    return b"c" + function.replace(" ", "\n").encode() + b"\n" + arguments + b"R"


def tensor(shape: bytes, stride: bytes, numel: bytes = b"Kd", key: bytes = b"0", offset: bytes = b"K\x00") -> bytes:
    """The opcodes of {"module": {"a": a tensor of 100 elements of record 0}}, with something else in its place."""
    key = b"X" + len(key).to_bytes(4, "little") + key
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpu" + numel + b"tQ"
    made = call("torch._utils _rebuild_tensor_v2", b"(" + storage + offset + shape + stride + b"\x89Nt")
    return b"\x80\x02}X\x06\x00\x00\x00module}X\x01\x00\x00\x00a" + made + b"ss."


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a torch checkpoint .0 bytes"),
    "text": (lambda path: path.write_text("oid sha256:abc size 5"), "not a torch checkpoint .* starting with b'oid "),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut short, .* without the end"),
    "cut in half": (lambda path: path.write_bytes(path.read_bytes()[:900]), "cut short, 900 bytes"),
    "hole at the start": (
        lambda path: path.write_bytes(bytes(400) + path.read_bytes()[400:]),
        "a/data.pkl is not at byte 0",
    ),
    "hole in the pickle": (
        lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(100) + path.read_bytes()[200:]),
        "the pickle is damaged or holds more than tensors",
    ),
    "old format": (
        lambda path: torch.save({"module": {"a": torch.zeros(2)}}, path, _use_new_zipfile_serialization=False),
        "before torch 1.6",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"module": {}})), "before torch 1.6"),
    "other form": (lambda path: torch.save({"a": torch.zeros(2)}, path), r"expected .*found keys \['a'\]"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "found a list"),
    "number": (lambda path: torch.save({"module": {"a": 5}}, path), "'a' of 'module' is a int, not a dense tensor"),
    "sparse": (lambda path: torch.save({"module": {"a": torch.eye(2).to_sparse()}}, path), "not a dense tensor"),
    "compressed": (compressed, "compressed, torch stores plainly"),
    "big-endian": (with_record("byteorder", b"big"), "big-endian machine"),
    "no byte order": (with_record("byteorder", b""), "of the byte order b''"),
    "layout of the future": (with_record("version", b"11\n"), r"in the layout b'11'; known are those up to 10"),
    "layout that is no number": (with_record("version", b"new"), "in the layout b'new'"),
    "second root": (with_record("../b/data.pkl", b"x"), r"a record is called 'a/../b/data.pkl'"),
    "six gigabytes out of nothing": (
        with_pickle(b"\x80\x02" + call("__builtin__ bytearray", b"J\x00\xbc\xa0e\x85") + b"."),
        r"found a \w+.bytearray",
    ),
    "identifier that is no tuple": (with_pickle(b"\x80\x02K\x05Q."), "names something outside of it"),
    "identifier of another kind": (with_pickle(b"\x80\x02X\x01\x00\x00\x00xK\x01\x86Q."), "names something outside"),
    "record that is not there": (
        with_pickle(tensor(b"Kd\x85", b"K\x01\x85", key=b"../7")),
        r"a should lie in 100 elements of data/../7, which is not there",
    ),
    "record that is too short": (with_pickle(tensor(b"Kd\x85", b"K\x01\x85", numel=b"Ke")), "which has 400 bytes"),
    "strides that lead outside": (with_pickle(tensor(b"K\x0aK\x0a\x86", b"K\x0bK\x01\x86")), "ends at element 109 of"),
    "offset that leads outside": (
        with_pickle(tensor(b"Kd\x85", b"K\x01\x85", offset=b"K\x01")),
        "ends at element 101 of 100",
    ),
    "negative stride": (with_pickle(tensor(b"Kd\x85", b"J\xff\xff\xff\xff\x85")), "without an offset and strides"),
    "negative offset": (
        with_pickle(tensor(b"Kd\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff")),
        "without an offset and strides",
    ),
    "shape that is no number": (with_pickle(tensor(b"N\x85", b"K\x01\x85")), "no list of lengths"),
    "elements shown several times": (
        with_pickle(tensor(b"MrjMrj\x86", b"K\x00K\x00\x86")),
        r"shape \[27250, 27250\] that shows 100 elements several times",
    ),
    "endless steps": (with_pickle(b"\x80\x02" + b"N" * 500_000 + b"."), "takes more than 400,000 steps"),
    "endless memo": (with_pickle(b"\x80\x02Nr\xff\xff\xff\xff."), "found a NoneType"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pt"
    torch.save({"module": {"a": torch.zeros(100), "b": torch.zeros(3)}}, path)
    spoil, message = BAD_FILES[kind]
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_torch_file(path, "module")
    assert str(path) in str(caught.value)


def test_a_file_larger_than_the_machine_is_opened_and_read_in_part(tmp_path: Path) -> None:
    """`torch.load(mmap=True)` fails here: its private writable mapping is charged against RAM and swap."""
    with FakeTensorMode():
        fake = torch.empty(2**20, 2**20, dtype=torch.float16)  # 2 TiB
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"module": {"a": fake}}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_blocks < 1000  # a hole in the file
    file, _ = open_torch_file(tmp_path / "a.pt", "module")
    assert file.rows("a", 2**20 - 1, 2**20)[0, -5:].tolist() == [0.0] * 5


STRIDED = {
    "rows": lambda whole: whole,
    "columns": lambda whole: whole.T,
    "a slice, with gaps": lambda whole: whole[2:, 3:9],
    "a slice of the columns": lambda whole: whole.T[3:9, 2:],
    "every other row": lambda whole: whole[::2],
    "every other column": lambda whole: whole[:, ::2],
    "a vector": lambda whole: whole[:, 0].clone(),
    "a vector with gaps": lambda whole: whole[:, 4],
    "one row": lambda whole: whole[3:4],
    "one column": lambda whole: whole[:, 5:6],
    "one number": lambda whole: whole[1, 1],
    "one row many times": lambda whole: whole[2].expand(5, -1),
    "a number many times": lambda whole: whole[2, 2].expand(5, 4),
    "three axes": lambda whole: whole.reshape(3, 5, 11),
    "three axes, a first of 1": lambda whole: whole[None],
    "three axes, exchanged": lambda whole: whole.reshape(3, 5, 11).permute(1, 2, 0),
    "no rows": lambda whole: whole[:0],
}
"""Tensors as `torch.save` keeps them, out of one of (15, 11)."""


@pytest.mark.parametrize("gap", [0, 20, 10**6])
@pytest.mark.parametrize("kind", STRIDED)
def test_rectangles_of_any_tensor_in_memory_of_any_size(
    kind: str, gap: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gaps read, with gaps passed over, cut by rows and by columns; the memory already holds something or not."""
    monkeypatch.setattr(ByteSource, "worthwhile_gap", gap)
    monkeypatch.setattr(lazy_files, "MIN_SCRATCH_BYTES", 1)
    whole = torch.randn(15, 11).half()
    torch.save({"module": {"other": torch.randn(9), "a": STRIDED[kind](whole)}}, tmp_path / "a.pt")
    file, _ = open_torch_file(tmp_path / "a.pt", "module")
    matrix = file.tensor("a").reshape(matrix_shape(tuple(file.tensor("a").shape)))
    assert torch.equal(matrix, STRIDED[kind](whole).reshape(matrix.shape))
    rows, columns = matrix.shape
    places = [((0, 0), (rows, columns)), ((0, 0), (rows, 1)), ((rows // 2, columns // 3), (rows // 3, columns // 2))]
    for nbytes in (2, 7, 60, 200, 10**4):
        scratch = lazy_files.Scratch(nbytes)
        for start, size in places * 2:
            read = torch.full(size, float("nan"), dtype=torch.float16)
            for (row, column), part in file.rectangles("a", start, size, scratch):
                assert part.nbytes <= max(nbytes, 2) or file.tensors["a"].matrix_stride is None
                read[row : row + part.shape[0], column : column + part.shape[1]] = part
            assert torch.equal(read, matrix[start[0] : start[0] + size[0], start[1] : start[1] + size[1]])
    if rows > 4:
        assert torch.equal(file.rows("a", 3, 5), matrix[3:5])


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are cut out of the columns of one matrix are written one after the other."""
    save_file({"a": torch.randn(16, 12), "b": torch.randn(16, 12)}, tmp_path / "a.safetensors")
    file = open_safetensors_file(tmp_path / "a.safetensors")
    scratch, calls = lazy_files.Scratch(16 * 12 * 4), 0
    real = os.preadv

    def count(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", count)
    for rank in range(4):
        assert len(list(file.rectangles("a", (0, 3 * rank), (16, 3), scratch))) == 1
    assert calls == 1
    list(file.rectangles("b", (0, 0), (16, 3), scratch))
    list(file.rectangles("a", (0, 0), (16, 3), scratch))
    assert calls == 3


# Folders of ranks


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_a_checkpoint_is_opened_by_its_folder_or_its_iteration(tmp_path: Path, ranks: int) -> None:
    whole = whole_state(Sizes())
    folder = write_released(tmp_path / "source", whole, ranks, "1200")
    for path in (folder, folder / "1200"):
        checkpoint = RankCheckpoint(path)
        assert checkpoint.iteration == "1200"
        assert len(checkpoint.files) == ranks
        for rank in range(ranks):
            expected = rank_state(whole, rank, ranks)
            assert equal_bits({name: checkpoint.tensor(rank, name) for name in checkpoint.specs}, expected)
    assert checkpoint.ranks_that_differ(["transformer.final_layernorm.bias"]) == []


def move_ranks_up(folder: Path) -> None:
    for path in (folder / "49300").iterdir():
        path.rename(folder / path.name)


def other_iteration(folder: Path) -> None:
    write_released(folder, whole_state(Sizes()), 4, "48000", latest=False)
    rank_path(folder, 2).unlink()


def other_shape(folder: Path) -> None:
    torch.save({"module": rank_state(whole_state(Sizes()), 1, 2)}, rank_path(folder, 1))


def other_dtype(folder: Path) -> None:
    change_rank(folder, 3, {"transformer.final_layernorm.bias": torch.zeros(32)})


def iterations_inside(folder: Path) -> None:
    for rank in range(4):
        torch.save({"module": load_rank(folder, rank), "iteration": 100 + rank // 2}, rank_path(folder, rank))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no latest": (lambda folder: (folder / "latest").unlink(), "no `latest`.*folders with rank files here: 49300"),
    "latest points nowhere": (
        lambda folder: (folder / "latest").write_text("50000"),
        "names the iteration '50000'.* is not there .folders with rank files here: 49300",
    ),
    "latest points outside": (lambda folder: (folder / "latest").write_text("../other"), "names the iteration"),
    "latest is not text": (lambda folder: (folder / "latest").write_bytes(b"\xff\x00"), "names the iteration"),
    "ranks beside latest": (move_ranks_up, "rank files beside `latest`"),
    "missing rank": (lambda folder: rank_path(folder, 2).unlink(), "missing mp_rank_02_model_states.pt; found"),
    "missing ranks": (
        lambda folder: [rank_path(folder, rank).unlink() for rank in (0, 2)],
        "missing mp_rank_00_model_states.pt, mp_rank_02_model_states.pt",
    ),
    "rank of another iteration": (other_iteration, "missing mp_rank_02.*There is .*48000.*of another iteration"),
    "rank twice": (
        lambda folder: shutil.copy(rank_path(folder, 1), rank_path(folder, 1).with_name("mp_rank_1_model_states.pt")),
        "rank 1 is there twice",
    ),
    "rank beyond reason": (
        lambda folder: rank_path(folder, 3).rename(rank_path(folder, 99999999)),
        "mp_rank_99999999_model_states.pt is no rank of any checkpoint",
    ),
    "rank of another degree": (other_shape, r"mp_rank_01.*\[36, 32\] float16, in mp_rank_00.* it is \[18, 32\]"),
    "rank of another dtype": (other_dtype, r"mp_rank_03.*final_layernorm.bias is \[32\] float32, in mp_rank_00"),
    "rank with fewer names": (
        lambda folder: change_rank(folder, 2, {"transformer.final_layernorm.bias": None}),
        r"mp_rank_02.*1 of them, e.g. transformer.final_layernorm.bias \(only in mp_rank_00",
    ),
    "rank with more names": (
        lambda folder: change_rank(folder, 2, {"transformer.extra": torch.zeros(1)}),
        r"transformer.extra \(only in mp_rank_02",
    ),
    "iterations inside the files": (iterations_inside, "different iterations: mp_rank_00_model_states.pt from 100,"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    folder = write_released(tmp_path / "source", whole_state(Sizes()), 4)
    spoil, message = BAD_FOLDERS[kind]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        RankCheckpoint(folder)


def test_ranks_whose_common_tensors_differ_are_found_by_their_bits(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "source", whole_state(Sizes()), 4)
    name = "transformer.layers.1.attention.dense.bias"
    nan = load_rank(folder, 0)[name]
    nan[3] = float("nan")
    for rank in range(4):
        change_rank(folder, rank, {name: nan})
    assert RankCheckpoint(folder).ranks_that_differ([name]) == []  # NaN or not, the bits agree
    nan[4] += 1
    change_rank(folder, 2, {name: nan})
    assert RankCheckpoint(folder).ranks_that_differ([name]) == [(2, name)]


# Safetensors


def write_shards(folder: Path) -> None:
    first, second = {"a": torch.randn(4, 3).half()}, {"b": torch.randn(5), "c": torch.randn(2, 2).bfloat16()}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_safetensors_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 3).half(), "b": torch.randn(5), "c": torch.arange(6).view(2, 3), "d": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = SafetensorsFolder(tmp_path)
    assert equal_bits({name: folder.tensor(0, name) for name in folder.specs}, tensors)
    folder.forget(0, "a")
    assert torch.equal(folder.tensor(0, "a"), tensors["a"])


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    folder = SafetensorsFolder(tmp_path)
    assert sorted(folder.specs) == ["a", "b", "c"]
    assert folder.tensor(0, "c").dtype == torch.bfloat16


def with_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return spoil


def duplicate(folder: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")


def with_header(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model-00001-of-00002.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text.encode() + bytes(64)
        )

    return spoil


ENTRY = '{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
BAD_SAFETENSORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: [path.unlink() for path in folder.iterdir()], "neither model.safetensors nor"),
    "missing shard": (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "missing model-00002"),
    "name in two shards": (duplicate, "b stands in model-00001-of-00002.safetensors and in model-00002"),
    "index of another model": (with_index(lambda names: names.update(z="model-00001-of-00002.safetensors")), "e.g. z"),
    "index without a name": (with_index(lambda names: names.pop("c")), "e.g. c"),
    "broken index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "not a safetensors index",
    ),
    "cut short": (
        lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 90),
        "should end at byte .* but the file has 90 bytes",
    ),
    "empty": (lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 0), "cut short or not a safe"),
    "endless header": (
        lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 100),
        "cut short or not a safetensors file",
    ),
    "header is not JSON": (with_header("nonsense"), "malformed safetensors header"),
    "name twice": (with_header(f'{{"a":{ENTRY},"a":{ENTRY}}}'), "names that stand twice: a"),
    "unknown dtype": (with_header('{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,4]}}'), "dtype F4; handled"),
    "wrong length": (
        with_header('{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,6]}}'),
        "bytes 0 to 6 for a tensor of 4",
    ),
    "offset behind the end": (
        with_header('{"a":{"dtype":"F16","shape":[2],"data_offsets":[4000,4004]}}'),
        "should end at byte",
    ),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_bad_safetensors_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path)
    spoil, message = BAD_SAFETENSORS[kind]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder(tmp_path)


def test_a_missing_safetensors_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_safetensors_file(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no such folder"):
        SafetensorsFolder(tmp_path / "nowhere")
