"""Language-model heads of a mixed batch, which run at labelled tokens only: the losses and gradients of all tokens."""

from typing import Any

import pytest
import torch

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, KNOWLEDGE_MASKED_LM
from hf_glm_ernie.ernie3_training.builders import IGNORED
from tests.support import ernie3_pretraining_tiny as tiny_tasks
from tests.support.ernie3_rows import small_tokenizer
from tests.support.tiny_ernie3 import apart, gradients_of, random_ids

IDS = random_ids(2, 16, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def labelled_and_whole(model: Any, batches: dict[str, Any]) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Losses and gradients with heads at labelled tokens, and with heads at all tokens."""
    found = []
    for return_logits in (False, True):
        model.zero_grad()
        output = model(batches={task: batch | {"return_logits": return_logits} for task, batch in batches.items()})
        output.loss.backward()
        found.append((output.losses, gradients_of(model)))
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_heads_at_labels_teach_the_same(tokenizer, packing: bool) -> None:
    """Every task of a mixed batch, against logits of all tokens."""
    model = tiny_tasks.tiny_model(tokenizer)
    batches = next(iter(tiny_tasks.mixture(tokenizer, packing=packing)))["batches"]
    for name in ("stream_ids", "memory_reset"):
        del batches[DOCUMENT_LM][name]
    (losses, gradients), (expected, whole) = labelled_and_whole(model, batches)
    assert losses.keys() == expected.keys() == batches.keys()
    for task, loss in losses.items():
        assert loss.item() == pytest.approx(expected[task].item(), rel=1e-6), task  # seen: 0
    assert gradients.keys() == whole.keys()
    for name, gradient in whole.items():
        # the same products in matrices of other heights, fp32; seen: 1.5e-7 of the largest entry, or of 0.1
        assert apart(gradients[name], gradient) < 3e-6 * max(gradient.abs().max().item(), 0.1), name


def test_heads_run_at_labelled_tokens_only(tokenizer) -> None:
    model = tiny_tasks.tiny_model(tokenizer)
    labels = torch.full((2, 16), IGNORED)
    labels[0, 3], labels[1, 5:7] = 4, 9
    heights: list[tuple[int, ...]] = []
    for head in (model.nlu_lm_head, model.nlg_lm_head):
        head.register_forward_hook(lambda module, inputs, output: heights.append(tuple(output.shape[:-1])))
    batches = {
        KNOWLEDGE_MASKED_LM: {"branch": "nlu", "input_ids": IDS, "labels": labels},
        DOCUMENT_LM: {"branch": "nlg", "input_ids": IDS, "labels": labels},
    }
    assert model(batches=batches).logits is None
    assert heights == [(3,), (3,)]
    alone = model(IDS, labels=labels, branch="nlu", return_logits=False)
    assert (alone.logits, heights[-1]) == (None, (3,))
    assert model(IDS, labels=labels, branch="nlu").logits.shape[:2] == (2, 16)
    with pytest.raises(ValueError, match="batches= came together with"):
        model(batches=batches, return_logits=True)


def test_a_batch_without_labels_still_reaches_every_head(tokenizer) -> None:
    """A gradient of zeros, which DDP and FSDP wait for, and a loss of 0."""
    model = tiny_tasks.tiny_model(tokenizer)
    none = torch.full((2, 16), IGNORED)
    output = model(
        batches={
            KNOWLEDGE_MASKED_LM: {"branch": "nlu", "input_ids": IDS, "labels": none},
            DOCUMENT_LM: {"branch": "nlg", "input_ids": IDS, "labels": none},
        }
    )
    assert output.loss.item() == 0
    output.loss.backward()
    for branch in ("nlu", "nlg"):
        for part in (getattr(model, f"{branch}_lm_head"), model.ernie3.branches[branch], model.ernie3.encoder):
            for name, parameter in part.named_parameters():
                assert parameter.grad is not None, name
                assert not parameter.grad.any(), name
