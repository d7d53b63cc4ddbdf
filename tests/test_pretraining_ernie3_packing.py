"""Documents that share rows: each as if alone, rows nearly without padding; and heads that run at labels only."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DynamicCache, TrainingArguments

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, KNOWLEDGE_MASKED_LM
from hf_glm_ernie.ernie3_training.builders import IGNORED
from hf_glm_ernie.ernie3_training.collator import Ernie3PretrainingCollator, collate_rows
from hf_glm_ernie.ernie3_training.distillation import OnlineDistillation
from hf_glm_ernie.ernie3_training.documents import DocumentStreams
from hf_glm_ernie.ernie3_training.masking import KnowledgeMasking
from hf_glm_ernie.ernie3_training.memories import MemoryBank
from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.packing import MOST_WAITING, PACKED_TASKS, OpenDocument, document_row, pack_rows
from hf_glm_ernie.ernie3_training.trainer import Ernie3PretrainingTrainer
from hf_glm_ernie.modeling_ernie3 import Ernie3Memories, Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support import ernie3_pretraining_tiny as tiny_tasks
from tests.support.ernie3_rows import small_tokenizer
from tests.support.tiny_ernie3 import PAD, random_ids, tiny_model

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


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


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


# Rows of documents. Tokens tell where they come from: 1000 * document + place.

LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 23, 5, 8]


def told(lengths: list[int]) -> list[dict[str, list[int]]]:
    return [{"input_ids": [1000 * (at + 1) + place for place in range(n)]} for at, n in enumerate(lengths)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def read_back(batches: Any) -> tuple[Counter, Counter]:
    """Follows every stream over its rows and counts which tokens are read and predicted."""
    last: dict[int, int] = {}
    seen, predicted = Counter(), Counter()
    for batch in batches:
        for row, stream in enumerate(batch["stream_ids"].tolist()):
            ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
            numbers, real = batch["document_ids"][row].tolist(), batch["attention_mask"][row].tolist()
            tokens = [(number, token) for number, token, is_real in zip(numbers, ids, real, strict=True) if is_real]
            order = [number for number, _ in itertools.groupby(tokens, key=lambda pair: pair[0])]
            assert order == list(range(len(order)))
            for number, group in itertools.groupby(tokens, key=lambda pair: pair[0]):
                piece = [token for _, token in group]
                assert piece == list(range(piece[0], piece[0] + len(piece))), "one document under one number"
                begins = bool(batch["memory_reset"][row]) or number > 0
                assert piece[0] % 1000 == 0 if begins else piece[0] == last[stream] + 1
                if begins and stream in last:
                    assert last[stream] % 1000 == LENGTHS[last[stream] // 1000 - 1] - 1, "the one before was read out"
                last[stream] = piece[-1]
                seen.update(piece)
            for at, label in enumerate(labels[1:]):  # what the model does: column i predicts the label of column i + 1
                if label != IGNORED:
                    assert label == ids[at] + 1
                    assert real[at]
                    predicted[label] += 1
    return seen, predicted


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 0), (3, 2)])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_token_is_read_once_and_predicted_once(tokenizer, ranks: int, workers: int, rows: int) -> None:
    seen, predicted = Counter(), Counter()
    for rank in range(ranks):
        stream = DocumentStreams(
            told(LENGTHS), tokenizer, rows=rows, length=9, epochs=2, packing=True, rank=rank, world_size=ranks
        )
        batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
        assert all(batch["input_ids"].shape[1] <= 9 for batch in batches)
        found = read_back(batches)
        seen.update(found[0])
        predicted.update(found[1])
    every = [token for document in told(LENGTHS) for token in document["input_ids"]]
    assert seen == Counter(dict.fromkeys(every, 2))
    assert predicted == Counter({token: 2 for token in every if token % 1000})


def test_rows_are_nearly_all_tokens(tokenizer) -> None:
    """Documents of 50 to 300 tokens in rows of 512."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(50, 301, (400,), generator=generator).tolist()
    share = {}
    for packing in (False, True):
        stream = DocumentStreams(told(lengths), tokenizer, rows=8, length=512, packing=packing, num_batches=30)
        real, columns = 0, 0
        for batch in stream:
            real, columns = real + int(batch["attention_mask"].sum()), columns + batch["input_ids"].numel()
        share[packing] = real / columns
    assert share[True] > 0.99  # seen: 0.998; a column a row is the one that looks ahead
    assert share[False] < 0.7  # seen: 0.634


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 6])
def test_a_packed_stream_resumes_exactly(tokenizer, workers: int, taken: int) -> None:
    """Inside a document, and with texts that wait for a row with room."""
    texts = [{"text": "今天天气真好我们去公园玩吧"[: 3 + at % 9]} for at in range(40)]

    def loader() -> StatefulDataLoader:
        mixture = Ernie3PretrainingMixture(
            tokenizer,
            [(texts, KnowledgeMasking(tokenizer, max_length=17))],
            told(LENGTHS),
            batch_size=5,
            length=9,
            packing=True,
        )
        return StatefulDataLoader(mixture, batch_size=None, num_workers=workers)

    first = loader()
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    state = json.dumps(first.state_dict())
    assert '"waiting": {"knowledge_masked_lm": [{' in state, "texts wait"
    resumed = loader()
    resumed.load_state_dict(json.loads(state))
    for before, after in zip(itertools.islice(batches, 6), resumed, strict=False):
        for task, inputs in before["batches"].items():
            assert inputs.keys() == after["batches"][task].keys()
            for name, value in inputs.items():
                assert torch.equal(value, after["batches"][task][name]) if name != "branch" else True, (task, name)


