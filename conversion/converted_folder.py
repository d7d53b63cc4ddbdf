"""What stands beside the weights of every converted folder, whatever the model: config, tokenizer, code, index, record
of the conversion, model card; and what is read of it on the way back.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

import hf_glm_ernie

from .folder_files import RECORD, checksum_table, write_code, write_index, write_json
from .json_files import MAX_SETTINGS_BYTES, read_json
from .lazy_files import CheckpointError
from .operations import ConversionError, SettingsError, TensorSpec
from .places import Place
from .safetensors_files import SafetensorsFolder
from .setting_kinds import HOST_KINDS, TEXT_OF_TEXTS, TEXTS, Kind, either
from .settings_files import beyond_held, check_kinds, read_settings_object, shown, wrong_kinds
from .writer import OutputFile

Config = TypeVar("Config", bound=PreTrainedConfig)


@dataclass(frozen=True)
class Record:
    """Where a converted folder comes from; kept in it as `conversion.json`, read back by `--reverse`.

    Attributes:
        source: What there is to say of the source, by family. GLM-130B: `iteration` and `tensor_parallel` of its
            files, `bits` it was quantized to on the way. ERNIE: `kind` of files and `settings`; `original_class` of
            an encoder, `first_layers` of each branch of the unified model.
        dropped: Source names that were left out, with the reason where it is not always the same.
        sha256: Weight file -> SHA-256; empty if the result was not verified.
        converter: Version of this package.
        torch: Version of torch.
    """

    source: Mapping[str, Any]
    dropped: Mapping[str, str] | Sequence[str] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    converter: str = hf_glm_ernie.__version__
    torch: str = torch.__version__

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        made = {"dropped": self.dropped, "sha256": self.sha256, "converter": self.converter, "torch": self.torch}
        write_json(folder / RECORD, {**self.source, **made})


def read_record(
    folder: Place, source: Mapping[str, Kind], settings: Mapping[str, Kind] | None = None
) -> Record | None:
    """The record of a converted folder; None if it has none, or a file of that name which is no record.

    Args:
        folder: The folder.
        source: What `Record.source` holds for the family -> what each may be.
        settings: Of the original's settings, if the record holds them: setting -> what it may be.

    Raises:
        CheckpointError: it is there and damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        raw = read_settings_object(path, str(path))
        if not source.keys() <= raw.keys():
            return None
        check_kinds(raw, {**source, "dropped": either(TEXTS, TEXT_OF_TEXTS)}, path)
        missing = [key for key in source if raw[key] is None]
        if missing:
            raise SettingsError(f"{path}: {', '.join(missing)} is null")
        if settings is not None:
            check_kinds(raw["settings"], settings, f"{path}: settings")
    except SettingsError as error:
        raise CheckpointError(
            f"{error} The file says where the folder comes from. Take the one that was written with it, or remove it: "
            "then the way back takes what is usual."
        ) from error
    return Record({key: raw[key] for key in source}, list(raw.get("dropped") or ()))


