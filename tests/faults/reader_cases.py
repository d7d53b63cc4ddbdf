"""Handmade hostile weights, indexes, programs and vocabularies: each reader's claims made false, one by one."""

import contextlib
import functools
import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.paddle_writing import lod_record, varint

from .building import DEEP, MEGABYTE, change
from .case import Case
from .mutants import mutants
from .pickle_cases import pdparams_cases, torch_cases
from .sources import source
from .vocabulary_cases import vocabulary_cases

SHORT = (
    *("torch: bytearray(6 * 10^9)", "torch: byteorder big", "torch: layer 100000000", "torch: inflated pickle"),
    *("safetensors: overlapping", "safetensors: shape Infinity", "safetensors: offsets 0.0", "index: ../"),
    *("static folder: layer 100000000", "static combined: a field of 60 MB"),
    *("ernie3 folder: layer 100000000", "vocab.txt: id 10^12", "vocab.txt: 12 MB", "ice_text.model: a piece of 1 MB"),
    *("ice_text.model: table of normalization: offsets", "added_tokens.json: id as text"),
)
"""Names of the cases that every run of the tests looks at."""


def cases(number_of_mutants: int = 0) -> Iterator[Case]:
    """All of them, then damaged files."""
    for theme in (torch_cases, rank_cases, safetensors_cases, index_cases, pdparams_cases, static_cases):
        yield from theme()
    yield from vocabulary_cases()
    yield from mutants(0, number_of_mutants)


# GLM-130B's ranks

RANK = "source/49300/mp_rank_0{}_model_states.pt"


def rank_cases() -> Iterator[Case]:
    """What stands around the ranks' files."""
    for what, content in {
        "empty": b"",
        "not UTF-8": b"\xff\xfe",
        "NUL": b"49\x00300",
        "a path": b"../source/49300",
        "absolute": b"/etc",
        "a megabyte": b"4" * 10**6,
        "100 MB": lambda old: b"4" * 10**8,
    }.items():
        yield change(f"latest: {what}", "glm130b", {"source/latest": content})
    first = source("glm130b").files[RANK.format(0)]
    for name in ("mp_rank_1000000_model_states.pt", "mp_rank_1000_model_states.pt", "mp_rank_007_model_states.pt"):
        yield change(f"a rank called {name}", "glm130b", {f"source/49300/{name}": first})
    yield change(
        "a rank in another script", "glm130b", {"source/49300/mp_rank_٢_model_states.pt": first}, may_pass=True
    )
    yield change("a rank of digits", "glm130b", {f"source/49300/mp_rank_{'9' * 200}_model_states.pt": first})
    yield change("one rank of two", "glm130b", {RANK.format(1): None})
    # Of files without an iteration inside nothing tells.
    yield change("a rank that is the other", "glm130b", {RANK.format(1): first}, may_pass=True)


# Safetensors


def header(entries: Any, data: bytes = b"", text: str | None = None) -> bytes:
    """A safetensors file."""
    written = (json.dumps(entries) if text is None else text).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(written)) + written + data


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SHAPES: dict[str, Any] = {
    "text": "2",
    "number": 2,
    "null": None,
    "object": {},
    "floats": [2.0],
    "texts": ["2"],
    "truth": [True],
    "negative": [-2],
    "huge": [2**62, 2**62],
    "one huge": [2**70],
    "huge and zero": [2**62, 0],
    "lists": [[2]],
    "65 ones": [1] * 65,
    "zero": [0],
    "nothing": [],
}
OFFSETS: dict[str, Any] = {
    "text": "08",
    "number": 8,
    "null": None,
    "object": {"0": 0, "8": 8},
    "0.0": [0.0, 8.0],
    "texts": ["0", "8"],
    "truth": [False, 8],
    "one": [8],
    "three": [0, 8, 8],
    "backwards": [8, 0],
    "negative": [-8, 0],
    "behind the end": [2**40, 2**40 + 8],
    "huge": [2**70, 2**70 + 8],
    "odd": [1, 9],
    "lists": [[0], [8]],
}
DTYPES: dict[str, Any] = {"list": ["F32"], "object": {}, "number": 32, "null": None, "unknown": "F4", "long": MEGABYTE}
METADATA: dict[str, Any] = {
    "text": "x",
    "list": [],
    "null": None,
    "number": {"a": 1},
    "nested": {"a": {"b": "c"}},
    "null inside": {"a": None},
    "format pt": {"format": "pt"},
    "format of a megabyte": {"format": MEGABYTE},
}