def test_rows_by_hand() -> None:
    """The rest of a document, a whole one, and the beginning of one; then a row whose last column is too little."""
    following = iter([OpenDocument(ids, 0, 0) for ids in ([20, 21], [30, 31, 32, 33, 34], [40, 41])])
    row, still_open = document_row(OpenDocument([10, 11, 12, 13], 2, 0), following, 7, packing=True)
    assert row == {
        "input_ids": [12, 13, 20, 21, 30, 31, 32],
        "attention_mask": [1, 1, 1, 1, 1, 1, 0],
        "labels": [IGNORED, 13, IGNORED, 21, IGNORED, 31, 32],
        "memory_reset": False,
        "document_ids": [0, 0, 1, 1, 2, 2, 2],
    }
    assert still_open == ([30, 31, 32, 33, 34], 2, 0)
    row, still_open = document_row(still_open, following, 4, packing=True)
    assert (row["input_ids"], row["document_ids"]) == ([32, 33, 34], [0, 0, 0])
    assert still_open == ([40, 41], 0, 0)
    row, still_open = document_row(still_open, following, 4, packing=True)
    assert (row["input_ids"], row["memory_reset"], still_open) == ([40, 41], True, None)
    assert document_row(None, following, 4, packing=True) == (None, None)
    row, still_open = document_row(None, iter([OpenDocument([1, 2], 0, 0), OpenDocument([3], 0, 1)]), 4, packing=False)
    assert (row["input_ids"], still_open, "document_ids" in row) == ([1, 2], None, False)
    with pytest.raises(ValueError, match="length=1 must be at least 2"):
        document_row(None, iter([OpenDocument([1, 2], 0, 0)]), 1, packing=True)


# What a stream of packed rows teaches is what its documents teach alone.


def learned(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def pieces_of(batch: Any) -> list[tuple[int, bool, dict[str, torch.Tensor]]]:
    """(stream, whether it begins a document, its columns as a batch of one) of every document's piece in a batch."""
    found = []
    for row, stream in enumerate(batch["stream_ids"].tolist()):
        width = int((batch["input_ids"][row] != PAD).sum())  # the column that looks ahead among them
        numbers = batch["document_ids"][row, :width]
        for number in numbers.unique().tolist():
            columns = (numbers == number).nonzero().squeeze(1)
            piece = {name: batch[name][row, columns][None] for name in ("input_ids", "attention_mask", "labels")}
            found.append((stream, number > 0 or bool(batch["memory_reset"][row]), piece))
    return found


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("recurrence", ["same_layer", "shift_down"])
def test_a_packed_stream_teaches_what_its_documents_teach(tokenizer, positions: str, recurrence: str) -> None:
    """Losses and gradients of packed batches with their memories, against every document alone in the same pieces."""
    model = tiny_model(Ernie3ForPreTraining, position_embedding_type=positions, recurrence=recurrence)
    generator = torch.Generator().manual_seed(1)
    documents = [{"input_ids": torch.randint(4, 120, (n,), generator=generator).tolist()} for n in LENGTHS]
    batches = list(DocumentStreams(documents, tokenizer, rows=2, length=12, epochs=1, packing=True))
    bank, total, count = MemoryBank(), 0.0, 0
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "document_ids")}
        memories = bank.take(batch["stream_ids"], batch["memory_reset"])
        part = {"branch": "nlg", "memories": memories, "return_memories": True, **inputs}
        output = model(batches={DOCUMENT_LM: part})
        bank.put(batch["stream_ids"], output.memories)
        labelled = int((batch["labels"][:, 1:] != IGNORED).sum())
        (output.loss * labelled).backward()
        total, count = total + output.loss.item() * labelled, count + labelled
    packed = learned(model)
    model.zero_grad()
    assert count == sum(LENGTHS) - len(LENGTHS)
    alone, carried = 0.0, {}
    for stream, begins, piece in itertools.chain.from_iterable(map(pieces_of, batches)):
        memories = None if begins else carried[stream]
        output = model(branch="nlg", memories=memories, return_memories=True, **piece)
        carried[stream] = output.memories
        labelled = int((piece["labels"][:, 1:] != IGNORED).sum())
        (output.loss * labelled).backward()
        alone += output.loss.item() * labelled
    assert total == pytest.approx(alone, rel=1e-6)  # seen: 8e-8
    for name, expected in learned(model).items():
        # sums of 141 tokens' gradients in two orders, fp32; seen: 2e-6 of the largest entry, or of 1
        assert apart(packed[name], expected) < 3e-5 * max(expected.abs().max().item(), 1.0), name


