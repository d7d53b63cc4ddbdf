"""Types, positions and masks that follow from the ids, against the spelled-out layout of the slow reference."""

import pytest
import torch

from hf_glm_ernie.host_inputs import check_ids
from hf_glm_ernie.prefix_glm130b import (
    answer_positions_go_on,
    blank_position_ids,
    plain_position_ids,
    prefix_attention_mask,
    prefix_token_type_ids,
)
from tests.reference.glm130b_naive import layout
from tests.support.tiny_models import EOP, GMASK, MASK, SMASK, SOP, tiny_config

ROWS = {
    "short blank": [9, MASK, 8, 7, SOP, 5, 6],
    "sentence blank": [9, 8, SMASK, 7, SOP, 5, 6],
    "open end": [9, 8, 7, GMASK, SOP, 5, 6],
    "two blanks": [9, MASK, 8, MASK, SOP, 5, 6],
    "[MASK] before [sMASK]": [SMASK, 9, MASK, 8, SOP, 5, 6],
    "[MASK] with [gMASK]": [GMASK, 9, MASK, 8, SOP, 5, 6],
    "mask right before <sop>": [9, 8, 7, MASK, SOP, 5, 6],
    "mask opens the row": [MASK, 8, 7, 9, SOP, 5, 6],
    "causal": [9, 8, 7, MASK, 5, 6, 4],
    "only <sop>": [SOP, 9, 8, 7, 5, 6, 4],
    "a second <sop>": [9, MASK, SOP, 8, SOP, MASK, EOP],
}


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("padding", [0, 3])
def test_layout_is_the_reference_s(ids: list[int], padding: int) -> None:
    positions, visible = layout(ids, SOP, MASK, SMASK)
    row = torch.tensor([[0] * padding + ids])
    mask = torch.tensor([[0] * padding + [1] * len(ids)])
    types = prefix_token_type_ids(row, SOP)
    got = blank_position_ids(row, types, plain_position_ids(*row.shape, mask, 0, row.device), MASK, SMASK)
    assert got[0, padding:].tolist() == positions

    config = tiny_config()
    config._attn_implementation = "sdpa"
    attention = prefix_attention_mask(config, torch.zeros(1, row.shape[1], 1), mask, None, types)
    if attention is None:  # causal without padding: left to the kernel
        attention = torch.ones(1, 1, len(ids), len(ids)).tril().bool()
    assert torch.equal(attention[0, 0, padding:, padding:], visible)
    assert not attention[0, 0, :, :padding].any()


@pytest.mark.parametrize(
    ("name", "goes_on"),
    [
        ("short blank", False),
        ("open end", True),
        ("mask right before <sop>", False),
        ("causal", True),
        ("only <sop>", True),
    ],
)
@pytest.mark.parametrize("padding", [0, 2])
def test_whether_positions_go_on_after_the_prompt(name: str, goes_on: bool, padding: int) -> None:
    row = torch.tensor([[0] * padding + ROWS[name]])
    mask = torch.tensor([[0] * padding + [1] * len(ROWS[name])])
    types = prefix_token_type_ids(row, SOP)
    positions = blank_position_ids(row, types, plain_position_ids(*row.shape, mask, 0, row.device), MASK, SMASK)
    assert answer_positions_go_on(types, positions, mask).item() is goes_on


def test_a_model_without_the_tokens_is_causal() -> None:
    row = torch.tensor([ROWS["short blank"]])
    assert prefix_token_type_ids(row, None).tolist() == [[1] * row.shape[1]]
    types = prefix_token_type_ids(row, SOP)
    positions = torch.arange(row.shape[1])[None]
    assert torch.equal(blank_position_ids(row, types, positions, None, None), positions)


@pytest.mark.parametrize("bad", [-100, 128])
def test_ids_outside_the_vocabulary_are_named(bad: int) -> None:
    with pytest.raises(
        ValueError, match=rf"input_ids\[1, 2\] = {bad} is outside the vocabulary: ids go from 0 to 127"
    ):
        check_ids(torch.tensor([[1, 2, 3], [4, 5, bad]]), 128)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "paged|eager", "something"])
def test_attention_that_would_drop_the_prefix_is_refused(implementation: str) -> None:
    config = tiny_config()
    config._attn_implementation_internal = implementation
    with pytest.raises(ValueError, match="ignores prefix masks"):
        prefix_attention_mask(config, torch.zeros(1, 4, 1), None, None, None)


def test_an_integer_4d_mask_is_refused() -> None:
    config = tiny_config()
    config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="must be bool"):
        prefix_attention_mask(config, torch.zeros(1, 2, 1), torch.ones(1, 1, 2, 2, dtype=torch.long), None, None)