@functools.cache
def safetensors_headers() -> tuple[tuple[str, bytes], ...]:
    """Headers that are none, each with what is wrong."""
    return tuple(_headers())


def _headers() -> Iterator[tuple[str, bytes]]:
    data = bytes(8)
    for what, shape in SHAPES.items():
        yield f"shape {what}", header({"a": entry(shape=shape)}, data)
    for what, offsets in OFFSETS.items():
        yield f"offsets {what}", header({"a": entry(offsets=offsets)}, data)
    for what, dtype in DTYPES.items():
        yield f"dtype {what}", header({"a": entry(dtype=dtype)}, data)
    for what, metadata in METADATA.items():
        yield f"metadata {what}", header({"__metadata__": metadata, "a": entry()}, data)
    for key in entry():
        rest = {name: value for name, value in entry().items() if name != key}
        yield f"no {key}", header({"a": rest}, data)
    for what, text in {
        "shape Infinity": '{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}',
        "shape NaN": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        "shape 1e999": '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}',
        "a number of 5,000 digits": '{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,8]}}',
        "byte order mark": "\ufeff" + json.dumps({"a": entry()}),
        "nested": '{"a":' + DEEP + "}",
        "list": json.dumps([entry()]),
        "number": "5",
        "empty": "",
        "cut": json.dumps({"a": entry()})[:-3],
        "name twice": '{"a":' + json.dumps(entry()) + ',"a":' + json.dumps(entry()) + "}",
        "entry a list": '{"a":[]}',
        "entry null": '{"a":null}',
        "name of a megabyte": json.dumps({MEGABYTE: entry()}),
        "name empty": json.dumps({"": entry()}),
        "name with half a pair": '{"\\ud800":' + json.dumps(entry()) + "}",
        "name with NUL": json.dumps({"a\0b": entry()}),
        "name with escapes": json.dumps({"a\x1b[2Jb": entry()}),
        "4 MB of lists": '{"a":[' + ",".join(["[]"] * 1_500_000) + "]}",
        "60,000 tensors": json.dumps({f"t{n}": entry(shape=[0], offsets=[0, 0]) for n in range(60_000)}),
        "layer 100000000": json.dumps({"ernie.encoder.layers.100000000.linear1.weight": entry()}),
    }.items():
        yield what, header(None, data, text)
    yield "UTF-16", struct.pack("<Q", 40) + json.dumps({"a": {}}).encode("utf-16").ljust(40) + data
    yield "overlapping", header({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12))
    yield "same place", header({"a": entry(), "b": entry()}, data)
    yield "hole", header({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20))
    yield "hole first", header({"a": entry(offsets=(4, 12))}, bytes(12))
    yield "bytes behind", header({"a": entry()}, bytes(16))
    yield "cut data", header({"a": entry()}, bytes(4))
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield f"header of {length}", struct.pack("<Q", length) + b'{"a":{}}' + data
    yield "header of 20 MB", header(None, data, "{" + " " * 20_000_000 + "}")
    yield "empty file", b""
    yield "seven bytes", b"1234567"


def safetensors_cases() -> Iterator[Case]:
    """Hostile headers, in each place where one is read."""
    single = "source/model.safetensors"
    for what, content in safetensors_headers():
        yield change(f"safetensors: {what}", "safetensors", {single: content})
    for kind in ("glm130b reverse", "ernie reverse", "ernie3 reverse"):
        shard = next(name for name in source(kind).files if name.endswith(".safetensors"))
        for what, content in safetensors_headers():
            yield change(f"{kind}: {what}", kind, {shard: content})


