"""`generate` in all its modes against a greedy loop over the slow reference, and `fill_blanks`."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, TextStreamer

from hf_glm_ernie import Glm130bForCausalLM, fill_blanks
from hf_glm_ernie.host_interface import returned_cache
from tests.reference.glm130b_naive import forward as naive_forward
from tests.reference.glm130b_naive import layout
from tests.support.tiny_models import EOP, EOS, GMASK, HEADS, LAYERS, MASK, PAD, SMASK, SOP, tiny_model

PROMPTS = [
    [9, 8, MASK, 7, 6, SOP],
    [19, 8, 17, 16, 15, 14, GMASK, SOP],
    [9, SMASK, 7, SOP],
    [9, 8, 7, 6, 5],
]
NEW = 12


@pytest.fixture(scope="module")
def model() -> Glm130bForCausalLM:
    # A random model with a tied projection echoes its last token; with a projection of its own the answers vary.
    model = tiny_model(seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
        model.lm_head.weight[[MASK, GMASK, SMASK, SOP]] = 0.0  # never the largest logit
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = [EOP, EOS]
    return model


def next_token(model: Glm130bForCausalLM, ids: list[int], positions: list[int], visible: torch.Tensor) -> int:
    logits = naive_forward(model.state_dict(), ids, positions, visible, LAYERS, HEADS, projection=model.lm_head.weight)
    return int(logits[-1].argmax())


def reference_greedy(model: Glm130bForCausalLM, prompt: list[int], new: int = NEW) -> list[int]:
    """The answer of a prompt: the whole row through the reference for every token."""
    ids = list(prompt)
    start = len(prompt) - 1 if SOP in prompt else 0
    positions, _ = layout(prompt, SOP, MASK, SMASK)
    step = 0 if any(kind in prompt[:start] for kind in (MASK, SMASK)) else 1
    for _ in range(new):
        row = positions + [positions[-1] + step * (i + 1) for i in range(len(ids) - len(prompt))]
        visible = torch.ones(len(ids), len(ids)).tril().bool()
        visible[:start, :start] = True
        ids.append(next_token(model, ids, row, visible))
        if ids[-1] in (EOP, EOS):
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def expected(model: Glm130bForCausalLM) -> list[list[int]]:
    return [reference_greedy(model, prompt) for prompt in PROMPTS]


def batch(prompts: list[list[int]] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts]),
    }


def answers(output: torch.Tensor, width: int) -> list[list[int]]:
    rows = []
    for row in output[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in (EOP, EOS)), len(row))
        rows.append(row[:end])
    return rows


def test_the_reference_answers_depend_on_the_layout(expected: list[list[int]]) -> None:
    assert len({tuple(row) for row in expected}) == len(expected)
    assert any(len(set(row)) > 3 for row in expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "mode",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["cache", "no-cache", "static", "prompt-lookup"],
)
def test_greedy_modes_equal_the_reference(model, expected, mode, implementation) -> None:
    model.set_attn_implementation(implementation)
    if "prompt_lookup_num_tokens" in mode:  # the host's speculative modes take one row
        got = []
        for prompt in PROMPTS:
            output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, **mode)
            got += answers(output, len(prompt))
    else:
        inputs = batch()
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, disable_compile=True, **mode)
        got = answers(output, inputs["input_ids"].shape[1])
    assert got == expected


def test_compiled_static_cache_equals_the_reference(model, expected) -> None:
    model.set_attn_implementation("sdpa")
    torch._dynamo.reset()
    inputs = batch()
    step = model.forward
    model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    try:
        output = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, cache_implementation="static", disable_compile=True
        )
    finally:
        model.forward = step
        torch._dynamo.reset()
    assert answers(output, inputs["input_ids"].shape[1]) == expected


def test_assisted_decoding_equals_the_reference(model, expected) -> None:
    model.set_attn_implementation("sdpa")
    for assistant in (tiny_model(seed=5), model):
        for prompt, answer in zip(PROMPTS, expected, strict=True):
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, assistant_model=assistant
            )
            assert answers(output, len(prompt)) == [answer]


def test_an_assistant_sees_the_prompt_s_layout(model) -> None:
    """The model's twin as assistant has its drafts accepted, also where positions are frozen at the mask."""
    verifications = []
    forward = model.forward

    @functools.wraps(forward)  # the host reads its signature
    def spy(*args, **kwargs):
        verifications.append(kwargs["position_ids"].shape[1])
        return forward(*args, **kwargs)

    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    model.forward = spy
    try:
        model.generate(
            torch.tensor([PROMPTS[0]]),
            max_new_tokens=10,
            min_new_tokens=10,
            do_sample=False,
            assistant_model=assistant,
        )
    finally:
        del model.forward
    assert verifications == [len(PROMPTS[0]) + 4, 5]  # ten tokens: twice four drafts and one of its own


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_beams_do_not_depend_on_padding_or_cache(model, static: bool) -> None:
    model.set_attn_implementation("sdpa")
    settings = {
        "num_beams": 3,
        "max_new_tokens": 6,
        "do_sample": False,
        "num_return_sequences": 2,
        "disable_compile": True,
    }
    if static:
        settings["cache_implementation"] = "static"
    inputs = batch()
    together = answers(model.generate(**inputs, **settings), inputs["input_ids"].shape[1])
    alone = []
    for prompt in PROMPTS:
        alone += answers(model.generate(torch.tensor([prompt]), **settings, use_cache=static), len(prompt))
    assert together == alone


