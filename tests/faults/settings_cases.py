"""Every field of every JSON file that the converters read, with every wrong value.

The files are those that the tests' own small checkpoints have, in both directions; the fields are those that stand in
them and those that a table of the converters knows. A field that must refuse a value says so by its kind, which is
written down here a second time, independently of the tables; all others may pass, where the value is ignored.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import ErnieConfig

from hf_glm_ernie import Ernie3Config, Glm130bConfig
from tests.support import converting, converting_ernie3, tiny
from tests.support.ernie_goldens import GOLDEN, SMALL

from .case import Case

Files = dict[str, bytes]
"""Path in the folder of a case -> content."""

HERE = "@here@"
DEEP = 100_000
WRONG: Mapping[str, str] = {
    "text": '"x"',
    "no text": '""',
    "a number as text": '"2"',
    "0": "0",
    "-1": "-1",
    "1.5": "1.5",
    "2.0": "2.0",
    "10^6": "1000000",
    "10^9": "1000000000",
    "10^23": "1" + "0" * 23,
    "10^400": "1" + "0" * 400,
    "1e308": "1e308",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "true": "true",
    "false": "false",
    "null": "null",
    "a list": "[1, 2]",
    "an empty list": "[]",
    "a list of lists": '[["a"], {"b": null}]',
    "an object": '{"a": 1}',
    "an empty object": "{}",
    "an object of objects": '{"0": {"1": [2]}, "x": "y"}',
    "half a surrogate pair": '"\\ud800"',
    "a megabyte": f'"{"x" * 10**6}"',
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
}
"""Name -> JSON, or what is none."""

NEVER = ("1e999", "NaN", "Infinity", "-Infinity", "half a surrogate pair", "deep lists", "deep objects")
"""Refused in any field of a file that is read: no JSON, no text, or too deep."""


@cache
def _ernie(golden: str, extra: bool = False) -> Files:
    """A PaddleNLP checkpoint of the goldens, with its tokenizer where it has one."""
    folder = (GOLDEN / "ernie_added_tokens" if extra else SMALL) / golden
    names = ("model_state.pdparams", "config.json", "vocab.txt")
    names += ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
    return {f"in/{name}": (folder / name).read_bytes() for name in names if (folder / name).is_file()}


@cache
def _ernie_nested() -> Files:
    """Settings as PaddleNLP before 2.5 nests them."""
    files = dict(_ernie("sequence_classification"))
    settings = json.loads(files.pop("in/config.json"))
    backbone = {key: value for key, value in settings.items() if "label" not in key and key != "architectures"}
    nested = {"init_args": [backbone | {"init_class": "ErnieModel"}], "num_classes": 3}
    nested["init_class"] = "ErnieForSequenceClassification"
    return files | {"in/model_config.json": json.dumps(nested).encode()}


@cache
def _ernie3() -> Files:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        converting_ernie3.write_static(
            folder, converting_ernie3.random_arrays(converting_ernie3.layout()), converting_ernie3.SIZES.settings
        )
        return _files(Path(name))


@cache
def _glm130b() -> Files:
    with tempfile.TemporaryDirectory() as name:
        folder = tiny.write_released(Path(name) / "in", tiny.whole_state(converting.SIZES), ranks=2)
        (folder / "config.json").write_text(json.dumps(converting.SIZES.settings))
        return _files(Path(name))


@cache
def _converted(family: str, source: Any, *arguments: str) -> Files:
    """What a source becomes, as the source of the way back."""
    from conversion.__main__ import main

    with tempfile.TemporaryDirectory() as name:
        write(source(), Path(name))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(
                [family, f"--source={name}/in", f"--output={name}/out", "--no-verify", "--no-reference", *arguments]
            )
        assert status == 0, said.getvalue()
        shutil.rmtree(f"{name}/in")
        Path(name, "out").rename(f"{name}/in")
        return _files(Path(name))


def _files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(files: Files, folder: Path) -> None:
    """Writes files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@cache
def _glm130b_with_tokenizer() -> Files:
    with tempfile.TemporaryDirectory() as name:
        sizes = tiny.Sizes(vocabulary=512)
        folder = tiny.write_released(Path(name) / "in", tiny.whole_state(sizes), ranks=2)
        settings = sizes.settings | {"num_image_tokens": 10}
        (folder / "config.json").write_text(json.dumps(settings))
        tiny.write_ice_text_model(folder / "ice_text.model")
        return _files(Path(name))