# Indexes

SHARDS: dict[str, Any] = {
    "number": 1,
    "null": None,
    "list": ["a"],
    "../": "../secret.safetensors",
    "absolute": "/etc/passwd",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "NUL": "a\0b",
    "long": "a" * 300,
    "megabyte": MEGABYTE,
    "half a pair": "\ud800",
    "folder": "sub/model.safetensors",
    "not there": "model-00009-of-00009.safetensors",
    "itself": "config.json",
}


@functools.cache
def _many_shards() -> str:
    return json.dumps({"weight_map": {f"t{n}": f"s{n}" for n in range(90_000)}})


def index_cases() -> Iterator[Case]:
    """Indexes of shards."""
    places = {
        "safetensors in shards": "source/model.safetensors.index.json",
        "pdparams in shards": "source/model_state.pdparams.index.json",
        "glm130b reverse": "source/model.safetensors.index.json",
    }
    for kind, path in places.items():
        content = json.loads(source(kind).files[path])
        name = next(iter(content["weight_map"]))
        for what, shard in SHARDS.items():
            changed = content | {"weight_map": content["weight_map"] | {name: shard}}
            yield change(
                f"index: {what}" if kind == "safetensors in shards" else f"index of {kind}: {what}",
                kind,
                {path: json.dumps(changed).encode()},
            )
        for what, text in {
            "empty file": "",
            "all a list": "[]",
            "all a number": "5",
            "nested": DEEP,
            "no weight_map": "{}",
            "cut": '{"weight_map":{',
            "weight_map list": '{"weight_map":[]}',
            "weight_map null": '{"weight_map":null}',
            "NaN": '{"weight_map":NaN}',
            "name twice": '{"weight_map":{"a":"b","a":"b"}}',
            "weight_map empty": '{"weight_map":{}}',
            "byte order mark": "\ufeff" + json.dumps(content),
            "90,000 shards": _many_shards(),
            "20 MB": json.dumps(content) + " " * 20_000_000,
            "name of a megabyte": json.dumps({"weight_map": content["weight_map"] | {MEGABYTE: "a"}}),
        }.items():
            yield change(f"index of {kind}: {what}", kind, {path: text.encode()})


# Static graphs


def lod(description: bytes, data: bytes = b"", levels: int = 0, length: int | None = None) -> bytes:
    """A record whose description is given."""
    length = len(description) if length is None else length
    return struct.pack("<IQIi", 0, levels, 0, length) + description + data


def records() -> Iterator[tuple[str, bytes]]:
    """Files of one variable that are none."""
    for what, shape in {
        "one huge": [2**62],
        "huge": [2**40, 2**40],
        "negative": [2**64 - 1],
        "70 bits": [2**69],
        "zero": [2**62, 0],
        "65 lengths": [1] * 65,
    }.items():
        yield f"shape {what}", lod(b"\x08\x05" + b"".join(b"\x10" + varint(n) for n in shape), bytes(8))
    yield "no dtype", lod(b"\x10\x02", bytes(8))
    yield "two dtypes", lod(b"\x08\x05\x08\x05\x10\x02", bytes(8))
    yield "unknown dtype", lod(b"\x08\x63\x10\x02", bytes(8))
    yield "endless number", lod(b"\x08" + b"\xff" * 30, bytes(8))
    yield "unknown wire", lod(b"\x0f\x05", bytes(8))
    for length in (-1, 0, 2**31 - 1, 4097):
        yield f"description of {length}", lod(b"\x08\x05\x10\x02", bytes(8), length=length)
    for levels in (1, 65, 2**63):
        yield f"{levels} levels", lod(b"\x08\x05\x10\x02", bytes(8), levels=levels)
    yield "bytes behind", lod(b"\x08\x05\x10\x02", bytes(9))
    yield "cut", lod(b"\x08\x05\x10\x02", bytes(7))
    yield "zeros", bytes(100)
    yield "empty", b""


