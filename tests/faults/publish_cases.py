"""Hostile folders for `publish`: links, pipes and names that lead out, settings that cannot be, what must not get out.

A folder holds canaries where nothing may be taken from: `CANARY` stands in files outside it and in every key that is
not known. `leaks` names what of it stands in what was published.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hf_glm_ernie import Ernie3ForMaskedLM
from tests.support.tiny_ernie3 import tiny_model as tiny_ernie3
from tests.support.tiny_models import tiny_model

from .case import Case

CANARY = "canary-c5c1-not-to-be-published"
FOLDER, OUTSIDE = "model", "outside.safetensors"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ARGUMENTS = ["publish", FOLDER, "--repo=owner/name", "--check=structure"]
DRY = [*ARGUMENTS, "--dry-run"]

WRONG: tuple[tuple[str, str], ...] = (
    ("text", '"x"'),
    ("list", "[1]"),
    ("object", '{"a": 1}'),
    ("minus one", "-1"),
    ("zero", "0"),
    ("huge", "1" + "0" * 30),
    ("NaN", "NaN"),
    ("infinity", "Infinity"),
    ("fraction", "4.5"),
    ("true", "true"),
    ("deep", "[" * 100_000 + "]" * 100_000),
)
"""A value of the wrong type or size, as JSON."""

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
RECORD = {
    "kind": "pdparams",
    "original_class": "ErnieModel",
    "settings": {"hidden_act": "gelu"},
    "dropped": {"a": "b"},
    "sha256": {},
    "converter": "0.2.0",
    "torch": "2.13.0",
}
REFERENCE = {
    "transformers": "5.24.0",
    "torch": "2.13.0",
    "converter": "0.2.0",
    "dtype": "float32",
    "inputs": {"input_ids": [[1, 2]]},
    "outputs": {"logits": {"shape": [1, 2], "values": [1.0, 2.0], "largest": 2.0, "norm": 2.2}},
    "texts": [],
    "ids": [],
    "generated": [],
    "margins": [],
}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
}


@cache
def _saved(which: str) -> Path:
    """A tiny model, saved once; a process that ends removes it."""
    folder = Path(_KEPT.setdefault(which, tempfile.TemporaryDirectory(prefix="publish-cases-")).name)
    (tiny_model() if which == "glm130b" else tiny_ernie3(Ernie3ForMaskedLM)).save_pretrained(folder)
    return folder


_KEPT: dict[str, Any] = {}


def fill(folder: Path, which: str = "glm130b") -> Path:
    """Puts a folder that can be published into an empty one, and private files beside it; returns the former."""
    model = folder / FOLDER
    shutil.copytree(_saved(which), model)
    for path in model.glob("*.py"):
        path.unlink()
    save_file({"private": torch.frombuffer(bytearray(CANARY.encode() * 8), dtype=torch.uint8)}, folder / OUTSIDE)
    (folder / "outside.txt").write_text(f"{CANARY}\n", encoding="utf-8")
    (folder / "outside").mkdir()
    (folder / "outside" / "vocab.txt").write_text(f"{CANARY}\n", encoding="utf-8")
    return model


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


def leaks(folder: Path) -> list[str]:
    """The files of a folder in which a canary stands, or which are links."""
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or (path.is_file() and CANARY.encode() in path.read_bytes())
    ]


def _index(folder: Path, weight_map: Any) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def _link(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("FOLDER", str(folder.parent)))

    return make


def _blobs_elsewhere(folder: Path) -> None:
    """Looks like a snapshot of the Hub's cache, whose blobs are a private folder."""
    (folder.parent / "snapshots").mkdir()
    moved = folder.rename(folder.parent / "snapshots" / "x")
    (folder.parent / "blobs").symlink_to(folder.parent / "outside")
    (moved / "vocab.txt").symlink_to("../../blobs/vocab.txt")
    folder.symlink_to(moved)