# Whole texts in rows.


def rows_of(sizes: list[int], start: int = 0) -> list[dict[str, Any]]:
    return [
        {"task": KNOWLEDGE_MASKED_LM, "input_ids": [start + at] * n, "labels": [IGNORED] * (n - 1) + [start + at]}
        for at, n in enumerate(sizes)
    ]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_text_gets_a_place_once(count: int) -> None:
    """Whatever the sizes: whole, none lost or doubled, none waits for long; and rows are full."""
    generator = torch.Generator().manual_seed(count)
    texts = rows_of(torch.randint(50, 301, (2000,), generator=generator).tolist())
    source, waiting, placed, filled = iter(texts), [], {}, []
    for call in range(2000):
        packed, waiting = pack_rows(lambda n: list(itertools.islice(source, n)), count, 512, waiting)
        if not packed:
            break
        assert len(packed) <= count
        assert len(waiting) <= MOST_WAITING
        filled += [len(row["input_ids"]) / 512 for row in packed]
        for row in packed:
            assert len(row["input_ids"]) == len(row["labels"]) == len(row["document_ids"]) <= 512
            columns = zip(row["document_ids"], row["input_ids"], row["labels"], strict=True)
            for number, group in enumerate(map(list, dict(_grouped(columns)).values())):
                ids = [token for _, token, _ in group]
                assert [one for one, _, _ in group] == [number] * len(group)
                assert ids == texts[ids[0]]["input_ids"]
                assert [label for _, _, label in group] == texts[ids[0]]["labels"]
                assert ids[0] not in placed
                placed[ids[0]] = call
    assert len(placed) == len(texts)
    # a text is placed at most MOST_WAITING calls behind those built later
    latest = -1
    for at in range(len(texts)):
        latest = max(latest, placed[at])
        assert placed[at] >= latest - MOST_WAITING
    assert sum(filled[:-20]) / len(filled[:-20]) > 0.93  # seen: 0.944 .. 0.950


def _grouped(columns: Any) -> Any:
    groups: dict[int, list[Any]] = {}
    for column in columns:
        groups.setdefault(column[0], []).append(column)
    return groups


def test_bad_rows_to_pack() -> None:
    with pytest.raises(ValueError, match="A row of 9 tokens does not fit into one of length=8"):
        pack_rows(lambda n: rows_of([9]), 1, 8, [])
    with pytest.raises(ValueError, match=r"A row to pack has \['input_ids', 'labels', 'reorder_labels'\]"):
        pack_rows(lambda n: [{"input_ids": [1], "labels": [1], "reorder_labels": 0}], 1, 8, [])


def test_packed_rows_collate(tokenizer) -> None:
    source = iter(rows_of([3, 4, 2]))
    packed, waiting = pack_rows(lambda n: list(itertools.islice(source, n)), 2, 5, [])
    assert [row["document_ids"] for row in packed] == [[0, 0, 0, 1, 1], [0, 0, 0, 0]]
    assert waiting == []
    batch = Ernie3PretrainingCollator(tokenizer)(packed)["batches"][KNOWLEDGE_MASKED_LM]
    assert batch["document_ids"].shape == batch["attention_mask"].shape == (2, 5)
    assert batch["attention_mask"].sum(-1).tolist() == [5, 4]


# The mixture, the Trainer and the heads.


def mixture(tokenizer, **options: Any) -> Ernie3PretrainingMixture:
    settings: dict[str, Any] = {"batch_size": 12, "length": 16, "ratios": {DOCUMENT_LM: 4, KNOWLEDGE_MASKED_LM: 3}}
    tasks = tiny_tasks.every_task(tokenizer)
    return Ernie3PretrainingMixture(tokenizer, tasks, tiny_tasks.documents(), **(settings | options))