def _many_files(kind: str, number: int, content: bytes, folder: Path) -> list[str]:
    arguments = source(kind).write(folder)
    for n in range(number):
        (folder / "source" / f"variable_{n}").write_bytes(content)
    return arguments


def _odd_name(name: bytes, folder: Path) -> list[str]:
    arguments = source("static folder").write(folder)
    with contextlib.suppress(OSError):
        Path(folder / "source", name.decode("utf-8", "surrogateescape")).write_bytes(lod_record(np.zeros(2, "f4")))
    return arguments


def static_cases() -> Iterator[Case]:
    """Folders of variables, combined files and their programs."""
    small = lod_record(np.zeros((2, 2), "f4"))
    for kind in ("static folder", "ernie3 folder"):
        for what, content in records():
            yield change(f"{kind}: {what}", kind, {"source/word_embedding": content})
        for layer in ("100000000", "9" * 19, "1" * 200, "01", "٣", "999999", "1001"):
            name = f"source/encoder_layer_{layer}_ffn_fc_0.w_0"
            yield change(f"{kind}: layer {layer}", kind, {name: small})
        yield Case(f"{kind}: 30,000 files", partial(_many_files, kind, 30_000, b""))
        yield Case(f"{kind}: 2,000 variables more", partial(_many_files, kind, 2000, small))
    for name in (b"\xff\xfe", b"a\nb", b"a\x1b[2Jb", "encoder_layer_\u202e".encode(), b"n" * 250):
        yield Case(f"static folder: called {name[:20]!r}", partial(_odd_name, name))
    yield from _programs(small)


def _programs(small: bytes) -> Iterator[Case]:
    path, params = "source/m.pdmodel", "source/m.pdiparams"
    whole = source("static combined").files[path]

    def message(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def program_of(name: bytes, shape: bytes) -> bytes:
        kind = b"\x08\x07" + message(3, message(1, b"\x08\x05" + shape))
        return message(1, message(3, message(1, name) + message(2, kind) + b"\x18\x01"))

    for what, content in {
        "no bytes": b"",
        "a field of 60 MB": lambda old: message(1, bytes(60_000_000)),
        "a field of 200 MB": lambda old: message(1, bytes(200_000_000)),
        "60 MB of little fields": lambda old: message(1, b"\x08\x01" * 30_000_000),
        "30 MB of variables": lambda old: message(1, message(3, b"") * 15_000_000),
        "a field longer than the file": b"\x0a" + varint(2**40),
        "numbers for messages": b"\x08\x05" * 100,
        "an endless number": b"\xff" * 100,
        "a name of a megabyte": program_of(b"m" * 10**6, b"\x10\x02"),
        "a name that is no text": program_of(b"\xff\xfe", b"\x10\x02"),
        "a shape of a megabyte": program_of(b"a", message(2, b"\x01" * 10**6)),
        "a shape of 500,000 lengths": program_of(b"a", b"\x10\x01" * 500_000),
        "50,000 variables": b"".join(program_of(b"v%d" % n, b"\x10\x02") for n in range(50_000)),
        "layer 100000000": program_of(b"encoder_layer_100000000_ffn_fc_0.w_0", b"\x10\x02\x10\x02"),
        "twice": whole + whole,
    }.items():
        yield change(f"static combined: {what}", "static combined", {path: content}, may_pass=what == "twice")
    yield change(
        "static combined: layer",
        "static combined",
        {path: program_of(b"encoder_layer_100000000_ffn_fc_0.w_0", b"\x10\x02\x10\x02"), params: small},
    )
    for what, content in records():
        yield change(f"static combined: {what}", "static combined", {params: content})


__all__ = ["SHORT", "cases"]
