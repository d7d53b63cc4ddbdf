"""The host's model, configuration, training and generation suites on GLM-130B's classes.

`run.py` puts this file into the host's test tree. Two testers: rows that are causal texts, and rows with a
bidirectional context, a blank and an answer.
"""

import unittest
from typing import Any
from unittest import mock

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from hf_glm_ernie import Glm130bConfig, Glm130bForCausalLM, Glm130bModel
from hf_glm_ernie.prefix_glm130b import blank_position_ids, plain_position_ids, prefix_token_type_ids

from .cache_names import BothCacheNames

# The suites look classes up by name to learn which of them take labels; out-of-tree names are unknown there.
modeling_auto.MODEL_MAPPING_NAMES[Glm130bConfig.model_type] = Glm130bModel.__name__
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[Glm130bConfig.model_type] = Glm130bForCausalLM.__name__

VOCAB_SIZE = 99
# Above the ids of ordinary text (drawn below 80; 1 to 19 in the training suite): no random text holds a blank.
PAD, EOS, MASK, GMASK, SMASK, SOP, EOP = 0, 90, 91, 92, 93, 94, 95


class Glm130bModelTester:
    """What the suites ask for: sizes, a tiny config, a batch with left padding. The rows are causal texts."""

    config_class = Glm130bConfig
    base_model_class = Glm130bModel
    causal_lm_class = Glm130bForCausalLM
    all_model_classes = (Glm130bModel, Glm130bForCausalLM)

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.batch_size = 4
        self.seq_length = 12
        self.vocab_size = VOCAB_SIZE
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.is_training = True

    def get_config(self) -> Glm130bConfig:
        return Glm130bConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=48,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=512,
            mask_token_id=MASK,
            gmask_token_id=GMASK,
            smask_token_id=SMASK,
            sop_token_id=SOP,
            eop_token_id=EOP,
            eos_token_id=[EOP, EOS],
            pad_token_id=PAD,
            allow_context_labels=True,  # the suites label every token
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Glm130bConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], 80).clamp_min(1)
        attention_mask = torch.ones_like(input_ids)
        for row in range(self.batch_size):
            attention_mask[row, :row] = 0  # the first row without padding, each further one with one token more
        return self.get_config(), {"input_ids": self.lay_out(input_ids), "attention_mask": attention_mask}

    def lay_out(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Turns (B, L) random text into the rows of this tester."""
        return input_ids


class Glm130bPrefixModelTester(Glm130bModelTester):
    """Rows of context, `<sop>`, answer: blanks of each kind, at differing places."""

    def lay_out(self, input_ids: torch.Tensor) -> torch.Tensor:
        for row, (mask, place, sop) in enumerate([(MASK, 4, 8), (SMASK, 5, 9), (GMASK, 7, 8), (MASK, 6, 10)]):
            input_ids[row, place] = mask
            input_ids[row, sop] = SOP
        return input_ids


class Glm130bModelTest(
    BothCacheNames, ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase
):
    model_tester: Glm130bModelTester
    all_model_classes = Glm130bModelTester.all_model_classes
    test_can_init_all_missing_weights_before_2023 = True  # our files carry no year that the suite could read

    def setUp(self) -> None:
        self.model_tester = Glm130bModelTester(self)

    def test_config(self) -> None:
        ConfigTester(self, config_class=Glm130bConfig, hidden_size=32, num_attention_heads=4).run_common_tests()


class Glm130bPrefixModelTest(Glm130bModelTest):
    def setUp(self) -> None:
        self.model_tester = Glm130bPrefixModelTester(self)

    def test_inputs_embeds_matches_input_ids(self, **model_specific_kwargs: Any) -> None:
        """Embeddings hide `<sop>` and the blank: the layout has to be passed beside them."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs |= explicit_layout(config, **inputs)
        prepare = mock.Mock(return_value=(config, inputs))
        with mock.patch.object(self.model_tester, "prepare_config_and_inputs_for_common", prepare):
            super().test_inputs_embeds_matches_input_ids(**model_specific_kwargs)


def explicit_layout(
    config: Glm130bConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The types and positions, (B, L) each, that the model would read from the ids."""
    types = prefix_token_type_ids(input_ids, config.sop_token_id)
    positions = plain_position_ids(*input_ids.shape, attention_mask, 0, torch.device(torch_device))
    positions = blank_position_ids(input_ids, types, positions, config.mask_token_id, config.smask_token_id)
    return {"token_type_ids": types, "position_ids": positions}
