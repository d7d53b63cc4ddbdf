"""The tensor-parallel plan in two processes (gloo on CPU): the numbers of one process."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.support.tiny_models import GMASK, MASK, PAD, SOP, tiny_model


def test_two_ranks_give_the_numbers_of_one(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.pad_token_id = PAD
    inputs = {
        "input_ids": torch.tensor([[9, 8, MASK, 7, 6, SOP], [PAD, PAD, 9, 8, GMASK, SOP]]),
        "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
    }
    with torch.no_grad():
        expected = {
            "logits": model(**inputs).logits,
            "generated": model.generate(**inputs, max_new_tokens=6, do_sample=False),
        }
    torch.save(inputs | expected, tmp_path / "expected.pt")
    model.save_pretrained(tmp_path / "model")

    script = Path(__file__).parent / "support" / "tensor_parallel_run.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [*command, str(tmp_path / "model"), str(tmp_path / "expected.pt")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