def sampled_by_hand(
    model: Glm130bForCausalLM, prompt: list[int], rows: int, new: int, bidirectional: bool
) -> list[list[int]]:
    """Ids drawn from the reference's 20 likeliest, as the host draws; without the layout all is causal."""
    ids, ended = [list(prompt) for _ in range(rows)], [False] * rows
    for _ in range(new):
        logits = []
        for row in ids:
            positions, visible = layout(row, SOP, MASK, SMASK)
            if not bidirectional:
                positions, visible = list(range(len(row))), torch.ones(len(row), len(row)).tril().bool()
            logits.append(
                naive_forward(
                    model.state_dict(), row, positions, visible, LAYERS, HEADS, projection=model.lm_head.weight
                )[-1]
            )
        scores = torch.stack(logits)
        scores = scores.masked_fill(scores < scores.topk(20).values[:, -1:], -torch.inf)
        drawn = torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist()
        for i, token in enumerate(drawn):
            ids[i].append(PAD if ended[i] else token)
            ended[i] = ended[i] or token in (EOP, EOS)
    return ids


def test_sampling_is_reproducible_and_uses_the_layout(model) -> None:
    model.set_attn_implementation("sdpa")
    settings = {"do_sample": True, "top_k": 20, "max_new_tokens": 8, "num_return_sequences": 3}
    for prompt in PROMPTS[:3]:
        got = []
        for cached in (True, False):
            torch.manual_seed(1)
            got.append(model.generate(torch.tensor([prompt]), **settings, use_cache=cached).tolist())
        torch.manual_seed(1)
        assert got[0] == got[1] == sampled_by_hand(model, prompt, 3, 8, bidirectional=True)
        torch.manual_seed(1)
        assert got[0] != sampled_by_hand(model, prompt, 3, 8, bidirectional=False)


def test_scores_of_a_step_are_the_reference_logits(model) -> None:
    model.set_attn_implementation("sdpa")
    prompt = PROMPTS[0]
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=True,
    )
    ids = output.sequences[0].tolist()
    for i, logits in enumerate(output.logits):
        row = ids[: len(prompt) + i]
        positions, visible = layout(row, SOP, MASK, SMASK)
        reference = naive_forward(
            model.state_dict(), row, positions, visible, LAYERS, HEADS, projection=model.lm_head.weight
        )[-1]
        assert (logits[0] - reference).abs().max() < 2e-5  # as in test_modeling_glm130b.py


