"""Handmade hostile pickles, and torch's archives around them."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from .building import change
from .case import Case

RANK = "source/49300/mp_rank_00_model_states.pt"
PDPARAMS = "source/model_state.pdparams"
MEGABYTES = 10**6


def text(value: str | bytes) -> bytes:
    """A text, as protocol 2 writes it."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """A number."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def called(function: str, *arguments: bytes) -> bytes:
    """A call of a function, given as "module name"."""
    return b"c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def storage(numel: bytes = number(4), key: bytes = text("0"), kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    """A storage of a torch archive."""
    return b"(" + text("storage") + kind + key + text("cpu") + numel + b"tQ"


def numbers(*values: int) -> bytes:
    """A tuple."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: bytes = numbers(4), stride: bytes = numbers(1), offset: bytes = number(0), of: bytes = storage()
) -> bytes:
    """A tensor of a torch archive."""
    return called("torch._utils _rebuild_tensor_v2", of, offset, shape, stride, b"\x89", b"N")


def module(*entries: bytes, name: str = "a") -> bytes:
    """The pickle of a rank's file."""
    return b"\x80\x02}" + text("module") + b"}(" + b"".join(text(name) + one for one in entries) + b"us."


def archive(program: bytes | None, records: Mapping[str, bytes] | None = None, packed: bool = False) -> bytes:
    """A torch archive with some records replaced."""
    made = io.BytesIO()
    content = {"data.pkl": program, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"} | dict(
        records or {}
    )
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as target:
        for name, data in content.items():
            if data is not None:
                target.writestr(name if name.startswith("!") else f"archive/{name}", data)
    return made.getvalue()


