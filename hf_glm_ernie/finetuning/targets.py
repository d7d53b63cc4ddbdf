"""Which modules adapters attach to where the user names none: entries for our model types in PEFT's tables.

GLM-130B's modules are called as Llama's and those of the ERNIE encoders as BERT's, so each method's own choice for
those serves: LoRA takes `q_proj` and `v_proj`, or `query` and `value`; IA3 the keys, values and the second linear of
the feed-forward. ERNIE 3.0's universal model has names of its own for the feed-forward, and takes the choices that
name attention only.

PEFT is optional and takes a second to import, so the entries are made when it is there: at once where it has been
imported, else when PEFT first takes a model, which torch tells those who ask about new submodules.
"""

import sys
from types import ModuleType
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook

TABLES = "peft.utils.constants"
LIKE_LLAMA = ("glm130b",)
LIKE_BERT = ("ernie", "ernie_gplinker", "ernie_uie", "ernie_utc")
ATTENTION_LIKE_LLAMA = ("ernie3",)
ATTENTION_OF_LLAMA = {"q_proj", "k_proj", "v_proj"}


def add_default_targets(tables: ModuleType) -> None:
    """Makes the entries; those that PEFT or the user has made already stay.

    Args:
        tables: The module `peft.utils.constants`.
    """
    for name, table in vars(tables).items():
        if not (name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING")):
            continue
        for like, model_types in (("llama", LIKE_LLAMA), ("bert", LIKE_BERT)):
            for model_type in model_types if like in table else ():
                table.setdefault(model_type, list(table[like]))
        if ATTENTION_OF_LLAMA.issuperset(table.get("llama", ["none"])):
            for model_type in ATTENTION_LIKE_LLAMA:
                table.setdefault(model_type, list(table["llama"]))


def register_default_targets() -> None:
    """Sees to it that PEFT knows our model types before it looks for one. Registering again is harmless."""
    if TABLES in sys.modules:
        add_default_targets(sys.modules[TABLES])
        return
    waits = True

    def add_when_adapted(module: Any, name: str, submodule: Any) -> None:
        nonlocal waits  # torch is going through its hooks, so this one cannot leave
        if waits and type(module).__module__.startswith("peft."):
            waits = False
            add_default_targets(sys.modules[TABLES])

    register_module_module_registration_hook(add_when_adapted)


register_default_targets()

__all__ = ["add_default_targets", "register_default_targets"]
