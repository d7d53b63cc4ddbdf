"""Texts that are put into shared rows: every token read and predicted once, rows nearly without padding."""

import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import TrainingArguments

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
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support import ernie3_pretraining_tiny as tiny_tasks
from tests.support.ernie3_rows import small_tokenizer
from tests.support.tiny_ernie3 import PAD, apart, gradients_of, tiny_model

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
    packed = gradients_of(model)
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
    for name, expected in gradients_of(model).items():
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


# The mixture and the Trainer.


def test_the_mixture_packs_what_can_be_packed(tokenizer) -> None:
    """Masked texts: the rows that the builder makes, every text as often as any other. Other tasks: as without."""
    plain, packed = tiny_tasks.mixture(tokenizer), tiny_tasks.mixture(tokenizer, packing=True)
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
    trainer = Ernie3PretrainingTrainer(model, arguments, train_dataset=tiny_tasks.mixture(tokenizer, packing=True))
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
    batches = next(iter(tiny_tasks.mixture(tokenizer, packing=True)))["batches"]
    with pytest.raises(ValueError, match="learners read a row as one text"):
        OnlineDistillation(models[0], {"small": models[1]})(
            batches={KNOWLEDGE_MASKED_LM: batches[KNOWLEDGE_MASKED_LM]}
        )


def test_padding_of_rows_with_documents() -> None:
    rows = [{"input_ids": [5, 6], "document_ids": [0, 1]}, {"input_ids": [7], "document_ids": [0]}]
    batch = collate_rows(rows, PAD, pad_to_multiple_of=4)
    assert batch["document_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
