"""The recipe with the host's Trainer: every task, memories from step to step, schedules, logs, resuming."""

import copy
import itertools
import multiprocessing

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES
from hf_glm_ernie.ernie3_training.collator import Ernie3PretrainingCollator
from hf_glm_ernie.ernie3_training.documents import DocumentStreams
from hf_glm_ernie.ernie3_training.fillers import count_labels, count_read
from hf_glm_ernie.ernie3_training.masking import KnowledgeMasking
from hf_glm_ernie.ernie3_training.memories import MemoryBank
from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.schedule import ProgressiveSchedule
from hf_glm_ernie.ernie3_training.trainer import Ernie3PretrainingTrainer
from tests.support.ernie3_pretraining_tiny import PARAGRAPHS, documents, every_task, tiny_model
from tests.support.ernie3_rows import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def arguments(folder, **options):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return TrainingArguments(**(settings | options))


def mixture(tokenizer, **options):
    settings = {"batch_size": 10, "length": 12, "ratios": {"document_lm": 4}}
    return Ernie3PretrainingMixture(tokenizer, every_task(tokenizer), documents(), **(settings | options))


def train(tokenizer, folder, stream=None, model=None, resume=None, trainer_options=None, **options):
    trainer = Ernie3PretrainingTrainer(
        model=model or tiny_model(tokenizer),
        args=arguments(folder, **options),
        train_dataset=stream or mixture(tokenizer),
        **(trainer_options or {}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(model, batches, steps):
    """The same training written as a loop; the memory of each row is kept as the model returned it, row by row."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.train()
    memories, losses, visible = None, [], []
    for batch, _ in zip(batches, range(steps), strict=False):
        tasks = {task: dict(inputs) for task, inputs in batch["batches"].items()}
        rows = tasks["document_lm"]
        assert rows.pop("stream_ids").tolist() == [0, 1, 2, 3]
        reset = rows.pop("memory_reset")
        memories = None if memories is None else memories.reset(reset)
        visible.append(0 if memories is None else int(memories.mask.sum()))
        total = 0.0
        found = {}
        for task, inputs in tasks.items():
            extra = {"memories": memories, "return_memories": True} if task == "document_lm" else {}
            output = model(**inputs, **extra)
            if task == "document_lm":
                memories = output.memories
            found[task] = output.loss.item()
            total = total + output.loss
        losses.append(found)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses, visible


def test_training_is_the_loop_written_out(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    losses, visible = by_hand(copy.deepcopy(model), mixture(tokenizer), 6)
    assert max(visible) > 12, "some steps go on with memories of several rows"
    trainer = train(tokenizer, tmp_path, model=model)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 6
    for log, expected in zip(logs, losses, strict=True):
        assert {name for name in log if name.endswith("_loss")} == {f"{task}_loss" for task in TASK_BRANCHES}
        for task, loss in expected.items():
            # The same operations; batches of memories are put together differently. Measured 0 to 1e-6.
            assert log[f"{task}_loss"] == pytest.approx(loss, abs=1e-5)
        # The host logs the total with the precision of its sum.
        assert log["loss"] == pytest.approx(sum(expected.values()), abs=1e-4)


def test_memories_matter_and_are_carried(tokenizer, tmp_path, monkeypatch):
    """The same run without carrying differs in the document loss, from the step on that has a memory."""
    carried = [log["document_lm_loss"] for log in train(tokenizer, tmp_path).state.log_history if "loss" in log]
    monkeypatch.setattr("hf_glm_ernie.ernie3_training.memories.MemoryBank.take", lambda self, ids, reset: None)
    dropped = [log["document_lm_loss"] for log in train(tokenizer, tmp_path).state.log_history if "loss" in log]
    assert carried[0] == dropped[0]
    assert all(abs(a - b) > 1e-4 for a, b in zip(carried[1:4], dropped[1:4], strict=True))


def test_a_step_without_memories_calls_the_modules_of_one_that_has_some(tokenizer, tmp_path):
    """ZeRO-3 gathers weights by these calls: rows of one process begin documents while another's go on with some."""
    model = tiny_model(tokenizer)
    names = {module: name for name, module in model.named_modules()}
    calls, widths = [], []

    class Watching(Ernie3PretrainingTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            calls.append([])
            return super().compute_loss(model, inputs, **kwargs)

    for module, name in names.items():
        if name:
            module.register_forward_pre_hook(lambda module, _: calls[-1].append(names[module]))
    memory = model.ernie3.encoder.layers[0]
    memory.register_forward_pre_hook(
        lambda _, given, kwargs: widths.append(kwargs["memory"]) if kwargs["memory"] is not None else None,
        with_kwargs=True,
    )
    Watching(model, arguments(tmp_path, max_steps=3), train_dataset=mixture(tokenizer)).train()
    assert [memory.shape[1] for memory in widths] == [0, 6, 6], "the first step goes on with no document"
    assert len(calls[0]) > 100
    assert calls[1:] == [calls[0]] * 2


def test_labels_are_counted_once(tokenizer, tmp_path, monkeypatch):
    counted = []

    def count(inputs):
        counted.append(inputs)
        return count_labels(inputs)

    monkeypatch.setattr("hf_glm_ernie.ernie3_training.trainer.count_labels", count)
    train(tokenizer, tmp_path, max_steps=2, gradient_accumulation_steps=2)
    assert len(counted) == 2 * 2 * len(TASK_BRANCHES)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_exactly(tokenizer, tmp_path, workers):
    options = {"dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": 3}
    whole = train(tokenizer, tmp_path / "whole", **options)
    folder = tmp_path / "whole" / "checkpoint-3"
    assert (folder / "ernie3_memories_0.safetensors").is_file()
    resumed = train(tokenizer, tmp_path / "resumed", resume=str(folder), **options)
    assert not multiprocessing.active_children()  # workers end with the run
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_without_the_file_memories_begin_anew_and_a_warning_says_so(tokenizer, tmp_path, caplog):
    train(tokenizer, tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    (tmp_path / "checkpoint-3" / "ernie3_memories_0.safetensors").unlink()
    with caplog.at_level("WARNING"):
        trainer = train(tokenizer, tmp_path, resume=True)
    assert trainer.state.global_step == 6
    assert "documents that were begun go on with empty memories" in caplog.text


def test_the_progressive_schedule_is_applied(tokenizer, tmp_path):
    schedule = ProgressiveSchedule(
        4, (24, 48), (8, 16), (0.0, 1e-3), dropout=(0.0, 0.2), total_steps=8, length_multiple=4
    )
    stream = mixture(tokenizer, batch_size=None, length=None, schedule=schedule)
    seen = []

    class Watching(Ernie3PretrainingTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            batches = inputs["batches"].values()
            rows = sum(len(one["input_ids"]) for one in batches)
            width = max(one["input_ids"].shape[1] for one in batches)
            seen.append((width, rows, self._get_learning_rate(), model.config.hidden_dropout_prob))
            assert model.config.branch_attention_probs_dropout_prob == model.config.hidden_dropout_prob
            return super().compute_loss(model, inputs, **kwargs)

    Watching(tiny_model(tokenizer), arguments(tmp_path), train_dataset=stream, schedule=schedule).train()
    for step, (width, rows, rate, dropout) in enumerate(seen):
        settings = schedule.at(step)
        assert width <= settings.length
        assert (rows, dropout) == (settings.batch_size, settings.dropout)
        assert rate == pytest.approx(settings.learning_rate)
    assert [one[1] for one in seen] == [8, 10, 12, 14, 16, 16]
    assert seen[-1][0] > 24
    with pytest.raises(ValueError, match="must be the schedule's peak"):
        Watching(
            tiny_model(tokenizer), arguments(tmp_path, learning_rate=0.1), schedule=schedule, train_dataset=stream
        )


def test_accumulated_batches_are_one_batch_of_means(tokenizer, tmp_path):
    """Two equal batches in one step are worth one of them."""

    def repeated(times):
        class Repeated(Ernie3PretrainingMixture):
            def __iter__(self):
                for batch in super().__iter__():
                    rows = batch["batches"]["document_lm"]
                    rows["memory_reset"] = torch.ones_like(rows["memory_reset"])
                    yield from [batch] * times

        return Repeated(tokenizer, every_task(tokenizer), documents(), batch_size=7, length=12)

    # Neither Adam nor clipping would notice a gradient of twice the size.
    options = {"max_steps": 2, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    once = train(tokenizer, tmp_path, stream=repeated(1), **options)
    twice = train(tokenizer, tmp_path, stream=repeated(2), gradient_accumulation_steps=2, **options)
    before = tiny_model(tokenizer).state_dict()
    assert any((tensor - before[name]).abs().max() > 0.01 for name, tensor in once.model.state_dict().items())
    for name, tensor in once.model.state_dict().items():
        # Halving and adding are exact. Measured 0.
        torch.testing.assert_close(tensor, twice.model.state_dict()[name], rtol=0, atol=1e-7)


def test_uneven_batches_are_one_mean_over_the_labels(tokenizer, tmp_path):
    """Three accumulated batches, some without a row of some task: one step on the mean over all labels."""
    schedule = ProgressiveSchedule(100, (24, 24), (8, 8), (0.1, 0.1))

    def stream():
        return mixture(
            tokenizer, batch_size=None, length=None, ratios=None, schedule=schedule, gradient_accumulation_steps=3
        )

    model = tiny_model(tokenizer)
    expected = copy.deepcopy(model)
    batches = list(itertools.islice(stream(), 3))
    totals: dict[str, list] = {task: [] for task in TASK_BRANCHES}
    counts = dict.fromkeys(TASK_BRANCHES, 0)
    rows, bank = 0, MemoryBank()
    for batch in batches:
        for task, inputs in batch["batches"].items():
            labels = int(count_labels(inputs))
            given = dict(inputs)
            if task == DOCUMENT_LM:
                ids, reset = given.pop("stream_ids"), given.pop("memory_reset")
                given |= {"memories": bank.take(ids, reset), "return_memories": True}
            output = expected(**given)
            if task == DOCUMENT_LM:
                bank.put(ids, output.memories)
            totals[task].append(output.loss * labels)
            counts[task] += labels
            rows += count_read(task, inputs)[0]
    assert rows == 8
    assert any(not total for parts in totals.values() for total in parts), "some batch has no label of some task"
    losses = {task: sum(parts) / counts[task] for task, parts in totals.items()}
    sum(losses.values()).backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    trainer = train(
        tokenizer,
        tmp_path,
        stream=stream(),
        model=model,
        max_steps=1,
        optim="sgd",
        max_grad_norm=0.0,
        learning_rate=0.1,
        gradient_accumulation_steps=3,
    )
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    for task, loss in losses.items():
        assert log[f"{task}_loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert log["loss"] == pytest.approx(sum(losses.values()).item(), abs=1e-4)
    assert log["rows_read"] == 8
    assert log["tokens_read"] == sum(count_read(*one)[1] for batch in batches for one in batch["batches"].items())
    for name, tensor in expected.state_dict().items():
        # The same sums in another order. Measured 3e-8.
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_weights_and_their_errors(tokenizer, tmp_path):
    weights = dict.fromkeys(TASK_BRANCHES, 0.0) | {"document_lm": 0.5}
    trainer = train(tokenizer, tmp_path, max_steps=1, trainer_options={"task_weights": weights})
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["loss"] == pytest.approx(0.5 * log["document_lm_loss"], abs=1e-4)
    for bad in ({"documents": 1.0}, {"document_lm": -1.0}):
        with pytest.raises(ValueError, match="weights are at least 0, the tasks are knowledge_masked_lm"):
            Ernie3PretrainingTrainer(tiny_model(tokenizer), arguments(tmp_path), task_weights=bad)


@torch.no_grad()
def evaluated_by_hand(model, batches):
    """Each task's mean loss over its labels; the memory of each row is kept as the model returned it."""
    model.eval()
    memories, losses, labels = None, dict.fromkeys(TASK_BRANCHES, 0.0), dict.fromkeys(TASK_BRANCHES, 0)
    for batch in batches:
        for task, inputs in batch["batches"].items():
            inputs = dict(inputs)
            if task == "document_lm":
                del inputs["stream_ids"]
                reset = inputs.pop("memory_reset")
                memories = None if memories is None else memories.reset(reset)
                inputs |= {"memories": memories, "return_memories": True}
            output = model(**inputs)
            memories = output.memories if task == "document_lm" else memories
            count = int(count_labels(inputs))
            losses[task] += output.loss.item() * count
            labels[task] += count
    return {task: loss / labels[task] for task, loss in losses.items()}


def test_evaluation_has_memories_of_its_own(tokenizer, tmp_path):
    stream = mixture(tokenizer)
    trainer = train(tokenizer, tmp_path, stream=stream, max_steps=2)
    kept = len(trainer._memories["train"])
    first = trainer.evaluate(mixture(tokenizer, num_batches=4, seed=5))
    second = trainer.evaluate(mixture(tokenizer, num_batches=4, seed=5))
    tasks = {f"eval_{task}_loss" for task in TASK_BRANCHES}
    assert tasks <= set(first)
    assert {name: first[name] for name in tasks} == {name: second[name] for name in tasks}
    for task, loss in evaluated_by_hand(trainer.model, mixture(tokenizer, num_batches=4, seed=5)).items():
        assert first[f"eval_{task}_loss"] == pytest.approx(loss, abs=1e-5)
    assert first["eval_loss"] == pytest.approx(sum(first[name] for name in tasks), abs=1e-4)
    assert len(trainer._memories["train"]) == kept == 4
    with pytest.raises(ValueError, match="give it num_batches"):
        trainer.evaluate(stream)


def test_fillers_count_in_no_mean_of_an_evaluation(tokenizer, tmp_path):
    """Six batches that share three rows fewer than they have places: some have no label of some task."""
    schedule = ProgressiveSchedule(100, (24, 24), (8, 8), (0.1, 0.1))

    def stream():
        options = {"batch_size": None, "length": None, "ratios": None, "gradient_accumulation_steps": 3}
        return mixture(tokenizer, schedule=schedule, num_batches=6, seed=5, **options)

    batches = [batch["batches"] for batch in stream()]
    assert len(batches) == 6
    assert all(any(not count_labels(batch[task]) for batch in batches) for task in ("credible", "controllable_lm"))
    weights = {"credible": 3.0}
    model = tiny_model(tokenizer)
    trainer = Ernie3PretrainingTrainer(model, arguments(tmp_path), eval_dataset=stream(), task_weights=weights)
    found = trainer.evaluate()
    total = 0.0
    model.eval()
    for task in TASK_BRANCHES:
        bank, losses, labels = MemoryBank(), 0.0, 0
        for batch in batches:
            given = dict(batch[task])
            if task == DOCUMENT_LM:
                ids, reset = given.pop("stream_ids"), given.pop("memory_reset")
                given |= {"memories": bank.take(ids, reset), "return_memories": True}
            with torch.no_grad():
                output = model(**given)
            if task == DOCUMENT_LM:
                bank.put(ids, output.memories)
            count = int(count_labels(given))
            losses, labels = losses + output.loss.item() * count, labels + count
        assert found[f"eval_{task}_loss"] == pytest.approx(losses / labels, abs=1e-5)
        total += weights.get(task, 1.0) * losses / labels
    assert found["eval_loss"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("kind", [Trainer, Ernie3PretrainingTrainer])
def test_built_rows_train_with_either_trainer(tokenizer, tmp_path, kind, as_dataset):
    masking = KnowledgeMasking(tokenizer)
    rows = [masking.row({"text": "".join(one)}, at, 0, 64) for at, one in enumerate(PARAGRAPHS)]
    if as_dataset:
        datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose columns the host removes")
        rows = datasets.Dataset.from_list(rows)
    options = {"remove_unused_columns": False} if kind is Trainer else {}
    collate, seen = Ernie3PretrainingCollator(tokenizer), []

    def recorded(chosen):
        seen.append(collate(chosen))
        return copy.deepcopy(seen[-1])

    model = tiny_model(tokenizer)
    expected = copy.deepcopy(model)
    trainer = kind(
        model=model,
        args=arguments(tmp_path, max_steps=3, **options),
        train_dataset=rows,
        data_collator=recorded,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-3, weight_decay=0.0)
    expected.train()
    for loss, batch in zip(losses, seen[:3], strict=True):
        (inputs,) = batch["batches"].values()
        wanted = expected(**inputs).loss
        assert loss == pytest.approx(wanted.item(), abs=1e-4)
        optimizer.zero_grad()
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, tensor in expected.state_dict().items():
        if not name.endswith("k_proj.bias"):  # no score depends on it: its gradient is rounding, which Adam scales up
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_batches_of_another_form_are_refused(tokenizer, tmp_path):
    stream = DocumentStreams(documents(), tokenizer, rows=2, length=8)
    with pytest.raises(ValueError, match="A batch must be"):
        train(tokenizer, tmp_path, stream=stream)
