"""Collators, the mixture of all tasks, the progressive schedule and the bank of memories."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES
from hf_glm_ernie.ernie3_training.collator import Ernie3PretrainingCollator, collate_rows, mixed_batch
from hf_glm_ernie.ernie3_training.fillers import count_labels, count_read, document_filler
from hf_glm_ernie.ernie3_training.masking import KnowledgeMasking
from hf_glm_ernie.ernie3_training.memories import MemoryBank, memories_without_columns
from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture, row_counts
from hf_glm_ernie.ernie3_training.schedule import ProgressiveSchedule
from hf_glm_ernie.ernie3_training.structure import SentenceReordering
from hf_glm_ernie.memory_ernie3 import Ernie3Memories
from tests.support.ernie3_pretraining_tiny import PARAGRAPHS, documents, every_task, tiny_model
from tests.support.ernie3_rows import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def test_every_task_has_its_rows(tokenizer):
    assert {builder.task for _, builder in every_task(tokenizer)} | {DOCUMENT_LM} == set(TASK_BRANCHES)


def test_rows_are_padded_on_the_right():
    rows = [
        {"task": "x", "input_ids": [1, 5, 6], "labels": [-100, 7, -100], "credible_labels": 1},
        {"task": "x", "input_ids": [1], "labels": [8], "credible_labels": 0},
    ]
    batch = collate_rows(rows, 9, pad_to_multiple_of=4)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 5, 6, 9], [1, 9, 9, 9]],
        "labels": [[-100, 7, -100, -100], [8, -100, -100, -100]],
        "credible_labels": [1, 0],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"input_ids": []}], "Row 0 has 0 input_ids"),
        ([{"input_ids": [1], "labels": [1, 2]}], r"Row 0 has 1 input_ids and \['labels'\] of another length"),
        ([{"input_ids": [1]}, {"input_ids": [1], "labels": [1]}], "Row 1 has the columns"),
    ],
)
def test_bad_rows_are_not_collated(rows, message):
    with pytest.raises(ValueError, match=message):
        collate_rows(rows, 0)


def test_numbers_per_token_are_whole():
    whole = collate_rows([{"input_ids": np.array([1, 2], np.int32), "labels": torch.tensor([3, 4])}], 0)
    assert whole["input_ids"].tolist() == [[1, 2]]
    assert whole["labels"].tolist() == [[3, 4]]
    with pytest.raises(TypeError, match="Cannot cast array data from dtype\\('float64'\\) to dtype\\('int64'\\)"):
        collate_rows([{"input_ids": [1], "labels": [0.5]}], 0)


def test_mixed_datasets_are_collated_by_task(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    options = {"batched": True, "with_indices": True, "num_proc": 2}
    data = datasets.Dataset.from_dict({"text": ["今天。"] * 4})
    masked = data.map(KnowledgeMasking(tokenizer), remove_columns=["text"], **options)
    data = datasets.Dataset.from_dict({"sentences": PARAGRAPHS})
    ordered = data.map(SentenceReordering(tokenizer), remove_columns=["sentences"], **options)
    together = datasets.concatenate_datasets([masked, ordered])
    collator = Ernie3PretrainingCollator(tokenizer)
    batches = collator([together[at] for at in (0, 5, 1, 6, 7)])["batches"]
    assert {task: sorted(batch) for task, batch in batches.items()} == {
        "knowledge_masked_lm": ["attention_mask", "branch", "input_ids", "labels"],
        "sentence_reordering": ["attention_mask", "branch", "input_ids", "reorder_labels"],
    }
    assert batches["knowledge_masked_lm"]["branch"] == "nlu"
    assert batches["sentence_reordering"]["reorder_labels"].tolist() == ordered[1:4]["reorder_labels"]
    with pytest.raises(ValueError, match="Row 0 has the task None; the column 'task' must hold one of"):
        collator([{"input_ids": [1]}])


@pytest.mark.parametrize(
    ("size", "ratios", "counts"),
    [
        (6, {"a": 1, "b": 1, "c": 1}, [2, 2, 2]),
        (7, {"a": 1, "b": 2, "c": 4}, [1, 2, 4]),
        (10, {"a": 0.001, "b": 1, "c": 2}, [1, 3, 6]),
        (3, {"a": 1, "b": 50, "c": 50}, [1, 1, 1]),
        (100, {"a": 0.205, "b": 0.205, "c": 0.59}, [21, 20, 59]),
    ],
)
def test_ratios_become_rows(size, ratios, counts):
    assert list(row_counts(size, ratios).values()) == counts
    with pytest.raises(ValueError, match="A batch of 2 rows cannot hold 3 tasks"):
        row_counts(2, ratios)
    with pytest.raises(ValueError, match="The ratio of a is 0"):
        row_counts(size, ratios | {"a": 0})


def mixture(tokenizer, **options):
    return Ernie3PretrainingMixture(
        tokenizer,
        every_task(tokenizer),
        documents(),
        **({"batch_size": 9, "length": 12, "ratios": {"document_lm": 3}} | options),
    )


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            same(value, second[name])
        else:
            assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]


def test_every_batch_holds_every_task(tokenizer):
    for batch in list(iter(mixture(tokenizer, num_batches=12))):
        batches = batch["batches"]
        assert sorted(batches) == sorted(TASK_BRANCHES)
        assert {task: inputs["branch"] for task, inputs in batches.items()} == TASK_BRANCHES
        assert {task: len(inputs["input_ids"]) for task, inputs in batches.items()} == {
            task: 3 if task == "document_lm" else 1 for task in batches
        }


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 1), (2, 2)])
def test_no_row_of_an_epoch_is_read_twice(tokenizer, ranks, workers):
    """Each row's text tells which it is; every epoch reads every row once, over all ranks and workers."""
    texts = [first + second for first in "今天气真好我们去" for second in "公园玩吧百度飞桨是"]
    rows = [{"text": text} for text in texts[:72]]
    expected = Counter(tuple(tokenizer(row["text"])["input_ids"]) for row in rows)
    shards = ranks * max(workers, 1)
    read = []
    for rank in range(ranks):
        stream = Ernie3PretrainingMixture(
            tokenizer,
            [(rows, KnowledgeMasking(tokenizer))],
            batch_size=3,
            num_batches=72 // 3 // ranks,
            rank=rank,
            world_size=ranks,
        )
        for batch in DataLoader(stream, batch_size=None, num_workers=workers):
            inputs = batch["batches"]["knowledge_masked_lm"]
            read += torch.where(inputs["labels"] == -100, inputs["input_ids"], inputs["labels"]).tolist()
    assert 72 % shards == 0
    assert Counter(map(tuple, read)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_the_mixture_resumes_exactly_and_its_seed_decides(tokenizer, workers):
    def loader(**options):
        return StatefulDataLoader(mixture(tokenizer, num_batches=9, **options), batch_size=None, num_workers=workers)

    whole = list(loader())
    assert len(whole) == 9
    first = loader()
    batches = iter(first)
    for _ in range(5):
        next(batches)
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for before, after in zip(whole[5:], resumed, strict=True):
        same(before, after)
    same(whole[0], next(iter(loader())))
    other = next(iter(loader(seed=1)))["batches"]["document_lm"]["input_ids"]
    assert not torch.equal(other, whole[0]["batches"]["document_lm"]["input_ids"])


def test_epochs_mask_anew(tokenizer):
    row = {"text": "今天天气真好我们去公园玩吧" * 3}
    stream = Ernie3PretrainingMixture(tokenizer, [([row], KnowledgeMasking(tokenizer))], batch_size=1, num_batches=8)
    labels = [tuple(batch["batches"]["knowledge_masked_lm"]["labels"][0].tolist()) for batch in stream]
    assert len(set(labels)) == 8


def test_the_schedule_grows_the_batches(tokenizer):
    schedule = ProgressiveSchedule(8, (16, 64), (8, 40), (0.0, 1e-3), length_multiple=4)
    stream = mixture(
        tokenizer, batch_size=None, length=None, schedule=schedule, gradient_accumulation_steps=2, num_batches=20
    )
    widths, sizes = [], []
    for number, batch in enumerate(stream):
        settings = schedule.at(number // 2)
        sizes.append(read(batch)[0])
        widths.append(max(one["input_ids"].shape[1] for one in batch["batches"].values()))
        assert widths[-1] <= settings.length
    assert [first + second for first, second in zip(sizes[::2], sizes[1::2], strict=True)] == [
        schedule.at(step).batch_size for step in range(10)
    ]
    assert widths[0] == 16
    assert max(widths) > 40
    assert (sizes[0], sizes[-1]) == (4, 20)


def read(batch):
    """Rows and tokens of a mixed batch, without fillers."""
    counts = [count_read(task, inputs) for task, inputs in batch["batches"].items()]
    return tuple(map(sum, zip(*counts, strict=True)))


@pytest.mark.parametrize(("ranks", "accumulated"), [(1, 1), (1, 3), (2, 1), (3, 2), (8, 1), (5, 4), (64, 1)])
def test_a_step_reads_the_published_batch_whoever_reads_it(tokenizer, ranks, accumulated):
    schedule = ProgressiveSchedule(4, (16, 32), (8, 40), (0.0, 1e-3), length_multiple=4)
    slots, steps = ranks * accumulated, 5
    streams = [
        mixture(
            tokenizer,
            batch_size=None,
            length=None,
            schedule=schedule,
            gradient_accumulation_steps=accumulated,
            num_batches=steps * accumulated,
            rank=rank,
            world_size=ranks,
        )
        for rank in range(ranks)
    ]
    for step in range(steps):
        parts = [stream.rows_at(step * accumulated + part) for stream in streams for part in range(accumulated)]
        together = Counter()
        for part in parts:
            together.update(part)
        whole = row_counts(schedule.at(step).batch_size, streams[0].ratios)
        assert together == Counter(whole)
        for task, count in whole.items():
            assert {part[task] for part in parts} <= {count // slots, -(-count // slots)}
        rows = [sum(part.values()) for part in parts]
        assert max(rows) - min(rows) <= 1
    if ranks > 4:  # documents and rows are too few for so many shards
        return
    sizes = [[read(batch)[0] for batch in stream] for stream in streams]
    for step in range(steps):
        parts = [rows[step * accumulated : (step + 1) * accumulated] for rows in sizes]
        assert sum(map(sum, parts)) == schedule.at(step).batch_size
    for batch in streams[0]:
        assert sorted(batch["batches"]) == sorted(TASK_BRANCHES), "every slot holds every task"


def test_fillers_touch_every_weight_and_change_none(tokenizer):
    model = tiny_model(tokenizer)
    groups = {builder.task: [builder.filler()] for _, builder in every_task(tokenizer)}
    groups[DOCUMENT_LM] = [document_filler(tokenizer.cls_token_id)]
    batches = mixed_batch(groups, tokenizer.pad_token_id)["batches"]
    assert all(count_labels(inputs) == 0 for inputs in batches.values())
    assert all(count_read(task, inputs) == (0, 0) for task, inputs in batches.items())
    for name in ("stream_ids", "memory_reset"):
        del batches[DOCUMENT_LM][name]
    output = model(batches=batches)
    output.loss.backward()
    assert output.loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_bad_mixtures(tokenizer):
    tasks = every_task(tokenizer)
    schedule = ProgressiveSchedule(8, (16, 64), (8, 40), (0.0, 1e-3))
    for arguments, message in (
        ({"tasks": [], "batch_size": 8}, "nothing to train"),
        ({"tasks": [tasks[0], tasks[0]], "batch_size": 8}, r"Two builders make rows of \['knowledge_masked_lm'\]"),
        ({"tasks": tasks, "batch_size": 8, "ratios": {"document_lm": 2}}, r"ratios names \['document_lm'\]"),
        ({"tasks": tasks}, "Pass either batch_size or a schedule"),
        ({"tasks": tasks, "batch_size": 5}, "A batch of 5 rows cannot hold 6 tasks"),
        (
            {"tasks": tasks, "schedule": ProgressiveSchedule(8, (16, 64), (5, 40), (0.0, 1e-3))},
            "A batch of 5 rows cannot hold 6 tasks",
        ),
        ({"tasks": tasks, "batch_size": 8, "schedule": schedule}, "Pass either batch_size or a schedule"),
        ({"tasks": tasks, "length": 8, "schedule": schedule}, "Pass either length=8 or a schedule"),
        (
            {"tasks": every_task(tokenizer, truncation=False), "schedule": schedule},
            "the builders of .* need truncation=True",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Ernie3PretrainingMixture(tokenizer, **arguments)
    with pytest.raises(ValueError, match="4 rows cannot be shared by 5 shards"):
        next(iter(Ernie3PretrainingMixture(tokenizer, tasks, batch_size=8, rank=4, world_size=5)))


def test_the_schedule_is_linear_and_published():
    schedule = ProgressiveSchedule(
        10, (128, 512), (8, 108), (0.0, 1e-4), dropout=(0.0, 0.1), total_steps=30, length_multiple=32
    )
    lengths = [128, 160, 192, 224, 256, 320, 352, 384, 416, 448, 512]
    assert [schedule.at(step).length for step in range(11)] == lengths
    for step in range(11):
        settings = schedule.at(step)
        assert settings.batch_size == 8 + 10 * step
        assert settings.learning_rate == pytest.approx(1e-5 * step)
        assert settings.dropout == pytest.approx(0.01 * step)
    assert schedule.at(20) == (512, 108, pytest.approx(5e-5), 0.1)
    assert schedule.at(30).learning_rate == schedule.at(99).learning_rate == 0
    factor = schedule.learning_rate_factor()
    assert [factor(step) for step in (0, 5, 10, 20, 30)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("preset", "steps", "last", "peak"),
    [
        ("ernie3_10b", 10_000, 6144, 1e-4),
        ("titan", 4_000, 6144, 1e-4),
        ("base", 10_000, 2048, 1e-4),
        ("large_1_5b", 10_000, 8192, 6e-4),
    ],
)
def test_presets(preset, steps, last, peak):
    schedule = getattr(ProgressiveSchedule, preset)()
    assert schedule.at(0) == (128, 8, 0.0, 0.0)
    assert schedule.at(steps) == (512, last, peak, 0.0)
    assert schedule.at(steps - 1).length < 512


def test_bad_schedules():
    for settings, message in (
        ({"steps": 0}, "steps=0 and length_multiple=8"),
        ({"length": (64, 32)}, r"length=\(64, 32\) must grow"),
        ({"batch_size": (0, 8)}, r"batch_size=\(0, 8\) must grow from 1"),
        ({"dropout": (0.0, 1.0)}, "must stay below 1"),
        ({"learning_rate": (0.0, 0.0)}, "reach more than 0"),
        ({"total_steps": 10}, "total_steps=10 must be more than steps=10"),
    ):
        good = {"steps": 10, "length": (8, 16), "batch_size": (1, 2), "learning_rate": (0.0, 1e-3)}
        with pytest.raises(ValueError, match=message):
            ProgressiveSchedule(**(good | settings))
    with pytest.raises(ValueError, match="step=-1"):
        ProgressiveSchedule.base().at(-1)


def memories(values, length):
    """Two layers of different widths whose numbers tell the row."""
    count = len(values)
    rows = torch.tensor(values, dtype=torch.float32)[:, None, None]
    mask = torch.ones(count, length, dtype=torch.bool)
    states = (rows.expand(count, length, 4).clone(), -rows.expand(count, length, 2).clone())
    return Ernie3Memories(states=states, mask=mask, tokens_seen=torch.tensor(values))


def test_the_bank_gives_every_row_its_own(tmp_path):
    bank = MemoryBank()
    none = torch.tensor([False, False])
    assert bank.take(torch.tensor([0, 1]), none) is None
    bank.put(torch.tensor([0, 2]), memories([10, 12], 3))
    bank.put(torch.tensor([1]), memories([11], 5))
    bank.save(tmp_path / "bank.safetensors")
    read = MemoryBank()
    read.load(tmp_path / "bank.safetensors", torch.device("cpu"))
    for one in (bank, read):
        found = one.take(torch.tensor([2, 7, 1, 0]), torch.tensor([False, False, False, True]))
        assert found.mask.tolist() == [[False] * 2 + [True] * 3, [False] * 5, [True] * 5, [False] * 5]
        assert found.tokens_seen.tolist() == [12, 0, 11, 0]
        assert found.states[0][:, -1, 0].tolist() == [12, 0, 11, 0]
        assert found.states[1][:, -1, 1].tolist() == [-12, 0, -11, 0]
        assert one.take(torch.tensor([0, 1]), ~none) is None
        assert len(one) == 3
    bank.clear()
    assert len(bank) == 0
    with pytest.raises(ValueError, match="must have states, mask and tokens_seen"):
        bank.put(torch.tensor([0]), Ernie3Memories(mask=torch.ones(1, 2, dtype=torch.bool)))


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("recurrence", ["shift_down", "same_layer"])
def test_memories_without_columns_are_none(tokenizer, positions, recurrence):
    """The same loss, gradients and next memories, to the last bit."""
    model = tiny_model(tokenizer, position_embedding_type=positions, recurrence=recurrence).train()
    ids = torch.randint(10, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 7:] = tokenizer.pad_token_id
    rows = {"input_ids": ids, "attention_mask": ids.ne(tokenizer.pad_token_id).long(), "branch": "nlg"}
    found = []
    for memories in (None, memories_without_columns(model.config, torch.tensor([4, 9]))):
        model.zero_grad()
        output = model(**rows, labels=ids, memories=memories, return_memories=True)
        output.loss.backward()
        gradients = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        found.append([output.loss.detach(), *gradients, output.memories.mask, *output.memories.states])
        assert output.memories.tokens_seen.tolist() == [9, 7]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert memories_without_columns(tiny_model(tokenizer, memory_length=0).config, torch.tensor([4])) is None


# Many rows at a time


def test_rows_built_together_are_the_rows_built_alone(tokenizer):
    """The tokenizer gets the texts of all rows at once; every row is what it is by itself."""
    for rows, builder in every_task(tokenizer):
        places = [(index, epoch) for index in range(len(rows)) for epoch in range(2)]
        together = builder.rows([rows[index] for index, _ in places], places, 40)
        assert together == [builder.row(rows[index], index, epoch, 40) for index, epoch in places]
        assert {row["task"] for row in together} == {builder.task}
        assert builder.rows([], [], 40) == []


def test_of_many_rows_the_bad_one_is_named(tokenizer):
    masking = KnowledgeMasking(tokenizer)
    rows = [{"text": "今天"}, {"text": "气"}, {"text": " "}]
    with pytest.raises(ValueError, match=r"knowledge_masked_lm, row 7: column 'text' is an empty text"):
        masking.rows(rows, [(5, 0), (6, 0), (7, 0)], 40)
    long = [{"text": "今天"}, {"text": "今天气真好"}]
    with pytest.raises(ValueError, match=r"knowledge_masked_lm, row 1: the text has 5 tokens"):
        masking.rows(long, [(0, 0), (1, 0)], 4)
