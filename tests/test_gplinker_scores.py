"""GPLinker's scores, loss and decoding against the slow ones, and the model around them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, ErnieConfig, ErnieModel

from hf_glm_ernie import ErnieForGPLinker, ErnieGPLinkerConfig
from hf_glm_ernie.ernie_tasks.gplinker_decoding import decode_entities, decode_relations, score_of
from hf_glm_ernie.modeling_ernie_gplinker import pair_loss, pointer_scores
from tests.reference import gplinker_naive as naive

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
IDS = torch.tensor([[1, 20, 21, 22, 23, 24, 25, 2], [1, 30, 31, 32, 2, 0, 0, 0]])
ENTITIES = torch.tensor([[[0, 1, 2], [1, 4, 6]], [[2, 1, 1], [-100, -100, -100]]])
RELATIONS = torch.tensor([[[1, 1, 2, 4, 6]], [[-100] * 5]])
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "type_vocab_size": 4,
    "use_task_id": True,
    "initializer_range": 0.4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pointer_size": 8,
}


def tiny(**settings: Any) -> ErnieForGPLinker:
    torch.manual_seed(0)
    names = {"entity_labels": ["公司", "人", "object"], "relation_labels": ["创始人", "子公司"]}
    return ErnieForGPLinker(ErnieGPLinkerConfig(**(SIZES | names | settings))).eval()


@pytest.mark.parametrize("ordered", [True, False])
def test_scores_are_those_of_the_paper(ordered: bool) -> None:
    torch.manual_seed(1)
    pointers, biases = torch.randn(2, 6, 16), torch.randn(2, 6, 6)
    found, expected = (make(pointers, biases, MASK, ordered) for make in (pointer_scores, naive.scores))
    assert (found == -1e12).equal(expected == -torch.inf)
    there = expected > -torch.inf
    # fp32 against float64; 2.1e-7 seen
    assert (found[there] - expected[there]).abs().max() < 2e-6
    halved = pointer_scores(pointers.half(), biases.half(), MASK, ordered)
    assert torch.isfinite(halved).all()
    assert (halved[there] - expected[there]).abs().max() < 2e-2  # 11 bits of numbers up to 4; 3e-3 seen


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_loss_is_the_papers(scale: float) -> None:
    """Also where the marked pairs outweigh all others, which PaddleNLP's form of it bounds."""
    torch.manual_seed(2)
    logits = (torch.randn(2, 3, 8, 8) * scale).requires_grad_()
    marked = [{(0, 1, 2), (1, 4, 6)}, {(2, 1, 1)}]
    if scale > 1:
        with torch.no_grad():
            for row, places in enumerate(marked):
                for place in places:
                    logits[(row, *place)] = 60.0
    loss = pair_loss(logits, ENTITIES)
    assert loss.item() == pytest.approx(naive.loss(logits, marked), rel=1e-6)  # fp32 logarithms; 8e-8 seen
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    is_marked = torch.zeros_like(logits, dtype=torch.bool)
    for row, places in enumerate(marked):
        for place in places:
            is_marked[(row, *place)] = True
    assert (logits.grad[is_marked] <= 0).all()  # marked pairs go up, all others down
    assert (logits.grad[~is_marked] >= 0).all()


def test_the_loss_without_any_marked_pair() -> None:
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = pair_loss(logits, torch.empty(2, 0, 3, dtype=torch.long))
    assert loss.item() == pytest.approx(naive.loss(logits, [[], []]), rel=1e-6)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_decoding_is_the_slow_one() -> None:
    torch.manual_seed(3)
    entity = torch.randn(2, 3, 6, 6) - 1.0
    head, tail = torch.randn(2, 2, 2, 6, 6) + 0.7
    is_text = MASK.clone()
    is_text[:, 0] = False
    found = decode_entities(entity, is_text)
    assert [{one[:3] for one in row} for row in found] == naive.entities(entity, is_text)
    assert all(entity[row, *one[:3]].item() == one.score for row, own in enumerate(found) for one in own)
    linked = decode_relations(found, head, tail)
    expected = naive.triples([{one[:3] for one in row} for row in found], head, tail)
    assert [{(one.label, *one.subject, *one.object) for one in row} for row in linked] == expected
    assert sum(map(len, expected)) > 3
    assert decode_relations([[], []], head, tail) == [[], []]


