"""The stacks of ERNIE 3.0 against the slow reference, and what the host needs of a model: counts, compilation,
checkpointing, saving, bad input. Memory has a file of its own, heads and generation too.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import DynamicCache, StaticCache
from transformers.utils import logging

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.host_interface import CACHE_NAME
from hf_glm_ernie.modeling_ernie3 import Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support.tiny_ernie3 import (
    PAD,
    SOFT,
    VOCABULARY,
    apart,
    gradients_of,
    left_padded,
    random_ids,
    tiny_config,
    tiny_model,
)

from .reference.ernie3_naive import Row, language_model_logits

# fp32 against fp64 over five layers; seen: 2.3e-6 on values of about 3.
EXACT = 1e-5
POSITIONS = ("absolute", "relative")
IMPLEMENTATIONS = ("eager", "sdpa")


def block_parameters(hidden: int, inner: int) -> int:
    """Parameters of one layer: four projections, the feed-forward and two norms (design notes, 8.3)."""
    return 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden


def expected_parameters(hidden: int, inner: int, branches: int, nlu_heads: bool) -> int:
    """The formula of the design notes for 48 + 12 layers, 30,000 words and 3,072 positions."""
    width, words = 768, 30000
    universal = 48 * block_parameters(hidden, inner) + 2 * hidden
    embeddings = (words + 3072) * hidden
    branch = 12 * block_parameters(width, 4 * width) + 2 * width
    lm_head = width * width + width + 2 * width + width * words + words
    heads = branches * lm_head
    if nlu_heads:
        heads += width * width + width + 33 * (width + 1) + 3 * (width + 1)
    return universal + embeddings + hidden * width + branches * branch + heads


@pytest.mark.parametrize(
    ("model_class", "config", "expected", "billions"),
    [
        (Ernie3ForPreTraining, Ernie3Config.ernie3_10b(), expected_parameters(4096, 16384, 2, True), 10.023),
        (Ernie3ForCausalLM, Ernie3Config.ernie3_10b(), expected_parameters(4096, 16384, 1, False), 9.914),
        (Ernie3ForPreTraining, Ernie3Config.titan(), expected_parameters(12288, 196608, 2, True), 261.57),
    ],
    ids=["10B", "10B-nlg", "titan"],
)
def test_parameter_counts(model_class: Any, config: Ernie3Config, expected: int, billions: float) -> None:
    """On the meta device, so nothing is allocated; Titan's soft prompts and credible head are counted apart."""
    with torch.device("meta"):
        model = model_class(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    apart_from_the_table = {
        kind: sum(size for name, size in sizes.items() if kind in name) for kind in ("soft_prompt", "credible_head")
    }
    titan = config.hidden_size == 12288
    assert apart_from_the_table == {
        "soft_prompt": 8_650_752 if titan else 0,
        "credible_head": 1_538 if titan else 0,
    }
    counted = sum(sizes.values()) - sum(apart_from_the_table.values())
    assert counted == expected
    assert round(counted / 1e9, 3 if billions < 100 else 2) == billions


def test_state_dict_names() -> None:
    """The names a converter relies on."""
    with torch.device("meta"):
        names = set(Ernie3ForPreTraining(tiny_config(num_credible_labels=2)).state_dict())
    for name in (
        "ernie3.embeddings.word_embeddings.weight",
        "ernie3.embeddings.position_embeddings.weight",
        "ernie3.encoder.layers.0.norm1.weight",
        "ernie3.encoder.layers.2.self_attn.q_proj.bias",
        "ernie3.encoder.layers.2.self_attn.out_proj.weight",
        "ernie3.encoder.layers.0.linear1.weight",
        "ernie3.encoder.layers.0.linear2.bias",
        "ernie3.encoder_norm.bias",
        "ernie3.task_projection.weight",
        "ernie3.branches.nlu.layers.1.norm2.weight",
        "ernie3.branches.nlg.norm.weight",
        "nlg_lm_head.transform.weight",
        "nlu_lm_head.layer_norm.bias",
        "nlu_lm_head.decoder.bias",
        "pooler.dense.weight",
        "reorder_head.weight",
        "distance_head.bias",
        "credible_head.weight",
    ):
        assert name in names
    assert "ernie3.task_projection.bias" not in names
    assert not any("token_type" in name or "r_w_bias" in name for name in names)


def run_reference(
    model: Ernie3Model, ids: torch.Tensor, branch: str, inputs: dict[str, torch.Tensor], **kwargs: Any
) -> torch.Tensor:
    """(rows, length, width), row by row."""
    row = Row(model.state_dict(), model.config.to_dict(), branch)
    outputs = []
    for i in range(len(ids)):
        own: dict[str, Any] = {}
        for name, argument in (("token_type_ids", "token_types"), ("task_type_ids", "task_types")):
            if name in inputs:
                own[argument] = inputs[name][i].tolist()
        if "genre_ids" in inputs:
            own["genre"] = int(inputs["genre_ids"][i])
        outputs.append(row(ids[i].tolist(), **own)[0])
    return torch.stack(outputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("branch", ["nlu", "nlg"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("types", [False, True], ids=["plain", "types"])
@torch.no_grad()
def test_the_reference_agrees(positions: str, branch: str, implementation: str, types: bool) -> None:
    sizes = {"type_vocab_size": 3, "task_type_vocab_size": 2} if types else {}
    model = tiny_model(Ernie3Model, position_embedding_type=positions, **sizes)
    model.set_attn_implementation(implementation)
    ids = random_ids(2, 7)
    inputs = {}
    if types:
        inputs = {"token_type_ids": torch.arange(14).view(2, 7) % 3, "task_type_ids": torch.arange(14).view(2, 7) % 2}
    found = model(ids, branch=branch, **inputs).last_hidden_state
    assert apart(found, run_reference(model, ids, branch, inputs)) < EXACT


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_soft_prompts(positions: str) -> None:
    """The k-th placeholder of a row is the k-th vector of its genre; a row may have fewer than the others."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions, num_soft_prompt_genres=2)
    ids = random_ids(2, 6)
    ids[0, :3] = SOFT
    ids[1, 1] = SOFT
    inputs = {"genre_ids": torch.tensor([1, 0])}
    found = model(ids, branch="nlg", **inputs).last_hidden_state
    assert apart(found, run_reference(model, ids, "nlg", inputs)) < EXACT
    other = model(ids, branch="nlg", genre_ids=torch.tensor([0, 0])).last_hidden_state
    assert apart(other[0], found[0]) > 0.1
    assert torch.equal(other[1], found[1])


@torch.no_grad()
def test_language_model_logits() -> None:
    model = tiny_model(Ernie3ForPreTraining)
    ids = random_ids(1, 6)
    for branch in ("nlu", "nlg"):
        found = model(ids, branch=branch)
        hidden = run_reference(model.ernie3, ids, branch, {})[0]
        expected = language_model_logits(model.state_dict(), model.config.to_dict(), branch, hidden)
        assert apart(found.logits[0], expected) < EXACT


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_who_sees_whom(positions: str, implementation: str) -> None:
    """One token changed: the generation branch is untouched before it; everything else changes, in both branches."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions)
    model.set_attn_implementation(implementation)
    ids = random_ids(1, 8)
    changed = ids.clone()
    changed[0, 4] = changed[0, 4] % 100 + 5
    for branch, untouched in (("nlg", 4), ("nlu", 0)):
        before, after = (model(x, branch=branch, output_hidden_states=True).hidden_states for x in (ids, changed))
        # the last universal layer's output, and the branch's
        for layer in (model.config.num_hidden_layers, -1):
            moved = (before[layer] - after[layer]).abs().amax(-1)[0] > 1e-4
            assert moved.tolist() == [False] * untouched + [True] * (8 - untouched)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("branch", ["nlu", "nlg"])
@torch.no_grad()
def test_padding_changes_nothing(branch: str, positions: str, implementation: str) -> None:
    """Pad ids on either side, with and without a mask that says so."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions)
    model.set_attn_implementation(implementation)
    ids = random_ids(2, 6)
    alone = model(ids, branch=branch).last_hidden_state
    padding = torch.full((2, 3), PAD)
    for padded, part in (
        (torch.cat((padding, ids), dim=1), slice(3, None)),
        (torch.cat((ids, padding), dim=1), slice(None, -3)),
    ):
        for mask in (None, (padded != PAD).long()):
            found = model(padded, attention_mask=mask, branch=branch).last_hidden_state[:, part]
            assert apart(found, alone) < EXACT


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_cached_equals_whole(positions: str, implementation: str, kind: str) -> None:
    """A left-padded prompt, then two tokens, then one, against one forward; types differ along the row."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions, type_vocab_size=2)
    model.set_attn_implementation(implementation)
    ids = random_ids(2, 9)
    ids[0, :2] = PAD
    mask, types = (ids != PAD).long(), torch.arange(18).view(2, 9) % 2
    whole = model(ids, branch="nlg", token_type_ids=types).last_hidden_state
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=12)
    assert len(cache.layers) == 5
    assert len(DynamicCache(config=model.config.get_text_config(decoder=True)).layers) == 5
    pieces = []
    for start, end in ((0, 6), (6, 8), (8, 9)):
        output = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            token_type_ids=types[:, start:end],
            past_key_values=cache,
            branch="nlg",
        )
        pieces.append(output.last_hidden_state)
    found = torch.cat(pieces, dim=1)
    assert apart(found[ids != PAD], whole[ids != PAD]) < EXACT
    assert output.past_key_values is cache


@torch.no_grad()
@pytest.mark.parametrize(
    ("overflow", "positions"), [("wrap", [0, 1, 2, 3, 0, 1, 2, 3, 0]), ("last", [0, 1, 2, 3, 3, 3, 3, 3, 3])]
)
def test_positions_behind_the_table(overflow: str, positions: list[int]) -> None:
    """Counted on from 0, or the last row: in a row, over a memory, and step by step with a cache."""
    model = tiny_model(Ernie3Model, max_position_embeddings=4, position_overflow=overflow)
    ids = random_ids(1, 9)
    counted = model(ids, branch="nlg").last_hidden_state
    explicit = model(ids, branch="nlg", position_ids=torch.tensor([positions])).last_hidden_state
    assert torch.equal(counted, explicit)
    assert apart(counted, run_reference(model, ids, "nlg", {})) < EXACT
    first = model(ids[:, :5], branch="nlg", return_memories=True)
    told = {"memories": first.memories, "position_ids": torch.tensor([positions[5:]])}
    second = model(ids[:, 5:], branch="nlg", memories=first.memories).last_hidden_state
    assert torch.equal(second, model(ids[:, 5:], branch="nlg", **told).last_hidden_state)
    cache = model(ids[:, :5], branch="nlg", use_cache=True).past_key_values
    steps = [model(ids[:, at : at + 1], branch="nlg", past_key_values=cache).last_hidden_state for at in range(5, 9)]
    assert apart(torch.cat(steps, 1), counted[:, 5:]) < EXACT


def test_a_position_behind_the_table_is_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    ids = random_ids(1, 5)
    logger = logging.get_logger("hf_glm_ernie.inputs_ernie3")
    logger.warning_once.cache_clear()  # the host's, once in a process
    logger.propagate = True
    tiny_model(Ernie3Model, max_position_embeddings=4)(ids[:, :4], branch="nlg")
    assert not caplog.records
    for _ in range(2):
        tiny_model(Ernie3Model, max_position_embeddings=4)(ids, branch="nlg")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "A document is longer than max_position_embeddings=4 tokens"
    ]
    model = tiny_model(Ernie3Model, max_position_embeddings=4, position_overflow="refuse")
    first = model(ids[:, :4], branch="nlg", return_memories=True)
    with pytest.raises(ValueError, match=r"Position 4 is behind the table .* position_overflow='refuse'"):
        model(ids[:, 4:], branch="nlg", memories=first.memories)
    with pytest.raises(StrictDataclassClassValidationError, match="position_overflow='on' is not one of"):
        tiny_model(Ernie3Model, position_overflow="on")


def test_tensor_parallel_plan() -> None:
    """Every linear of every layer is split, and the words along the vocabulary; relative positions leave all whole."""
    with torch.device("meta"):
        names = [
            name for name, module in Ernie3Model(tiny_config()).named_modules() if type(module) is torch.nn.Linear
        ]
    plan = tiny_config().base_model_tp_plan
    patterns = {re.sub(r"\.\d+\.", ".*.", name) for name in names} - {"task_projection"}
    assert patterns | {"embeddings.word_embeddings"} == set(plan)
    rules = set(Ernie3ForCausalLM(tiny_config()).tp_plan)  # a class with one branch has no rules for the other
    assert rules == {f"ernie3.{name}" for name in plan if "nlu" not in name} | {"nlg_lm_head.decoder"}
    assert tiny_config(position_embedding_type="relative").base_model_tp_plan is None
    assert not Ernie3ForCausalLM(tiny_config(position_embedding_type="relative")).tp_plan
    assert "base_model_tp_plan" not in tiny_config(position_embedding_type="relative").to_dict()


@torch.no_grad()
def test_masks_of_four_dimensions() -> None:
    """A pattern of the caller's own takes the place of the branch's."""
    model = tiny_model(Ernie3Model)
    ids = random_ids(2, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
    found = model(ids, branch="nlg", attention_mask=causal).last_hidden_state
    assert apart(found, model(ids, branch="nlg").last_hidden_state) < EXACT
    everything = model(ids, branch="nlg", attention_mask=torch.ones_like(causal)).last_hidden_state
    assert apart(everything, found) > 0.1


@torch.no_grad()
def test_embeddings_in_place_of_ids() -> None:
    model = tiny_model(Ernie3Model)
    ids = random_ids(2, 5)
    embeds = model.get_input_embeddings()(ids)
    for branch in ("nlu", "nlg"):
        by_ids = model(ids, branch=branch).last_hidden_state
        assert torch.equal(model(inputs_embeds=embeds, branch=branch).last_hidden_state, by_ids)


@torch.no_grad()
def test_hidden_states_and_attentions() -> None:
    model = tiny_model(Ernie3Model)
    model.set_attn_implementation("eager")
    output = model(random_ids(2, 5), output_hidden_states=True, output_attentions=True)
    assert [state.shape[-1] for state in output.hidden_states] == [32] * 4 + [24] * 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert [weights.shape for weights in output.attentions] == [(2, 4, 5, 5)] * 3 + [(2, 3, 5, 5)] * 2
    assert model(random_ids(2, 5), return_dict=False)[0].shape == (2, 5, 24)
    recorder = model._can_record_outputs["hidden_states"]  # what later hosts count an index of -1 by
    assert getattr(model.config, recorder.num_hidden_layers_key) == 5


def gradients(model: Any, loss: Callable[[], torch.Tensor]) -> dict[str, bool]:
    model.zero_grad(set_to_none=True)
    loss().backward()
    return {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in model.named_parameters()}


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("branch", ["nlu", "nlg"])
def test_gradients_reach_the_used_path(branch: str, positions: str) -> None:
    """Every parameter of the branch's path learns, the other branch none; after freezing, only the branch."""
    sizes = {"type_vocab_size": 2, "task_type_vocab_size": 2, "num_soft_prompt_genres": 1}
    model = tiny_model(Ernie3Model, position_embedding_type=positions, **sizes).train()
    ids = random_ids(2, 7)
    ids[:, 1:3] = SOFT
    inputs = {"token_type_ids": torch.arange(14).view(2, 7) % 2, "genre_ids": torch.tensor([0, 0])}

    def loss() -> torch.Tensor:
        return model(ids, branch=branch, **inputs).last_hidden_state.pow(3).sum()

    other = "nlg" if branch == "nlu" else "nlu"
    reached = gradients(model, loss)
    # a key's bias shifts all scores of a query alike; a type's does too
    blind = ("k_proj.bias", "t_proj.bias") if positions == "relative" else ("k_proj.bias",)
    for name, has_gradient in reached.items():
        if not name.endswith((*blind, "r_proj.bias")):
            assert has_gradient == (f"branches.{other}." not in name), name
    model.freeze_universal()
    learning = {name for name, has_gradient in gradients(model, loss).items() if has_gradient}
    assert learning
    assert all(name.startswith(f"branches.{branch}.") for name in learning)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all(name.startswith(("embeddings", "encoder", "task_projection")) for name in frozen)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_gradient_checkpointing(positions: str, reentrant: bool) -> None:
    model = tiny_model(Ernie3ForCausalLM, position_embedding_type=positions, type_vocab_size=2).train()
    ids = random_ids(2, 7)

    def grads() -> dict[str, torch.Tensor]:
        memories = model(ids, return_memories=True, use_cache=False).memories
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids, memories=memories, use_cache=False).loss.backward()
        return gradients_of(model)

    plain = grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    checkpointed = grads()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert apart(checkpointed[name], gradient) < EXACT, name


@pytest.mark.parametrize(("branch", "positions"), [("nlu", "absolute"), ("nlg", "absolute"), ("nlg", "relative")])
@torch.no_grad()
def test_compiles_whole(branch: str, positions: str) -> None:
    """One graph; with padding, with a cache made inside, and with memories."""
    layers = {"num_hidden_layers": 1, "branch_num_hidden_layers": 1}
    model = tiny_model(Ernie3Model, position_embedding_type=positions, **layers)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = left_padded(random_ids(2, 5), 2)
    real = ids != PAD
    kwargs: dict[str, Any] = {"branch": branch}
    assert apart(compiled(ids, **kwargs).last_hidden_state[real], model(ids, **kwargs).last_hidden_state[real]) < EXACT
    if branch == "nlg":
        memories = model(ids, return_memories=True, **kwargs).memories
        kwargs |= {"memories": memories, "use_cache": False}
        found, expected = compiled(ids, **kwargs), model(ids, **kwargs)
        assert apart(found.last_hidden_state[real], expected.last_hidden_state[real]) < EXACT
        assert torch.equal(found.memories.mask, expected.memories.mask)


@pytest.mark.parametrize("positions", POSITIONS)
def test_save_and_load(tmp_path: Path, positions: str) -> None:
    sizes = {"type_vocab_size": 2, "num_soft_prompt_genres": 2, "num_credible_labels": 2}
    model = tiny_model(Ernie3ForPreTraining, position_embedding_type=positions, **sizes)
    model.save_pretrained(tmp_path)
    loaded: Any = Ernie3ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    again, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model_class", [Ernie3Model, Ernie3ForCausalLM, Ernie3ForMaskedLM])
def test_the_other_branch_in_the_file(tmp_path: Path, model_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A class reads its own branch from a checkpoint of all tasks, silently."""
    whole = tiny_model(Ernie3ForPreTraining, num_credible_labels=2).eval()
    whole.save_pretrained(tmp_path)
    model, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not [record for record in caplog.records if "nlu" in record.message or "nlg" in record.message]
    built = {Ernie3Model: {"nlu", "nlg"}, Ernie3ForCausalLM: {"nlg"}, Ernie3ForMaskedLM: {"nlu"}}[model_class]
    base = model.base_model
    assert set(base.branches) == built
    ids = random_ids(2, 5)
    with torch.no_grad():
        for branch in built:
            expected = whole.ernie3(ids, branch=branch).last_hidden_state
            assert torch.equal(base(ids, branch=branch).last_hidden_state, expected)


def test_initialisation() -> None:
    """N(0, 0.02), norms 1 and 0, biases 0; the PAD row too."""
    model = Ernie3ForPreTraining(tiny_config(position_embedding_type="relative", type_vocab_size=2, hidden_size=64))
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 0).all(), name
        elif parameter.numel() > 1000:
            assert 0.018 < parameter.std().item() < 0.022, name
    assert model.ernie3.embeddings.word_embeddings.weight[PAD].abs().sum() > 0


def test_resizing_the_vocabulary() -> None:
    """Both heads follow the embedding."""
    model = tiny_model(Ernie3ForPreTraining)
    model.resize_token_embeddings(VOCABULARY + 4)
    assert model.config.vocab_size == VOCABULARY + 4
    for branch in ("nlu", "nlg"):
        assert model(random_ids(1, 4), branch=branch).logits.shape[-1] == VOCABULARY + 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=32"),
        ({"branch_num_attention_heads": 7}, "branch_num_attention_heads=7 does not divide branch_hidden_size=24"),
        ({"branches": []}, "must name one or both"),
        ({"branches": ["nlu", "nlx"]}, "must name one or both"),
        ({"position_embedding_type": "rotary"}, "is not one of"),
        ({"recurrence": "none"}, "is not one of"),
        ({"memory_length": -1}, "memory_length=-1 is negative"),
        ({"num_soft_prompt_genres": 2, "soft_prompt_token_id": None}, "needs a soft_prompt_token_id"),
        ({"num_soft_prompt_genres": 2, "soft_prompt_token_id": VOCABULARY}, "soft_prompt_token_id"),
        ({"tie_word_embeddings": True}, "branch_hidden_size=24 to equal hidden_size=32"),
    ],
)
def test_refused_configs(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):  # the host wraps the ValueError
        tiny_config(**overrides)


def test_tied_heads() -> None:
    """Where the widths agree, a head may be the word embedding."""
    model = tiny_model(
        Ernie3ForCausalLM, tie_word_embeddings=True, branch_hidden_size=32, branch_num_attention_heads=4
    )
    assert model.nlg_lm_head.decoder.weight is model.ernie3.embeddings.word_embeddings.weight


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ids: m(ids, branch="nlx"), r"branch='nlx' is not one of this model's branches \['nlu', 'nlg'\]"),
        (lambda m, ids: m(), "either input_ids or inputs_embeds"),
        (lambda m, ids: m(ids, inputs_embeds=torch.zeros(2, 5, 32)), "either input_ids or inputs_embeds"),
        (lambda m, ids: m(ids, past_key_values=DynamicCache()), f"{CACHE_NAME} is for branch='nlg' only"),
        (lambda m, ids: m(ids, cache=DynamicCache()), f"{CACHE_NAME} is for branch='nlg' only"),
        (lambda m, ids: m(ids, genre_ids=torch.tensor([0, 0])), "num_soft_prompt_genres=0"),
        (lambda m, ids: m(ids, attention_mask=torch.ones(2, 3)), r"attention_mask has shape \(2, 3\)"),
        (lambda m, ids: m(ids, attention_mask=torch.ones(3, 5)), r"attention_mask has shape \(3, 5\)"),
    ],
)
def test_refused_calls(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tiny_model(Ernie3Model), random_ids(2, 5))


@pytest.mark.parametrize(
    ("ids", "genres", "message"),
    [
        ([[SOFT, 5]], None, "no genre_ids"),
        ([[SOFT, 5]], [2], r"must lie in 0 \.\. 1"),
        ([[SOFT, 5]], [-1], r"must lie in 0 \.\. 1"),
        ([[SOFT, 5]], [0, 1], r"must have shape \(1,\)"),
        ([[SOFT, SOFT, SOFT, SOFT]], [0], "4 soft prompt placeholders, but a genre has 3"),
    ],
)
def test_refused_genres(ids: list[list[int]], genres: list[int] | None, message: str) -> None:
    model = tiny_model(Ernie3Model, num_soft_prompt_genres=2)
    with pytest.raises(ValueError, match=message):
        model(torch.tensor(ids), genre_ids=None if genres is None else torch.tensor(genres))


def test_a_missing_branch() -> None:
    config = tiny_config(branches=["nlu"])
    assert set(Ernie3Model(config).branches) == {"nlu"}
    assert Ernie3Model(tiny_config(branches=["nlg"]))(random_ids(1, 3)).past_key_values is not None
    with pytest.raises(ValueError, match=r"needs the branch 'nlg', but config.branches=\['nlu'\]"):
        Ernie3ForCausalLM(config)


@torch.no_grad()
def test_relative_positions_have_an_end() -> None:
    """A segment has at most max_position_embeddings tokens; absolute positions have no such end."""
    ids = random_ids(1, 9)
    tiny_model(Ernie3Model, max_position_embeddings=8)(ids)
    model = tiny_model(Ernie3Model, max_position_embeddings=8, position_embedding_type="relative")
    for branch in ("nlu", "nlg"):
        with pytest.raises(ValueError, match="at most max_position_embeddings=8 tokens"):
            model(ids, branch=branch)
    cache = model(ids[:, :8], branch="nlg").past_key_values
    for _ in range(model.config.memory_length):
        model(ids[:, :1], branch="nlg", past_key_values=cache)
    with pytest.raises(ValueError, match="at most memory_length=6 more"):
        model(ids[:, :1], branch="nlg", past_key_values=cache)
