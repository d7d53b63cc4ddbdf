"""The rotary table: the released roundings bit for bit, kept whatever happens to the module."""

import pytest
import torch

from hf_glm_ernie import Glm130bForCausalLM
from hf_glm_ernie.rotary_glm130b import Glm130bRotaryEmbedding, rounded

from .tiny_models import tiny_config, tiny_model

CONTEXT = 300
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def released(positions: torch.Tensor, head_dim: int, dtype: torch.dtype, table: torch.dtype) -> list[torch.Tensor]:
    """The original's lines: every step in the table's dtype [SwissArmyTransformer 0.2.12]."""
    inv_freq = (1.0 / (10000 ** (torch.arange(0, head_dim, 2).float() / head_dim))).to(table)
    angles = torch.einsum("i,j->ij", positions.to(table), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)
    return [angles.cos().to(dtype), angles.sin().to(dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", ["float16", "float32"])
def test_cos_and_sin_are_the_released_ones(dtype: torch.dtype, table: str) -> None:
    """In the context, where they are looked up, and behind it, where they are computed."""
    config = tiny_config(hidden_size=256, num_attention_heads=2, max_position_embeddings=CONTEXT, rotary_dtype=table)
    positions = torch.tensor([0, 1, 2, 137, CONTEXT - 1, CONTEXT, 1999, 2047, 5000])
    found = Glm130bRotaryEmbedding(config)(positions[None], dtype)
    for mine, theirs in zip(found, released(positions, 128, dtype, getattr(torch, table)), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine[0, 0], theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_by_bits_is_the_rounding_of_torch(dtype: torch.dtype) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values *= 10.0 ** torch.linspace(-9, 4, 200_000)
    ties = (torch.arange(2**11).float() + 0.5) / 2**10  # halfway between two fp16 numbers, or near it
    values = torch.cat((values, -values, ties, torch.tensor([0.0, -0.0, torch.inf, -torch.inf])))
    assert torch.equal(rounded(values, dtype), values.to(dtype))


def cos_at(model: Glm130bForCausalLM) -> torch.Tensor:
    return model.model.rotary_emb(torch.tensor([[250, 290]]), torch.float32)[0]


def test_the_table_survives_what_happens_to_a_model(tmp_path) -> None:
    """Rounded to another dtype, saved and loaded through the meta device, moved by accelerate."""
    from accelerate import dispatch_model

    model = tiny_model(max_position_embeddings=CONTEXT)
    before = cos_at(model)
    assert torch.equal(before[0, 0], released(torch.tensor([250, 290]), 16, torch.float32, torch.float16)[0])
    model.save_pretrained(tmp_path)
    assert not [name for name in model.state_dict() if "rotary" in name]
    for dtype in DTYPES:
        assert torch.equal(cos_at(tiny_model(max_position_embeddings=CONTEXT).to(dtype)), before)
        loaded = Glm130bForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert torch.equal(cos_at(loaded), before)
    device_map = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map |= {f"model.layers.{i}": "cpu" for i in range(model.config.num_hidden_layers)}
    assert torch.equal(cos_at(dispatch_model(loaded, device_map, main_device="cpu", force_hooks=True)), before)


def test_a_forward_goes_on_behind_the_table() -> None:
    """Positions behind the context are no error of `forward`; they have the released angles too."""
    short, long = (tiny_model(max_position_embeddings=length) for length in (16, 64))
    ids = torch.randint(4, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(short(ids).logits, long(ids).logits)
