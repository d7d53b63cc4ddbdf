"""The shipped sample GLM-130B, converted, for tests of the evaluation."""

from pathlib import Path

import torch

from conversion.__main__ import main as convert
from hf_glm_ernie import Glm130bForCausalLM
from tests.reference import evaluation_naive as naive
from tests.reference.glm130b_naive import forward

ROOT = Path(__file__).parents[2]
CONTEXT = 256


def converted_sample(folder: Path) -> Path:
    """Converts the sample into a new folder `glm-130b` there; returns it."""
    source = ROOT / "examples" / "sample-glm130b"
    assert convert(["glm130b", f"--source={source}", f"--output={folder / 'glm-130b'}"]) == 0
    return folder / "glm-130b"


def slow_forward(model: Glm130bForCausalLM) -> naive.Forward:
    """The slow reference with a model's weights."""
    state, config = model.state_dict(), model.config

    def run(ids: list[int], positions: list[int], visible: torch.Tensor) -> torch.Tensor:
        return forward(state, ids, positions, visible, config.num_hidden_layers, config.num_attention_heads)

    return run
