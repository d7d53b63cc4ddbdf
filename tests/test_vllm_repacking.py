"""Stored integers as vLLM's kernels read them, against loops that read one integer after the other."""

import pytest
import torch

from hf_glm_ernie.vllm_plugin.repacking import (
    WHOLE_ROW,
    fills_words,
    group_sizes,
    packed_words,
    repeated_scales,
    shared_groups,
)
from hf_glm_ernie.weight_only import dequantize, to_storage


def values_of(words: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """What a kernel makes of words and scales, slowly: (N, words), (N, G) -> (N, K) fp16."""
    rows, columns = words.shape[0], words.shape[1] * 32 // bits
    result = torch.empty(rows, columns, dtype=torch.float16)
    for row in range(rows):
        for column in range(columns):
            place = column * bits
            word = int(words[row, place // 32]) & 0xFFFFFFFF
            unsigned = (word >> (place % 32)) & (2**bits - 1)
            group = column * scale.shape[1] // columns
            result[row, column] = torch.tensor(float(unsigned - 2 ** (bits - 1))).half() * scale[row, group]
    return result


def some_integers(bits: int, rows: int, columns: int) -> torch.Tensor:
    """Every value that the width has, those beyond the quantizer's range too: released bytes hold what they hold."""
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (rows, columns), dtype=torch.int8)
    q.view(-1)[: 2 * half] = torch.arange(-half, half, dtype=torch.int8)
    return q


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_kept(bits: int, groups: int) -> None:
    q = some_integers(bits, 5, 96)
    scale = torch.rand(5, groups).half() + 0.01
    words = packed_words(to_storage(q, bits), bits)
    assert words.dtype == torch.int32
    assert words.shape == (5, 96 * bits // 32)
    for finer in (groups, 2 * groups, 12):
        assert torch.equal(values_of(words, repeated_scales(scale, finer), bits), dequantize(q, scale).half())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_part_that_was_cut_out_is_packed_as_if_it_were_whole(bits: int) -> None:
    """Tensor parallelism hands on views of the file's bytes."""
    q = some_integers(bits, 6, 128)
    part = to_storage(q, bits).narrow(-1, 32 * bits // 8, 64 * bits // 8).narrow(-2, 2, 3)
    assert torch.equal(packed_words(part, bits), packed_words(to_storage(q[2:5, 32:96].contiguous(), bits), bits))


def test_what_is_no_stored_integer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        packed_words(torch.zeros(2, 4, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="bits=3"):
        packed_words(torch.zeros(2, 4, dtype=torch.int8), 3)
    for bits, shape in ((4, (1, 2, 8)), (8, (2, 8)), (8, (2, 2, 8))):
        with pytest.raises(ValueError, match=f"none of {bits} bits"):
            packed_words(torch.zeros(shape, dtype=torch.int8), bits)
    with pytest.raises(ValueError, match="12 columns, which do not fill words of 8"):
        packed_words(torch.zeros(2, 6, dtype=torch.int8), 4)
    with pytest.raises(ValueError, match="cannot be repeated to 4"):
        repeated_scales(torch.ones(2, 3), 4)


def test_columns_that_fill_words() -> None:
    assert [columns for columns in range(1, 25) if fills_words(columns, 4)] == [8, 16, 24]
    assert [columns for columns in range(1, 13) if fills_words(columns, 8)] == [4, 8, 12]


@pytest.mark.parametrize(
    ("groups", "ranks", "expected"),
    [
        ([1], 1, 1),
        ([1], 2, 2),  # one scale a row holds on every rank
        ([8], 2, 8),
        ([2], 4, 4),  # a rank begins within a group
        ([8], 3, 24),
        ([1, 4, 1], 1, 4),  # parts of a fused layer
    ],
)
def test_groups_that_parts_and_ranks_share(groups: list[int], ranks: int, expected: int) -> None:
    assert shared_groups(groups, ranks) == expected


@pytest.mark.parametrize(
    ("columns", "groups", "expected"),
    [
        (12288, 1, [WHOLE_ROW, 128, 64, 32]),
        (12288, 8, [128, 64, 32]),  # the released checkpoint's eight ranks: groups of 1536
        (32768, 8, [128, 64, 32]),
        (12288, 128, [32]),  # groups of 96
        (96, 1, [WHOLE_ROW, 32]),
        (40, 1, [WHOLE_ROW]),
        (96, 2, []),  # groups of 48
    ],
)
def test_group_sizes_that_kernels_take(columns: int, groups: int, expected: list[int]) -> None:
    assert group_sizes(columns, groups) == expected
