"""`.pdparams`: every protocol and layout is read bit for bit, nothing in a file runs, and what is written loads."""

import collections
import copyreg
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.lazy_files import CheckpointError
from conversion.operations import TensorSpec
from conversion.paddle_pickle import PaddleArchive, open_pdparams, read_structured_names
from conversion.state_map import PlannedTensor
from conversion.writer import WriteError
from tests.support.paddle_writing import as_torch, numbers, python2_pickle, same, write_pdparams
from tests.support.tiny import Hostile

from .conftest import GOLDEN

PADDLE = GOLDEN / "paddle_files"
SHARED = Path(__file__).parents[2] / "shared" / "goldens" / "ernie"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R"


def expected_values(kind: str) -> dict[str, np.ndarray]:
    values = np.load(PADDLE / "values.npz")
    return {name.split("|")[1]: values[name] for name in values.files if name.startswith(f"{kind}|")}


def array_of(shape: bytes, data: bytes, dtype: bytes = FLOAT) -> bytes:
    """Opcodes of an array whose shape tuple, dtype and data are given as opcodes."""
    return ARRAY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


VALUES = array_of(b"K\x02\x85", b"C\x08" + bytes(8))


# Reading


@pytest.mark.parametrize("path", sorted(PADDLE.glob("*.pdparams")), ids=lambda path: path.stem)
def test_files_of_paddle_itself_are_read_bit_for_bit(path: Path) -> None:
    file = open_pdparams(path)
    expected = expected_values(path.stem)
    assert sorted(file.tensors) == sorted(expected)
    for name, array in expected.items():
        assert same(file.tensor(name), array), name
    if path.stem == "mixed":
        assert file.extras == {"epoch": 3, "lr": 0.5, "note": "text", "none": None}
    if path.stem == "mixed_static":
        assert file.extras == {"epoch": 3}
    else:
        assert all(file.static_names.get(name) for name in expected)


