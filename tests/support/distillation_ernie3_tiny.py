"""Tiny models and rows for the tests of online distillation."""

import torch
from transformers import BertConfig, BertForMaskedLM, ErnieConfig, ErnieForMaskedLM

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining

VOCABULARY = 40
MASK = 3


def unified(kind=Ernie3ForPreTraining, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "branch_hidden_size": 24,
        "branch_num_hidden_layers": 2,
        "branch_num_attention_heads": 2,
        "branch_intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "eos_token_id": 4,
        "sentence_token_id": 5,
        "soft_prompt_token_id": None,
    }
    return kind(Ernie3Config(**(sizes | changes)))


def encoder(kind=ErnieForMaskedLM, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return kind((BertConfig if kind is BertForMaskedLM else ErnieConfig)(**(sizes | changes)))


def rows(count, seed=0):
    """Rows of 4 to 12 tokens, some of them masked."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(4, 13, (), generator=generator))
        ids = torch.randint(6, VOCABULARY, (length,), generator=generator)
        masked = torch.rand(length, generator=generator) < 0.3
        masked[0] = True
        found.append(
            {
                "input_ids": ids.masked_fill(masked, MASK).tolist(),
                "labels": ids.masked_fill(~masked, -100).tolist(),
            }
        )
    return found


def padded(some, width=None):
    width = width or max(len(row["input_ids"]) for row in some)
    fills = {"input_ids": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in some])
        for name, fill in fills.items()
    }


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
