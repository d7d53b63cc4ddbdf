"""The heads of ERNIE 3.0: tasks, their losses and labels, mixed batches, and layer-wise learning rates."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    ErnieConfig,
    ErnieForTokenClassification,
    ErnieModel,
)
from transformers.utils.generic import find_labels

from hf_glm_ernie import ErnieForUIE, ErnieUIEConfig
from hf_glm_ernie.configuration_ernie3 import TASK_BRANCHES, Ernie3Config
from hf_glm_ernie.ernie3_training.learning_rates import layerwise_lr_groups, parameter_depth
from hf_glm_ernie.modeling_ernie3 import Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining, mean_cross_entropy
from tests.support.tiny_ernie3 import PAD, VOCABULARY, left_padded, random_ids, tiny_config, tiny_model

UNDERSTANDING = (
    Ernie3ForMaskedLM,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
    Ernie3ForQuestionAnswering,
    Ernie3ForMultipleChoice,
)
# another order of additions only
SAME = 1e-5
IDS = random_ids(2, 7)
WORDS = IDS.masked_fill(torch.arange(7) < 4, -100)
NONE = torch.full((2,), -100)


def pretraining_model(**overrides: Any) -> Any:
    return tiny_model(Ernie3ForPreTraining, num_credible_labels=2, **overrides)


@pytest.mark.parametrize("model_class", [Ernie3ForCausalLM, *UNDERSTANDING])
def test_one_branch_each(model_class: Any) -> None:
    model = tiny_model(model_class)
    assert set(model.ernie3.branches) == {"nlg" if model_class is Ernie3ForCausalLM else "nlu"}
    other = "nlu" if model_class is Ernie3ForCausalLM else "nlg"
    ids = IDS[:, None] if model_class is Ernie3ForMultipleChoice else IDS
    with pytest.raises(ValueError, match=f"branch='{other}' is not one of this model's branches"):
        model(ids, branch=other)
    assert hasattr(model, "pooler") == (model_class in (Ernie3ForSequenceClassification, Ernie3ForMultipleChoice))
    model.freeze_universal()
    assert all(name.startswith("ernie3.") for name, p in model.named_parameters() if not p.requires_grad)
    assert not any("branches" in name for name, p in model.named_parameters() if not p.requires_grad)


@torch.no_grad()
def test_causal_loss() -> None:
    """Labels are shifted in the model; -100 is not scored; `logits_to_keep` keeps the last ones."""
    model = tiny_model(Ernie3ForCausalLM)
    output = model(IDS, labels=WORDS)
    expected = F.cross_entropy(output.logits[:, 3:6].flatten(0, 1), IDS[:, 4:7].flatten())
    assert abs(output.loss - expected) < SAME
    assert torch.equal(model(IDS, logits_to_keep=2).logits, output.logits[:, -2:])
    assert torch.equal(model(IDS, logits_to_keep=torch.tensor([0, 3])).logits, output.logits[:, [0, 3]])


@torch.no_grad()
def test_causal_loss_of_labels_shifted_already() -> None:
    model, ids = tiny_model(Ernie3ForCausalLM), random_ids(2, 6)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(ids, shift_labels=shifted).loss, model(ids, labels=ids).loss)
    with pytest.raises(ValueError, match="shift_labels has shape"):
        model(ids, shift_labels=shifted[:, :3])


@torch.no_grad()
def test_masked_loss() -> None:
    model = tiny_model(Ernie3ForMaskedLM)
    output = model(IDS, labels=WORDS)
    expected = F.cross_entropy(output.logits[:, 4:].flatten(0, 1), IDS[:, 4:].flatten())
    assert abs(output.loss - expected) < SAME


@pytest.mark.parametrize("model_class", [Ernie3ForSequenceClassification, Ernie3ForMultipleChoice])
@torch.no_grad()
def test_the_first_token_is_pooled(model_class: Any) -> None:
    """Padding on the left moves [CLS], and nothing else changes; with a mask, without one, with embeddings."""
    model = tiny_model(model_class, num_labels=5)
    ids = IDS[:, None] if model_class is Ernie3ForMultipleChoice else IDS
    alone = model(ids).logits
    padded = left_padded(IDS, 3).view(*ids.shape[:-1], -1)
    for inputs in (
        {"input_ids": padded},
        {"input_ids": padded, "attention_mask": (padded != PAD).long()},
        {"inputs_embeds": model.get_input_embeddings()(padded), "attention_mask": (padded != PAD).long()},
    ):
        assert (model(**inputs).logits - alone).abs().max() < SAME
    hidden = model.ernie3(IDS, branch="nlu").last_hidden_state
    pooled = torch.tanh(model.pooler.dense(hidden[:, 0]))
    assert (model.classifier(pooled).view(alone.shape) - alone).abs().max() < SAME


@torch.no_grad()
def test_classification_losses() -> None:
    labels = torch.tensor([2, 0])
    model = tiny_model(Ernie3ForSequenceClassification, num_labels=3)
    output = model(IDS, labels=labels)
    assert abs(output.loss - F.cross_entropy(output.logits, labels)) < SAME
    number = tiny_model(Ernie3ForSequenceClassification, num_labels=1)
    output = number(IDS, labels=torch.tensor([0.5, 2.0]))
    assert abs(output.loss - F.mse_loss(output.logits[:, 0], torch.tensor([0.5, 2.0]))) < SAME
    several = tiny_model(Ernie3ForSequenceClassification, num_labels=3, problem_type="multi_label_classification")
    both = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = several(IDS, labels=both)
    assert abs(output.loss - F.binary_cross_entropy_with_logits(output.logits, both)) < SAME


@torch.no_grad()
def test_token_and_span_losses() -> None:
    tokens = tiny_model(Ernie3ForTokenClassification, num_labels=4)
    labels = torch.arange(14).view(2, 7) % 4
    labels[:, 0] = -100
    output = tokens(IDS, labels=labels)
    assert abs(output.loss - F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())) < SAME
    spans = tiny_model(Ernie3ForQuestionAnswering)
    start, end = torch.tensor([1, 2]), torch.tensor([3, 6])
    output = spans(IDS, start_positions=start, end_positions=end)
    expected = (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
    assert abs(output.loss - expected) < SAME


@torch.no_grad()
def test_multiple_choice() -> None:
    """Every choice is a row of its own, its types and task types too; the loss is over a question's choices."""
    model = tiny_model(Ernie3ForMultipleChoice, type_vocab_size=2, task_type_vocab_size=3)
    ids = random_ids(6, 5).view(2, 3, 5)
    types = {"token_type_ids": ids % 2, "task_type_ids": ids % 3}
    output = model(ids, labels=torch.tensor([2, 0]), **types)
    flat = {name: value.view(6, 1, 5) for name, value in types.items()}
    assert (model(ids.view(6, 1, 5), **flat).logits.view(2, 3) - output.logits).abs().max() < SAME
    assert abs(output.loss - F.cross_entropy(output.logits, torch.tensor([2, 0]))) < SAME


