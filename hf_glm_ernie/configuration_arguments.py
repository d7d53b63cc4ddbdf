"""Which arguments a config takes when it is made by hand.

The host keeps whatever a config is given as an attribute, so that files of other versions load. In a call that means
that `Glm130bConfig(num_layers=4)` describes a model of 70 layers without a word. A dict that came from a file says so:
it has the model's type, or the version of the host that wrote it.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

FROM_A_FILE = ("model_type", "transformers_version")
# What the host takes beside fields, in the versions that are supported.
TAKEN_BY_THE_HOST = {
    *("torch_dtype", "num_labels", "name_or_path", "rope_scaling", "output_attentions", "attn_implementation"),
    *("experts_implementation", "per_layer_config", "return_unused_kwargs"),
}


def check_arguments(config: PreTrainedConfig, given: Mapping[str, Any]) -> None:
    """Refuses arguments that are no settings of a config.

    Args:
        config: Being made.
        given: What is no field of it, as the host hands it to `__post_init__`.

    Raises:
        ValueError: a name that neither the config nor the host knows, unless all came from a file.
    """
    if any(name in given for name in FROM_A_FILE):
        return
    unknown = [
        name
        for name in given
        if not name.startswith("_")
        and name not in TAKEN_BY_THE_HOST
        and not hasattr(type(config), name)
        and not hasattr(GenerationConfig(), name)
    ]
    if not unknown:
        return
    fields = sorted(type(config).__dataclass_fields__)
    near = [match for name in unknown for match in difflib.get_close_matches(name, fields, n=2)]
    hint = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    raise ValueError(
        f"{type(config).__name__} has no setting {', '.join(unknown)}.{hint} What else a config is to carry can be "
        "set as an attribute later."
    )


__all__ = ["check_arguments"]