def test_explicit_layout_overrides_the_ids(model) -> None:
    """A row whose context holds a <sop> and whose answer keeps position 1, as fill_blanks makes them."""
    model.set_attn_implementation("sdpa")
    ids = [9, MASK, SOP, 8, 7, SOP]
    types, positions = [0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 1]
    output = model.generate(
        torch.tensor([ids]),
        token_type_ids=torch.tensor([types]),
        position_ids=torch.tensor([positions]),
        max_new_tokens=4,
        do_sample=False,
    )
    for _ in range(4):
        visible = torch.ones(len(ids), len(ids)).tril().bool()
        visible[:5, :5] = True
        row = positions + [1] * (len(ids) - len(positions))
        ids.append(next_token(model, ids, row, visible))
    assert output[0].tolist() == ids


def test_a_sop_written_by_the_model_changes_nothing_behind_it(model) -> None:
    """Cached and uncached generation agree when a causal row's answer contains <sop> and a mask."""
    model.set_attn_implementation("sdpa")
    forced = [8, SOP, 7, MASK, SOP, 6]

    def allow(batch_id: int, ids: torch.Tensor) -> list[int]:
        return [forced[min(len(ids) - 3, len(forced) - 1)]] if len(ids) - 3 < len(forced) else list(range(128))

    settings = {"max_new_tokens": 10, "do_sample": False, "prefix_allowed_tokens_fn": allow}
    cached = model.generate(torch.tensor([[9, 8, 7]]), **settings)
    assert torch.equal(cached, model.generate(torch.tensor([[9, 8, 7]]), use_cache=False, **settings))


def test_continuing_a_cache_equals_one_run(model) -> None:
    model.set_attn_implementation("sdpa")
    prompt = torch.tensor([PROMPTS[1]])
    whole = model.generate(prompt, max_new_tokens=8, do_sample=False)
    cache = DynamicCache(config=model.config)
    first = model.generate(prompt, max_new_tokens=4, do_sample=False, past_key_values=cache)
    assert torch.equal(model.generate(first, max_new_tokens=4, do_sample=False, past_key_values=cache), whole)


@pytest.mark.parametrize("length", [1, 3, 5], ids="{} tokens".format)
def test_a_cache_that_read_context_as_causal_is_refused(model, length: int) -> None:
    """As `forward` refuses it: the logits behind it would be others (by 2 and more)."""
    prompt = torch.tensor([PROMPTS[0]])
    for pieces in (prompt, prompt.repeat(2, 1)):
        cache = returned_cache(model(pieces[:, :length], use_cache=True))
        assert cache.get_seq_length() == length
        with pytest.raises(ValueError, match=rf"holds {length} tokens of the prompt that were read as causal"):
            model.generate(pieces, past_key_values=cache, max_new_tokens=2)


def test_a_cache_of_a_causal_text_goes_on(model, expected) -> None:
    """A prompt without context was rightly read as causal."""
    prompt = torch.tensor([PROMPTS[3]])
    cache = returned_cache(model(prompt[:, :3], use_cache=True))
    output = model.generate(prompt, cache=cache, max_new_tokens=NEW)
    assert answers(output, prompt.shape[1]) == [expected[3]]


def test_a_cache_that_read_one_row_of_two_wrongly_is_refused(model) -> None:
    """Also where it holds one row's keys repeated."""
    rows = torch.tensor([[9, 8, 7, 6, 5], [9, 8, GMASK, SOP, 5]])
    cache = returned_cache(model(rows[:, :2], use_cache=True))
    with pytest.raises(ValueError, match="were read as causal"):
        model.generate(rows, past_key_values=cache, max_new_tokens=2)
    repeated = returned_cache(model(rows[1:, :2], use_cache=True))
    repeated.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match="were read as causal"):
        model.generate(rows[1:].repeat(2, 1), past_key_values=repeated, max_new_tokens=2)


@pytest.mark.parametrize("cached", [8, 9], ids=["to-sop", "behind-sop"])
def test_a_cache_of_a_whole_context_goes_on(model, cached: int) -> None:
    row = torch.tensor([[*PROMPTS[1], 5, 6]])
    cache = returned_cache(model(row[:, :cached], use_cache=True))
    found = model.generate(row, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, model.generate(row, max_new_tokens=4, do_sample=False))


