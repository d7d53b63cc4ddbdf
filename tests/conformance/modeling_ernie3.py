"""The host's model, configuration, training and generation suites on ERNIE 3.0's unified classes.

`run.py` puts this file into the host's test tree. Three kinds of testers: the generation branch, the heads of the
understanding branch, and the model of all pre-training tasks; the first and the last with relative positions too.
"""

import copy
import unittest
from typing import Any, ClassVar

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from hf_glm_ernie import (
    Ernie3Config,
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForPreTraining,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
    Ernie3Model,
)

from .cache_names import BothCacheNames

# The suites look classes up by name to learn which of them take labels; out-of-tree names are unknown there.
modeling_auto.MODEL_MAPPING_NAMES[Ernie3Config.model_type] = Ernie3Model.__name__
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES[Ernie3Config.model_type] = Ernie3ForPreTraining.__name__
for task, model_class in {
    "CAUSAL_LM": Ernie3ForCausalLM,
    "MASKED_LM": Ernie3ForMaskedLM,
    "MULTIPLE_CHOICE": Ernie3ForMultipleChoice,
    "QUESTION_ANSWERING": Ernie3ForQuestionAnswering,
    "SEQUENCE_CLASSIFICATION": Ernie3ForSequenceClassification,
    "TOKEN_CLASSIFICATION": Ernie3ForTokenClassification,
}.items():
    getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")[Ernie3Config.model_type] = model_class.__name__

VOCAB_SIZE = 99
# Above the ids of ordinary text (drawn below 80; 1 to 19 in the training suite).
PAD, END, SENTENCE, SOFT = 0, 90, 91, 92


class Ernie3ModelTester:
    """What the suites ask for: sizes, a tiny config, a batch with left padding. The rows are causal texts."""

    config_class = Ernie3Config
    base_model_class = Ernie3Model
    causal_lm_class: Any = Ernie3ForCausalLM  # the class that the training suite trains
    all_model_classes: tuple[Any, ...] = (Ernie3Model, Ernie3ForCausalLM)
    settings: ClassVar[dict[str, Any]] = {"branches": ["nlg"]}  # so that the model without a head reads causally, too

    def __init__(self, parent: unittest.TestCase, **settings: Any):
        self.parent = parent
        self.batch_size = 4
        self.seq_length = 12
        self.vocab_size = VOCAB_SIZE
        self.hidden_size = 32
        self.num_hidden_layers = 2  # of both stacks together
        self.num_attention_heads = 4
        self.num_choices = 3
        self.is_training = True
        self.settings = self.settings | settings

    def get_config(self) -> Ernie3Config:
        settings: ClassVar[dict[str, Any]] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": 1,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 48,
            "branch_hidden_size": 32,
            "branch_num_hidden_layers": self.num_hidden_layers - 1,
            "branch_num_attention_heads": 4,
            "branch_intermediate_size": 40,
            "max_position_embeddings": 512,
            "memory_length": 6,
            "pad_token_id": PAD,
            "eos_token_id": END,
            "sentence_token_id": SENTENCE,
            "soft_prompt_token_id": SOFT,
        }
        return Ernie3Config(**(settings | self.settings))

    def prepare_config_and_inputs_for_common(self) -> tuple[Ernie3Config, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], 80).clamp_min(1)
        attention_mask = torch.ones_like(input_ids)
        for row in range(self.batch_size):
            attention_mask[row, :row] = 0  # the first row without padding, each further one with one token more
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


class Ernie3UnderstandingModelTester(Ernie3ModelTester):
    """The heads of the understanding branch."""

    causal_lm_class = Ernie3ForMaskedLM
    all_model_classes = (
        Ernie3Model,
        Ernie3ForMaskedLM,
        Ernie3ForSequenceClassification,
        Ernie3ForTokenClassification,
        Ernie3ForQuestionAnswering,
        Ernie3ForMultipleChoice,
    )
    settings: ClassVar[dict[str, Any]] = {"branches": ["nlu"]}


class Ernie3PreTrainingModelTester(Ernie3ModelTester):
    """Both branches and all heads."""

    causal_lm_class = Ernie3ForPreTraining
    all_model_classes = (Ernie3Model, Ernie3ForPreTraining)
    settings: ClassVar[dict[str, Any]] = {"num_credible_labels": 2}


NLG = {"branch": "nlg"}

# Types enter the scores where positions are relative.
RELATIVE = {"position_embedding_type": "relative", "recurrence": "shift_down", "type_vocab_size": 2}


class _Suites(BothCacheNames, ModelTesterMixin, TrainingTesterMixin):
    """The suites that hold for every tester."""

    model_tester_class: Any
    settings: ClassVar[dict[str, Any]] = {}
    test_can_init_all_missing_weights_before_2023 = True  # our files carry no year that the suite could read

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self, **self.settings)

    def test_config(self) -> None:
        ConfigTester(self, config_class=Ernie3Config, hidden_size=32, num_attention_heads=4).run_common_tests()


class Ernie3GenerationModelTest(_Suites, GenerationTesterMixin, unittest.TestCase):
    model_tester_class = Ernie3ModelTester
    all_model_classes = Ernie3ModelTester.all_model_classes


class Ernie3RelativeGenerationModelTest(Ernie3GenerationModelTest):
    settings = RELATIVE

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, *args: Any, **kwargs: Any
    ) -> None:
        """A key is one wider than a head: it knows the type of its token."""
        narrow = copy.copy(past_key_values)
        narrow.layers = [copy.copy(layer) for layer in past_key_values.layers]
        for layer in narrow.layers:
            layer.keys = layer.keys[..., :-1]
        super()._check_past_key_values_for_generate(batch_size, narrow, *args, **kwargs)


class Ernie3UnderstandingModelTest(_Suites, unittest.TestCase):
    model_tester_class = Ernie3UnderstandingModelTester
    all_model_classes = Ernie3UnderstandingModelTester.all_model_classes


class Ernie3PreTrainingModelTest(_Suites, unittest.TestCase):
    model_tester_class = Ernie3PreTrainingModelTester
    all_model_classes = Ernie3PreTrainingModelTester.all_model_classes

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        """With labels: a mixed batch, which every parameter takes part in."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if not return_labels or model_class is not Ernie3ForPreTraining:
            return inputs
        ids = inputs["input_ids"]
        words = {"labels": ids.clone()}
        rows = torch.zeros(len(ids), dtype=torch.long, device=torch_device)
        understanding = words | {f"{name}_labels": rows for name in ("reorder", "distance", "credible")}
        return {"batches": {"knowledge_masked_lm": inputs | understanding, "document_lm": inputs | words | NLG}}


class Ernie3RelativePreTrainingModelTest(Ernie3PreTrainingModelTest):
    """Relative positions in both directions of reading."""

    settings = RELATIVE
