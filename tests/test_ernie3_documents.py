"""Rows of several texts, told apart by `document_ids`: each is read as if alone, and nothing crosses a border."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from hf_glm_ernie.ernie3_training.builders import IGNORED
from hf_glm_ernie.modeling_ernie3 import Ernie3Memories, Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support.tiny_ernie3 import PAD, apart, random_ids, tiny_model

# Two fp32 paths of one formula, whose softmax runs over more columns in one of them. Seen: 2.4e-6 on states.
SAME = 1e-5
EVERY = [
    pytest.param(positions, recurrence, implementation, id=f"{positions}-{recurrence}-{implementation}")
    for positions in ("absolute", "relative")
    for recurrence in ("same_layer", "shift_down")
    for implementation in ("eager", "sdpa")
]
# Three documents in row 0, two in row 1; numbers in no order, padding with any number.
IDS = random_ids(2, 16, 1)
IDS[0, [0, 7, 15]] = PAD  # at the beginning, within a document and at the end
IDS[1, 9] = PAD  # between two documents
DOCUMENTS = torch.tensor([[8] + [3] * 4 + [1] * 2 + [9] + [1] * 2 + [4] * 5 + [0], [2] * 9 + [5] * 7])
SPANS = [[(0, 5), (5, 10), (10, 16)], [(0, 9), (9, 16)]]  # the columns of each, padding among them


def model_of(cls: Any, positions: str, recurrence: str, implementation: str, **settings: Any) -> Any:
    model = tiny_model(cls, position_embedding_type=positions, recurrence=recurrence, **settings)
    model.set_attn_implementation(implementation)
    return model


def only(memories: Ernie3Memories, row: int) -> Ernie3Memories:
    return memories.select(torch.tensor([row]))


@pytest.mark.parametrize(("positions", "recurrence", "implementation"), EVERY)
@torch.no_grad()
def test_written_documents_are_read_as_if_alone(positions: str, recurrence: str, implementation: str) -> None:
    """The first goes on from the memory, which no other sees; the last one alone is remembered."""
    model = model_of(Ernie3Model, positions, recurrence, implementation, type_vocab_size=3)
    memories = model(random_ids(2, 7, 5), branch="nlg", return_memories=True).memories
    types = (torch.arange(16) // 2 % 3)[None].expand(2, -1)
    packed = model(IDS, token_type_ids=types, document_ids=DOCUMENTS, branch="nlg", memories=memories)
    for row, spans in enumerate(SPANS):
        for number, (start, end) in enumerate(spans):
            real = IDS[row, start:end] != PAD
            alone = model(
                IDS[row : row + 1, start:end][:, real],
                token_type_ids=types[row : row + 1, start:end][:, real],
                branch="nlg",
                memories=only(memories, row) if number == 0 else None,
                return_memories=True,
            )
            assert apart(packed.last_hidden_state[row, start:end][real], alone.last_hidden_state[0]) < SAME
        seen = int(alone.memories.mask.sum())  # of the last one
        assert packed.memories.mask[row].tolist() == [False] * (6 - seen) + [True] * seen
        assert packed.memories.tokens_seen[row] == alone.memories.tokens_seen[0] == real.sum()
        for found, expected in zip(packed.memories.states, alone.memories.states, strict=True):
            assert apart(found[row, -seen:], expected[0, -seen:]) < SAME


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@torch.no_grad()
def test_one_document_that_goes_on_keeps_its_memory(positions: str) -> None:
    """A row of one document is the same with its number as without."""
    model = tiny_model(Ernie3Model, position_embedding_type=positions)
    memories = model(random_ids(2, 7, 5), branch="nlg", return_memories=True).memories
    plain = model(IDS, branch="nlg", memories=memories)
    numbered = model(IDS, branch="nlg", memories=memories, document_ids=torch.full((1, 16), 7))
    real = IDS != PAD
    assert apart(numbered.last_hidden_state[real], plain.last_hidden_state[real]) < SAME
    assert torch.equal(numbered.memories.mask, plain.memories.mask)
    assert numbered.memories.tokens_seen.tolist() == plain.memories.tokens_seen.tolist() == [20, 22]
    for found, expected in zip(numbered.memories.states, plain.memories.states, strict=True):
        assert apart(found, expected) < SAME


@pytest.mark.parametrize(("positions", "recurrence", "implementation"), EVERY[::4] + EVERY[1::4])
@torch.no_grad()
def test_understood_documents_are_read_as_if_alone(positions: str, recurrence: str, implementation: str) -> None:
    model = model_of(Ernie3Model, positions, recurrence, implementation, type_vocab_size=2, task_type_vocab_size=2)
    packed = model(IDS, document_ids=DOCUMENTS, branch="nlu").last_hidden_state
    for row, spans in enumerate(SPANS):
        for start, end in spans:
            real = IDS[row, start:end] != PAD
            alone = model(IDS[row : row + 1, start:end][:, real], branch="nlu").last_hidden_state[0]
            assert apart(packed[row, start:end][real], alone) < SAME


@pytest.mark.parametrize("branch", ["nlg", "nlu"])
@pytest.mark.usefixtures("one_compiled_shape")
@torch.no_grad()
def test_flex_attention(branch: str) -> None:
    """As in `test_ernie3_memory.py`: absolute positions, both stacks of one shape."""
    model = tiny_model(Ernie3Model, branch_hidden_size=32, branch_num_attention_heads=4)
    inputs: dict[str, Any] = {"branch": branch, "document_ids": DOCUMENTS}
    if branch == "nlg":
        inputs["memories"] = model(random_ids(2, 5), branch="nlg", return_memories=True).memories
    expected = model(IDS, **inputs).last_hidden_state
    model.set_attn_implementation("flex_attention")
    assert apart(model(IDS, **inputs).last_hidden_state[IDS != PAD], expected[IDS != PAD]) < SAME


@torch.no_grad()
def test_a_compiled_model_reads_documents() -> None:
    model = tiny_model(Ernie3Model)
    memories = model(random_ids(2, 5), branch="nlg", return_memories=True).memories
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for inputs in ({"branch": "nlg", "memories": memories}, {"branch": "nlu"}):
        found = compiled(IDS, document_ids=DOCUMENTS, **inputs).last_hidden_state
        assert apart(found, model(IDS, document_ids=DOCUMENTS, **inputs).last_hidden_state) < SAME


@pytest.mark.parametrize(("positions", "recurrence", "implementation"), EVERY)
@torch.no_grad()
def test_nothing_leaks_over_a_border(positions: str, recurrence: str, implementation: str) -> None:
    """One document after the other, and the memory, becomes something else: bit for bit, all others stay."""
    model = model_of(Ernie3Model, positions, recurrence, implementation)
    memories = model(random_ids(2, 7, 5), branch="nlg", return_memories=True).memories
    others = model(random_ids(2, 7, 6), branch="nlg", return_memories=True).memories
    real = IDS != PAD  # what padding sees does not matter: nothing sees it
    for branch in ("nlg", "nlu"):
        inputs: dict[str, Any] = {"branch": branch, "document_ids": DOCUMENTS}
        inputs |= {"memories": memories} if branch == "nlg" else {}
        before = model(IDS, **inputs)
        for row, spans in enumerate(SPANS):
            for start, end in spans:
                ids = IDS.clone()
                ids[row, start:end] = torch.where(ids[row, start:end] == PAD, PAD, 124 - ids[row, start:end])
                after = model(ids, **inputs)
                changed = torch.zeros_like(IDS, dtype=torch.bool)
                changed[row, start:end] = True
                stays = real & ~changed
                assert torch.equal(after.last_hidden_state[stays], before.last_hidden_state[stays])
                moved = (after.last_hidden_state - before.last_hidden_state).abs().amax(-1)
                assert moved[changed & real].min() > 1e-3, "the change is one"
                if branch == "nlg" and end < 16:
                    mask = before.memories.mask
                    for found, kept in zip(after.memories.states, before.memories.states, strict=True):
                        assert torch.equal(found[mask], kept[mask])
        if branch == "nlg":
            after = model(IDS, **(inputs | {"memories": others})).last_hidden_state
            for row, spans in enumerate(SPANS):
                same = (after[row] == before.last_hidden_state[row]).all(-1)
                assert (same[real[row]] == (torch.arange(16) >= spans[0][1])[real[row]]).all()


@pytest.mark.parametrize("branch", ["nlg", "nlu"])
def test_no_gradient_crosses_a_border(branch: str) -> None:
    model = tiny_model(Ernie3Model)
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()
    mask = (IDS != PAD).long()
    output = model(inputs_embeds=embeds, attention_mask=mask, document_ids=DOCUMENTS, branch=branch)
    output.last_hidden_state[0, 5:10][mask[0, 5:10].bool()].square().sum().backward()
    touched = embeds.grad.abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[0, at] for at in range(5, 10) if mask[0, at]]


@torch.no_grad()
def test_a_number_that_comes_again_is_another_document() -> None:
    model, ids = tiny_model(Ernie3Model), random_ids(1, 9)
    again, other = torch.tensor([[0] * 3 + [1] * 3 + [0] * 3]), torch.tensor([[0] * 3 + [1] * 3 + [2] * 3])
    found = model(ids, document_ids=again, branch="nlg", return_memories=True)
    expected = model(ids, document_ids=other, branch="nlg", return_memories=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert found.memories.tokens_seen.tolist() == [3]


@torch.no_grad()
def test_positions_of_the_caller_stay() -> None:
    model, ids = tiny_model(Ernie3Model), random_ids(1, 6)
    inputs = {"document_ids": torch.tensor([[0, 0, 0, 1, 1, 1]]), "branch": "nlg"}
    found = model(ids, **inputs).last_hidden_state
    spelled_out = model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), **inputs).last_hidden_state
    assert torch.equal(found, spelled_out)
    elsewhere = model(ids, position_ids=torch.arange(6)[None], **inputs).last_hidden_state
    assert apart(found[:, 3:], elsewhere[:, 3:]) > 1e-2


def test_no_document_is_asked_for_the_next_ones_first_token() -> None:
    """The mean over the tokens behind a document's first; of labels, of shifted ones, and of the last few."""
    model = tiny_model(Ernie3ForCausalLM)
    ids, documents = random_ids(2, 8), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [5] * 8])
    output = model(ids, labels=ids, document_ids=documents)
    asked = [(0, 0), (0, 1), (0, 3), (0, 4), (0, 5), *((1, at) for at in range(7))]
    losses = {(row, at): F.cross_entropy(output.logits[row, at], ids[row, at + 1]) for row, at in asked}
    # One mean in two orders of summation, fp32. Seen: 1e-6.
    assert output.loss.item() == pytest.approx(torch.stack(list(losses.values())).mean().item(), abs=1e-5)
    shifted = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    assert model(ids, shift_labels=shifted, document_ids=documents).loss.item() == pytest.approx(output.loss.item())
    last = model(ids, labels=ids[:, -4:], logits_to_keep=4, document_ids=documents).loss.item()
    expected = torch.stack([loss for (_, at), loss in losses.items() if at >= 4]).mean()
    assert last == pytest.approx(expected.item(), abs=1e-5)
    padded = F.pad(ids, (0, 2), value=PAD)  # what padding has does not matter
    labels = padded.masked_fill(padded == PAD, IGNORED)
    found = model(padded, labels=labels, document_ids=F.pad(documents, (0, 2), value=9)).loss.item()
    assert found == pytest.approx(output.loss.item(), abs=1e-5)