def shared_files() -> list[Path]:
    return sorted(SHARED.glob("*/*/*.pdparams"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the full golden sets (../shared/goldens/ernie)")
@pytest.mark.parametrize("path", shared_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_golden_checkpoint_holds_what_numpy_reads_from_it(path: Path) -> None:
    file = open_pdparams(path)
    with path.open("rb") as stream:
        loaded = pickle.load(stream, encoding="latin1")
    table = loaded.pop("StructuredToParameterName@@")
    assert list(file.tensors) == list(loaded)
    assert file.static_names == table
    for name, array in loaded.items():
        assert same(file.tensor(name), array), name


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_and_layout_of_numpy_is_read(tmp_path: Path, protocol: int) -> None:
    arrays = numbers()
    file = open_pdparams(write_pdparams(tmp_path / "a.pdparams", arrays, protocol))
    assert list(file.tensors) == list(arrays)
    for name, array in arrays.items():
        assert same(file.tensor(name), array), name
        assert same(file.tensor(name), array), name
        file.forget(name)
        assert same(file.tensor(name), array), name  # forgotten pages come back
    assert file.static_names["single"] == "generated_0"


@pytest.mark.parametrize("protocol", [0, 2])
def test_files_of_python_2_are_read(tmp_path: Path, protocol: int) -> None:
    """Paddle 1 wrote them: names and data are 8-bit strings there."""
    arrays = numbers(1)
    del arrays["fortran"], arrays["cube"]
    raw = python2_pickle(arrays, protocol)
    assert sorted(pickle.loads(raw, encoding="latin1")) == sorted(arrays)  # the sample is a pickle
    (tmp_path / "a.pdparams").write_bytes(raw)
    file = open_pdparams(tmp_path / "a.pdparams")
    for name, array in arrays.items():
        assert same(file.tensor(name), array), name


def test_an_ordered_dictionary_and_a_shared_array_are_read(tmp_path: Path) -> None:
    array = numbers()["single"]
    entries = collections.OrderedDict(a=array, b=array)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(entries, protocol=2))
    file = open_pdparams(tmp_path / "a.pdparams")
    assert same(file.tensor("a"), array)
    assert same(file.tensor("b"), array)


def test_equal_tensors_have_equal_digests_however_they_are_written(tmp_path: Path) -> None:
    arrays = numbers()
    plain = open_pdparams(write_pdparams(tmp_path / "plain.pdparams", arrays, 4))
    text = open_pdparams(write_pdparams(tmp_path / "text.pdparams", arrays, 2))
    assert all(plain.digest(name) == text.digest(name) for name in ("single", "bfloat", "cube"))
    assert plain.digest("single") != plain.digest("double")


def test_text_longer_than_a_chunk_is_decoded_across_its_boundaries(tmp_path: Path) -> None:
    """Every byte above 127 takes two in the file, so that chunks of a power of two end inside characters."""
    array = np.random.default_rng(2).integers(0, 256, 3 * 2**20 + 1).astype("u1")
    for protocol in (0, 2):
        file = open_pdparams(write_pdparams(tmp_path / f"{protocol}.pdparams", {"a": array}, protocol))
        assert same(file.tensor("a"), array)


def test_a_tensor_written_as_text_takes_its_own_memory_and_no_more(tmp_path: Path) -> None:
    array = np.random.default_rng(2).standard_normal(2**21).astype("f4")  # 8 MiB
    file = open_pdparams(write_pdparams(tmp_path / "a.pdparams", {"a": array, "b": array + 1}, 2))
    tracemalloc.start()
    file.tensor("a")
    file.tensor("b")  # takes the place of the other
    peak = tracemalloc.get_traced_memory()[1]
    file.forget("b")
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert peak < array.nbytes + 6 * 2**20  # three copies of a 1 MiB chunk on the way, and what Python adds
    assert left < 2**20


def test_an_unaligned_tensor_can_be_used_like_any_other(tmp_path: Path) -> None:
    """A pickle puts data at any byte; what the writer does with a mapped tensor must not need more."""
    random = np.random.default_rng(3)
    arrays = {"x" * length: random.standard_normal((65, 129)).astype("f4") for length in range(1, 9)}
    file = open_pdparams(write_pdparams(tmp_path / "a.pdparams", arrays))
    assert all(stored.offset % 4 for stored in file.tensors.values())
    for name, array in arrays.items():
        tensor, expected = file.tensor(name), torch.from_numpy(array)
        target = torch.empty(129, 65)
        target.copy_(tensor.t())
        assert torch.equal(target, expected.t())
        half = torch.empty(65, 64, dtype=torch.float16)
        half.copy_(tensor[:, 3:67])
        assert torch.equal(half, expected[:, 3:67].half())
        assert torch.equal(tensor.sum(0), expected.sum(0))


def test_a_file_larger_than_the_machine_opens_in_no_time_and_no_memory(tmp_path: Path) -> None:
    planned = [planned_tensor(f"layer.{number}", (2**20, 2**16), torch.float16) for number in range(8)]  # 1 TiB
    PaddleArchive("a.pdparams", planned).create(tmp_path / "a.pdparams")
    assert (tmp_path / "a.pdparams").stat().st_blocks < 1000  # holes in the file
    tracemalloc.start()
    start = time.perf_counter()
    file = open_pdparams(tmp_path / "a.pdparams")
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.rows("layer.7", 2**20 - 1, 2**20)[0, -5:].tolist() == [0.0] * 5
    assert seconds < 1
    assert peak < 10 * 2**20


def test_names_of_a_saved_layer_are_read(tmp_path: Path) -> None:
    names = read_structured_names(PADDLE / "jit" / "model.pdiparams.info")
    assert names["embedding_0.w_0"] == "embedding.weight"
    assert names["linear_0.b_0"] == "classifier.bias"


# What is no checkpoint, or a dangerous one


class Evaluated:
    """Runs Python text when it is unpickled."""

    def __init__(self, source: str):
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.source, {})


class WithKeywords:
    """Is made by the opcode NEWOBJ_EX and then given a state."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return copyreg.__newobj_ex__, (WithKeywords, (), {"trace": 1}), {"a": Hostile(self.trace)}  # type: ignore[attr-defined]


class Subclass(np.ndarray):
    """An array of the attacker's own class."""


def eval_like_paddle(entries: bytes) -> bytes:
    """`eval('data', {...})` as `paddle.save` writes it in static mode, with the given entries."""
    return b"cbuiltins\neval\n(X\x04\x00\x00\x00data}(" + entries + b"utR."


DANGEROUS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (lambda trace: pickle.dumps(Hostile(trace)), r"names (posix|nt)\.system"),
    "among the tensors": (
        lambda trace: pickle.dumps({"a": np.zeros(2, "f4"), "b": Hostile(trace)}),
        r"names (posix|nt)\.system",
    ),
    "in protocol 0": (lambda trace: pickle.dumps({"a": Hostile(trace)}, 0), r"names (posix|nt)\.system"),
    "in protocol 2": (lambda trace: pickle.dumps([Hostile(trace)], 2), r"names (posix|nt)\.system"),
    "eval": (
        lambda trace: pickle.dumps({"a": Evaluated(f"open({str(trace)!r}, 'w')")}),
        "calls builtins.eval, which runs",
    ),
    "eval that looks like Paddle's, of another value": (
        lambda trace: eval_like_paddle(b"X\x04\x00\x00\x00dataK\x05"),
        "calls builtins.eval, which runs",
    ),
    "eval that looks like Paddle's, with more names": (
        lambda trace: eval_like_paddle(b"X\x04\x00\x00\x00data" + VALUES + b"X\x01\x00\x00\x00xN"),
        "calls builtins.eval, which runs",
    ),
    "exec": (
        lambda trace: b"cbuiltins\nexec\nX" + struct.pack("<I", 6) + b"import" + b"\x85R.",
        r"names builtins\.exec",
    ),
    "getattr": (lambda trace: b"cbuiltins\ngetattr\n.", r"names builtins\.getattr"),
    "numpy's own loader": (lambda trace: b"cnumpy\nload\n.", r"names numpy\.load"),
    "attribute of a known name": (
        lambda trace: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        r"names numpy\.ndarray\.tofile",
    ),
    "reconstruct of another class": (
        lambda trace: b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
        "not a plain numpy array",
    ),
    "INST": (lambda trace: b"(X\x01\x00\x00\x00aios\nsystem\n.", "uses the opcode INST"),
    "OBJ": (lambda trace: b"(cnumpy\nndarray\no.", "uses the opcode OBJ"),
    "NEWOBJ": (lambda trace: b"cnumpy\nndarray\n)\x81.", "uses the opcode NEWOBJ"),
    "NEWOBJ_EX": (lambda trace: b"\x80\x04cnumpy\nndarray\n)}\x92.", "uses the opcode NEWOBJ_EX"),
    "BUILD on a class": (lambda trace: b"cnumpy\nndarray\n}b.", "sets the state of something that is no array"),
    "BUILD on a dictionary": (lambda trace: b"}}b.", "sets the state of something that is no array"),
    "BUILD twice": (
        lambda trace: array_of(b"K\x01\x85", b"C\x04abcd") + b"(K\x01K\x01\x85" + FLOAT + b"\x89C\x04abcdtb.",
        "sets the state of something that is no array",
    ),
    "extension codes": (lambda trace: b"\x80\x02\x82\x01.", "uses the opcode EXT1"),
    "long extension codes": (lambda trace: b"\x80\x02\x84\x01\x00\x00\x00.", "uses the opcode EXT4"),
    "persistent id": (lambda trace: b"Pkey\n.", "uses the opcode PERSID"),
    "persistent id on the stack": (lambda trace: b"NQ.", "uses the opcode BINPERSID"),
    "buffers outside": (lambda trace: b"\x80\x05\x97.", "uses the opcode NEXT_BUFFER"),
    "set": (lambda trace: b"\x80\x04\x8f.", "uses the opcode EMPTY_SET"),
    "call of an array": (lambda trace: ARRAY + b")R.", "calls something that is no function"),
    "call of the array class": (lambda trace: b"cnumpy\nndarray\n)R.", "calls something that is no function"),
    "codec of the attacker": (
        lambda trace: b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00bz2_c\x86R.",
        "calls _codecs.encode for something else",
    ),
    "objects in an array": (
        lambda trace: pickle.dumps({"a": np.array([Hostile(trace)], dtype=object)}),
        r"names (posix|nt)\.system",
    ),
    "an array of objects": (
        lambda trace: pickle.dumps({"a": np.array([1, 2], dtype=object)}),
        "numpy dtype 'O8'; weights are one of f2, f4",
    ),
    "subclass of an array": (
        lambda trace: pickle.dumps({"a": np.zeros(2).view(Subclass)}, 4),
        r"names tests\.test_paddle_pickle\.Subclass",
    ),
    "object with keywords": (lambda trace: pickle.dumps(WithKeywords(trace)), r"names tests\.test_paddle_pickle"),
}


