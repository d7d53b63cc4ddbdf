"""What a Hub repository of each model type carries: one table, a row for each model type.

A class stands as `file.Class`, the way `auto_map` names it. A further model type is one more row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hf_glm_ernie.configuration_ernie3 import HUB_CLASSES as ERNIE3_CLASSES
from hf_glm_ernie.modeling_ernie_compact import HUB_CLASSES as COMPACT_CLASSES
from hf_glm_ernie.modeling_ernie_gplinker import HUB_CLASSES as GPLINKER_CLASSES
from hf_glm_ernie.modeling_ernie_uie import HUB_CLASSES as UIE_CLASSES
from hf_glm_ernie.modeling_ernie_utc import HUB_CLASSES as UTC_CLASSES
from hf_glm_ernie.modeling_glm130b import HUB_CLASSES as GLM130B_CLASSES
from hf_glm_ernie.weight_only import METHOD

from .ernie_names import TASKS
from .folder_files import PIPELINES
from .glm130b_files import LICENSE_LINK

License = tuple[str, str | None, str | None]
"""License of a model card: identifier, name and link; the latter two only with the identifier "other"."""

APACHE: License = ("apache-2.0", None, None)
AS_SOURCE: License = ("other", "as-the-source-checkpoint", None)


_ERNIE_TOKENIZER = "tokenization_ernie.ErnieTokenizer"
_ERNIE_TEXTS = ("巴黎是法国的首都。", "ERNIE 3.0 [MASK] 25℃", "价格$")


@dataclass(frozen=True)
class Published:
    """A row: one model type.

    Attributes:
        model_type: As config.json spells it.
        title: For the model card's first line.
        classes: `auto_map`: every Auto class that can open the weights -> `file.Class`.
        license: Of the released weights, in the form of `APACHE`.
        tags: Of the card.
        language: Of the card.
        native: Whether transformers opens the model type itself, so that `classes` are needed for quantized weights
            only.
        tokenizer: The tokenizer class; None where `AutoTokenizer` gives the same ids from tokenizer.json alone.
        pipeline: The card's `pipeline_tag`; None where the Auto class tells.
        released: Settings only the released weights and what is made of them have; others get `AS_SOURCE`.
        extra_inputs: What `forward` needs beside token ids to be tried.
        texts: Texts whose ids are compared.
    """

    model_type: str
    title: str
    classes: Mapping[str, str]
    license: License
    tags: tuple[str, ...]
    language: tuple[str, ...] = ("zh", "en")
    native: bool = False
    tokenizer: str | None = None
    pipeline: str | None = None
    released: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    extra_inputs: Mapping[str, list[list[int]] | list[int]] = field(default_factory=lambda: MappingProxyType({}))
    texts: tuple[str, ...] = _ERNIE_TEXTS

    @property
    def models(self) -> dict[str, str]:
        """Auto class -> `file.Class` of a model."""
        return {auto: name for auto, name in self.classes.items() if auto != "AutoConfig"}

    @property
    def auto_classes(self) -> dict[str, str]:
        """Architecture -> the Auto class that opens it, which the check and the card's example use."""
        return {name.rpartition(".")[2]: auto for auto, name in self.models.items()}

    @property
    def pipelines(self) -> dict[str, str]:
        """Architecture -> the card's `pipeline_tag`."""
        return {name: self.pipeline or PIPELINES[auto] for name, auto in self.auto_classes.items()}


ROWS = (
    Published(
        model_type="glm130b",
        title="GLM-130B",
        classes=GLM130B_CLASSES,
        license=("other", "glm-130b-model-license", LICENSE_LINK),
        tags=("glm", "glm130b", "prefix-lm"),
        language=("en", "zh"),
        tokenizer="tokenization_glm130b.Glm130bTokenizer",
        released={"num_hidden_layers": 70, "hidden_size": 12288, "vocab_size": 150528},
        texts=("Ng is an adjunct professor at [MASK].", "填空 [gMASK]", "a  b\n1"),
    ),
    Published(
        model_type="ernie3",
        title="ERNIE 3.0 (unified framework)",
        classes=ERNIE3_CLASSES,
        license=AS_SOURCE,
        tags=("ernie", "ernie3"),
        texts=("巴黎是法国的首都。它在塞纳河边！", "ERNIE 3.0 [MASK] 25℃"),
    ),
    Published(
        model_type="ernie_uie",
        title="UIE (information extraction on ERNIE 3.0)",
        classes=UIE_CLASSES,
        license=APACHE,
        tags=("ernie", "uie", "information-extraction"),
        tokenizer=_ERNIE_TOKENIZER,
        pipeline="token-classification",
    ),
    Published(
        model_type="ernie_gplinker",
        title="GPLinker (extraction for one schema on ERNIE 3.0)",
        classes=GPLINKER_CLASSES,
        license=AS_SOURCE,
        tags=("ernie", "gplinker", "information-extraction"),
        tokenizer=_ERNIE_TOKENIZER,
        pipeline="token-classification",
    ),
    Published(
        model_type="ernie_utc",
        title="UTC (zero-shot classification on ERNIE 3.0)",
        classes=UTC_CLASSES,
        license=APACHE,
        tags=("ernie", "utc"),
        tokenizer=_ERNIE_TOKENIZER,
        pipeline="zero-shot-classification",
        extra_inputs={"omask_positions": [[1, 3]], "cls_positions": [0]},
    ),
    Published(
        model_type="ernie_compact",
        title="ERNIE 3.0, made smaller",
        classes=COMPACT_CLASSES,
        license=APACHE,
        tags=("ernie",),
        tokenizer=_ERNIE_TOKENIZER,
    ),
    Published(
        model_type="ernie",
        title="ERNIE 3.0",
        classes={t.auto_class: f"modeling_ernie_quantized.{t.architecture}" for t in TASKS if t.is_native},
        license=APACHE,
        tags=("ernie",),
        native=True,
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
    return {} if row.native and quant_method != METHOD else dict(row.classes)


__all__ = ["AS_SOURCE", "PUBLISHED", "License", "Published", "license_of", "remote_classes"]