def test_an_early_exit_keeps_the_residual_scale_of_the_whole_model(model) -> None:
    """DeepNorm's alpha belongs to the weights: the first layer's output is what it is in the whole model."""
    row = torch.tensor([PROMPTS[0]])
    first = model(row, output_hidden_states=True).hidden_states[1]
    model.config.num_hidden_layers = 1
    try:
        found = model(row).logits
    finally:
        model.config.num_hidden_layers = LAYERS
    assert torch.equal(found, model.lm_head(model.model.norm(first)))


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_early_exit_drafts_with_fewer_layers_and_leaves_the_config_alone(
    model, expected, monkeypatch, layer: int
) -> None:
    ran: list[int] = []
    layers = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(model.model.layers)]
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        output = model.generate(torch.tensor([prompt]), assistant_early_exit=layer, max_new_tokens=NEW)
        assert answers(output, len(prompt)) == [answer]
        assert model.config.num_hidden_layers == LAYERS
    for hook in layers:
        hook.remove()
    assert ran.count(0) == ran.count(layer - 1) > ran.count(layer)  # drafts ended there, checks went through all
    assert ran.count(layer) == ran.count(LAYERS - 1) > 0

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no draft")

    monkeypatch.setattr(model.model.layers[0], "forward", fail)
    with pytest.raises(RuntimeError, match="no draft"):
        model.generate(torch.tensor([PROMPTS[0]]), assistant_early_exit=layer, max_new_tokens=2)
    assert model.config.num_hidden_layers == LAYERS


@pytest.mark.parametrize("layer", [-1, 0, LAYERS + 1])
def test_an_early_exit_that_is_no_layer_is_refused(model, layer: int) -> None:
    with pytest.raises(ValueError, match=f"assistant_early_exit={layer} .* must lie in 1 .. {LAYERS}"):
        model.generate(torch.tensor([PROMPTS[0]]), assistant_early_exit=layer, max_new_tokens=2)


def test_inputs_embeds_generate_with_an_explicit_layout(model, expected) -> None:
    model.set_attn_implementation("sdpa")
    prompt = torch.tensor([PROMPTS[0]])
    output = model.generate(
        inputs_embeds=model.get_input_embeddings()(prompt),
        token_type_ids=torch.tensor([[0, 0, 0, 0, 0, 1]]),
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 2]]),
        max_new_tokens=NEW,
        do_sample=False,
    )
    assert answers(output, 0) == [expected[0]]
    with pytest.raises(ValueError, match="pass both token_type_ids and position_ids"):
        model.generate(
            inputs_embeds=model.get_input_embeddings()(prompt), token_type_ids=torch.zeros(1, 6, dtype=torch.long)
        )


def test_streaming(model, expected) -> None:
    class Ids(TextStreamer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            pass

    streamer = Ids()
    model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=NEW, do_sample=False, streamer=streamer)
    assert streamer.seen == PROMPTS[0] + expected[0]


@pytest.mark.parametrize("settings", [{"prefill_chunk_size": 2}, {"cache_implementation": "paged"}])
def test_modes_that_split_the_prompt_are_refused(model, settings) -> None:
    for kwargs in (settings, {"generation_config": GenerationConfig(**settings)}):
        with pytest.raises(ValueError, match="reads a prompt in pieces"):
            model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=2, **kwargs)


def test_continuous_batching_is_refused(model) -> None:
    for method in (model.generate_batch, model.init_continuous_batching, model.continuous_batching_context_manager):
        with pytest.raises(ValueError, match="Continuous batching"):
            method(inputs=[PROMPTS[0]])


