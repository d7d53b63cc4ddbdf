"""The recipe in two processes (gloo on CPU): shared parameters, separate data and memories."""

from pathlib import Path

import pytest
import torch

from tests.support.ernie3_pretraining_ranks_run import STEPS
from tests.support.rank_processes import run_ranks


@pytest.mark.slow
def test_two_ranks_train_one_model_on_separate_rows(tmp_path: Path) -> None:
    run_ranks("ernie3_pretraining_ranks_run.py", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    tokens = [set(torch.cat(one["seen"]).tolist()) for one in (first, second)]
    assert tokens[0]
    assert tokens[1]
    assert not tokens[0] & tokens[1], "no document is read by both"
    assert [len(one["losses"]) for one in (first, second)] == [STEPS, STEPS]
    for step, log in enumerate(first["logs"]):
        for name, loss in first["losses"][step].items():
            # The mean of two numbers in fp32: rounding in the seventh digit of losses near 5.
            assert log[name] == pytest.approx((loss + second["losses"][step][name]) / 2, abs=1e-5)
    for rank in (0, 1):
        assert (tmp_path / "out" / f"checkpoint-{STEPS}" / f"ernie3_memories_{rank}.safetensors").is_file()
