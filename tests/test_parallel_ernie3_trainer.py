"""Pre-training with the Trainer in two processes (gloo on CPU): what one process computes from all their rows."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_glm_ernie.configuration_ernie3 import TASK_BRANCHES
from tests.support.ernie3_pretraining_tiny import tiny_model
from tests.support.ernie3_rows import small_tokenizer
from tests.support.ernie3_trainer_ranks_run import LEARNING_RATE, SCHEDULE, STEPS
from tests.support.rank_processes import run_ranks

ZERO3 = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed: make test-zero")


Memories = dict[tuple[int, int], Any]  # of each rank's rows


def mean_losses(model: Any, batches: list[tuple[int, dict[str, Any]]], kept: Memories) -> dict[str, torch.Tensor]:
    """Every task's loss, the mean over its labels in the batches of all ranks, a row at a time; `kept` goes on.

    Rows without labels are fillers and give no gradient.
    """
    found = {}
    for task in TASK_BRANCHES:
        sums, labels = torch.zeros(()), 0
        for rank, batch in batches:
            rows = dict(batch[task])
            ids, reset = rows.pop("stream_ids", None), rows.pop("memory_reset", None)
            for row in range(len(rows["input_ids"])):
                one = {name: value[row : row + 1] if torch.is_tensor(value) else value for name, value in rows.items()}
                if ids is not None:
                    stream = (rank, int(ids[row]))
                    memories = None if reset[row] else kept.get(stream)
                    one |= {"memories": memories, "return_memories": True}
                output = model(**one)
                if ids is not None:
                    kept[stream] = output.memories
                (name,) = [name for name in one if name.endswith("labels")]
                scored = one[name][:, 1:] if one["branch"] == "nlg" else one[name]
                count = int((scored != -100).sum())
                sums, labels = sums + output.loss * count, labels + count
        found[task] = sums / max(labels, 1)
    return found


def by_hand(model: Any, steps: list[list[tuple[int, dict[str, Any]]]]) -> list[dict[str, float]]:
    """Plain steps of SGD; a step is a list of ranks and their batches."""
    kept: Memories = {}
    losses = []
    model.train()
    for batches in steps:
        found = mean_losses(model, batches, kept)
        model.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LEARNING_RATE * parameter.grad
        losses.append({task: loss.item() for task, loss in found.items()})
    return losses


@pytest.mark.parametrize(
    ("wrapper", "accumulated"),
    [
        ("ddp", 1),
        pytest.param("ddp", 2, marks=pytest.mark.slow),
        pytest.param("fsdp2", 1, marks=pytest.mark.slow),
        pytest.param("fsdp2", 2, marks=pytest.mark.slow),
        pytest.param("tp2", 1, marks=pytest.mark.slow),
        pytest.param("zero3", 1, marks=[pytest.mark.slow, ZERO3]),
        pytest.param("zero3", 2, marks=[pytest.mark.slow, ZERO3]),
    ],
)
def test_two_ranks_train_as_one_process_would_on_all_their_rows(
    wrapper: str, accumulated: int, tmp_path: Path
) -> None:
    run_ranks("ernie3_trainer_ranks_run.py", tmp_path, wrapper, str(accumulated), seconds=280)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(one["batches"]) for one in ranks] == [STEPS * accumulated] * 2
    apart = (0,) if wrapper == "tp2" else (0, 1)  # with tensor parallelism both read the same rows
    steps = [
        [
            (rank, batch)
            for rank in apart
            for batch in ranks[rank]["batches"][step * accumulated : (step + 1) * accumulated]
        ]
        for step in range(STEPS)
    ]
    model = tiny_model(small_tokenizer(tmp_path))
    losses = by_hand(model, steps)
    for log, expected in zip(ranks[0]["logs"], losses, strict=True):
        for task, loss in expected.items():
            assert log[f"{task}_loss"] == pytest.approx(loss, abs=1e-5)  # seen: 1e-6
    read = [log["rows_read"] for log in ranks[0]["logs"]]
    assert read == [SCHEDULE.at(step).batch_size for step in range(STEPS)]
    for name, parameter in model.named_parameters():
        # the same sums in another order, after four steps
        torch.testing.assert_close(ranks[0]["whole"][name], parameter.detach(), rtol=0, atol=1e-5)
        for one in ranks:
            assert torch.equal(one["whole"][name], ranks[0]["whole"][name]), name
            assert torch.equal(one.get("resumed", one["whole"])[name], one["whole"][name]), name
    evaluated = [(rank, batch) for rank in apart for batch in ranks[rank]["evaluated"]]
    with torch.no_grad():
        means = mean_losses(model.eval(), evaluated, {})
    for one in ranks:
        assert one["metrics"]["eval_loss"] == pytest.approx(sum(means.values()).item(), abs=1e-4)
        for task, loss in means.items():
            assert one["metrics"][f"eval_{task}_loss"] == pytest.approx(loss.item(), abs=1e-5)
    if wrapper == "tp2":
        return
    checkpoint = tmp_path / "whole" / f"checkpoint-{STEPS // 2}"
    assert {file.name for file in checkpoint.glob("ernie3_memories_*")} == {
        f"ernie3_memories_{rank}.safetensors" for rank in (0, 1)
    }