BACK = ("--reverse",)
RANKS = ("--reverse", "--tensor-parallel=2")
SEQUENCE, MASKED = "sequence_classification", "masked_lm_spare"
SOURCES: Mapping[str, tuple[str, Any, tuple[str, ...]]] = {
    "ernie": ("ernie", lambda: _ernie(SEQUENCE), ()),
    "ernie nested": ("ernie", _ernie_nested, ()),
    "ernie added": ("ernie", lambda: _ernie(MASKED, True), ()),
    "ernie uie": ("ernie", lambda: _ernie("uie_task_type_1"), ()),
    "ernie back": ("ernie", lambda: _converted("ernie", SOURCES["ernie"][1]), BACK),
    "ernie added back": ("ernie", lambda: _converted("ernie", SOURCES["ernie added"][1]), BACK),
    "ernie uie back": ("ernie", lambda: _converted("ernie", SOURCES["ernie uie"][1]), BACK),
    "ernie3": ("ernie3", _ernie3, ()),
    "ernie3 back": ("ernie3", lambda: _converted("ernie3", _ernie3), BACK),
    "glm130b": ("glm130b", _glm130b, ()),
    "glm130b tokenizer": ("glm130b", _glm130b_with_tokenizer, ()),
    "glm130b back": ("glm130b", lambda: _converted("glm130b", _glm130b), RANKS),
    "glm130b int4 back": ("glm130b", lambda: _converted("glm130b", _glm130b, "--bits=4"), RANKS),
}
"""Name -> command, its source, its further options."""

