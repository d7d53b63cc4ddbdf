"""Which modules adapters attach to where the user names none: entries for our model types in PEFT's tables.

GLM-130B's modules are called as Llama's and those of the ERNIE encoders as BERT's, so each method's own choice for
those serves: LoRA takes `q_proj` and `v_proj`, or `query` and `value`; IA3 the keys, values and the second linear of
the feed-forward. ERNIE 3.0's universal model has names of its own for the feed-forward, and takes the choices that
name attention only.

PEFT is optional and takes a second to import, so the entries are made when PEFT is imported: at once where it has
been, else by a finder that waits for the module of the tables and leaves when it has come.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

TABLES = "peft.utils.constants"
LIKE_LLAMA = ("glm130b",)
LIKE_BERT = ("ernie", "ernie_uie", "ernie_utc")
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


class _WaitForTables(importlib.abc.MetaPathFinder):
    """Finds `peft.utils.constants` as the others do, and has the entries made once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load: Any = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                add_default_targets(module)

            spec.loader.exec_module = load_and_add  # type: ignore[method-assign]  # on this spec alone
        return spec


def register_default_targets() -> None:
    """Sees to it that PEFT knows our model types, now or when it is imported. Registering again is harmless."""
    if TABLES in sys.modules:
        add_default_targets(sys.modules[TABLES])
    elif not any(type(finder).__name__ == _WaitForTables.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForTables())


register_default_targets()

__all__ = ["add_default_targets", "register_default_targets"]
