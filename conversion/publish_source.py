"""What `publish` is given: a model folder, looked at before anything is made.

Nothing is believed: names lead nowhere outside the folder, sizes are held against the tensors, and of each settings
file only what is known goes on.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .folder_files import RECORD
from .json_files import parse_json
from .publish_classes import Published
from .publish_config import PublishError, check_config, publishable_config
from .publish_settings import SCHEMAS, known_part, refuse_secrets
from .reference_outputs import FILE as REFERENCE
from .reference_outputs import Reference, parse_reference
from .regular_files import identify, printable, read_regular
from .safetensors_files import SAFETENSORS_DTYPES, read_safetensors_header, read_weight_map
from .safetensors_files import SAFETENSORS_INDEX as INDEX
from .safetensors_files import SAFETENSORS_SINGLE as SINGLE
from .source_file import FileState

CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "ice_text.model",
    RECORD,
    REFERENCE,
)
"""Small files a repository takes over, where the folder has them; config.json and the index always."""

WEIGHT_FILE = re.compile(r"\w[\w.-]*\.safetensors")
HEADER_NOTES = {"format": re.compile(r"pt|np"), "total_parameters": re.compile(r"\d+")}
"""What `save_pretrained` and the converters note in a weight file's header, which is published as it is."""


@dataclass(frozen=True)
class Source:
    """A folder that holds together.

    Attributes:
        folder: Where; resolved.
        row: What its model type needs.
        config: What of its config.json is published.
        architecture: The model class it was saved from.
        weights: Weight file -> which file it was when it was looked at.
        small: Small file -> its content, as it is published.
        left_out: Everything else, which stays behind.
        left_out_keys: Settings that stay behind, by file.
        record: What of `conversion.json` is published; empty where a converter did not write the folder.
        reference: What the model computed when it was converted, if that was kept.
    """

    folder: Path
    row: Published
    config: Mapping[str, Any]
    architecture: str
    weights: Mapping[str, FileState]
    small: Mapping[str, bytes | Mapping[str, Any]]
    left_out: tuple[str, ...]
    left_out_keys: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def quant_method(self) -> str | None:
        """How the weights are quantized, if they are."""
        settings = self.config.get("quantization_config") or {}
        return settings.get("quant_method")

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(identity.size for identity in self.weights.values())

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer goes with the model."""
        return "tokenizer.json" in self.small


def read_source(folder: Path) -> Source:
    """Looks at a folder that a converter or `save_pretrained` wrote.

    Raises:
        PublishError: it is not a finished model folder of a known type.
        NotRegularError: a file of it is a link, a pipe, ...
        UnpublishableError: it holds an access token, or a path of this machine.
        CheckpointError: a weight file or the index is damaged.
    """
    folder = folder.resolve()
    _refuse_what_is_no_model(folder)
    raw = _read_object(folder / "config.json")
    weights, notes, tensors, elements = _weights(folder)
    row, architecture = check_config(folder / "config.json", raw, tensors, elements)
    config, keys = publishable_config(folder / "config.json", raw)
    _check_notes(folder, notes, (config.get("quantization_config") or {}).get("quant_method"))
    left_out_keys = [f"config.json: {', '.join(keys)}"] if keys else []
    small: dict[str, bytes | Mapping[str, Any]] = {}
    for name in (*CARRIED, *([] if SINGLE in weights else [INDEX])):
        if os.path.lexists(folder / name):
            small[name], keys = _publishable(folder / name)
            left_out_keys += [f"{name}: {', '.join(keys)}"] if keys else []
    record = _checked_record(folder / RECORD, small.get(RECORD, {}))
    reference = None
    if REFERENCE in small:
        reference = parse_reference(folder / REFERENCE, small[REFERENCE])
        small[REFERENCE] = reference.as_json()
    known = {*weights, *small, "config.json", "README.md", ".gitattributes"}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".py")
    return Source(
        folder,
        row,
        config,
        architecture,
        weights,
        small,
        tuple(map(printable, others)),
        tuple(map(printable, left_out_keys)),
        record,
        reference,
    )


def _refuse_what_is_no_model(folder: Path) -> None:
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder. Give the folder that a converter or save_pretrained wrote.")
    if os.path.lexists(folder / ".conversion") or folder.name.endswith(".incomplete"):
        raise PublishError(
            f"{folder}: an unfinished conversion. Run the command that made it again, with the same options: it goes "
            "on where it stopped. Then publish the folder without `.incomplete`."
        )
    if os.path.lexists(folder / "adapter_config.json") and not _has_weights(folder):
        raise PublishError(
            f"{folder}: an adapter, not a model. Push it with PEFT's own `model.push_to_hub(...)`, or merge it "
            "(`model.merge_and_unload().save_pretrained(...)`) and publish the result."
        )
    if not os.path.lexists(folder / "config.json"):
        raise PublishError(
            f"{folder}: not a model folder, it has no config.json. Give the folder that a converter or "
            "save_pretrained wrote."
        )


def _has_weights(folder: Path) -> bool:
    return os.path.lexists(folder / SINGLE) or os.path.lexists(folder / INDEX)


def _weights(folder: Path) -> tuple[dict[str, FileState], dict[str, Mapping[str, str]], int, int]:
    """The weight files, whose headers agree with the index; the headers' notes; how many tensors and numbers."""
    if not _has_weights(folder):
        others = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        raise PublishError(
            f"{folder}: neither {SINGLE} nor {INDEX}"
            + (f", only {others[0]}. Open it with from_pretrained and save it" if others else ". Save the model")
            + " with save_pretrained, which writes safetensors."
        )
    if os.path.lexists(folder / SINGLE) and os.path.lexists(folder / INDEX):
        raise PublishError(
            f"{folder}: {SINGLE} and {INDEX} at once, so two models lie in one folder; remove the older one."
        )
    placed: dict[str, str] = {}
    if os.path.lexists(folder / INDEX):
        identify(folder / INDEX)  # no link
        placed = read_weight_map(folder / INDEX)
    names = sorted(set(placed.values())) or [SINGLE]
    odd = [name for name in names if not WEIGHT_FILE.fullmatch(name)]
    if odd:
        raise PublishError(
            f"{folder / INDEX}: names {printable(odd[0])}, which is no .safetensors file of the folder."
        )
    weights: dict[str, FileState] = {}
    notes: dict[str, Mapping[str, str]] = {}
    tensors = elements = 0
    for name in names:
        weights[name] = identify(folder / name)
        held, notes[name], _ = read_safetensors_header(folder / name, SAFETENSORS_DTYPES)
        if placed and set(held) != {tensor for tensor, file in placed.items() if file == name}:
            differing = sorted(set(held) ^ {tensor for tensor, file in placed.items() if file == name})
            raise PublishError(
                f"{folder}: {name} does not hold what {INDEX} says, e.g. {printable(differing[0])}. The files are of "
                "different runs; convert or save again."
            )
        tensors += len(held)
        elements += sum(stored.spec.nbytes // stored.spec.dtype.itemsize for stored in held.values())
    return weights, notes, tensors, 2 * elements  # a byte may be two weights


def _check_notes(folder: Path, notes: Mapping[str, Mapping[str, str]], quant_method: str | None) -> None:
    """A weight file is published byte for byte, with whatever its header says beside the tensors."""
    for file, entries in notes.items():
        for name, value in entries.items():
            refuse_secrets(f"{name} {value}", str(folder / file))
            if quant_method == "torchao":  # it describes its tensors there
                continue
            if name not in HEADER_NOTES or not HEADER_NOTES[name].fullmatch(str(value)):
                raise PublishError(
                    f"{folder / file}: its header holds a note beside the tensors, {printable(name)}, which would be "
                    "published. Open the model with from_pretrained and save it with save_pretrained into a new "
                    "folder."
                )


def _publishable(path: Path) -> tuple[bytes | Mapping[str, Any], list[str]]:
    """A small file as it is published, and the names of the settings that are left out."""
    content = read_regular(path)
    refuse_secrets(content.decode("utf-8", errors="replace"), str(path))
    if path.suffix != ".json":
        return content, []
    whole = _object_of(path, content)
    if path.name == REFERENCE:  # read by its own rules
        return whole, []
    known, left_out = known_part(whole, SCHEMAS[path.name], str(path))
    left_out = [name for name in left_out if name != "auto_map"]  # it is written anew
    return (content if known == whole else known), left_out


def _read_object(path: Path) -> dict[str, Any]:
    content = read_regular(path)
    refuse_secrets(content.decode("utf-8", errors="replace"), str(path))
    return _object_of(path, content)


def _object_of(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = parse_json(data, unique_names=True)
    except ValueError as error:
        raise PublishError(f"{path}: not JSON ({error}). Take the file from where the folder was written.") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path}: holds a {type(content).__name__}, not an object with settings.")
    return content


_TEXT, _NUMBER = (str,), (int, type(None))
_RECORD_TYPES = {
    "iteration": (str, int),
    "tensor_parallel": _NUMBER,
    "bits": _NUMBER,
    "kind": _TEXT,
    "original_class": _TEXT,
    "converter": _TEXT,
    "torch": _TEXT,
    "settings": (dict,),
    "first_layers": (dict,),
    "dropped": (dict, list),
    "sha256": (dict,),
}


def _checked_record(path: Path, content: bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    """The record, each of its values of the type the card counts on."""
    record = _object_of(path, content) if isinstance(content, bytes) else content
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, _RECORD_TYPES[name]):
            raise PublishError(
                f"{path}: {name} is {value!r}, which no converter writes. Take the file from where the folder was "
                "written, or remove it: then the card says that there is no record."
            )
    sha256 = record.get("sha256", {})
    if odd := [name for name, digest in sha256.items() if not re.fullmatch(r"[0-9a-f]{64}", str(digest))]:
        raise PublishError(f"{path}: the SHA-256 of {printable(odd[0])} is none. Convert again.")
    return record


__all__ = ["PublishError", "Source", "read_source"]
