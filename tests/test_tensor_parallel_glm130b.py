"""The tensor-parallel plan in two processes (gloo on CPU): the numbers of one process."""

from pathlib import Path

import torch

from tests.support.rank_processes import run_ranks
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
    run_ranks("tensor_parallel_run.py", tmp_path / "model", tmp_path / "expected.pt")
