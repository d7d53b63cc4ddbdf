"""Memory carried from segment to segment: against the slow reference, with padding, documents that end, and caches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hf_glm_ernie.attention_ernie3 import counted_positions, relative_rows, remember, remembered_columns
from hf_glm_ernie.modeling_ernie3 import Ernie3Memories, Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM
from tests.support.tiny_ernie3 import MEMORY, PAD, apart, left_padded, random_ids, tiny_model

from .reference.ernie3_naive import Memory, Row

# fp32 against fp64; seen: 5.2e-6 on memory states, 3.0e-6 elsewhere
EXACT = 1e-5
POSITIONS = ("absolute", "relative")
LAYERS = 5


def check_states(memories: Ernie3Memories, row: int, expected: Memory | None) -> None:
    """A row's memories against the reference's, which has no padding."""
    assert expected is not None
    assert memories.states is not None
    assert memories.mask is not None
    assert memories.tokens_seen is not None
    number = len(expected.states[0])
    seen = [False] * (memories.mask.shape[1] - number) + [True] * number
    assert memories.mask[row].tolist() == seen
    assert int(memories.tokens_seen[row]) == expected.seen
    assert len(memories.states) == LAYERS
    for found, states in zip(memories.states, expected.states, strict=True):
        assert not found.requires_grad
        assert apart(found[row, -number:], torch.stack(states)) < EXACT


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("pre_norm", [True, False], ids=["normed", "literal"])
@pytest.mark.parametrize("recurrence", ["same_layer", "shift_down"])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_segments_equal_the_formula(positions: str, recurrence: str, pre_norm: bool, implementation: str) -> None:
    """Three segments, shorter and longer than the memory, with types."""
    model = tiny_model(
        Ernie3Model,
        position_embedding_type=positions,
        recurrence=recurrence,
        memory_pre_norm=pre_norm,
        type_vocab_size=3,
    )
    model.set_attn_implementation(implementation)
    row = Row(model.state_dict(), model.config.to_dict(), "nlg")
    memories, expected = None, None
    for number, length in enumerate((4, 7, 3)):
        ids, types = random_ids(1, length, number), torch.arange(length)[None] % 3
        output = model(ids, token_type_ids=types, branch="nlg", memories=memories, return_memories=True)
        hidden, expected = row(ids[0].tolist(), expected, types[0].tolist())
        assert apart(output.last_hidden_state[0], hidden) < EXACT
        check_states(output.memories, 0, expected)
        memories = output.memories


@pytest.mark.usefixtures("one_compiled_shape")
@torch.no_grad()
def test_flex_attention() -> None:
    """The host's third implementation, with absolute positions: torch's compiler for CPUs fails on a captured bias.

    Both stacks have one shape here, because every shape is compiled anew.
    """
    model = tiny_model(Ernie3Model, branch_hidden_size=32, branch_num_attention_heads=4)
    memories = model(random_ids(1, 5), branch="nlg", return_memories=True).memories
    ids = left_padded(random_ids(1, 6, 1), 2)
    expected = model(ids, branch="nlg", memories=memories)
    model.set_attn_implementation("flex_attention")
    found = model(ids, branch="nlg", memories=memories)
    assert apart(found.last_hidden_state[:, 2:], expected.last_hidden_state[:, 2:]) < EXACT


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_rows_of_a_batch_are_alone(positions: str, implementation: str) -> None:
    """Rows of different lengths, padded left or right, segment after segment: each equals itself alone, the memory
    holds its last tokens and never padding.
    """
    model = tiny_model(Ernie3Model, position_embedding_type=positions)
    model.set_attn_implementation(implementation)
    row = Row(model.state_dict(), model.config.to_dict(), "nlg")
    lengths = ((7, 3), (2, 7), (5, 1), (0, 4), (6, 6))
    for side in ("left", "right"):
        memories = None
        expected: list[Memory | None] = [None, None]
        for number, own in enumerate(lengths):
            width = max(own)
            texts = [random_ids(1, width, 10 * number + i)[0][:length] for i, length in enumerate(own)]
            padding = [torch.full((width - length,), PAD) for length in own]
            pairs = zip(texts, padding, strict=True)
            ids = torch.stack([torch.cat((pad, text) if side == "left" else (text, pad)) for text, pad in pairs])
            output = model(ids, branch="nlg", memories=memories, return_memories=True)
            for i, text in enumerate(texts):
                if not len(text):
                    continue  # nothing new: the memory stays, which the next segment shows
                hidden, expected[i] = row(text.tolist(), expected[i])
                real = ids[i] != PAD
                assert apart(output.last_hidden_state[i][real], hidden) < EXACT
                check_states(output.memories, i, expected[i])
            memories = output.memories


@torch.no_grad()
def test_padding_is_never_remembered() -> None:
    """Not even as something else than zero weight: what stands under a pad token may be anything."""
    model = tiny_model(Ernie3Model)
    ids, next_ids = random_ids(2, 4), random_ids(2, 4, 1)
    padded = left_padded(ids, 5)
    embeds = model.get_input_embeddings()(padded)
    embeds[:, :5] = 1e4
    mask = (padded != PAD).long()
    memories = model(inputs_embeds=embeds, attention_mask=mask, branch="nlg", return_memories=True).memories
    assert memories.mask.tolist() == [[False, False, True, True, True, True]] * 2
    expected = model(ids, branch="nlg", return_memories=True).memories
    assert torch.equal(memories.tokens_seen, expected.tokens_seen)
    found = model(next_ids, branch="nlg", memories=memories).last_hidden_state
    assert apart(found, model(next_ids, branch="nlg", memories=expected).last_hidden_state) < EXACT


@torch.no_grad()
def test_memory_matters_and_positions_go_on() -> None:
    model = tiny_model(Ernie3Model)
    first, second = random_ids(1, 8), random_ids(1, 4, 1)
    memories = model(first, branch="nlg", return_memories=True).memories
    assert memories.tokens_seen.tolist() == [8]
    found = model(second, branch="nlg", memories=memories).last_hidden_state
    assert apart(found, model(second, branch="nlg").last_hidden_state) > 0.1
    spelled_out = model(second, branch="nlg", memories=memories, position_ids=torch.arange(8, 12)[None])
    assert torch.equal(found, spelled_out.last_hidden_state)
    elsewhere = model(second, branch="nlg", memories=memories, position_ids=torch.arange(4)[None])
    assert apart(found, elsewhere.last_hidden_state) > 1e-2


@torch.no_grad()
def test_rows_that_begin_anew() -> None:
    """A reset row equals a fresh one; the other goes on."""
    model = tiny_model(Ernie3Model)
    first, second = random_ids(2, 8), random_ids(2, 4, 1)
    memories = model(first, branch="nlg", return_memories=True).memories
    reset = memories.reset(torch.tensor([True, False]))
    found = model(second, branch="nlg", memories=reset)
    assert apart(found.last_hidden_state[0], model(second, branch="nlg").last_hidden_state[0]) < EXACT
    goes_on = model(second, branch="nlg", memories=memories).last_hidden_state[1]
    assert torch.equal(found.last_hidden_state[1], goes_on)
    assert found.memories.tokens_seen.tolist() == [4, 12]
    assert found.memories.mask.sum(-1).tolist() == [4, 6]
    assert memories.mask.all()  # the original is as it was


@torch.no_grad()
def test_selected_rows() -> None:
    model = tiny_model(Ernie3Model)
    memories = model(random_ids(3, 8), branch="nlg", return_memories=True).memories
    second = random_ids(3, 4, 1)
    order = torch.tensor([2, 0, 0])
    found = model(second[order], branch="nlg", memories=memories.select(order)).last_hidden_state
    assert apart(found, model(second, branch="nlg", memories=memories).last_hidden_state[order]) < EXACT


@torch.no_grad()
def test_when_memories_are_returned() -> None:
    model, ids = tiny_model(Ernie3Model), random_ids(1, 4)
    assert model(ids, branch="nlg").memories is None
    memories = model(ids, branch="nlg", return_memories=True).memories
    assert model(ids, branch="nlg", memories=memories).memories is not None
    assert model(ids, branch="nlg", memories=memories, return_memories=False).memories is None
    assert tiny_model(Ernie3Model, memory_length=0)(ids, branch="nlg", return_memories=True).memories is None


def test_no_gradient_flows_back() -> None:
    """The loss of a segment reaches what it used of its own, and nothing of the segment before."""
    model = tiny_model(Ernie3ForCausalLM).train()
    ids = random_ids(2, 6)
    memories = model(ids, return_memories=True).memories
    assert not any(state.requires_grad for state in memories.states)
    states = tuple(state.clone().requires_grad_() for state in memories.states)
    memories = Ernie3Memories(states=states, mask=memories.mask, tokens_seen=memories.tokens_seen)
    output = model(ids, labels=ids, memories=memories)
    assert not any(state.requires_grad for state in output.memories.states)
    output.loss.backward()
    # the memory's keys and values go through the layers' own weights, so those learn from it
    assert all(state.grad is not None for state in states)


def test_states_come_detached_into_the_memory() -> None:
    memory, states = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    columns, mask = remembered_columns(torch.tensor([[True, False, False, True]]), 3)
    assert columns.tolist() == [[2, 0, 3]]
    assert mask.tolist() == [[False, True, True]]
    kept = remember(memory, states, columns)
    assert not kept.requires_grad
    assert torch.equal(kept[0, 1:], torch.stack((memory[0, 0], states[0, 1])))


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1]])
    assert counted_positions(mask, 5, 0, mask.device).tolist() == [[0, 0, 0, 1, 2]]
    assert counted_positions(mask, 2, torch.tensor(3), mask.device).tolist() == [[1, 2]]
    assert counted_positions(None, 2, 3, mask.device).tolist() == [[3, 4]]


def test_rows_of_the_table() -> None:
    """T = 4, M = 2: rows 0 .. 3 for the distances 0 .. -3, then 4 .. 8 for 1 .. 5; the last row stands for more."""
    distances = torch.tensor([0, -1, -3, 1, 2, 5, 9])
    assert relative_rows(distances, 4, 10).tolist() == [0, 1, 3, 4, 5, 8, 9]


def two_caches(model: Any, room: int) -> list[Any]:
    return [DynamicCache(config=model.config), DynamicCache(), StaticCache(model.config, max_cache_len=room)]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["dynamic", "growing", "static"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_cached_decoding_after_memories(positions: str, implementation: str, kind: int) -> None:
    """The memory enters the cache with the first call; then token by token equals the whole segment at once."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions, type_vocab_size=2)
    model.set_attn_implementation(implementation)
    earlier = random_ids(2, 5)
    earlier[0, :3] = PAD  # a memory with empty places
    ids = random_ids(2, 8, 1)
    ids[1, :2] = PAD
    types, mask = torch.arange(16).view(2, 8) % 2, (ids != PAD).long()
    memories = model(earlier, branch="nlg", return_memories=True).memories
    whole = model(ids, token_type_ids=types, branch="nlg", memories=memories).last_hidden_state
    cache = two_caches(model, 5 + 10)[kind]
    pieces, given = [], memories
    for start, end in ((0, 4), (4, 7), (7, 8)):
        output = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            token_type_ids=types[:, start:end],
            branch="nlg",
            memories=given,
            past_key_values=cache,
        )
        assert (output.memories is None) == (start > 0)
        pieces.append(output.last_hidden_state)
        given = memories.without_states()
    assert apart(torch.cat(pieces, dim=1)[ids != PAD], whole[ids != PAD]) < EXACT
    assert int(cache.get_seq_length()) == 5 + 8