def test_a_prompt_without_room_is_refused(model) -> None:
    with pytest.raises(ValueError, match="The prompt has 256 tokens and the model's context 256: no room is left"):
        model.generate(torch.full((1, 256), 9), max_new_tokens=1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.generate(torch.tensor([[1, 999, SOP]]), max_new_tokens=1)


class WordTokenizer(SimpleNamespace):
    """Words are ids; the real tokenizer is held against the original's runs in test_golden_glm130b.py."""

    mask_token_id, gmask_token_id, smask_token_id = MASK, GMASK, SMASK
    sop_token_id, eop_token_id, eos_token_id, pad_token_id = SOP, EOP, EOS, PAD

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = [{"[MASK]": MASK, "[gMASK]": GMASK, "[sMASK]": SMASK}.get(word) or int(word) for word in text.split()]
        if not {MASK, GMASK, SMASK} & set(ids):
            ids.append(GMASK)
        return {"input_ids": [*ids, *([] if ids[-1] in (MASK, GMASK, SMASK) else [EOS]), SOP]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


TEXTS = ["9 8 [MASK] 7 6", "19 8 17 [gMASK]", "5 [sMASK] 7", "9 [MASK] 8 7 [MASK] 6", "4 5 6"]


def fill_by_hand(model: Glm130bForCausalLM, text: str, new: int) -> tuple[list[int], list[list[int]]]:
    tokenizer = WordTokenizer()
    ids, blanks = tokenizer(text)["input_ids"][:-1], []
    kind = next(kind for kind in (MASK, SMASK, GMASK) if kind in ids)
    while kind in ids:
        answer = reference_greedy(model, [*ids, SOP], new)
        answer = answer[:-1] if answer[-1] in (EOP, EOS) else answer
        at = ids.index(kind)
        blanks.append(answer)
        ids = ids[:at] + answer + ids[at + 1 :]
    return (ids[:-1] if ids[-1] == EOS else ids), blanks


def test_fill_blanks_equals_filling_by_hand_batched_or_not(model) -> None:
    model.set_attn_implementation("sdpa")
    tokenizer = WordTokenizer()
    filled = fill_blanks(model, tokenizer, TEXTS, max_new_tokens=5, do_sample=False)
    for text, got in zip(TEXTS, filled, strict=True):
        ids, blanks = fill_by_hand(model, text, 5)
        assert got.input_ids == ids
        assert got.blanks == [tokenizer.decode(blank) for blank in blanks]
        assert fill_blanks(model, tokenizer, text, max_new_tokens=5, do_sample=False) == got
    assert fill_blanks(model, tokenizer, TEXTS, max_new_tokens=5, do_sample=False, batch_size=2) == filled
    assert fill_blanks(model, tokenizer, [], max_new_tokens=5) == []


def test_max_length_holds_for_each_row_of_a_batch(model) -> None:
    tokenizer = WordTokenizer()
    settings = {"max_length": 11, "min_new_tokens": 3, "do_sample": False}
    together = fill_blanks(model, tokenizer, [TEXTS[0], TEXTS[1]], **settings)
    assert together == [fill_blanks(model, tokenizer, text, **settings) for text in TEXTS[:2]]


def test_beams_fill_blanks_batched_or_not(model) -> None:
    tokenizer = WordTokenizer()
    settings = {"num_beams": 3, "max_length": 14, "do_sample": False}
    assert fill_blanks(model, tokenizer, TEXTS, **settings) == [
        fill_blanks(model, tokenizer, text, **settings) for text in TEXTS
    ]


def test_fill_blanks_says_when_no_room_is_left(model) -> None:
    tokenizer = WordTokenizer()
    with pytest.raises(
        ValueError, match=r"No room is left to generate: .* take 7 tokens with <sop>, and at most 7 are allowed"
    ):
        fill_blanks(model, tokenizer, TEXTS[0], max_length=7)
    with pytest.raises(ValueError, match="No room is left"):
        fill_blanks(model, tokenizer, "9 " * 260 + "[gMASK]", max_new_tokens=5)
    with pytest.raises(ValueError, match="num_return_sequences must be 1"):
        fill_blanks(model, tokenizer, TEXTS[0], num_return_sequences=2)


def test_an_answer_that_is_a_blank_again_ends_in_an_error(model) -> None:
    def only_mask(batch_id: int, ids: torch.Tensor) -> list[int]:
        return [EOP] if ids[-1] == MASK else [MASK]

    with pytest.raises(ValueError, match="answered a blank with another blank"):
        fill_blanks(
            model, WordTokenizer(), TEXTS[0], max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=only_mask
        )