def test_an_untrained_model_finds_no_more_than_four_spans_a_token() -> None:
    entity = torch.randn(1, 3, 40, 40) + 3
    found = decode_entities(entity, torch.ones(1, 40, dtype=torch.bool))[0]
    assert len(found) == 160
    spans = entity[0][:, *torch.triu_indices(40, 40)]
    assert min(one.score for one in found) == spans.flatten().topk(160).values[-1]


def test_thresholds_as_scores() -> None:
    assert score_of(0.5) == 0.0
    assert torch.tensor(score_of(0.9)).sigmoid().item() == pytest.approx(0.9)
    assert score_of(0) == -float("inf")


def test_the_loss_of_a_model_is_the_mean_over_its_heads() -> None:
    model = tiny()
    output = model(IDS, entity_labels=ENTITIES, relation_labels=RELATIONS)
    heads = (output.entity_logits, ENTITIES), (output.head_logits, RELATIONS[..., [0, 1, 3]])
    heads = (*heads, (output.tail_logits, RELATIONS[..., [0, 2, 4]]))
    assert output.loss.item() == pytest.approx(sum(pair_loss(*head).item() for head in heads) / 3)
    alone = tiny(relation_labels=[])
    output = alone(IDS, entity_labels=ENTITIES, relation_labels=torch.empty(2, 0, 5, dtype=torch.long))
    assert output.loss.item() == pair_loss(output.entity_logits, ENTITIES).item()  # PaddleNLP: a third of it
    assert output.head_logits is None
    assert not hasattr(alone, "head_output")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_changes_nothing(implementation: str) -> None:
    model = tiny(attn_implementation=implementation)
    both, one = model(IDS), model(IDS[1:, :5])
    for name in ("entity_logits", "head_logits", "tail_logits"):
        found, expected = both[name][1:, :, :5, :5], one[name]
        # -1e4 is added to masked scores, so padding weighs nothing; 1.4e-6 seen
        assert (found - expected)[expected > -1e9].abs().max() < 2e-5
        assert (both[name][1, :, 5:] == -1e12).all()


def test_saving_and_loading(tmp_path: Path) -> None:
    model = tiny(schema=[{"公司": ["创始人", "子公司"]}])
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "ernie_gplinker"
    assert saved["schema"] == [{"公司": ["创始人", "子公司"]}]
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is ErnieForGPLinker
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.entity_labels == ["公司", "人", "object"]
    assert torch.equal(again(IDS).head_logits, model(IDS).head_logits)


def test_starting_from_a_plain_encoder(tmp_path: Path) -> None:
    plain = {name: value for name, value in SIZES.items() if name != "pointer_size"}
    encoder = ErnieModel(ErnieConfig(**plain))
    encoder.save_pretrained(tmp_path)
    model, info = ErnieForGPLinker.from_pretrained(tmp_path, config=tiny().config, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"entity_output", "head_output", "tail_output"}
    assert torch.equal(model.get_input_embeddings().weight, encoder.get_input_embeddings().weight)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS, entity_labels=ENTITIES, relation_labels=RELATIONS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {"head_output.dense1.weight", "ernie.embeddings.word_embeddings.weight"} <= gradients[0].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


def test_export() -> None:
    model = tiny()
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "token_type_ids": torch.zeros_like(IDS)}
    batch, tokens = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=2, max=32)
    shapes = {name: {0: batch, 1: tokens} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    longer = {name: F.pad(torch.cat((value, value)), (0, 5)) for name, value in inputs.items()}
    for given in (inputs, longer):
        found, expected = program(**given).entity_logits, model(**given).entity_logits
        assert (found - expected).abs().max() < 2e-5  # the same operations; 0 seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entity_labels": ENTITIES}, "relation_labels are missing"),
        ({"relation_labels": RELATIONS}, "entity_labels are missing"),
        ({"entity_labels": ENTITIES[:1], "relation_labels": RELATIONS}, r"entity_labels is .*\(2, any, 3\)"),
        ({"entity_labels": ENTITIES + 5, "relation_labels": RELATIONS}, r"entity_labels has \[5, 6, 7\]"),
        ({"attention_mask": torch.ones(2, 8, 8)}, "pairs of tokens"),
    ],
)
def test_what_does_not_fit_is_an_error(given: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(IDS, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entity_labels": []}, "at least one type"),
        ({"entity_labels": ["a", "a"]}, "each once"),
        ({"relation_labels": [""]}, "none of them empty"),
        ({"pointer_size": 7}, "must be even"),
        ({"pointer_size": 0}, "pointer_size=0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        ErnieGPLinkerConfig(**settings)
