"""`generate` of ERNIE 3.0: every mode against a step-by-step forward without any cache, with and without memories."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from hf_glm_ernie.modeling_ernie3 import Ernie3Memories
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM
from tests.support.tiny_ernie3 import PAD, SOFT, random_ids, tiny_model

from .reference.ernie3_naive import Row, language_model_logits

POSITIONS = ("absolute", "relative")
NEW = 7
NO_END = {"eos_token_id": None}


def model_and_prompt(positions: str, with_memory: bool, **overrides: Any) -> tuple[Any, torch.Tensor, Any]:
    """A model, two prompts, one of them padded, and memories of two texts, one shorter than the memory."""
    model = tiny_model(Ernie3ForCausalLM, position_embedding_type=positions, **overrides)
    ids = random_ids(2, 5)
    ids[0, :2] = PAD
    memories = None
    if with_memory:
        earlier = random_ids(2, 8, 1)
        earlier[1, :5] = PAD
        memories = model(earlier, return_memories=True).memories
    return model, ids, memories


@torch.no_grad()
def step_by_step(model: Any, ids: torch.Tensor, memories: Ernie3Memories | None, steps: int = NEW) -> torch.Tensor:
    """Greedy, each token from a forward over the whole text; a generated pad id is a word."""
    mask = (ids != PAD).long()
    for _ in range(steps):
        logits = model(ids, attention_mask=mask, memories=memories, use_cache=False).logits[:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
        mask = torch.cat((mask, mask.new_ones(2, 1)), dim=1)
    return ids


@pytest.mark.parametrize("with_memory", [False, True], ids=["fresh", "memory"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
    ],
    ids=["dynamic", "uncached", "static", "chunked"],
)
def test_greedy(mode: dict[str, Any], implementation: str, positions: str, with_memory: bool) -> None:
    model, ids, memories = model_and_prompt(positions, with_memory)
    model.set_attn_implementation(implementation)
    given = {} if memories is None else {"memories": memories}
    found = model.generate(ids, max_new_tokens=NEW, **NO_END, **given, **mode)
    expected = step_by_step(model, ids, memories)
    assert found.tolist() == expected.tolist()
    if with_memory:
        assert found.tolist() != model.generate(ids, max_new_tokens=NEW, **NO_END).tolist()


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_slow_reference_generates_the_same(positions: str) -> None:
    """From two texts to the continuation, by the formulas alone; one row, so nothing is padded."""
    model = tiny_model(Ernie3ForCausalLM, position_embedding_type=positions)
    earlier, ids = random_ids(1, 8), random_ids(1, 4, 1)
    memories = model(earlier, return_memories=True).memories
    found = model.generate(ids, memories=memories, max_new_tokens=4, **NO_END)[0].tolist()
    weights, settings = model.state_dict(), model.config.to_dict()
    row = Row({name: value for name, value in weights.items() if name.startswith("ernie3.")}, settings, "nlg")
    _, memory = row(earlier[0].tolist())
    text = ids[0].tolist()
    for _ in range(4):
        hidden, _ = row(text, memory)
        text.append(int(language_model_logits(weights, settings, "nlg", hidden[-1:])[0].argmax()))
    assert found == text


@pytest.mark.parametrize("with_memory", [False, True], ids=["fresh", "memory"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_beams(positions: str, with_memory: bool) -> None:
    """Beams over each kind of cache choose what beams without one choose, with the same scores; each beam's score is
    the sum of its tokens' log probabilities from a whole forward.
    """
    model, ids, memories = model_and_prompt(positions, with_memory)
    given: dict[str, Any] = {} if memories is None else {"memories": memories}
    settings = {
        "num_beams": 3,
        "num_return_sequences": 3,
        "max_new_tokens": NEW,
        "length_penalty": 0.0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    plain = model.generate(ids, use_cache=False, **settings, **given, **NO_END)
    for mode in ({}, {"cache_implementation": "static"}):
        found = model.generate(ids, **mode, **settings, **given, **NO_END)
        assert found.sequences.tolist() == plain.sequences.tolist()
        assert (found.sequences_scores - plain.sequences_scores).abs().max() < 1e-4
    rows = torch.arange(2).repeat_interleave(3)
    mask = torch.cat(((ids != PAD).long()[rows], torch.ones(6, NEW, dtype=torch.long)), dim=1)
    again = {} if memories is None else {"memories": memories.select(rows)}
    with torch.no_grad():
        logits = model(plain.sequences, attention_mask=mask, use_cache=False, **again).logits
    chosen = logits.log_softmax(-1)[:, 4:-1].gather(-1, plain.sequences[:, 5:, None])[..., 0].sum(-1)
    assert (chosen - plain.sequences_scores).abs().max() < 1e-4


@pytest.mark.parametrize("positions", POSITIONS)
def test_sampling(positions: str) -> None:
    """The same draws with and without a cache; several candidates for a row."""
    model, ids, memories = model_and_prompt(positions, True)
    results = []
    for mode in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        torch.manual_seed(3)
        sampled = model.generate(
            ids,
            memories=memories,
            do_sample=True,
            top_k=4,
            temperature=0.9,
            num_return_sequences=2,
            max_new_tokens=NEW,
            **mode,
            **NO_END,
        )
        results.append(sampled.tolist())
    assert results[0] == results[1] == results[2]
    assert results[0][0] != results[0][1]


def test_prompt_lookup_without_memories() -> None:
    """Assisted decoding crops the cache of both stacks."""
    model = tiny_model(Ernie3ForCausalLM)
    ids = random_ids(1, 3).repeat(1, 4)
    plain = model.generate(ids, max_new_tokens=12, **NO_END)
    assert torch.equal(model.generate(ids, max_new_tokens=12, prompt_lookup_num_tokens=3, **NO_END), plain)


def test_every_row_of_memory_reaches_its_row() -> None:
    """A row's continuation is the same whatever its neighbour is."""
    model, ids, memories = model_and_prompt("absolute", True)
    both = model.generate(ids, memories=memories, max_new_tokens=NEW, **NO_END)
    for i in range(2):
        alone = model.generate(
            ids[i : i + 1], memories=memories.select(torch.tensor([i])), max_new_tokens=NEW, **NO_END
        )
        assert alone[0].tolist() == both[i].tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_going_on_with_a_cache(positions: str, kind: str) -> None:
    """A second `generate` on the first one's cache, given the whole text again, as the host's conversations do."""
    model = tiny_model(Ernie3ForCausalLM, position_embedding_type=positions)
    ids = random_ids(1, 5)
    memories = model(random_ids(1, 8, 1), return_memories=True).memories
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=40)
    first = model.generate(ids, memories=memories, past_key_values=cache, max_new_tokens=4, **NO_END)
    longer = torch.cat((first, random_ids(1, 3, 2)), dim=1)
    found = model.generate(longer, memories=memories, past_key_values=cache, max_new_tokens=4, **NO_END)
    fresh = model.generate(longer, memories=memories, max_new_tokens=4, **NO_END)
    assert found.tolist() == fresh.tolist()


