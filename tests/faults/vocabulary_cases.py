"""Handmade hostile vocabularies: `vocab.txt`, what stands beside it, and `ice_text.model`."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

from .building import DEEP, MEGABYTE, change
from .case import Case
from .sources import source


def vocabulary_cases() -> Iterator[Case]:
    """All of them."""
    yield from _texts()
    yield from _beside()
    yield from _models()


def _texts() -> Iterator[Case]:
    for kind in ("pdparams", "ernie3 folder"):
        lines = source(kind).files["source/vocab.txt"].decode().splitlines()
        with_ids = [f"{line}\t{number}" for number, line in enumerate(lines)]
        for what, text in {
            "empty": "",
            "blank lines": "\n" * 100,
            "id 10^12": "\n".join([*with_ids[:-1], f"{lines[-1]}\t{10**12}"]),
            "id of 5,000 digits": "\n".join([*with_ids[:-1], lines[-1] + "\t" + "9" * 5000]),
            "id 149,999": "\n".join([*with_ids[:-1], f"{lines[-1]}\t149999"]),
            "id negative": "\n".join([*with_ids[:-1], f"{lines[-1]}\t-1"]),
            "id in another script": "\n".join([*with_ids[:-1], f"{lines[-1]}\t٣"]),
            "id 1.0": "\n".join([*with_ids[:-1], f"{lines[-1]}\t1.0"]),
            "id twice": "\n".join([*with_ids[:-1], f"{lines[-1]}\t0"]),
            "no id": "\n".join([*with_ids[:-1], lines[-1]]),
            "a line of a megabyte": "\n".join([*lines[:-2], MEGABYTE, lines[-1]]),
            "NUL": "\n".join([*lines[:-2], "a\0b", lines[-1]]),
            "no [UNK]": "\n".join(lines[:-1]),
            "12 MB": "\n".join([*lines, "x" * 80]) * 24_000,
            "9 MB of line feeds": "\n".join(lines) + "\n" * 9_000_000,
            "140,000 tokens": "\n".join([*lines, *map(str, range(140_000))]),
            "all alike": "\n".join(["[PAD]"] * 95),
            "one line": "[PAD]",
        }.items():
            yield change(_name("vocab.txt", kind, what), kind, {"source/vocab.txt": text.encode()})
        for what, raw in {"not UTF-8": b"\xff\xfe\n" * 9, "UTF-16": "\n".join(lines).encode("utf-16")}.items():
            yield change(_name("vocab.txt", kind, what), kind, {"source/vocab.txt": raw})
        twice = "\n".join([*lines[:-1], lines[5], lines[-1]])
        yield change(
            _name("vocab.txt", kind, "a token twice"), kind, {"source/vocab.txt": twice.encode()}, may_pass=True
        )


def _name(file: str, kind: str, what: str) -> str:
    return f"{file}: {what}" if kind == "pdparams" else f"{file} of {kind}: {what}"


WRONG: dict[str, Any] = {
    "null": None,
    "number": 1,
    "text": "x",
    "list": [],
    "object": {},
    "true": True,
    "nested": [[["x"]]],
    "megabyte": MEGABYTE,
    "half a pair": "\ud800",
    "list of numbers": [1],
    "object of numbers": {"x": 1},
    "nan": math.nan,
}
ARGUMENTS = (
    *("unk_token", "pad_token", "mask_token", "do_lower_case", "model_max_length", "tokenizer_class", "padding_side"),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "model_input_names", "vocab_file"),
    *("tokenizer_file", "tokenizer_object", "chat_template", "auto_map", "name_or_path", "exact_offsets", "unknown"),
    *("special_tokens_map_file", "clean_up_tokenization_spaces", "truncation_side", "processor_class", "backend"),
    *("model_specific_special_tokens", "init_inputs", "pad_token_type_id", "post_processor", "self", "__class__"),
)


def _beside() -> Iterator[Case]:
    kind = "pdparams"
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = f"source/{file}"
        content = json.loads(source(kind).files[path])
        for key in ARGUMENTS:
            for what, value in WRONG.items():
                changed = json.dumps(content | {key: value}).encode()
                yield change(f"{file}: {key} {what}", kind, {path: changed}, may_pass=True)
    for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
        for what, text in {
            "empty": "",
            "list": "[]",
            "number": "5",
            "null": "null",
            "nested": DEEP,
            "cut": '{"a":',
            "text": '"x"',
            "nested in it": '{"a":' + DEEP + "}",
            "NaN": '{"a":NaN}',
            "object": '{"version":"1.0"}',
            "9 MB": '{"a":"' + "x" * 9_000_000 + '"}',
            "6 MB": '{"a":"' + "x" * 6_000_000 + '"}',
        }.items():
            yield change(
                f"{file}: {what}", kind, {f"source/{file}": text.encode()}, may_pass=file != "added_tokens.json"
            )
        yield change(f"{file}: not UTF-8", kind, {f"source/{file}": b"\xff\xfe{}"})
    for what, added in {
        "id as text": {"x": "95"},
        "id 1.5": {"x": 1.5},
        "id true": {"x": True},
        "id null": {"x": None},
        "id list": {"x": [1]},
        "id negative": {"x": -1},
        "id 10^12": {"x": 10**12},
        "id far": {"x": 90_000},
        "50,000 tokens": {f"x{n}": 95 + n for n in range(50_000)},
        "two tokens of one id": {"x": 95, "y": 95},
        "token of a megabyte": {MEGABYTE: 95},
        "half a pair": {"\ud800": 95},
        "word joiner": {"\u2060": 95},
        "empty token": {"": 95},
        "token of the vocabulary": {"[PAD]": 95},
    }.items():
        content = {"source/added_tokens.json": json.dumps(added).encode()}
        yield change(
            f"added_tokens.json: {what}", kind, content, may_pass=what in ("empty token", "token of the vocabulary")
        )


MODEL = "source/ice_text.model"


def _models() -> Iterator[Case]:
    def case(what: str, edit: Callable[[Any], Any], may_pass: bool = False) -> Case:
        return change(f"ice_text.model: {what}", "glm130b", {MODEL: lambda old: _edited(old, edit)}, may_pass)

    def pieces(*new: tuple[str, float, int]) -> Callable[[Any], Any]:
        return lambda proto: [proto.pieces.add(piece=text, score=score, type=kind) for text, score, kind in new]

    yield case("a piece of 1 MB", pieces((MEGABYTE, -1, 1)))
    yield case("1,000 pieces of 5 kB", pieces(*((f"{n}" * 5000, -1, 1) for n in range(1, 1000))))
    yield case("20,000 pieces of 250 bytes", pieces(*((f"{n:0250d}", -1, 1) for n in range(20_000))))
    yield case("300,000 pieces", pieces(*((f"a{n}", -1, 1) for n in range(300_000))))
    yield case("an empty piece", pieces(("", -1, 1)))
    yield case("a piece twice", pieces(("the", -1, 1), ("the", -1, 1)))
    yield case("two unknown", pieces(("<unk2>", 0, 2)))
    yield case("a piece that is added anyway", pieces(("[gMASK]", 0, 3)))
    yield case("an unused piece", pieces(("unused", 0, 5)), may_pass=True)
    yield case("half a byte piece", pieces(("<0x41>", 0, 6)))
    for score in (math.nan, math.inf, -math.inf, 3e38, -3e38):
        yield case(f"score {score}", pieces(("strange", score, 1)))
    for number in (2, 3, 4, 0):
        yield case(
            f"model type {number}", lambda proto, n=number: setattr(proto.trainer_spec, "model_type", n or 1), True
        )
    for kind in (1, 2, 3, 4, 5, 6):

        def retype(proto: Any, kind: int = kind) -> None:
            for piece in proto.pieces:
                piece.type = kind

        yield case(f"all of type {kind}", retype)
    yield case(
        "a megabyte of unknown surface", lambda proto: setattr(proto.trainer_spec, "unk_surface", MEGABYTE), True
    )
    yield case("another end of sentence", lambda proto: setattr(proto.trainer_spec, "eos_piece", "nothing"))
    for what, table in _tables():
        yield case(
            f"table of normalization: {what}",
            lambda proto, table=table: setattr(proto.normalizer_spec, "precompiled_charsmap", table),
        )
        yield case(
            f"table of denormalization: {what}",
            lambda proto, table=table: setattr(proto.denormalizer_spec, "precompiled_charsmap", table),
        )
    for what, data in {
        "empty": b"",
        "text": b"ice\n" * 100,
        "8 MB of empty pieces": b"\x0a\x00" * 3_900_000,
        "100 MB": lambda old: bytes(100_000_000),
        "a length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
        "an endless number": b"\xff" * 40,
        "nested groups": b"\x0b" * 100_000,
    }.items():
        yield change(f"ice_text.model: {what}", "glm130b", {MODEL: data})
    whole = source("glm130b").files[MODEL]
    for part in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        yield change(f"ice_text.model: {part} bytes", "glm130b", {MODEL: whole[:part]}, may_pass=True)


def _edited(old: bytes, edit: Callable[[Any], Any]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(old)
    edit(proto)
    return bytes(proto.SerializeToString())


def _tables() -> Iterator[tuple[str, bytes]]:
    """Compiled tables of normalization whose trie or texts lead outside."""
    old = source("glm130b").files[MODEL]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(old)
    table: bytes = proto.normalizer_spec.precompiled_charsmap
    length = int.from_bytes(table[:4], "little")
    units = list(struct.unpack(f"<{length // 4}I", table[4 : 4 + length]))
    rest = table[4 + length :]

    def made(units: list[int], texts: bytes = rest) -> bytes:
        return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts

    yield "three bytes", b"abc"
    yield "noise", bytes(range(256)) * 20
    for claimed in (0, 1, length + 4, len(table), 2**32 - 1):
        yield f"trie of {claimed}", struct.pack("<I", claimed) + table[4:]
    yield "half a trie", made(units[: len(units) // 2 + 3])
    yield "cut trie", made(units[:256])
    yield "no texts", made(units, b"")
    yield "texts without end", made(units, rest.rstrip(b"\0"))
    yield "short texts", made(units, rest[: len(rest) // 4].rstrip(b"\0") + b"\0")
    yield "texts not UTF-8", made(units, b"\xff" + rest[1:])
    yield "offsets", made([unit | 0x7FFFFC00 if not unit >> 31 else unit for unit in units])
    yield "root", made([0x7FFFFFFF, *units[1:]])
    yield "values", made([unit | 0x7FFFFFFF if unit >> 31 else unit for unit in units])


__all__ = ["vocabulary_cases"]