KNOWN: Mapping[str, tuple[str, ...]] = {
    "config.json": (
        *("architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "num_classes"),
        *("num_choices", "problem_type", "tie_word_embeddings", "quantization_config", "is_decoder", "auto_map"),
        *("add_cross_attention", "chunk_size_feed_forward", "pruned_heads", "rope_theta", "rope_scaling"),
        *("rope_parameters", "per_layer_config", "output_attentions", "attn_implementation", "layer_types"),
        *("_attn_implementation", "_name_or_path", "return_dict", "is_encoder_decoder", "use_cache", "dropout"),
        *("transformers_version", "name_or_path", "max_length", "classifier_dropout", "init_args", "init_class"),
    ),
    "tokenizer_config.json": (
        *("do_lower_case", "unk_token", "pad_token", "model_max_length", "added_tokens_decoder", "backend"),
        *("additional_special_tokens", "extra_special_tokens", "tokenizer_class", "special_tokens_map_file"),
        *("padding_side", "truncation_side", "model_input_names", "tokenizer_file", "vocab_file", "exact_offsets"),
        *("clean_up_tokenization_spaces", "chat_template", "auto_map", "name_or_path", "init_inputs", "add_bos_token"),
    ),
    "special_tokens_map.json": ("unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens"),
    "conversion.json": (
        "settings",
        "dropped",
        "sha256",
        "first_layers",
        "iteration",
        "kind",
        "original_class",
        "bits",
    ),
    "generation_config.json": ("eos_token_id", "max_new_tokens", "transformers_version"),
    "tokenizer.json": ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"),
}
KNOWN = dict(KNOWN) | {"model_config.json": KNOWN["config.json"], "ernie_config.json": KNOWN["config.json"]}
"""Fields beyond those that stand in a file: of other versions, of the host, of the tables."""


def fields_of(content: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in JSON, objects and lists themselves too; of long ones the first three."""
    if prefix:
        yield prefix
    if isinstance(content, (dict, list)) and len(prefix) < 4:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        for key in keys if len(keys) < 60 else keys[:3]:
            yield from fields_of(content[key], (*prefix, key))


def replaced(content: Any, path: tuple[Any, ...], value: str) -> bytes:
    """JSON with one value replaced; the value need not be JSON."""
    if not path:
        return value.encode()
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = HERE
    return json.dumps(content, ensure_ascii=False).replace(json.dumps(HERE), value).encode()


NUMBERS = ("0", "-1", "1.5", "2.0", "10^6", "10^9", "10^23", "1e308", "true", "false")
NO_NUMBERS = (
    *("text", "no text", "a number as text", "a list", "an empty list", "a list of lists", "an object"),
    *("an empty object", "an object of objects", "a megabyte"),
)
LEGAL: Mapping[str, tuple[str, ...]] = {
    "size": (),
    "count": ("0",),
    "rate": ("0",),
    "deviation": ("0", "1.5", "2.0"),
    "above 0": (),
    "base": ("1.5", "2.0", "10^6", "10^9"),
    "truth": ("true", "false"),
    "word": (),
    "id": ("0",),
    "id or none": ("0", "10^6"),
    "names": ("an empty object",),
    "ids of names": ("an object", "an empty object"),
}
"""What a setting is -> those of the wrong values that are not wrong for it; null never is."""

STACK = "hidden_size intermediate_size num_attention_heads"
RATES = "hidden_dropout_prob attention_probs_dropout_prob"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "ernie": {
        f"{STACK} vocab_size max_position_embeddings num_hidden_layers": "size",
        "type_vocab_size task_type_vocab_size task_id": "count",
        RATES: "rate",
        "initializer_range": "deviation",
        "layer_norm_eps": "above 0",
        "use_task_id": "truth",
        "hidden_act": "word",
        "pad_token_id": "id",
        "id2label": "names",
        "label2id": "ids of names",
    },
    "ernie3": {
        f"{STACK} vocab_size max_position_embeddings num_hidden_layers num_sharing_layers": "size",
        " ".join(f"branch_{name}" for name in (*STACK.split(), "num_hidden_layers")): "size",
        f"{RATES} branch_hidden_dropout_prob branch_attention_probs_dropout_prob": "rate",
        "initializer_range": "deviation",
        "layer_norm_eps": "above 0",
        "hidden_act branch_hidden_act recurrence": "word",
        "bos_token_id pad_token_id end_token_id mask_token_id": "id or none",
    },
    "glm130b": {
        f"{STACK} vocab_size num_hidden_layers max_sequence_length num_layers inner_hidden_size": "size",
        "hidden_dropout attention_dropout embedding_gradient_shrink": "rate",
        "initializer_range": "deviation",
        "layer_norm_eps layernorm_epsilon": "above 0",
        "rope_theta": "base",
        "rotary_dtype": "word",
        "mask_token_id gmask_token_id sop_token_id": "id or none",
        "num_image_tokens": "count",
    },
}
"""Family -> settings, in words of any version -> what they are."""


def kind_of(command: str, name: str) -> str | None:
    """What a setting of a family is; None where nothing is said of it."""
    return next((kind for names, kind in SETTINGS[command].items() if name in names.split()), None)


def may_pass(command: str, base: str, path: tuple[Any, ...], value: str, backward: bool) -> bool:
    """Whether a value may be taken: it is legal, or nothing reads the field."""
    if value in NEVER:
        return False
    if value == "null" or base not in SETTINGS_FILES or not path:
        return True
    name, outside = str(path[-1]), path[:-1]
    if outside not in ((), ("settings",), ("init_args", 0)) or (base == "conversion.json") != (
        outside == ("settings",)
    ):
        return True
    kind = kind_of(command, name)
    if kind is None or (backward and base == "config.json" and name not in IN_CONFIG[command]):
        return True
    if base == "conversion.json" and kind in ("size", "count"):  # held against nothing there
        return value == "10^6" or (value == "0" and (kind == "count" or name.endswith("_layers")))
    return value in LEGAL[kind]


SETTINGS_FILES = ("config.json", "model_config.json", "ernie_config.json", "conversion.json")
IN_CONFIG: Mapping[str, frozenset[str]] = {
    "ernie": frozenset(ErnieConfig.__dataclass_fields__) | {"task_id"},
    "ernie3": frozenset(Ernie3Config.__dataclass_fields__),
    "glm130b": frozenset(Glm130bConfig.__dataclass_fields__),
}
UNREAD = {
    "generation_config.json": ("ernie", "ernie3", "glm130b"),
    "tokenizer_config.json": ("ernie3", "glm130b"),
    "tokenizer.json": ("ernie3", "glm130b"),
}
"""File -> commands that do not read it."""

EVERYWHERE = (("bits",), ("num_image_tokens",))
"""Last parts of fields that get every value wherever they stand."""

FEW = 5
"""Wrong values of a field that is inside another one, or not the first of its name: each field gets others."""


def spread(most: int) -> Iterator[Case]:
    """As many as are wanted, at equal distances; all if they are fewer."""
    everything = list(cases())
    step = max(1.0, len(everything) / most)
    yield from (everything[int(number * step)] for number in range(min(most, len(everything))))


def cases() -> Iterator[Case]:
    """All of them: every value in every setting of a file, a few in what is deeper or known from another source."""
    seen: set[Any] = set()
    turn = 0
    for name, (command, source, options) in SOURCES.items():
        files = source()
        for file in sorted(files):
            base = file.removeprefix("in/")
            if not file.endswith(".json") or command in UNREAD.get(base, ()):
                continue
            content = json.loads(files[file])
            paths = [(), *fields_of(content), *((key,) for key in KNOWN.get(base, ()) if key not in content)]
            for path in dict.fromkeys(paths):
                field = (command, options[:1], base, path)
                is_first = (field not in seen and len(path) < 2) or path[-1:] in EVERYWHERE
                seen.add(field)
                for number, (title, value) in enumerate(WRONG.items()):
                    if is_first or (number - turn) % len(WRONG) < FEW:
                        yield Case(
                            f"{name}: {base} {'.'.join(map(str, path)) or 'whole'} = {title}",
                            partial(_make, command, source, options, file, path, value),
                            may_pass(command, base, path, title, bool(options)),
                        )
                turn += 0 if is_first else FEW
    yield from _command_lines()


def _make(
    command: str, source: Any, options: tuple[str, ...], file: str, path: tuple[Any, ...], value: str, folder: Path
) -> list[str]:
    """Writes the files of a source with one value replaced; gives the arguments."""
    files = source()
    write(files | {file: replaced(json.loads(files[file]), path, value)}, folder)
    return [command, f"--source={folder / 'in'}", f"--output={folder / 'out'}", *options]


ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "ernie": ("--layer-norm-eps", "--max-shard-size", "--task", "--dtype"),
    "ernie3": ("--layer-norm-eps", "--max-shard-size", "--num-attention-heads", "--branch-num-attention-heads"),
    "glm130b": ("--max-shard-size", "--bits", "--tensor-parallel"),
    "glm130b back": ("--tensor-parallel", "--max-shard-size"),
}
WRONG_ARGUMENTS = (
    *("", " ", "x", "0", "0.0", "-1", "-0", "nan", "inf", "-inf", "1e400", "1e-400", "10" + "0" * 23, "1" * 5000),
    *("0GB", "-5GB", "nanGB", "infGB", "1e5GB", "GB", ".GB", "1..5GB", "1" + "0" * 23 + "GB", "1.5.", "²", "\udcff"),
)


def _command_lines() -> Iterator[Case]:
    for name, flags in ARGUMENTS.items():
        command, source, options = SOURCES[name]
        for flag in flags:
            for value in WRONG_ARGUMENTS:
                yield Case(
                    f"{name}: {flag}={value[:30]!r}",
                    partial(_with_argument, command, source, options, f"{flag}={value}"),
                )

    for name, (command, source, options) in SOURCES.items():
        yield Case(
            f"{name}: a folder whose name is no text", partial(_in_strange_folder, command, source, options), True
        )
        for title in ("a pipe", "a folder", "a device", "a link to itself"):
            yield Case(f"{name}: its settings are {title}", partial(_no_file, command, source, options, title), True)


def _in_strange_folder(command: str, source: Any, options: tuple[str, ...], folder: Path) -> list[str]:
    strange = folder / "of \udcff"
    write(source(), strange)
    return [command, f"--source={strange / 'in'}", f"--output={strange / 'out'}", *options]


def _no_file(command: str, source: Any, options: tuple[str, ...], what: str, folder: Path) -> list[str]:
    write(source(), folder)
    names = ("config.json", "model_config.json", "ernie_config.json")
    path = next(folder / "in" / name for name in names if (folder / "in" / name).exists())
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "a device" else path)
    return [command, f"--source={folder / 'in'}", f"--output={folder / 'out'}", *options]


def _with_argument(command: str, source: Any, options: tuple[str, ...], argument: str, folder: Path) -> list[str]:
    write(source(), folder)
    return [command, f"--source={folder / 'in'}", f"--output={folder / 'out'}", *options, argument]


SHORT = (
    "ernie: config.json whole = deep lists",
    "ernie: config.json id2label = 10^9",
    "ernie: config.json num_hidden_layers = 10^6",
    "ernie: config.json layer_norm_eps = NaN",
    "ernie: config.json hidden_dropout_prob = -1",
    "ernie: config.json architectures = 10^23",
    "ernie: config.json pad_token_id = text",
    "ernie: config.json task_id = a list",
    "ernie: config.json init_args = true",
    "ernie added: added_tokens.json whole = a list",
    "ernie added: tokenizer_config.json whole = deep objects",
    "ernie added: special_tokens_map.json unk_token = half a surrogate pair",
    "ernie back: config.json num_labels = 10^9",
    "ernie back: config.json num_hidden_layers = 10^6",
    "ernie back: config.json attn_implementation = 10^23",
    "ernie back: config.json dtype = text",
    "ernie back: conversion.json settings = a list",
    "ernie added back: tokenizer.json added_tokens = 0",
    "ernie3: ernie_config.json bos_token_id = text",
    "ernie3 back: config.json branch_num_hidden_layers = 10^6",
    "ernie3 back: config.json hidden_act = text",
    "glm130b: config.json rope_theta = 0",
    "glm130b tokenizer: config.json num_image_tokens = 10^9",
    "glm130b back: config.json num_hidden_layers = 10^6",
    "glm130b back: config.json quantization_config = a list",
    "glm130b int4 back: config.json quantization_config.bits = 2.0",
    "ernie: --layer-norm-eps='0'",
    "ernie3: --max-shard-size='1000000000000000000000000'",
    "ernie3: --num-attention-heads='0'",
)
"""Names of a few of all kinds."""

__all__ = ["SHORT", "cases", "spread"]