def test_soft_prompts() -> None:
    """Genres reach the prompt of every beam; the placeholder is never written, or it would count as one more."""
    model = tiny_model(Ernie3ForCausalLM, num_soft_prompt_genres=2)
    ids = random_ids(2, 6)
    ids[:, :2] = SOFT
    genres = torch.tensor([1, 0])
    for mode in ({}, {"num_beams": 2}):
        found, uncached = (
            model.generate(ids, genre_ids=genres, max_new_tokens=4, use_cache=use_cache, **mode, **NO_END)
            for use_cache in (True, False)
        )
        assert torch.equal(found, uncached)
        assert not (found[:, 6:] == SOFT).any()
    swapped = model.generate(ids, genre_ids=1 - genres, max_new_tokens=4, **NO_END)
    assert not torch.equal(found, swapped)


def test_embeddings_as_prompt() -> None:
    model, ids = tiny_model(Ernie3ForCausalLM), random_ids(2, 5)
    memories = model(random_ids(2, 8, 1), return_memories=True).memories
    embeds = model.get_input_embeddings()(ids)
    for given in ({}, {"memories": memories}):
        by_ids = model.generate(ids, max_new_tokens=4, **given, **NO_END)
        by_embeddings = model.generate(inputs_embeds=embeds, max_new_tokens=4, **given, **NO_END)
        assert torch.equal(by_embeddings, by_ids[:, 5:])


