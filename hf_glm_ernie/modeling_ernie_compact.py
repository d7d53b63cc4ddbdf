"""The host's ERNIE classes for encoders that were made smaller; UIE and UTC have the same in classes of their own.

An encoder of which attention heads were taken out, or whose embeddings are integers, is no model that the host's
classes can open (`configuration_ernie_compact.py` says why). Each class below is the host's, built first and then made
smaller; a folder saved from one carries its code.
"""

from typing import Any

import transformers

from .compact_ernie import make_compact
from .configuration_ernie_compact import ErnieCompactConfig
from .host_interface import CarriesItsCode
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {
    "AutoConfig": "configuration_ernie_compact.ErnieCompactConfig",
    "AutoModel": "modeling_ernie_compact.ErnieCompactModel",
    "AutoModelForSequenceClassification": "modeling_ernie_compact.ErnieCompactForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_ernie_compact.ErnieCompactForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_ernie_compact.ErnieCompactForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_ernie_compact.ErnieCompactForMultipleChoice",
}


class ErnieCompactModel(CarriesItsCode, transformers.ErnieModel):
    """The encoder, with a pooler on top."""

    config_class = ErnieCompactConfig
    hub_classes = HUB_CLASSES
    _auto_class = "AutoModel"

    def __init__(self, config: ErnieCompactConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer)
        make_compact(self, config)


class ErnieCompactForSequenceClassification(CarriesItsCode, transformers.ErnieForSequenceClassification):
    """A label for each row."""

    config_class = ErnieCompactConfig
    hub_classes = HUB_CLASSES
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: ErnieCompactConfig):
        super().__init__(config)
        make_compact(self.ernie, config)


class ErnieCompactForTokenClassification(CarriesItsCode, transformers.ErnieForTokenClassification):
    """A label for each token."""

    config_class = ErnieCompactConfig
    hub_classes = HUB_CLASSES
    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: ErnieCompactConfig):
        super().__init__(config)
        make_compact(self.ernie, config)


class ErnieCompactForQuestionAnswering(CarriesItsCode, transformers.ErnieForQuestionAnswering):
    """Where an answer starts and ends."""

    config_class = ErnieCompactConfig
    hub_classes = HUB_CLASSES
    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: ErnieCompactConfig):
        super().__init__(config)
        make_compact(self.ernie, config)


class ErnieCompactForMultipleChoice(CarriesItsCode, transformers.ErnieForMultipleChoice):
    """One of several continuations."""

    config_class = ErnieCompactConfig
    hub_classes = HUB_CLASSES
    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: ErnieCompactConfig):
        super().__init__(config)
        make_compact(self.ernie, config)


COMPACT_CLASSES: dict[str, Any] = {
    "ErnieModel": ErnieCompactModel,
    "ErnieForSequenceClassification": ErnieCompactForSequenceClassification,
    "ErnieForTokenClassification": ErnieCompactForTokenClassification,
    "ErnieForQuestionAnswering": ErnieCompactForQuestionAnswering,
    "ErnieForMultipleChoice": ErnieCompactForMultipleChoice,
}
"""The host's class by its name -> the one for a smaller encoder."""

__all__ = [
    "ErnieCompactForMultipleChoice",
    "ErnieCompactForQuestionAnswering",
    "ErnieCompactForSequenceClassification",
    "ErnieCompactForTokenClassification",
    "ErnieCompactModel",
]