def torch_programs() -> Iterator[tuple[str, bytes]]:
    """Pickles that no rank's file holds."""
    for function, arguments in {
        "__builtin__ bytearray": [number(6 * 10**9)],
        "builtins bytearray": [number(6 * 10**9)],
        "torch Tensor": [number(2**40)],
        "torch Size": [numbers(2**62)],
        "torch device": [text("meta")],
        "builtins set": [number(5)],
        "builtins complex": [text("x")],
        "_codecs encode": [text("x" * 100), text("rot13")],
        "collections Counter": [text("x" * 1000)],
        "collections OrderedDict": [number(5)],
        "torch FloatStorage": [number(2**40)],
        "torch._utils _rebuild_meta_tensor_no_storage": [numbers(2**40)],
        "torch._utils _rebuild_parameter": [number(1)],
        "torch._tensor _rebuild_from_type_v2": [number(1), number(2), number(3), number(4)],
        "torch._utils _rebuild_wrapper_subclass": [b"N"],
    }.items():
        shown = "bytearray(6 * 10^9)" if function == "__builtin__ bytearray" else f"{function} called"
        yield shown, b"\x80\x02" + called(function, *arguments) + b"."
        yield f"{function} among the tensors", module(called(function, *arguments))
        yield f"{function} by NEWOBJ", module(b"c" + function.replace(" ", "\n").encode() + b"\n)\x81")
    for function in (
        "os system",
        "posix system",
        "builtins eval",
        "torch load",
        "torch.hub load",
        "a.b c\td",
        "sys exit",
    ):
        yield f"{function} named", module(called(function, text("touch /tmp/executed")))
    for what, made in {
        "text": text("x"),
        "number": number(1),
        "dictionary": b"}",
        "None": b"N",
        "list": b"]",
        "bare storage": storage(),
    }.items():
        yield f"{what} among the tensors", module(made)
        yield f"{what} for the whole", b"\x80\x02" + made + b"."
    for what, identifier in {
        "a number": number(5),
        "a text": text("storage"),
        "None": b"N",
        "a list": b"]",
        "empty": b")",
        "short": b"(" + text("storage") + b"t",
        "of numbers": numbers(1, 2, 3, 4, 5),
        "of another kind": b"("
        + text("module")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + number(4)
        + b"t",
    }.items():
        yield f"persistent id {what}", module(tensor(of=identifier + b"Q"))
    for what, of in {
        "another key": storage(key=text("7")),
        "a path for a key": storage(key=text("../../etc/passwd")),
        "a number for a key": storage(key=number(0)),
        "a megabyte for a key": storage(key=text("k" * MEGABYTES)),
        "negative": storage(numel=number(-1)),
        "huge": storage(numel=number(2**62)),
        "beyond all": storage(numel=number(2**200)),
        "too long": storage(numel=number(5)),
        "text for a length": storage(numel=text("4")),
        "float for a length": storage(numel=b"G" + struct.pack(">d", 4.0)),
        "no class": storage(kind=text("FloatStorage")),
        "quantized": storage(kind=b"ctorch\nQInt8Storage\n"),
        "complex": storage(kind=b"ctorch\nComplexFloatStorage\n"),
        "of doubles": storage(kind=b"ctorch\nDoubleStorage\n"),
    }.items():
        yield f"storage {what}", module(tensor(of=of))
    for what, made in {
        "shape huge": tensor(shape=numbers(2**62)),
        "shape beyond all": tensor(shape=numbers(2**100)),
        "shape negative": tensor(shape=numbers(-4)),
        "shape a list": tensor(shape=b"]"),
        "shape a text": tensor(shape=text("4")),
        "shape of texts": tensor(shape=b"(" + text("4") + b"t"),
        "shape of 65": tensor(shape=numbers(*[1] * 65), stride=numbers(*[1] * 65)),
        "zero and huge": tensor(shape=numbers(0, 2**62), stride=numbers(1, 1)),
        "strides outside": tensor(shape=numbers(2, 2), stride=numbers(3, 1)),
        "strides huge": tensor(shape=numbers(2, 2), stride=numbers(2**62, 1)),
        "strides negative": tensor(stride=numbers(-1)),
        "strides too few": tensor(shape=numbers(2, 2)),
        "strides of zero": tensor(shape=numbers(2**20, 2**20), stride=numbers(0, 0)),
        "offset outside": tensor(offset=number(1)),
        "offset huge": tensor(offset=number(2**62)),
        "offset negative": tensor(offset=number(-1)),
        "offset a text": tensor(offset=text("0")),
    }.items():
        yield f"tensor: {what}", module(made)
    for layer in ("100000000", "9" * 5000, "007", "٣", "999999", "1500"):
        name = f"transformer.layers.{layer}.attention.dense.bias"
        yield f"layer {layer[:20]}", module(tensor(), name=name)
    for what, name in {"a megabyte": "n" * MEGABYTES, "empty": "", "half a pair": "\ud800", "NUL": "a\0b"}.items():
        yield f"name {what}", module(tensor(), name=name)
    yield "name twice", module(tensor(), tensor())
    yield from ((f"machine: {what}", made) for what, made in machine_programs())


def machine_programs() -> Iterator[tuple[str, bytes]]:
    """Programs that wear out a machine, whoever wrote the rest."""
    yield "no end", b"\x80\x02}"
    yield "empty", b""
    yield "end alone", b"."
    yield "bytes behind the end", b"\x80\x02}.}"
    yield "a million steps", b"\x80\x02" + b"N" * 1_000_000 + b"."
    yield "memo of 2^32", b"\x80\x02Nr\xff\xff\xff\xff."
    yield "text of 2^32", b"\x80\x02X\xff\xff\xff\xff."
    yield "text of 2^63", b"\x80\x04\x8d" + b"\xff" * 8 + b"."
    yield "frame of 2^63", b"\x80\x04\x95" + b"\xff" * 8 + b"N."
    yield "unknown opcode", b"\x80\x02\xf9."
    yield "protocol 255", b"\x80\xffN."
    yield "extension", b"\x80\x02\x82\x01."
    yield "instance", b"(ios\nsystem\n."
    yield "deep lists", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    yield "deep tuples", b"\x80\x02)" + b"\x85" * 300_000 + b"."
    yield "doubling tuples", b"\x80\x02)" + b"2\x86" * 100 + b"."
    yield "doubling by memo", b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 20_000 + b"."
    yield "itself inside", b"\x80\x02}q\x00X\x06\x00\x00\x00moduleh\x00s."
    yield "list inside itself", b"\x80\x02]q\x00h\x00a."
    yield "a number of 5,000 digits", b"I" + b"9" * 5000 + b"\n."
    yield "a line of a megabyte", b"I" + b"9" * MEGABYTES + b"\n."
    yield "a global of a megabyte", b"c" + b"x" * MEGABYTES + b"\ny\n."
    yield "marks", b"\x80\x02" + b"(" * 300_000 + b"."
    yield "pops", b"\x80\x020."
    yield "keys that are lists", b"\x80\x02}]Ns."
    yield "keys that are tuples", b"\x80\x02})Ns."
    yield "states", b"\x80\x02}}b."
    yield "called number", b"\x80\x02K\x01)R."
    yield "called text", b"\x80\x02" + text("x") + b")R."