def test_ends_with_end() -> None:
    """The config's [END] stops a row; finished rows are padded."""
    model = tiny_model(Ernie3ForCausalLM)
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    ids = random_ids(1, 5)
    second = int(model.generate(ids, max_new_tokens=2, **NO_END)[0, -1])
    found = model.generate(ids, max_new_tokens=6, eos_token_id=second)
    assert int(found[0, -1]) == second
    assert found.shape[1] <= 7


def test_generation_survives_saving(tmp_path: Path) -> None:
    model, ids, memories = model_and_prompt("absolute", True)
    model.save_pretrained(tmp_path)
    again = Ernie3ForCausalLM.from_pretrained(tmp_path)
    found = again.generate(ids, memories=memories, max_new_tokens=4)
    assert torch.equal(found, model.generate(ids, memories=memories, max_new_tokens=4))


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_compiled_static_decoding(positions: str) -> None:
    """One decoding step on a static cache that began with memories, as one graph."""
    layers = {"num_hidden_layers": 1, "branch_num_hidden_layers": 1}
    model, ids, memories = model_and_prompt(positions, True, **layers)
    mask = (ids != PAD).long()
    outputs = []
    for function in (model.forward, torch.compile(model.forward, backend="eager", fullgraph=True)):
        cache = StaticCache(model.config, max_cache_len=20)
        model(ids, attention_mask=mask, memories=memories, past_key_values=cache)
        whole = torch.nn.functional.pad(mask, (0, 9), value=1)
        positions_now = memories.tokens_seen[:, None] + mask.sum(-1, keepdim=True)
        for step in range(2):
            output = function(
                ids[:, -1:],
                attention_mask=whole,
                position_ids=positions_now + step,
                memories=memories.without_states(),
                past_key_values=cache,
            )
        outputs.append(output.logits)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5


def test_refused_modes() -> None:
    model, ids, memories = model_and_prompt("absolute", True)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens and memories do not go together"):
        model.generate(ids, memories=memories, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens and memories do not go together"):
        model.generate(ids, GenerationConfig(prompt_lookup_num_tokens=2), memories=memories)
    model.generation_config.prompt_lookup_num_tokens = 2  # a default of the model, which the host fills in
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens and memories do not go together"):
        model.generate(ids, GenerationConfig(max_new_tokens=2), memories=memories)
    model.generation_config.prompt_lookup_num_tokens = None
    with pytest.raises(ValueError, match="assistant_model and memories do not go together"):
        model.generate(ids, memories=memories, assistant_model=model)
    with pytest.raises(ValueError, match="memories hold 2 rows and the input has 1"):
        model.generate(ids[:1], memories=memories, max_new_tokens=2)


def test_relative_positions_have_an_end() -> None:
    model = tiny_model(Ernie3ForCausalLM, position_embedding_type="relative", max_position_embeddings=8)
    ids = random_ids(1, 5)
    with pytest.raises(ValueError, match="A static cache of 14 tokens is longer than the relative positions reach"):
        model.generate(ids, max_new_tokens=10, cache_implementation="static", **NO_END)
    with pytest.raises(ValueError, match="beyond the relative positions"):
        model.generate(ids, max_new_tokens=20, **NO_END)


def test_early_exit_is_refused() -> None:
    """A branch reads what the whole universal stack hands it; the host would cut both and leave the config cut."""
    model = tiny_model(Ernie3ForCausalLM)
    layers = model.config.num_hidden_layers
    with pytest.raises(ValueError, match="no layer to exit at"):
        model.generate(random_ids(1, 4), assistant_early_exit=1, max_new_tokens=2)
    model.generation_config.assistant_early_exit = 1  # a default that the host merges into any settings
    with pytest.raises(ValueError, match="no layer to exit at"):
        model.generate(random_ids(1, 4), GenerationConfig(max_new_tokens=2))
    assert model.config.num_hidden_layers == layers


def test_assisted_decoding_is_greedy_decoding() -> None:
    model, assistant = tiny_model(Ernie3ForCausalLM), tiny_model(Ernie3ForCausalLM, seed=1)
    for ids in random_ids(3, 6).split(1):
        settings = {"max_new_tokens": 8, "do_sample": False}
        plain = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, assistant_model=assistant, **settings), plain)