def _pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def _folder(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def _note(folder: Path) -> None:
    state = load_file(folder / SINGLE)
    save_file(state, folder / SINGLE, metadata={"format": "pt", "path": CANARY})


HOSTILE: dict[str, Callable[[Path], None]] = {
    "index names a file above": lambda f: _index(f, {"private": f"../{OUTSIDE}"}),
    "index names a file by its root": lambda f: _index(f, {"private": str(f.parent / OUTSIDE)}),
    "index names a file through a folder": lambda f: _index(f, {"private": f"x/../../{OUTSIDE}"}),
    "index names a subfolder": lambda f: _index(f, {"private": f"sub/{SINGLE}"}),
    "index names another kind": lambda f: _index(f, {"private": "config.json"}),
    "index names a hidden file": lambda f: _index(f, {"private": ".x.safetensors"}),
    "index of lists": lambda f: _index(f, [["private", OUTSIDE]]),
    "index of numbers": lambda f: _index(f, {"private": 1}),
    "index is a list": lambda f: ((f / SINGLE).unlink(), (f / INDEX).write_text("[]")),  # type: ignore[dict-item]
    "a note in the header": _note,
    "blobs that are a link": _blobs_elsewhere,
    **{
        f"{name} is a link to {target}": _link(name, target)
        for name in ("vocab.txt", "tokenizer.json", "conversion.json", "config.json", "reference_outputs.json")
        for target in ("/etc/passwd", "../outside.txt", "FOLDER/outside.txt", "nowhere", "/dev/zero", ".")
    },
    "weights are a link": _link(SINGLE, f"../{OUTSIDE}"),
    "the index is a link": lambda f: ((f / SINGLE).unlink(), _link(INDEX, "../outside.txt")(f)),  # type: ignore[dict-item]
    **{f"{name} is a pipe": _pipe(name) for name in ("vocab.txt", "tokenizer.json", "config.json", SINGLE)},
    **{f"{name} is a folder": _folder(name) for name in ("vocab.txt", "tokenizer.json", "config.json", SINGLE)},
    "a token in a template": lambda f: _text(f / "chat_template.jinja", f"hf_{'a' * 34}"),
    "a key in the vocabulary": lambda f: _text(f / "vocab.txt", "-----BEGIN RSA PRIVATE KEY-----"),
    "a path in a known key": lambda f: change(f / "config.json", problem_type=f"/home/{CANARY}"),
    "one name twice": lambda f: _text(f / "tokenizer_config.json", f'{{"a": "{CANARY}", "a": 1}}'),
}
"""What is refused: name -> what makes it of a good folder."""


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _set(file: str, content: dict[str, Any], key: str, value: str) -> Callable[[Path], None]:
    """Puts one value, as JSON, into a file."""

    def make(folder: Path) -> None:
        path = folder / file
        whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(content)
        _text(path, json.dumps(whole | {key: "HERE"}).replace('"HERE"', value))

    return make


def _refused(kind: str) -> bool:
    """Whether a value is wrong wherever it stands."""
    return kind in ("NaN", "infinity", "deep")


def cases() -> Iterator[Case]:
    """Every hostile folder; nothing is published by any, and the canary is in no output."""
    for name, spoil in HOSTILE.items():
        yield Case(f"publish: {name}", _maker(spoil, DRY))
    for which in ("glm130b", "ernie3"):
        config = json.loads((_saved(which) / "config.json").read_text(encoding="utf-8"))
        for key in [*config, "quantization_config", "id2label", "auto_map", "unknown"]:
            for kind, value in WRONG:
                must = _refused(kind) or (key in SIZES and kind != "true")
                yield Case(
                    f"publish: {which} {key} {kind}", _maker(_set("config.json", {}, key, value), DRY, which), not must
                )
    for file, content in (
        ("conversion.json", RECORD),
        ("reference_outputs.json", REFERENCE),
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", {"tokenizer_class": "x"}),
        ("generation_config.json", {"do_sample": False}),
        ("special_tokens_map.json", {"unk_token": "x"}),
        ("added_tokens.json", {"x": 1}),
    ):
        for key in content:
            for kind, value in WRONG:
                yield Case(
                    f"publish: {file} {key} {kind}", _maker(_set(file, content, key, value), DRY), not _refused(kind)
                )
        for name, text in (
            ("empty", ""),
            ("list", "[]"),
            ("cut", '{"a'),
            ("deep", WRONG[-1][1]),
            ("text", "\ufeff{}"),
        ):
            yield Case(f"publish: {file} is {name}", _maker(_whole(file, text), DRY))


def _whole(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: _text(folder / file, text)


def _maker(spoil: Callable[[Path], None], arguments: list[str], which: str = "glm130b") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        spoil(fill(folder, which))
        return list(arguments)

    return make


SHORT = (
    "publish: index names a file above",
    "publish: vocab.txt is a link to /etc/passwd",
    "publish: weights are a link",
    "publish: tokenizer.json is a pipe",
    "publish: blobs that are a link",
    "publish: glm130b num_hidden_layers huge",
    "publish: ernie3 vocab_size deep",
    "publish: conversion.json sha256 infinity",
)
"""A few of each kind."""


PLANTED = (
    "_name_or_path",
    "name_or_path",
    "token",
    "hf_token",
    "auth_token",
    "cache_dir",
    "use_auth_token",
    "comment",
)
"""Keys that no file of a model knows."""


def plant(folder: Path) -> None:
    """Puts the canary under every planted key of every settings file, at the top and inside objects."""
    planted = dict.fromkeys(PLANTED, CANARY) | {"nested": {"deeper": [CANARY]}}
    contents: dict[str, dict[str, Any]] = {
        "config.json": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "generation_config.json": {"do_sample": False, "_from_model_config": True},
        "tokenizer_config.json": {"unk_token": {"content": "[UNK]", **planted}, "extra_special_tokens": []},
        "tokenizer.json": TOKENIZER | {"model": {**TOKENIZER["model"], **planted}},  # type: ignore[dict-item]
        "special_tokens_map.json": {"unk_token": {"content": "[UNK]", **planted}},
        "conversion.json": RECORD | {"settings": {"hidden_act": "gelu", **planted}},
        "reference_outputs.json": REFERENCE | {"outputs": {"logits": {**REFERENCE["outputs"]["logits"], **planted}}},  # type: ignore[index]
    }
    contents["config.json"]["rope_parameters"] = {"rope_theta": 1e4, **planted}
    for name, content in contents.items():
        _text(folder / name, json.dumps(content | planted))
    for name in ("notes.txt", ".env", "optimizer.pt", "README.md", "training_args.bin", "modeling_glm130b.py"):
        _text(folder / name, CANARY)


__all__ = ["ARGUMENTS", "CANARY", "HOSTILE", "SHORT", "cases", "fill", "leaks", "plant"]