def test_pretraining_losses() -> None:
    """Each head's loss is the mean over its valid labels, and the loss is their sum."""
    model = pretraining_model()
    reorder, distance, credible = torch.tensor([32, -100]), torch.tensor([0, 2]), torch.tensor([1, 0])
    output = model(
        IDS, branch="nlu", labels=WORDS, reorder_labels=reorder, distance_labels=distance, credible_labels=credible
    )
    expected = {
        "nlu_lm": F.cross_entropy(output.logits[:, 4:].flatten(0, 1), IDS[:, 4:].flatten()),
        "reorder": F.cross_entropy(output.reorder_logits[:1], reorder[:1]),
        "distance": F.cross_entropy(output.distance_logits, distance),
        "credible": F.cross_entropy(output.credible_logits, credible),
    }
    assert output.losses.keys() == expected.keys()
    for head, loss in expected.items():
        assert abs(output.losses[head] - loss) < SAME, head
    assert abs(output.loss - sum(expected.values())) < SAME

    generated = model(IDS, branch="nlg", labels=WORDS)
    assert list(generated.losses) == ["nlg_lm"]
    shifted = F.cross_entropy(generated.logits[:, 3:6].flatten(0, 1), IDS[:, 4:7].flatten())
    assert abs(generated.loss - shifted) < SAME
    assert generated.reorder_logits is None