@torch.no_grad()
def test_a_cache_used_again() -> None:
    """After `reset` a cache takes another text, with a memory of another length or none.

    A static one: the oldest host's `reset` leaves a dynamic cache as long as it was.
    """
    model = tiny_model(Ernie3Model)
    ids = random_ids(1, 4)
    long = model(random_ids(1, 9, 1), branch="nlg", return_memories=True).memories
    short = model(random_ids(1, 2, 2), branch="nlg", return_memories=True).memories
    cache = StaticCache(model.config, max_cache_len=20)
    for memories in (long, short, None):
        cache.reset()
        output = model(ids, branch="nlg", memories=memories, past_key_values=cache)
        given = None if memories is None else memories.without_states()
        found = model(ids, branch="nlg", memories=given, past_key_values=cache).last_hidden_state
        whole = model(torch.cat((ids, ids), dim=1), branch="nlg", memories=memories).last_hidden_state
        assert apart(torch.cat((output.last_hidden_state, found), dim=1), whole) < EXACT


def changed(**values: Any) -> Callable[[Ernie3Memories], Ernie3Memories]:
    return lambda memories: Ernie3Memories(**{**memories, **values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.states, "must be the Ernie3Memories"),
        (changed(tokens_seen=None), "must be the Ernie3Memories"),
        (lambda m: m.select(torch.tensor([0, 1, 1])), "memories hold 3 rows and the input has 2"),
        (lambda m: Ernie3Memories(m.states[:3], m.mask, m.tokens_seen), "states of 3 layers"),
        (lambda m: Ernie3Memories(m.states[::-1], m.mask, m.tokens_seen), r"states\[0\] has shape \(2, 4, 24\)"),
        (lambda m: Ernie3Memories(m.states, m.mask[:, 1:], m.tokens_seen), r"states\[0\] has shape \(2, 4, 32\)"),
        (changed(mask=torch.ones(2, 4)), "must be bool"),
        (
            changed(mask=torch.ones(2, MEMORY + 1, dtype=torch.bool)),
            "memories hold 7 columns, but config.memory_length=6",
        ),
        (changed(tokens_seen=torch.zeros(3)), r"tokens_seen \(batch,\)"),
        (changed(mask=torch.ones(2, 4, dtype=torch.bool, device="meta")), "memories lie on meta and the input on cpu"),
        (lambda m: Ernie3Memories(tuple(s.to("meta") for s in m.states), m.mask, m.tokens_seen), "lies on meta"),
        (lambda m: m.without_states(), "without the cache that took them in"),
    ],
)
def test_refused_memories(change: Callable[[Ernie3Memories], Any], message: str) -> None:
    model = tiny_model(Ernie3Model)
    memories = model(random_ids(2, 4), branch="nlg", return_memories=True).memories
    with pytest.raises(ValueError, match=message):
        model(random_ids(2, 4), branch="nlg", memories=change(memories))


