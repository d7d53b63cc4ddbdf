"""What `publish` is given: a model folder, looked at before anything is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder_files import RECORD
from .json_files import read_json
from .publish_classes import PUBLISHED, Published
from .safetensors_files import SAFETENSORS_INDEX as INDEX
from .safetensors_files import SAFETENSORS_SINGLE as SINGLE
from .safetensors_files import open_safetensors_file
from .state_map import ConversionError

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
)
"""Small files a repository takes over, where the folder has them; config.json and the index always."""


class PublishError(ConversionError):
    """A folder cannot be published."""


@dataclass(frozen=True)
class Source:
    """A folder that holds together.

    Attributes:
        folder: Where.
        row: What its model type needs.
        config: Its config.json.
        architecture: The model class it was saved from.
        weights: Weight files.
        small: Small files a repository takes over.
        left_out: Everything else, which stays behind.
        record: `conversion.json`; empty where a converter did not write the folder.
    """

    folder: Path
    row: Published
    config: Mapping[str, Any]
    architecture: str
    weights: tuple[Path, ...]
    small: tuple[Path, ...]
    left_out: tuple[str, ...]
    record: Mapping[str, Any]

    @property
    def quant_method(self) -> str | None:
        """How the weights are quantized, if they are."""
        settings = self.config.get("quantization_config") or {}
        return settings.get("quant_method")

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.weights)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer goes with the model."""
        return (self.folder / "tokenizer.json").is_file()


def read_source(folder: Path) -> Source:
    """Looks at a folder that a converter or `save_pretrained` wrote.

    Raises:
        PublishError: it is not a finished model folder of a known type.
        CheckpointError: a weight file is damaged.
    """
    _refuse_what_is_no_model(folder)
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in PUBLISHED:
        raise PublishError(
            f"{folder}: model_type is {model_type!r}; the types this command publishes are {', '.join(PUBLISHED)}. "
            "Others have their own ways to the Hub, such as push_to_hub."
        )
    row = PUBLISHED[model_type]
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in row.auto_classes:
        raise PublishError(
            f"{folder}: architectures in config.json is {names!r}; it should name one of "
            f"{', '.join(row.auto_classes)}. Save the model again with save_pretrained."
        )
    weights = _weights(folder)
    small = [folder / name for name in CARRIED if (folder / name).is_file()]
    index = folder / INDEX
    small += [index] if index.is_file() else []
    known = {path.name for path in (*weights, *small)} | {"config.json", "README.md", ".gitattributes"}
    others = (path for path in folder.iterdir() if path.name not in known and path.suffix != ".py")
    record = _read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return Source(folder, row, config, names[0], weights, tuple(small), tuple(sorted(p.name for p in others)), record)


def _refuse_what_is_no_model(folder: Path) -> None:
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder. Give the folder that a converter or save_pretrained wrote.")
    if (folder / ".conversion").exists() or folder.name.endswith(".incomplete"):
        raise PublishError(
            f"{folder}: an unfinished conversion. Run the command that made it again, with the same options: it goes "
            "on where it stopped. Then publish the folder without `.incomplete`."
        )
    if (folder / "adapter_config.json").is_file() and not _has_weights(folder):
        raise PublishError(
            f"{folder}: an adapter, not a model. Push it with PEFT's own `model.push_to_hub(...)`, or merge it "
            "(`model.merge_and_unload().save_pretrained(...)`) and publish the result."
        )
    if not (folder / "config.json").is_file():
        raise PublishError(
            f"{folder}: not a model folder, it has no config.json. Give the folder that a converter or "
            "save_pretrained wrote."
        )


def _has_weights(folder: Path) -> bool:
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _weights(folder: Path) -> tuple[Path, ...]:
    """The weight files, whose headers agree with the index."""
    if not _has_weights(folder):
        others = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        raise PublishError(
            f"{folder}: neither {SINGLE} nor {INDEX}"
            + (f", only {others[0]}. Open it with from_pretrained and save it" if others else ". Save the model")
            + " with save_pretrained, which writes safetensors."
        )
    if (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        raise PublishError(
            f"{folder}: {SINGLE} and {INDEX} at once, so two models lie in one folder; remove the older one."
        )
    if (folder / SINGLE).is_file():
        open_safetensors_file(folder / SINGLE)
        return (folder / SINGLE,)
    placed = _read_json(folder / INDEX).get("weight_map") or {}
    files = sorted(set(placed.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or not files:
        raise PublishError(
            f"{folder}: {len(missing)} of {len(files)} files that {INDEX} names are missing"
            + (f", e.g. {missing[0]}" if missing else "")
            + ". Copy or convert the folder again."
        )
    for name in files:
        held = set(open_safetensors_file(folder / name).tensors)
        expected = {tensor for tensor, file in placed.items() if file == name}
        if held != expected:
            raise PublishError(
                f"{folder}: {name} does not hold what {INDEX} says, e.g. {sorted(held ^ expected)[0]}. The files are "
                "of different runs; convert or save again."
            )
    return tuple(folder / name for name in files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise PublishError(f"{path}: not JSON ({error}). Take the file from where the folder was written.") from error
    if not isinstance(content, dict):
        raise PublishError(f"{path}: holds a {type(content).__name__}, not an object with settings.")
    return content


__all__ = ["PublishError", "Source", "read_source"]