def test_labels_that_are_all_missing() -> None:
    """The loss is 0 and still has a gradient, so that every process of a run takes part in the backward."""
    model = pretraining_model()
    output = model(IDS, labels=torch.full_like(IDS, -100), reorder_labels=NONE)
    assert output.loss.item() == 0.0
    output.loss.backward()
    assert model.reorder_head.weight.grad.abs().sum() == 0
    assert mean_cross_entropy(torch.zeros(2, 3), torch.tensor([-100, 1])).item() == pytest.approx(1.0986, abs=1e-4)


def test_heads_without_labels() -> None:
    """All of the branch's logits where nothing is scored, otherwise only the scored ones."""
    model = pretraining_model()
    output = model(IDS)
    assert output.loss is None
    assert output.losses is None
    shapes = [tuple(getattr(output, name).shape) for name in ("logits", "reorder_logits", "distance_logits")]
    assert shapes == [(2, 7, VOCABULARY), (2, 33), (2, 3)]
    assert output.credible_logits.shape == (2, 2)
    assert model(IDS, reorder_labels=NONE).logits is None
    assert tiny_model(Ernie3ForPreTraining)(IDS).credible_logits is None
    assert model(IDS, branch="nlg").distance_logits is None


def mixed_batch() -> dict[str, dict[str, Any]]:
    return {
        "knowledge_masked_lm": {"input_ids": IDS, "labels": WORDS, "branch": "nlu"},
        "document_lm": {
            "input_ids": random_ids(3, 5),
            "labels": random_ids(3, 5),
            "branch": "nlg",
            "return_memories": True,
        },
        "sentence_reordering": {"input_ids": IDS, "reorder_labels": torch.tensor([3, 4]), "branch": "nlu"},
        "credible": {"input_ids": IDS, "credible_labels": torch.tensor([0, 1]), "branch": "nlu"},
    }


def test_mixed_batches() -> None:
    """One forward equals the sub-batches one by one, with their weights; the memory is the document's."""
    model, batches = pretraining_model(), mixed_batch()
    weights = {"document_lm": 0.5, "credible": 3.0}
    output = model(batches=batches, task_weights=weights)
    assert output.losses.keys() == batches.keys()
    total = 0.0
    for task, batch in batches.items():
        alone = model(**batch)
        assert abs(output.losses[task] - alone.loss) < SAME
        total += weights.get(task, 1.0) * alone.loss.item()
    assert abs(output.loss.item() - total) < SAME
    expected = model(**batches["document_lm"]).memories
    assert torch.equal(output.memories.mask, expected.mask)
    assert all(torch.equal(a, b) for a, b in zip(output.memories.states, expected.states, strict=True))
    output.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == ["distance_head.weight", "distance_head.bias"]


