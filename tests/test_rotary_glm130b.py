"""The rotary table: the released values bit for bit, wherever a model comes from and goes; `test_compile_inductor.py`
holds compiled graphs against it.
"""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from hf_glm_ernie import Glm130bConfig
from hf_glm_ernie.rotary_glm130b import Glm130bRotaryEmbedding, rounded, rounded_by_bits
from tests.support.tiny_models import tiny_config, tiny_model

LAST = 65504  # the largest fp16 number, and so the last position the original can tell from the next


def released(config: Glm130bConfig, positions: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The original's formula, every step in the table's dtype, without any table; sin with `rotate_half`'s sign."""
    table = getattr(torch, config.rotary_dtype)
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angles = positions[:, None, :, None].to(table) * frequencies.to(table)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return [torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)]


@pytest.mark.parametrize("rotary_dtype", ["float16", "float32"])
@pytest.mark.parametrize(("hidden_size", "heads"), [(128, 1), (64, 4), (60, 6)], ids=["128", "16", "10"])
def test_every_position_in_every_compute_dtype(hidden_size: int, heads: int, rotary_dtype: str) -> None:
    """Inside the table and behind it, in rows that repeat positions, and of any head size."""
    config = tiny_config(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        rotary_dtype=rotary_dtype,
    )
    rotary = Glm130bRotaryEmbedding(config)
    repeated = torch.tensor([[0, 1, 2, 1, 1], [2047, 2048, 2049, 4097, 7]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for positions in (torch.arange(LAST + 1)[None], repeated):
            for found, expected in zip(rotary(positions, dtype), released(config, positions, dtype), strict=True):
                assert found.dtype == dtype
                assert torch.equal(found, expected)


def test_rounding_is_that_of_the_dtype() -> None:
    """Normal and subnormal numbers, ties, zero, both signs; and what is too large."""
    fp16 = torch.arange(-(2**15), 2**15 - 1).to(torch.int16).view(torch.float16).float()
    fp16 = fp16[fp16.isfinite()]
    ties = (fp16[1:] + fp16[:-1]) / 2
    noise = torch.randn(10000) * 10.0 ** torch.randint(-9, 6, (10000,))
    for values in (
        fp16,
        ties,
        torch.nextafter(ties, ties * 2),
        noise,
        torch.tensor([0.0, -0.0, 1e-30, 65519.9, 65520]),
    ):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert torch.equal(rounded_by_bits(values, dtype), values.to(dtype))
            assert torch.equal(rounded(values, dtype), values.to(dtype))


def test_positions_behind_the_context_keep_working() -> None:
    """A text may go on behind the context it was trained with, as if the context had been longer."""
    short, long = tiny_model(max_position_embeddings=4), tiny_model(max_position_embeddings=4096)
    row, positions = torch.tensor([[9, 8, 7, 6, 5, 4]]), torch.tensor([[2, 3, 4, 5, 3000, 3001]])
    assert torch.equal(short(row).logits, long(row).logits)
    found = short(row, position_ids=positions).logits
    assert torch.equal(found, long(row, position_ids=positions).logits)
    assert not torch.allclose(found, short(row).logits, atol=1e-2)


def test_the_table_survives_what_happens_to_a_model(tmp_path: Path) -> None:
    """Casts, copies, loading in another dtype (built on the meta device), and places on other devices."""
    model = tiny_model()
    expected = {name: buffer.clone() for name, buffer in model.named_buffers() if "rotary" in name}
    assert len(expected) == 2
    model.save_pretrained(tmp_path / "model")
    assert not [name for name in model.state_dict() if "rotary" in name]  # computed, not loaded
    # the backends of data parallelism, which broadcasts buffers, know no integers of 16 bits
    assert {buffer.dtype for buffer in expected.values()} == {torch.int32}

    on_cpu = ("embed_tokens", "norm", "layers.0", "layers.2")
    places = {"lm_head": "cpu", "model.layers.1": "disk"} | {f"model.{part}": "cpu" for part in on_cpu}
    models = [copy.deepcopy(model).half(), copy.deepcopy(model).to(torch.bfloat16).float()]
    models += [AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype) for dtype in ("bfloat16", "auto")]
    for place in ("cpu", "disk"):
        models.append(
            AutoModelForCausalLM.from_pretrained(
                tmp_path / "model",
                device_map=places | {"model.rotary_emb": place},
                offload_folder=tmp_path / place,
                offload_buffers=True,
            )
        )
    on_one = dict.fromkeys([*places, "model.rotary_emb"], "cpu")
    models.append(dispatch_model(copy.deepcopy(model), on_one, main_device="cpu", force_hooks=True))
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert empty.model.rotary_emb.cos_sin_bits.is_meta
    empty = empty.to_empty(device="cpu")
    empty.init_weights()
    for other in [*models, empty]:
        found = dict(other.named_buffers())
        assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_the_table_of_the_released_model_is_small() -> None:
    rotary = Glm130bRotaryEmbedding(Glm130bConfig())
    assert rotary.cos_sin_bits.shape == (2048, 128)
    assert sum(buffer.nbytes for buffer in rotary.buffers()) == 2**20 + 256


def test_torch_export_carries_the_table(tmp_path: Path) -> None:
    """Of a whole model, saved and read again: positions are an input, here up to the end of the context and behind."""
    model, ids = tiny_model(), torch.tensor([[9, 8, 7, 6, 5, 4]])
    layout = {"token_type_ids": torch.ones_like(ids), "position_ids": torch.arange(6)[None], "use_cache": False}
    torch.export.save(torch.export.export(model, (ids,), layout, strict=False), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    layout["position_ids"] = torch.tensor([[0, 1, 254, 255, 256, 3000]])
    assert torch.equal(program(ids, **layout).logits, model(ids, **layout).logits)