@pytest.mark.parametrize("kind", DANGEROUS)
def test_dangerous_pickles_are_refused_and_nothing_runs(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "executed"
    make, message = DANGEROUS[kind]
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(make(trace))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_pdparams(path)
    assert str(path) in str(caught.value)
    assert "Nothing in it was executed" in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["os.system", "among the tensors", "eval", "objects in an array"])
def test_the_traps_are_real(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "executed"
    pickle.loads(DANGEROUS[kind][0](trace))
    assert trace.exists()


DOUBLED = b")\x94" + b"".join(2 * (b"j" + struct.pack("<I", number)) + b"\x86\x94" for number in range(200))
LONG = b"\x8a\x08" + b"\xff" * 7 + b"\x3f"  # 2**62 - 1


PAIRS = b"".join(b"J" + struct.pack("<i", number) + b"N\x86" for number in range(10_000))
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nested a hundred thousand deep": (lambda: b"]" * 100_000 + b"a" * 99_999 + b".", "holds a list of 1, not"),
    "tuples nested two hundred thousand deep": (lambda: b")" + b"\x85" * 200_000 + b".", "holds a tuple of 1, not"),
    "doubled two hundred times": (lambda: b"(" + DOUBLED + b"t.", "holds a tuple of 201, not"),
    "doubled two hundred times, as an entry": (
        lambda: b"}X\x01\x00\x00\x00a(" + DOUBLED + b"ts.",
        "none of them a tensor",
    ),
    "contains itself": (lambda: b"}q\x00X\x01\x00\x00\x00ah\x00s.", "none of them a tensor"),
    "four gigabytes declared": (lambda: b"B\xff\xff\xff\xff" + b"x" * 10 + b".", "4,294,967,295 bytes declared"),
    "sixteen exabytes declared": (
        lambda: b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        "bytes declared at byte 11, 1 are left",
    ),
    "a text of sixteen exabytes": (
        lambda: b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        "bytes declared at byte 11, 1 are left",
    ),
    "a string of negative length": (lambda: b"T" + b"\xff" * 4 + b".", "-1 bytes declared"),
    "a frame that lies": (lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.", "a frame of .* where 2 are left"),
    "a memo index of four billion": (lambda: b"}r\xff\xff\xff\xff.", "a dictionary of 0 entries"),
    "a memo index of four hundred digits": (lambda: b"}p" + b"9" * 400 + b"\n.", "a dictionary of 0 entries"),
    "a number of a million digits": (lambda: b"L" + b"9" * 1_000_000 + b"L\n.", "a line without end"),
    "a line without end": (lambda: b"(c" + b"a" * 1_000_000, "a line without end"),
    "a text without end": (lambda: b"(V" + b"a" * 3_000_000, "a line without end at byte 2"),
    "many short texts": (lambda: b"(" + b"Va\n" * 150_000 + b"l.", "holds a list of 150000, not"),
    "marks only": (lambda: b"(" * 500_000, "takes more than 400,000 steps"),
    "shape of two to the power of 4000": (
        lambda: array_of(b"(" + LONG * 63 + b"t", b"C\x04abcd") + b".",
        r"\(the shape \[4611686018427387903",
    ),
    "shape with a zero to hide behind": (
        lambda: array_of(b"(K\x00" + LONG * 3 + b"t", b"C\x00") + b".",
        r"\(the shape \[0, 4611686018427387903",
    ),
    "a thousand dimensions": (
        lambda: array_of(b"(" + b"K\x01" * 1000 + b"t", b"C\x04abcd") + b".",
        "a shape that is no list of lengths",
    ),
    "dictionaries from one long list": (
        lambda: b"](" + PAIRS + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 100 + b".",
        "takes more than 400,000 steps",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_cost_little_and_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model_state.pdparams"
    make, message = BOMBS[kind]
    path.write_bytes(make())
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_pdparams(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 2000
    assert peak < 100 * 2**20  # as many steps of the largest symbol


def entries() -> dict[str, Any]:
    return {"a": np.arange(12, dtype="f4").reshape(3, 4), "b": np.arange(3)}


def rewritten(change: Callable[[dict[str, Any]], Any], protocol: int = 4) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        content = entries()
        changed = change(content)
        path.write_bytes(pickle.dumps(content if changed is None else changed, protocol))

    return spoil


SLICED = "UnpackBigParamInfor@@"
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty, 0 bytes"),
    "zeros": (lambda path: path.write_bytes(bytes(4000)), "no opcode"),
    "git-lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"),
        "git-lfs pointer.*git lfs pull",
    ),
    "error page": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "web page.*Download the file"),
    "json": (lambda path: path.write_text('{"error": "not found"}'), "a JSON file"),
    "text": (lambda path: path.write_text("Entry not found"), "a text file, not weights; it begins with 'Entry not"),
    "torch zip": (lambda path: torch.save({"a": torch.zeros(2)}, path), "torch checkpoint, which is not a Paddle one"),
    "old torch": (
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
        "torch checkpoint in the format before torch 1.6",
    ),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "a packed folder. Unpack it"),
    "tar": (lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(300)), "a packed folder. Unpack it"),
    "numpy array": (lambda path: np.save(path.open("wb"), np.zeros(3)), "a single numpy array"),
    "safetensors": (
        lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"),
        "a safetensors file by its contents. Rename it",
    ),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cut short.*Copy the file again"),
    "more behind the end": (lambda path: path.write_bytes(path.read_bytes() + bytes(7)), "7 bytes behind the end"),
    "single tensor": (rewritten(lambda content: content["a"]), "holds a single tensor, not a dictionary"),
    "tensor of Paddle 2.1": (rewritten(lambda content: ("a", content["a"])), "holds a single tensor"),
    "list": (rewritten(lambda content: list(content.values())), "holds a list of 2, not a dictionary"),
    "class": (lambda path: path.write_bytes(b"cnumpy\nndarray\n."), "holds numpy.ndarray, not a dictionary"),
    "number": (rewritten(lambda content: 5), "holds a int, not a dictionary"),
    "no tensors": (rewritten(lambda content: {"LR": {"step": 5}, "x": 1}), "none of them a tensor.*not its .pdopt"),
    "no entries": (rewritten(lambda content: {}), "a dictionary of 0 entries"),
    "wrapped": (
        rewritten(lambda content: {"model": content, "epoch": 1}),
        r"dictionaries inside the dictionary, under model\..*paddle.load\(path\)\['model'\]",
    ),
    "number as a name": (
        rewritten(lambda content: content.update({7: content["a"]})),
        "a tensor under 7, which is no",
    ),
    "tuple as a name": (rewritten(lambda content: content.update({(1, 2): 3})), "a dictionary key that is a tuple"),
    "big-endian": (rewritten(lambda content: content.update(a=content["a"].astype(">f4"))), "big-endian byte order"),
    "text in an array": (rewritten(lambda content: content.update(a=np.array(["x"]))), "numpy dtype 'U1'"),
    "complex": (rewritten(lambda content: content.update(a=np.zeros(2, "c8"))), "numpy dtype 'c8'"),
    "records": (rewritten(lambda content: content.update(a=np.zeros(2, "f4,f4"))), "numpy dtype 'V8'"),
    "long name": (rewritten(lambda content: content.update({"n" * 5000: 1})), "a name of 5,000 bytes"),
    "slice missing": (
        rewritten(lambda content: content.update({SLICED: {"w": {"OriginShape": (15,), "slices": ["a", "c"]}}})),
        "w is stored in 2 slices, of which c are missing",
    ),
    "no slices": (
        rewritten(lambda content: content.update({SLICED: {"w": {"OriginShape": (0,), "slices": []}}})),
        "w is stored in 0 slices",
    ),
    "slices too short": (
        rewritten(lambda content: content.update({SLICED: {"w": {"OriginShape": (2, 2), "slices": ["b"]}}})),
        "the slices of w do not make up its shape",
    ),
    "slices of several dtypes": (
        rewritten(
            lambda content: content.update(
                {"a": content["a"].ravel(), SLICED: {"w": {"OriginShape": (15,), "slices": ["a", "b"]}}}
            )
        ),
        "the slices of w do not belong together",
    ),
    "negative shape": (
        rewritten(lambda content: content.update({SLICED: {"w": {"OriginShape": (-1, -3), "slices": ["b"]}}})),
        "a shape that is no list of lengths",
    ),
    "whole and in slices": (
        rewritten(lambda content: content.update({SLICED: {"a": {"OriginShape": (3,), "slices": ["b"]}}})),
        "holds the name 'a' twice",
    ),
    "name twice": (
        lambda path: path.write_bytes(b"}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00aK\x02u."),
        "holds the name 'a' twice",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    path = write_pdparams(tmp_path / "a.pdparams", entries())
    spoil, message = BAD_FILES[kind]
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_pdparams(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    path = write_pdparams(tmp_path / "a.pdparams", entries(), protocol)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_pdparams(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_file_with_any_byte_changed_opens_or_is_refused_in_words(tmp_path: Path, protocol: int) -> None:
    """No damage may surface as anything but a `CheckpointError`."""
    path = write_pdparams(tmp_path / "a.pdparams", entries(), protocol)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for value in (0, whole[position] ^ 1, 0xFF):
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                file = open_pdparams(path)
                for name in file.tensors:
                    file.tensor(name)
            except CheckpointError:
                refused += 1
    assert refused > len(whole)


def test_damage_inside_text_is_found_when_the_tensor_is_asked_for(tmp_path: Path) -> None:
    path = write_pdparams(tmp_path / "a.pdparams", {"a": np.full(6, 0x41, "u1"), "b": np.zeros(2, "f4")}, 2)
    raw = path.read_bytes().replace(b"AAAAAA", "AéAA日".encode()[:6])
    path.write_bytes(raw)
    file = open_pdparams(path)
    with pytest.raises(CheckpointError, match=r"a\.pdparams: a (is damaged|has \d bytes, its shape \[6\] needs 6)"):
        file.tensor("a")
    assert file.tensor("b").tolist() == [0, 0]


# Writing


def planned_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> PlannedTensor:
    return PlannedTensor(0, name, TensorSpec(shape, dtype), ())


def write_archive(path: Path, tensors: dict[str, torch.Tensor], static_names: dict[str, str] | None = None) -> None:
    archive = PaddleArchive(
        path.name,
        [planned_tensor(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()],
        static_names,
    )
    archive.create(path)
    assert path.stat().st_size == archive.size
    with path.open("r+b") as file:
        for name, offset in archive.offsets(path).items():
            file.seek(offset)
            file.write(bytes(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()))
    archive.finish(path, {})


def test_a_written_file_is_what_paddle_writes_to_pickle_and_to_us(tmp_path: Path) -> None:
    arrays = expected_values("state_p4")
    write_archive(tmp_path / "a.pdparams", {name: as_torch(array) for name, array in arrays.items()})
    loaded = pickle.loads((tmp_path / "a.pdparams").read_bytes())
    assert loaded.pop("StructuredToParameterName@@") == {name: name for name in arrays}
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()
        assert loaded[name].flags.c_contiguous
    file = open_pdparams(tmp_path / "a.pdparams")
    assert list(file.tensors) == list(arrays)
    assert all(same(file.tensor(name), array) for name, array in arrays.items())


def test_written_files_name_numpy_as_numpy_1_does(tmp_path: Path) -> None:
    """Paddle 2.6 needs numpy 1, which does not know the new names; numpy 2 knows both."""
    write_archive(tmp_path / "a.pdparams", {"a": torch.zeros(2)}, {"a": "linear_0.w_0"})
    raw = (tmp_path / "a.pdparams").read_bytes()
    assert b"numpy.core.multiarray" in raw
    assert b"numpy._core" not in raw
    assert open_pdparams(tmp_path / "a.pdparams").static_names == {"a": "linear_0.w_0"}


def test_the_bytes_of_a_tensor_larger_than_four_gigabytes_are_announced_in_full(tmp_path: Path) -> None:
    planned = planned_tensor("a", (2**16, 2**16 + 1), torch.uint8)
    PaddleArchive("a.pdparams", [planned]).create(tmp_path / "a.pdparams")
    assert open_pdparams(tmp_path / "a.pdparams").tensors["a"].spec == planned.spec


def test_a_dtype_that_paddle_has_not_is_refused() -> None:
    with pytest.raises(WriteError, match=r"a is torch\.complex64; a \.pdparams holds one of float16, float32"):
        PaddleArchive("a.pdparams", [planned_tensor("a", (2,), torch.complex64)])