def torch_cases() -> Iterator[Case]:
    """Archives and the pickles in them."""

    def case(what: str, content: bytes | Callable[[bytes], bytes], may_pass: bool = False) -> Case:
        return change(f"torch: {what}", "glm130b", {RANK: content}, may_pass)

    for what, program in torch_programs():
        yield case(what, archive(program))
    good = module(tensor())
    for order in (b"big", b"", b"middle", b"big-endian", b"LITTLE", bytes(1000)):
        yield case(f"byteorder {order[:10].decode()}", archive(good, {"byteorder": order}))
        yield case(
            f"whole, byteorder {order[:10].decode()}", lambda old, order=order: _with_record(old, "byteorder", order)
        )
    for version in (b"", b"11", b"x", b"-1", b"9" * 10_000, "٣".encode()):
        yield case(f"version {version[:5]!r}", archive(good, {"version": version}))
    yield case("no pickle", archive(None))
    yield case("inflated pickle", lambda old: archive(b"\x80\x02" + text(bytes(300 * MEGABYTES)) + b".", packed=True))
    yield case("compressed", archive(good, packed=True))
    yield case("pickle of 80 MB", lambda old: archive(b"\x80\x02" + text(bytes(80 * MEGABYTES)) + b"."))
    yield case("pickle of 60 MB", lambda old: archive(b"\x80\x02" + text(bytes(60 * MEGABYTES)) + b"."))
    yield case("no data", archive(good, {"data/0": None}))
    yield case("two roots", archive(good, {"!other/data.pkl": good}))
    yield case("a path outside", archive(good, {"../../data/1": b"x"}))
    yield case("70,000 records", lambda old: archive(good, {f"data/{n}": b"" for n in range(1, 70_000)}))
    yield from (case(f"end: {what}", content) for what, content in _ends(archive(good)))
    for name in (b"archive/data/0", b"archive/data.pkl"):
        for at, what in (
            (8, "flags"),
            (10, "method"),
            (20, "stored"),
            (24, "whole"),
            (28, "name"),
            (30, "extra"),
            (42, "place"),
        ):
            for value in (1, 8, 0xFFFF, 0xFFFFFFFF):
                yield case(f"directory: {what} of {name.decode()} {value}", _entry(archive(good), name, at, value))
    for cut in (1, 4, 22, 100, 1000):
        yield case(f"without its last {cut} bytes", lambda old, cut=cut: old[:-cut])
        yield case(f"without its first {cut} bytes", lambda old, cut=cut: old[cut:])


def _with_record(old: bytes, name: str, content: bytes) -> bytes:
    """The same archive with another record."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(old)) as before, zipfile.ZipFile(made, "w") as target:
        for info in before.infolist():
            target.writestr(info.filename, content if info.filename.endswith(f"/{name}") else before.read(info))
    return made.getvalue()


def _entry(whole: bytes, name: bytes, at: int, value: int) -> bytes:
    """The same archive with another number in a directory's entry."""
    start = whole.rindex(name) - 46 + at
    width = 4 if at >= 20 and at not in (28, 30) else 2
    return whole[:start] + (value % 256**width).to_bytes(width, "little") + whole[start + width :]


