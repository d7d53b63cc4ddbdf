"""What a Hub repository of each model type carries: one table, a row for each model type.

A class stands as `file.Class`, the way `auto_map` names it; `None` in the place of a file means that transformers has
the class itself. A further model type is one more row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hf_glm_ernie.configuration_ernie3 import HUB_CLASSES as ERNIE3_CLASSES
from hf_glm_ernie.weight_only import METHOD

from .ernie_names import TASKS
from .glm130b_files import LICENSE_LINK

License = tuple[str, str | None, str | None]
"""License of a model card: identifier, name and link; the latter two only with the identifier "other"."""

APACHE: License = ("apache-2.0", None, None)
AS_SOURCE: License = ("other", "as-the-source-checkpoint", None)


@dataclass(frozen=True)
class Published:
    """A row: one model type.

    Attributes:
        model_type: As config.json spells it.
        title: For the model card's first line.
        config: The configuration class; None where transformers has it.
        models: Auto class -> model class; every Auto class that can open the weights.
        native: Whether transformers opens the model type itself, so that `models` are needed for quantized weights
            only.
        tokenizer: The tokenizer class; None where `AutoTokenizer` gives the same ids from tokenizer.json alone.
        auto_classes: Architecture -> the Auto class that opens it, which the check and the card's example use.
        pipelines: Architecture -> the card's `pipeline_tag`.
        tags: Of the card.
        language: Of the card.
        license: Of the released weights, in the form of `APACHE`.
        released: Settings only the released weights and what is made of them have; others get `AS_SOURCE`.
        extra_inputs: What `forward` needs beside token ids to be tried.
        texts: Texts whose ids are compared.
    """

    model_type: str
    title: str
    config: str | None
    models: Mapping[str, str]
    native: bool
    tokenizer: str | None
    auto_classes: Mapping[str, str]
    pipelines: Mapping[str, str]
    tags: tuple[str, ...]
    language: tuple[str, ...]
    license: License
    released: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    extra_inputs: Mapping[str, list[list[int]] | list[int]] = field(default_factory=lambda: MappingProxyType({}))
    texts: tuple[str, ...] = ()


_ERNIE_TEXTS = ("巴黎是法国的首都。", "ERNIE 3.0 [MASK] 25℃", "价格$")
_NATIVE = tuple(task for task in TASKS if task.is_native)

ROWS = (
    Published(
        model_type="glm130b",
        title="GLM-130B",
        config="configuration_glm130b.Glm130bConfig",
        models={
            "AutoModel": "modeling_glm130b.Glm130bModel",
            "AutoModelForCausalLM": "modeling_glm130b.Glm130bForCausalLM",
        },
        native=False,
        tokenizer="tokenization_glm130b.Glm130bTokenizer",
        auto_classes={"Glm130bForCausalLM": "AutoModelForCausalLM", "Glm130bModel": "AutoModel"},
        pipelines={"Glm130bForCausalLM": "text-generation", "Glm130bModel": "feature-extraction"},
        tags=("glm", "glm130b", "prefix-lm"),
        language=("en", "zh"),
        license=("other", "glm-130b-model-license", LICENSE_LINK),
        released={"num_hidden_layers": 70, "hidden_size": 12288, "vocab_size": 150528},
        texts=("Ng is an adjunct professor at [MASK].", "填空 [gMASK]", "a  b\n1"),
    ),
    Published(
        model_type="ernie3",
        title="ERNIE 3.0 (unified framework)",
        config=ERNIE3_CLASSES["AutoConfig"],
        models={auto: name for auto, name in ERNIE3_CLASSES.items() if auto != "AutoConfig"},
        native=False,
        tokenizer=None,
        auto_classes={name.rpartition(".")[2]: auto for auto, name in ERNIE3_CLASSES.items() if auto != "AutoConfig"},
        pipelines={
            "Ernie3Model": "feature-extraction",
            "Ernie3ForPreTraining": "fill-mask",
            "Ernie3ForCausalLM": "text-generation",
            "Ernie3ForMaskedLM": "fill-mask",
            "Ernie3ForSequenceClassification": "text-classification",
            "Ernie3ForTokenClassification": "token-classification",
            "Ernie3ForQuestionAnswering": "question-answering",
            "Ernie3ForMultipleChoice": "multiple-choice",
        },
        tags=("ernie", "ernie3"),
        language=("zh", "en"),
        license=AS_SOURCE,
        texts=("巴黎是法国的首都。它在塞纳河边！", "ERNIE 3.0 [MASK] 25℃"),
    ),
    Published(
        model_type="ernie_uie",
        title="UIE (information extraction on ERNIE 3.0)",
        config="configuration_ernie_uie.ErnieUIEConfig",
        models={"AutoModel": "modeling_ernie_uie.ErnieForUIE"},
        native=False,
        tokenizer="tokenization_ernie.ErnieTokenizer",
        auto_classes={"ErnieForUIE": "AutoModel"},
        pipelines={"ErnieForUIE": "token-classification"},
        tags=("ernie", "uie", "information-extraction"),
        language=("zh", "en"),
        license=APACHE,
        texts=_ERNIE_TEXTS,
    ),
    Published(
        model_type="ernie_utc",
        title="UTC (zero-shot classification on ERNIE 3.0)",
        config="configuration_ernie_utc.ErnieUTCConfig",
        models={"AutoModel": "modeling_ernie_utc.ErnieForUTC"},
        native=False,
        tokenizer="tokenization_ernie.ErnieTokenizer",
        auto_classes={"ErnieForUTC": "AutoModel"},
        pipelines={"ErnieForUTC": "zero-shot-classification"},
        tags=("ernie", "utc"),
        language=("zh", "en"),
        license=APACHE,
        extra_inputs={"omask_positions": [[1, 3]], "cls_positions": [0]},
        texts=_ERNIE_TEXTS,
    ),
    Published(
        model_type="ernie",
        title="ERNIE 3.0",
        config=None,
        models={task.auto_class: f"modeling_ernie_quantized.{task.architecture}" for task in _NATIVE},
        native=True,
        tokenizer=None,
        auto_classes={task.architecture: task.auto_class for task in _NATIVE},
        pipelines={task.architecture: task.pipeline for task in _NATIVE},
        tags=("ernie",),
        language=("zh", "en"),
        license=APACHE,
        texts=_ERNIE_TEXTS,
    ),
)
PUBLISHED = {row.model_type: row for row in ROWS}
"""Model type -> its row."""


def license_of(row: Published, config: Mapping[str, Any]) -> License:
    """The licence weights have unless their publisher says otherwise.

    Args:
        row: The model type.
        config: Their config.json.
    """
    return row.license if all(config.get(key) == value for key, value in row.released.items()) else AS_SOURCE


def remote_classes(row: Published, quant_method: str | None) -> dict[str, str]:
    """`auto_map` of config.json: Auto class -> `file.Class`; empty where transformers opens the weights itself.

    Args:
        row: The model type.
        quant_method: Of the weights; None where they are not quantized.
    """
    if row.native and quant_method != METHOD:
        return {}
    config = {} if row.config is None else {"AutoConfig": row.config}
    return config | dict(row.models)


__all__ = ["AS_SOURCE", "PUBLISHED", "License", "Published", "license_of", "remote_classes"]
