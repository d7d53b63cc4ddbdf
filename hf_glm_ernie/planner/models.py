"""The released models by name: what the planner counts where there is no folder yet.

The names of encoders are PaddleNLP's. Source of their sizes: PaddleNLP 2.8.1, `transformers/ernie/configuration.py`.
"""

import difflib
from typing import Any

from transformers import ErnieConfig, PreTrainedConfig

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.configuration_glm130b import Glm130bConfig

# Layers, hidden size, heads, inner size.
SIZES = {
    "xbase": (20, 1024, 16, 4096),
    "base": (12, 768, 12, 3072),
    "medium": (6, 768, 12, 3072),
    "mini": (6, 384, 12, 1536),
    "micro": (4, 384, 12, 1536),
    "nano": (4, 312, 12, 1248),
    "pico": (3, 128, 2, 512),
}
FIRST = ("xbase", "base", "medium", "mini", "micro", "nano")
WITHOUT_XBASE = FIRST[1:]
CROSS: dict[str, Any] = {"architectures": ["ErnieForSequenceClassification"]}
OLDER: dict[str, Any] = {
    "use_task_id": False,
    "max_position_embeddings": 512,
}  # ERNIE 1.0 and 2.0, on which some stand
ENGLISH = OLDER | {"vocab_size": 30522}
DUREADER = OLDER | {"vocab_size": 18000, "max_position_embeddings": 513, "type_vocab_size": 2, "hidden_act": "relu"}


def _encoder(size: str, kind: type[ErnieConfig] = ErnieConfig, **changes: Any) -> ErnieConfig:
    """The settings of a released encoder; `changes` in place of what most have."""
    layers, width, heads, inner = SIZES[size]
    settings: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": 40000,
        "max_position_embeddings": 2048,
        "type_vocab_size": 4,
        "task_type_vocab_size": 3 if size == "base" else 16,
        "use_task_id": True,
    }
    return kind(**(settings | changes))


def _encoders() -> dict[str, PreTrainedConfig]:
    released: dict[str, PreTrainedConfig] = {f"ernie-3.0-{size}-zh": _encoder(size) for size in FIRST}
    released |= {f"ernie-3.0-tiny-{size}-v1-zh": _encoder(size) for size in WITHOUT_XBASE}
    released |= {
        f"ernie-3.0-tiny-{size}-v2-zh": _encoder(size, use_task_id=False) for size in (*WITHOUT_XBASE, "pico")
    }
    released["ernie-3.0-tiny-mini-v2-en"] = _encoder(
        "mini", use_task_id=False, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
    )
    for stem in ("uie", "uie-senta"):
        released |= {f"{stem}-{size}": _encoder(size, ErnieUIEConfig) for size in WITHOUT_XBASE}
    released |= {f"uie-base-{use}": _encoder("base", ErnieUIEConfig) for use in ("answer-extractor", "qa-filter")}
    released["uie-base-en"] = _encoder("base", ErnieUIEConfig, **ENGLISH)
    released |= {
        f"utc-{size}": _encoder(size, ErnieUTCConfig, vocab_size=39981, use_task_id=size == "xbase") for size in SIZES
    }
    released["utc-large"] = _encoder(
        "base",
        ErnieUTCConfig,
        num_hidden_layers=24,
        hidden_size=1024,
        num_attention_heads=16,
        vocab_size=17965,
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_act="relu",
    )
    released |= {f"rocketqa-{size}-cross-encoder": _encoder(size, **CROSS) for size in WITHOUT_XBASE}
    released |= {
        f"rocketqa-zh-{size}-{side}-encoder": _encoder(size) for size in WITHOUT_XBASE for side in ("query", "para")
    }
    for stem, changes in (("zh-dureader", DUREADER), ("v1-marco", ENGLISH), ("v2-en-marco", ENGLISH)):
        stem = f"rocketqa{'' if stem.startswith('v2') else '-'}{stem}"
        released |= {f"{stem}-{side}-encoder": _encoder("base", **changes) for side in ("query", "para")}
        released[f"{stem}-cross-encoder"] = _encoder("base", **changes, **CROSS)
    return released


PRESETS: dict[str, PreTrainedConfig] = {
    "glm130b": Glm130bConfig(),
    **_encoders(),
    "ernie3-10b": Ernie3Config.ernie3_10b(),
    "ernie3-titan": Ernie3Config.titan(),
}
ALIASES = {"glm-130b": "glm130b"}
IN_SHORT = (
    "glm130b (GLM-130B), ernie3-10b, ernie3-titan, and the released encoders by PaddleNLP's names: "
    "ernie-3.0-{xbase,base,medium,mini,micro,nano}-zh, ernie-3.0-tiny-SIZE-v1-zh and -v2-zh, uie-*, utc-*, rocketqa-*"
)


def preset_of(name: str) -> str | None:
    """The key of `PRESETS` that a name means; `None` where it means none.

    Args:
        name: As people write it: in any case, with or without the owner of a repository.
    """
    plain = name.rpartition("/")[2].lower()
    plain = ALIASES.get(plain, plain)
    return plain if plain in PRESETS else None


def known_models(name: str) -> str:
    """What a message says of the names there are, those that look like the given one first."""
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), [*PRESETS, *ALIASES], n=3)
    return (f"Did you mean {', '.join(near)}? " if near else "") + f"Known: {IN_SHORT}."


__all__ = ["ALIASES", "IN_SHORT", "PRESETS", "known_models", "preset_of"]