def _ends(whole: bytes) -> Iterator[tuple[str, bytes]]:
    end = whole.rindex(b"PK\x05\x06")
    for at, width, what in ((4, 2, "disk"), (10, 2, "count"), (12, 4, "size"), (16, 4, "place"), (20, 2, "comment")):
        for value in (1, 0xFFFF, 0xFFFFFFFF):
            start = end + at
            changed = (value % 256**width).to_bytes(width, "little")
            yield f"{what} {value}", whole[:start] + changed + whole[start + width :]
    large = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**40, 2**40, 2**50, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    yield "of 2^40 records", whole[:end] + large + locator + whole[end:]
    yield (
        "that points behind itself",
        whole[:end] + large + struct.pack("<4sIQI", b"PK\x06\x07", 0, 2**63, 1) + whole[end:],
    )
    yield "with bytes behind", whole + b"x"
    yield "twice", whole + whole[end:]


def pdparams_cases() -> Iterator[Case]:
    """Paddle's pickles."""
    array = np.zeros((2, 2), "f4")

    def case(what: str, content: bytes) -> Case:
        return change(f"pdparams: {what}", "pdparams", {PDPARAMS: content})

    for what, program in machine_programs():
        yield case(what, program)
    for protocol in range(6):
        for what, content in {
            "empty dictionary": {},
            "list": [array],
            "array": array,
            "another model": {"a": array},
            "layer 100000000": {"ernie.encoder.layers.100000000.linear1.weight": array},
            "layer of 200 digits": {f"ernie.encoder.layers.{'9' * 200}.linear1.weight": array},
            "layer in another script": {"ernie.encoder.layers.٣.linear1.weight": array},
            "layer 01": {"ernie.encoder.layers.01.linear1.weight": array},
            "name of a megabyte": {"n" * MEGABYTES: array},
            "name with NUL": {"a\0b": array},
            "name empty": {"": array},
            "objects": {"a": np.array([1, "x"], dtype=object)},
            "big-endian": {"a": array.astype(">f4")},
            "complex": {"a": array.astype("c8")},
            "dates": {"a": np.array(["2020-01-01"], "M8[D]")},
            "records": {"a": np.zeros(2, [("x", "f4")])},
            "no slices": {"UnpackBigParamInfor@@": {"a": {"OriginShape": [2**40], "slices": []}}},
            "slices missing": {"UnpackBigParamInfor@@": {"a": {"OriginShape": [4], "slices": ["b"]}}, "c": array},
            "slices of a huge tensor": {
                "UnpackBigParamInfor@@": {"a": {"OriginShape": [2**40], "slices": ["c"]}},
                "c": array,
            },
            "slices that are none": {"UnpackBigParamInfor@@": [1], "c": array},
            "slices without a shape": {"UnpackBigParamInfor@@": {"a": {}}, "c": array},
            "names that are none": {"StructuredToParameterName@@": 5, "c": array},
            "20,000 tensors more": {f"t{n}": np.zeros(1, "f4") for n in range(20_001)}
            if protocol == 4
            else {"x": array},
        }.items():
            yield case(f"protocol {protocol}: {what}", pickle.dumps(content, protocol=protocol))
    whole = pickle.dumps({"ernie.embeddings.word_embeddings.weight": array}, protocol=2)
    for what, old, new in (
        ("shape 2^31", b"K\x02K\x02\x86", b"J\xff\xff\xff\x7fK\x02\x86"),
        ("shape negative", b"K\x02K\x02\x86", b"J\xff\xff\xff\xffK\x02\x86"),
        ("shape of texts", b"K\x02K\x02\x86", text("x") + b"K\x02\x86"),
        ("dtype of a megabyte", text("f4"), text("f" * MEGABYTES)),
        ("dtype unknown", text("f4"), text("f3")),
        ("order unknown", text("<"), text("?")),
    ):
        yield case(what, whole.replace(old, new))
    yield case("bytearray", b"\x80\x02" + called("__builtin__ bytearray", number(6 * 10**9)) + b".")
    yield case("system", b"\x80\x02" + called("posix system", text("touch executed")) + b".")
    yield case("eval", b"\x80\x02" + called("__builtin__ eval", text("1"), b"}") + b".")


__all__ = ["pdparams_cases", "torch_cases"]
