"""Paddle's formats written a second time, plainly and independently of the converter, for the tests of reading."""

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

LOD_CODES = {"?": 0, "h": 1, "i": 2, "l": 3, "e": 4, "f": 5, "d": 6, "B": 20, "b": 21, "H": 22}  # numpy's characters


def numbers(seed: int = 0) -> dict[str, np.ndarray]:
    """An array of every dtype that Paddle has, of several ranks and layouts; bfloat16 as its bits."""
    random = np.random.default_rng(seed)
    return {
        "single": random.standard_normal((6, 5)).astype("f4"),
        "half": random.standard_normal((3, 4)).astype("f2"),
        "double": random.standard_normal(7),
        "bfloat": (random.standard_normal((4, 3)).astype("f4").view("u4") >> 16).astype("u2"),
        "long": random.integers(-(2**60), 2**60, (2, 3)),
        "int": random.integers(-(2**30), 2**30, 4).astype("i4"),
        "short": random.integers(-(2**15), 2**15, 4).astype("i2"),
        "signed": np.arange(-128, 128).astype("i1"),
        "unsigned": np.arange(256).astype("u1"),
        "truth": np.array([True, False, True]),
        "scalar": np.array(2.5, "f4"),
        "fortran": np.asfortranarray(random.standard_normal((4, 6)).astype("f4")),
        "cube": np.asfortranarray(random.standard_normal((2, 3, 4)).astype("f2")),
        "empty": np.zeros((0, 3), "f4"),
    }


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The tensor that an array in a Paddle file stands for: its uint16 is bfloat16."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def same(tensor: torch.Tensor, array: np.ndarray) -> bool:
    """Whether dtype, shape and every bit agree."""
    expected = as_torch(array)
    if tensor.dtype != expected.dtype or tensor.shape != expected.shape:
        return False
    mine, other = tensor.contiguous(), expected.contiguous()
    return bytes(mine.reshape(-1).view(torch.uint8).numpy()) == bytes(other.reshape(-1).view(torch.uint8).numpy())


def write_pdparams(path: Path, entries: Mapping[str, Any], protocol: int = 4) -> Path:
    """As `paddle.save(state_dict)` does it, with a made-up table of static names."""
    table = {name: f"generated_{number}" for number, name in enumerate(entries)}
    path.write_bytes(pickle.dumps({**entries, "StructuredToParameterName@@": table}, protocol=protocol))
    return path


def python2_pickle(arrays: Mapping[str, np.ndarray], protocol: int) -> bytes:
    """A dictionary of arrays as Python 2 and its numpy pickled them: names and data are 8-bit strings."""

    def string(raw: bytes) -> bytes:
        if protocol == 0:
            return b"S" + repr(raw)[1:].encode() + b"\n"
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw

    def integer(number: int) -> bytes:
        return b"I%d\n" % number

    made = b"\x80\x02" * (protocol == 2) + b"(d"
    for name, array in arrays.items():
        code = array.dtype.str[1:].encode()
        made += (
            string(name.encode()) + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + string(b"b")
        )
        made += b"tR(" + integer(1) + b"(" + b"".join(integer(n) for n in array.shape) + b"t"
        made += b"cnumpy\ndtype\n(" + string(code) + b"I0\nI1\ntR(I3\n" + string(b"<") + b"NNNI-1\nI-1\nI0\ntb"
        made += b"I00\n" + string(array.tobytes()) + b"tbs"
    return made + b"."


def write_sharded(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Shards and their index; the file's ending says which format."""
    ending = "safetensors" if next(iter(shards)).endswith("safetensors") else "pdparams"
    stem = "model" if ending == "safetensors" else "model_state"
    for name, arrays in shards.items():
        if ending == "safetensors":
            save_file(dict(arrays), folder / name, metadata={"format": "np"})
        else:
            write_pdparams(folder / name, arrays)
    weight_map = {array: name for name, arrays in shards.items() for array in arrays}
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def lod_record(array: np.ndarray, levels: tuple[bytes, ...] = (), packed: bool = False) -> bytes:
    """One variable, with levels of detail and packed dimensions if asked for (parameters have neither)."""
    lengths = b"".join(b"" if packed else b"\x10" + varint(n) for n in array.shape)
    if packed:
        inside = b"".join(varint(n) for n in array.shape)
        lengths = b"\x12" + varint(len(inside)) + inside
    description = b"\x08" + varint(LOD_CODES[array.dtype.char]) + lengths
    detail = b"".join(struct.pack("<Q", len(level)) + level for level in levels)
    return (
        struct.pack("<IQ", 0, len(levels))
        + detail
        + struct.pack("<Ii", 0, len(description))
        + description
        + np.ascontiguousarray(array).tobytes()
    )


def program(variables: Mapping[str, tuple[int, ...]], persistable: bool = True) -> bytes:
    """A program with a feed and a fetch variable, an operator and the given persistable variables."""
    made = [_variable("feed", 9, None, True), _variable("fetch", 10, None, True), _variable("x", 7, (-1, 3), False)]
    made += [_variable(name, 7, shape, persistable) for name, shape in variables.items()]
    block = b"\x08\x00" + b"\x10" + varint(2**64 - 1) + b"".join(_message(3, variable) for variable in made)
    return _message(1, block + _message(4, _message(3, b"matmul"))) + _message(4, b"\x08\x00")


def _variable(name: str, kind: int, shape: tuple[int, ...] | None, persistable: bool) -> bytes:
    inside = b"\x08" + varint(kind)
    if shape is not None:
        description = b"\x08\x05" + b"".join(b"\x10" + varint(n % 2**64) for n in shape)
        inside += _message(3, _message(1, description) + b"\x10\x00")
    return _message(1, name.encode()) + _message(2, inside) + b"\x18" + varint(int(persistable))


def _message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """A protocol buffer's variable-length number."""
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])