@dataclass(frozen=True)
class ConvertedFolder:
    """The small files of a folder for `from_pretrained`.

    Attributes:
        config: The model's.
        dtype: Of most weights.
        files: The weight files.
        record: Where they come from.
        card: Makes the model card.
        tokenizer: The tokenizer, if there is one.
        classes: `auto_map` of config.json, whose code is copied; empty where transformers has the class.
        generation: What `generate` does by default, if the model generates.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    files: Sequence[OutputFile]
    record: Record
    card: Callable[[Record], str]
    tokenizer: PreTrainedTokenizerBase | None
    classes: Mapping[str, str] = field(default_factory=dict)
    generation: GenerationConfig | None = None

    def write_first(self, folder: Path) -> None:
        """Writes config.json, the defaults of generation, the tokenizer's files and the code of both, so that the
        folder opens with `trust_remote_code=True` alone.
        """
        self.config.dtype = self.dtype
        if self.classes:
            self.config.auto_map = dict(self.classes)
        self.config.save_pretrained(folder)
        write_code(folder, self.classes.values())
        for part in (self.generation, self.tokenizer):
            if part is not None:
                part.save_pretrained(folder)

    def write_last(self, folder: Path, sha256: Mapping[str, str]) -> None:
        """Writes the index (where there are several shards), the record and the model card."""
        record = replace(self.record, sha256=sha256)
        write_index(folder, self.files)
        record.write(folder)
        (folder / "README.md").write_text(self.card(record), encoding="utf-8", errors="backslashreplace")


def origin_of_paddle(record: Record, what: str, eps: float, command: str, back: str) -> str:
    """The last sections of the model card of what came from one of Paddle's programs.

    Args:
        record: Where it comes from.
        what: The source, in words.
        eps: Of every LayerNorm.
        command: Converts it.
        back: What the command can write again.
    """
    text = (
        f"{what}, converted with hf-glm-ernie {record.converter} (torch {record.torch}, transformers "
        f"{transformers.__version__}). Every LayerNorm has eps {eps:g}. Weights are renamed and transposed, not "
        f"changed, unless `--dtype` asked for another type; `glm-ernie-convert {command} --reverse` writes {back} "
        "back. Left out:"
    )
    dropped = record.dropped
    assert isinstance(dropped, Mapping)  # a record that was read back has names alone; a card is written before
    left_out = "\n".join(f"- `{name}`: {reason}" for name, reason in dropped.items()) or "- nothing"
    text = textwrap.fill(text, width=119, break_on_hyphens=False)
    return ORIGIN.format(text=text, left_out=left_out, checksums=checksum_table(record.sha256))


ORIGIN = """## Origin

{text}

{left_out}

{checksums}

## Licence

Whoever published the source checkpoint sets the licence of these weights.
"""


def read_config(
    folder: Place,
    classes: Sequence[type[Config]],
    what: str,
    check: Callable[[Mapping[str, Any]], None],
    kinds: Mapping[str, Kind],
    held_sizes: Callable[[Mapping[str, TensorSpec]], Mapping[str, int]],
) -> tuple[Config, Mapping[str, Any], SafetensorsFolder]:
    """The configuration of a folder that is to be written in its original format, once nothing in it is more than the
    weights beside it can hold; the content of the file, and the weights.

    Args:
        folder: The folder.
        classes: The configurations it may have.
        what: What should be in the folder, for messages.
        check: Raises `ValueError` for settings that the original format cannot express.
        kinds: The family's: setting -> what it may be. Settings beyond these and transformers' own are left out.
        held_sizes: The most that tensors hold of each size.

    Raises:
        CheckpointError: it is no such configuration, or the weights cannot be opened.
    """
    path = folder / "config.json"
    known = {config_class.model_type: config_class for config_class in classes}
    kinds = {**HOST_KINDS, **kinds}
    try:
        raw = read_json(path, most=MAX_SETTINGS_BYTES)
        if not isinstance(raw, dict) or raw.get("model_type") not in list(known):
            allowed = f"one of {', '.join(known)}" if len(known) > 1 else repr(*known)
            found = shown(raw.get("model_type")) if isinstance(raw, dict) else f"that of a {type(raw).__name__}"
            raise ValueError(f"model_type is {found}, expected {allowed}")
        if wrong := wrong_kinds(raw, kinds):
            raise ValueError(". ".join(wrong))
        check(raw)
        checkpoint = SafetensorsFolder(folder)
        if beyond := beyond_held(raw, held_sizes(checkpoint.specs)):
            raise ValueError(". ".join(beyond))
        config = known[raw["model_type"]].from_dict({key: value for key, value in raw.items() if key in kinds})
    except ConversionError:
        raise
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: not the configuration of {what} ({error})") from error
    return config, raw, checkpoint


def check_plain(raw: Mapping[str, Any]) -> None:
    """Raises `ValueError` for the config.json of quantized weights, or of no or several classes."""
    if raw.get("quantization_config"):
        raise ValueError("the weights are quantized; only floating-point weights can be written")
    if len(raw.get("architectures") or []) != 1:
        raise ValueError(f"architectures should name one class, it is {shown(raw.get('architectures'))}")


__all__ = ["ConvertedFolder", "Record", "check_plain", "origin_of_paddle", "read_config", "read_record"]