@torch.no_grad()
def test_heads_that_score_tokens_take_documents() -> None:
    for cls in (Ernie3ForMaskedLM, Ernie3ForTokenClassification):
        model = tiny_model(cls, num_labels=3)
        logits = model(IDS, document_ids=DOCUMENTS).logits
        alone = model(IDS[1:, 10:]).logits
        assert apart(logits[1:, 10:], alone) < SAME


@pytest.mark.parametrize("cls", [Ernie3ForSequenceClassification, Ernie3ForQuestionAnswering])
def test_heads_that_judge_a_row_do_not(cls: Any) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__} judges a row as a whole"):
        tiny_model(cls)(IDS, document_ids=DOCUMENTS)


def test_row_labels_do_not_go_with_documents() -> None:
    model = tiny_model(Ernie3ForPreTraining)
    with pytest.raises(ValueError, match="reorder_labels came together with document_ids"):
        model(IDS, document_ids=DOCUMENTS, reorder_labels=torch.zeros(2, dtype=torch.long))
    output = model(IDS, document_ids=DOCUMENTS)
    assert output.logits.shape[:2] == (2, 16)
    assert output.reorder_logits is None


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (
            {"document_ids": DOCUMENTS[:, 1:]},
            ValueError,
            r"document_ids has shape \(2, 15\); the tokens need \(2, 16\)",
        ),
        ({"document_ids": DOCUMENTS.float()}, TypeError, "document_ids are torch.float32"),
        ({"document_ids": DOCUMENTS - 1}, ValueError, r"document_ids\[0, 15\] = -1 is out of range"),
        ({"cache": DynamicCache()}, ValueError, "document_ids came together with a cache"),
        (
            {"attention_mask": torch.ones(2, 1, 16, 16, dtype=torch.bool)},
            ValueError,
            "together with an attention_mask of four dimensions",
        ),
        ({"genre_ids": torch.zeros(2, dtype=torch.long)}, ValueError, "document_ids came together with genre_ids"),
    ],
)
def test_refused_documents(inputs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_model(Ernie3Model)(IDS, **({"document_ids": DOCUMENTS, "branch": "nlg"} | inputs))


def test_no_cache_is_made_of_documents() -> None:
    output = tiny_model(Ernie3ForCausalLM)(IDS, document_ids=DOCUMENTS, use_cache=True)
    assert output.past_key_values is None