def test_refused_uses() -> None:
    model, ids = tiny_model(Ernie3Model), random_ids(2, 4)
    memories = model(ids, branch="nlg", return_memories=True).memories
    with pytest.raises(ValueError, match="memories is for branch='nlg' only"):
        model(ids, branch="nlu", memories=memories)
    with pytest.raises(ValueError, match="return_memories is for branch='nlg' only"):
        model(ids, return_memories=True)
    with pytest.raises(ValueError, match=r"config\.memory_length=0"):
        tiny_model(Ernie3Model, memory_length=0)(ids, branch="nlg", memories=memories)
    with pytest.raises(ValueError, match="rows must be bool of shape"):
        memories.reset(torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="rows must be bool of shape"):
        memories.reset(torch.tensor([True]))


def test_refused_caches() -> None:
    """A filled cache and memories must belong together, and a filled cache has no memories to give."""
    model, ids = tiny_model(Ernie3Model), random_ids(2, 4)
    memories = model(ids, branch="nlg", return_memories=True).memories
    with_memory = model(ids, branch="nlg", memories=memories).past_key_values
    without = model(ids, branch="nlg").past_key_values
    with pytest.raises(ValueError, match="memories with states came together with a filled cache"):
        model(ids, branch="nlg", memories=memories, past_key_values=with_memory)
    with pytest.raises(ValueError, match="begins with 4 columns of memory, but this call's memories have 0"):
        model(ids, branch="nlg", past_key_values=with_memory)
    with pytest.raises(ValueError, match="begins with 0 columns of memory, but this call's memories have 4"):
        model(ids, branch="nlg", memories=memories.without_states(), past_key_values=without)
    with pytest.raises(ValueError, match="return_memories=True on a filled cache"):
        model(ids, branch="nlg", past_key_values=without, return_memories=True)
