"""What PaddleNLP's adapters are called and made of: folders with a few trained matrices and no model.

LoRA, which a conversion merges into the model it was trained on (`ernie_lora`), is `lora_config.json` with
`lora_model_state.pdparams`, or with `peft_model.safetensors` where the Trainer's unified checkpoints were on. The
other kinds cannot be merged into an encoder, and are refused by name wherever weights are looked for.

Sources: PaddleNLP 2.8.1 `utils/env.py`, `peft/lora/lora_model.py`, `peft/prefix/prefix_model.py`; develop
`peft/{vera,lokr,reft}`.
"""

from collections.abc import Mapping
from pathlib import Path

from .lazy_files import CheckpointError

LORA_SETTINGS = "lora_config.json"
LORA_WEIGHTS = "lora_model_state.pdparams"
SAFETENSORS_WEIGHTS = "peft_model.safetensors"

NOT_MERGED: Mapping[str, str] = {
    "prefix": (
        "prefix tuning: trained keys and values that stand before a decoder's, which no encoder of transformers takes"
    ),
    "vera": "VeRA: vectors on matrices that all linears share",
    "lokr": "LoKr: Kronecker products",
    "reft": "ReFT: interventions on hidden states between the layers, which no weight can hold",
}
"""Kind -> what it is. Its files are `<kind>_config.json` and `<kind>_model_state.pdparams`."""

MODEL_FILES = ("model_state.pdparams", "model.safetensors")


def is_lora(path: Path) -> bool:
    """Whether a folder or file is a LoRA adapter of PaddleNLP's and no model."""
    if path.is_dir():
        here = any((path / name).is_file() for name in (LORA_SETTINGS, LORA_WEIGHTS))
        return here and not _has_model(path)
    return path.name in (LORA_SETTINGS, LORA_WEIGHTS)


def refuse_adapter(path: Path) -> None:
    """Raises `CheckpointError` for what is an adapter, and says which kind."""
    if is_lora(path):
        raise CheckpointError(
            f"{path}: a LoRA adapter, trained beside a model's weights, not the model. Pass --base with the "
            "checkpoint it was trained on (lora_config.json names it in base_model_name_or_path, if it was kept): the "
            "two are then merged."
        )
    for kind, what in NOT_MERGED.items():
        names = (f"{kind}_config.json", f"{kind}_model_state.pdparams")
        if path.name in names or (
            path.is_dir() and any((path / name).is_file() for name in names) and not _has_model(path)
        ):
            raise CheckpointError(
                f"{path}: an adapter of the kind {what}. It cannot be merged into the weights of an encoder. Convert "
                "the model it was trained on."
            )


def _has_model(folder: Path) -> bool:
    return any((folder / f"{name}{ending}").is_file() for name in MODEL_FILES for ending in ("", ".index.json"))


__all__ = ["LORA_SETTINGS", "LORA_WEIGHTS", "SAFETENSORS_WEIGHTS", "is_lora", "refuse_adapter"]