def test_the_mixture_packs_what_can_be_packed(tokenizer) -> None:
    """Masked texts: the rows that the builder makes, every text as often as any other. Other tasks: as without."""
    plain, packed = mixture(tokenizer), mixture(tokenizer, packing=True)
    first = [next(iter(stream))["batches"] for stream in (plain, packed)]
    assert {task for task, batch in first[1].items() if "document_ids" in batch} == {*PACKED_TASKS, DOCUMENT_LM}
    for task, batch in first[0].items():
        if task not in (*PACKED_TASKS, DOCUMENT_LM):
            assert all(torch.equal(batch[name], first[1][task][name]) for name in batch if name != "branch")
    rows, builder = packed.tasks[KNOWLEDGE_MASKED_LM]
    expected = Counter(
        str(builder.row(row, index, epoch, 96)["input_ids"]) for epoch in range(40) for index, row in enumerate(rows)
    )
    found: list[str] = []
    for batch in itertools.islice(packed, 12):
        part = batch["batches"][KNOWLEDGE_MASKED_LM]
        assert len(part["input_ids"]) == 3
        for ids, numbers, real in zip(part["input_ids"], part["document_ids"], part["attention_mask"], strict=True):
            for number in numbers[real.bool()].unique():
                found.append(str(ids[real.bool() & (numbers == number)].tolist()))
    assert len(found) > 2 * 36, "more texts than rows"
    assert not Counter(found) - expected


def train(tokenizer, folder, resume: str | None = None, **options: Any) -> Ernie3PretrainingTrainer:
    settings: dict[str, Any] = {"max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **(settings | options)
    )
    model = tiny_tasks.tiny_model(tokenizer)
    trainer = Ernie3PretrainingTrainer(model, arguments, train_dataset=mixture(tokenizer, packing=True))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_a_packed_run_resumes_exactly(tokenizer, tmp_path, workers: int) -> None:
    options = {"dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": 3}
    whole = train(tokenizer, tmp_path / "whole", **options)
    logged = [log[f"{DOCUMENT_LM}_loss"] for log in whole.state.log_history if "loss" in log]
    assert all(0 < loss < 20 for loss in logged)
    resumed = train(tokenizer, tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"), **options)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_rows_packed_beforehand_train_with_the_collator(tokenizer, tmp_path) -> None:
    """`document_ids` is a column that the host's Trainer must keep."""
    rows, builder = tiny_tasks.every_task(tokenizer)[0]
    built = (builder.row(row, at, 0, 96) for at, row in enumerate(rows))
    packed, _ = pack_rows(lambda n: list(itertools.islice(built, n)), 2, 96, [])
    seen: list[set[str]] = []

    class Watching(Ernie3PretrainingTrainer):
        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            seen.append(set(inputs["batches"][KNOWLEDGE_MASKED_LM]))
            return super().compute_loss(model, inputs, **kwargs)

    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    data = pytest.importorskip("datasets", reason="needs the datasets library").Dataset.from_list(packed)
    Watching(
        tiny_tasks.tiny_model(tokenizer),
        arguments,
        train_dataset=data,
        data_collator=Ernie3PretrainingCollator(tokenizer),
    ).train()
    assert "document_ids" in seen[0]


def test_distillation_refuses_packed_rows(tokenizer) -> None:
    models = [tiny_tasks.tiny_model(tokenizer) for _ in range(2)]
    batches = next(iter(mixture(tokenizer, packing=True)))["batches"]
    with pytest.raises(ValueError, match="learners read a row as one text"):
        OnlineDistillation(models[0], {"small": models[1]})(
            batches={KNOWLEDGE_MASKED_LM: batches[KNOWLEDGE_MASKED_LM]}
        )


def labelled_and_whole(model: Any, batches: dict[str, Any]) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Losses and gradients with heads at labelled tokens, and with heads at all tokens."""
    found = []
    for return_logits in (False, True):
        model.zero_grad()
        output = model(batches={task: batch | {"return_logits": return_logits} for task, batch in batches.items()})
        output.loss.backward()
        found.append((output.losses, learned(model)))
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_heads_at_labels_teach_the_same(tokenizer, packing: bool) -> None:
    """Every task of a mixed batch, against logits of all tokens."""
    model = tiny_tasks.tiny_model(tokenizer)
    batches = next(iter(mixture(tokenizer, packing=packing)))["batches"]
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


def test_padding_of_rows_with_documents() -> None:
    rows = [{"input_ids": [5, 6], "document_ids": [0, 1]}, {"input_ids": [7], "document_ids": [0]}]
    batch = collate_rows(rows, PAD, pad_to_multiple_of=4)
    assert batch["document_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
