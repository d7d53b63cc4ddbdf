"""The host's ERNIE classes for Hub repositories with integer weights; nobody needs this file otherwise.

A folder of a native ERNIE encoder opens with transformers alone, but a quantized one asks for a quantizer that
transformers does not have. So a repository with such weights carries this file: each class below is the host's,
unchanged and under its own name, and importing the file registers the quantizer. They are classes of their own
because the host marks the class it opens as code to be saved with the model, and cannot save code from inside itself.
"""

import transformers

from .host_versions import warn_of_untested_host  # noqa: F401  # it warns when it is imported
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it


class ErnieModel(transformers.ErnieModel):
    """The encoder, with a pooler on top."""


class ErnieForPreTraining(transformers.ErnieForPreTraining):
    """Masked words and the order of two sentences."""


class ErnieForMaskedLM(transformers.ErnieForMaskedLM):
    """Masked words."""


class ErnieForSequenceClassification(transformers.ErnieForSequenceClassification):
    """A label for each row."""


class ErnieForTokenClassification(transformers.ErnieForTokenClassification):
    """A label for each token."""


class ErnieForQuestionAnswering(transformers.ErnieForQuestionAnswering):
    """Where an answer starts and ends."""


class ErnieForMultipleChoice(transformers.ErnieForMultipleChoice):
    """One of several continuations."""


__all__ = [
    "ErnieForMaskedLM",
    "ErnieForMultipleChoice",
    "ErnieForPreTraining",
    "ErnieForQuestionAnswering",
    "ErnieForSequenceClassification",
    "ErnieForTokenClassification",
    "ErnieModel",
]