def test_all_tasks_are_known() -> None:
    model = pretraining_model()
    for task in TASK_BRANCHES:
        row = {"input_ids": IDS, "labels": WORDS, "branch": "nlu"}
        assert list(model(batches={task: row}).losses) == [task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS, "labels": IDS[:, 1:]}, r"labels has shape \(2, 6\), not \(2, 7\)"),
        ({"input_ids": IDS, "reorder_labels": IDS}, r"reorder_labels has shape \(2, 7\), not \(2,\)"),
        ({"input_ids": IDS, "branch": "nlg", "distance_labels": NONE}, "distance_head reads the branch 'nlu'"),
        ({"input_ids": IDS, "branch": "nlx"}, "branch='nlx' is not one of"),
        ({"batches": {}}, "at least one batch"),
        ({"batches": {"masked_lm": {"input_ids": IDS}}}, r"not \['masked_lm'\]"),
        ({"batches": mixed_batch(), "task_weights": {"lm": 1.0}}, r"not \['lm'\]"),
        ({"batches": {"document_lm": {"input_ids": IDS, "branch": "nlg"}}}, "task 'document_lm' has no labels"),
        ({"batches": mixed_batch(), "input_ids": IDS}, r"came together with \['input_ids'\]"),
        ({"input_ids": IDS, "task_weights": {"credible": 1.0}}, "there is none"),
    ],
)
def test_refused_pretraining_calls(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretraining_model()(**arguments)


def test_no_credible_head() -> None:
    with pytest.raises(ValueError, match="credible_head is not there"):
        tiny_model(Ernie3ForPreTraining)(IDS, credible_labels=NONE)


@pytest.mark.parametrize(
    ("model_class", "arguments", "message"),
    [
        (Ernie3ForCausalLM, {"labels": IDS[0]}, r"labels has shape \(7,\)"),
        (Ernie3ForMaskedLM, {"labels": IDS[:1]}, r"labels has shape \(1, 7\)"),
        (Ernie3ForSequenceClassification, {"labels": torch.zeros(3, dtype=torch.long)}, r"labels has shape \(3,\)"),
        (Ernie3ForSequenceClassification, {"labels": torch.zeros(2, 4)}, r"labels has shape \(2, 4\)"),
        (Ernie3ForTokenClassification, {"labels": NONE}, r"labels has shape \(2,\)"),
        (Ernie3ForQuestionAnswering, {"start_positions": NONE}, "Only start_positions was given"),
        (
            Ernie3ForQuestionAnswering,
            {"start_positions": NONE, "end_positions": NONE[:1]},
            r"end_positions has shape \(1,\)",
        ),
        (Ernie3ForMultipleChoice, {}, "takes input_ids of shape"),
    ],
)
def test_refused_labels(model_class: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(model_class)(IDS, **arguments)


def test_a_span_has_no_labels() -> None:
    model = tiny_model(Ernie3ForQuestionAnswering)
    with pytest.raises(TypeError, match="unexpected argument 'labels'"):
        model(IDS, labels=NONE)
    assert find_labels(Ernie3ForQuestionAnswering) == ["start_positions", "end_positions"]
    assert all(find_labels(one) == ["labels"] for one in UNDERSTANDING if one is not Ernie3ForQuestionAnswering)


def test_losses_of_a_generation_branch_alone() -> None:
    """The branch that the model has is the default, for the heads too."""
    model = tiny_model(Ernie3ForPreTraining, branches=["nlg"])
    assert list(model(IDS, labels=IDS).losses) == ["nlg_lm"]


@pytest.mark.parametrize("model_class", [Ernie3ForCausalLM, Ernie3ForPreTraining, *UNDERSTANDING])
def test_trainers_find_the_arguments(model_class: Any) -> None:
    """A Trainer drops what the signature does not name."""
    names = set(inspect.signature(model_class.forward).parameters)
    assert {"input_ids", "attention_mask", "token_type_ids", "task_type_ids", "genre_ids"} <= names
    if model_class is Ernie3ForPreTraining:
        assert {"batches", "task_weights", "memories", "reorder_labels"} <= names


@pytest.mark.parametrize("model_class", UNDERSTANDING)
def test_heads_load_from_pretraining(tmp_path: Path, model_class: Any) -> None:
    """Only the task's own head is new."""
    pretraining_model().save_pretrained(tmp_path)
    _, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert {name.partition(".")[0] for name in report["missing_keys"]} <= {"classifier", "qa_outputs"}


def test_depths() -> None:
    """The published table for 48 + 12 layers."""
    for name, depth in {
        "ernie3.embeddings.word_embeddings.weight": 0,
        "ernie3.embeddings.soft_prompt_embeddings.weight": 0,
        "ernie3.encoder.layers.0.norm1.weight": 1,
        "ernie3.encoder.layers.47.linear2.bias": 48,
        "ernie3.encoder_norm.weight": 48,
        "ernie3.task_projection.weight": 48,
        "ernie3.branches.nlu.layers.0.self_attn.q_proj.weight": 49,
        "ernie3.branches.nlg.layers.11.self_attn.q_proj.weight": 60,
        "ernie3.branches.nlg.norm.bias": 61,
        "nlg_lm_head.decoder.weight": 62,
        "pooler.dense.bias": 62,
        "reorder_head.weight": 62,
        "classifier.weight": 62,
        "branches.nlg.norm.bias": 61,
    }.items():
        assert parameter_depth(name, 48, 12) == depth, name


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_learning_rate_groups(positions: str) -> None:
    """Every learning parameter once; rate decay ** (total - depth), no weight decay on norms and biases."""
    model = pretraining_model(position_embedding_type=positions)
    groups = layerwise_lr_groups(model, 1e-3, decay=0.5, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == 1e-3 * 0.5 ** (7 - parameter_depth(name, 3, 2))  # 3 + 2 layers, 2 more
            assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
    optimizer = torch.optim.AdamW(groups)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * 0.5**k for k in range(8)}
    model.freeze_universal()
    rest = [names[id(p)] for group in layerwise_lr_groups(model, 1e-3) for p in group["params"]]
    assert rest
    assert not any(name.startswith(("ernie3.encoder", "ernie3.embeddings", "ernie3.task")) for name in rest)


def test_default_learning_rates_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = Ernie3Model(Ernie3Config())
    rates = sorted({group["lr"] for group in layerwise_lr_groups(model, 1.0)})
    expected = [0.95 ** (62 - depth) for depth in range(62)]  # no head, so no depth 62
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_refused_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        layerwise_lr_groups(Ernie3Model(tiny_config()), 1e-3, decay=decay)


TINY_ENCODER: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
HOSTS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**TINY_ENCODER)),
    "ernie": lambda: ErnieForTokenClassification(ErnieConfig(**TINY_ENCODER, use_task_id=True)),
    "encoder alone": lambda: ErnieModel(ErnieConfig(**TINY_ENCODER)),
    "uie": lambda: ErnieForUIE(ErnieUIEConfig(**TINY_ENCODER)),
}


@pytest.mark.parametrize("kind", list(HOSTS))
def test_learning_rate_groups_of_the_hosts_encoders(kind: str) -> None:
    """Embeddings are 4 steps below the heads of a model of 3 layers, layer i 3 - i."""
    model: Any = HOSTS[kind]()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = layerwise_lr_groups(model, 1e-3, decay=0.5, weight_decay=0.1)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    for group in groups:
        for name in (names[id(p)] for p in group["params"]):
            layer = re.search(r"encoder\.layer\.(\d)\.", name)
            steps = 4 if "embeddings." in name else 3 - int(layer[1]) if layer else 0
            assert group["lr"] == 1e-3 * 0.5**steps, name
            assert group["weight_decay"] == (0.0 if "LayerNorm" in name or name.endswith("bias") else 0.1), name
    assert {group["lr"] for group in groups} == {1e-3 * 0.5**steps for steps in range(5)}


@pytest.mark.parametrize("model", [nn.Linear(2, 2), AlbertModel(AlbertConfig(**TINY_ENCODER, embedding_size=8))])
def test_models_without_a_stack_of_their_own_layers_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=f"{type(model).__name__} has 0 lists of num_hidden_layers="):
        layerwise_lr_groups(model, 1e-3)
