"""What the vLLM plugin computes without vLLM: positions, rows, and what it says of a bad request."""

import pytest
import torch

from hf_glm_ernie import Glm130bConfig
from hf_glm_ernie.prefix_glm130b import layout
from hf_glm_ernie.vllm_plugin.checks import cut_prompt, mixed_masks, no_room, unknown_ids
from hf_glm_ernie.vllm_plugin.positions import CHANNELS, KEPT, LONGEST_CONTEXT, decoded, request_positions
from hf_glm_ernie.vllm_plugin.rows import split
from tests.support.fresh import fresh_python

CONFIG = Glm130bConfig(vocab_size=200, mask_token_id=100, gmask_token_id=101, smask_token_id=102, sop_token_id=104)
MASK, GMASK, SMASK, SOP = 100, 101, 102, 104


class TestPositions:
    @pytest.mark.parametrize(
        ("prompt", "kept"),
        [
            ([1, MASK, 2, SOP], 1),
            ([1, 2, MASK, 3, MASK, SOP, 7, 8], 2),
            ([SMASK, 1, SOP], 0),
            ([1, SMASK, 3, MASK, SOP], 3),  # [MASK] goes before [sMASK], as in the original
            ([1, 2, GMASK, SOP], None),
            ([1, 2, GMASK, SOP, 7], None),
            ([1, 2, SOP], None),
            ([1, MASK, 2], None),  # causal: no <sop>
            ([SOP], None),
            ([1], None),
        ],
    )
    def test_prompt_and_answer_stand_where_the_model_puts_them(self, prompt: list[int], kept: int | None) -> None:
        channels, delta = request_positions(CONFIG, prompt)
        assert channels.shape == (CHANNELS, len(prompt))
        assert channels[0].tolist() == layout(CONFIG, torch.tensor([prompt])).position_ids[0].tolist()
        context = prompt.index(SOP) if SOP in prompt else 0
        assert channels[1].unique().tolist() == [context]
        counted = torch.arange(len(prompt), len(prompt) + 3)  # what vLLM counts for the next tokens
        assert decoded(counted + delta).tolist() == (counted.tolist() if kept is None else [kept] * 3)

    def test_a_prompt_with_its_answer_continues_as_the_prompt_did(self) -> None:
        """As after a preemption, where one of vLLM's runners asks anew with all tokens."""
        prompt = [1, MASK, 2, SOP]
        channels, delta = request_positions(CONFIG, prompt)
        again, same = request_positions(CONFIG, [*prompt, 7, 8])
        assert same == delta
        assert again[0, : len(prompt)].tolist() == channels[0].tolist()
        assert again[0, len(prompt) :].tolist() == decoded(torch.tensor([4, 5]) + delta).tolist()
        assert again[1].unique().tolist() == [3]

    def test_codes_fit_in_32_bits_to_the_longest_context(self) -> None:
        last = torch.tensor([(LONGEST_CONTEXT + 1) * KEPT + LONGEST_CONTEXT])
        assert last.item() < 2**31
        assert decoded(last).item() == LONGEST_CONTEXT
        assert decoded(torch.tensor([KEPT - 1])).item() == KEPT - 1


def seen(queries: list[int], keys: list[int], contexts: list[int]) -> set[tuple[int, int, int]]:
    """(request, query, key) that may see each other: the rule itself, one pair after the other."""
    pairs = set()
    for request, (count, total) in enumerate(zip(queries, keys, strict=True)):
        for query in range(total - count, total):
            context = contexts[request] if count > 1 else 0
            pairs |= {(request, query, key) for key in range(total) if key <= query or max(query, key) < context}
    return pairs


class TestRows:
    @pytest.mark.parametrize("seed", range(20))
    def test_rows_show_each_query_what_the_rule_shows_it(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high, (1,), generator=generator))

        queries, keys, contexts = [], [], []
        for _ in range(number(1, 6)):
            decodes = number(0, 2) == 0
            count = 1 if decodes else number(1, 12)
            queries.append(count)
            keys.append(number(1, 12) if decodes else count)
            contexts.append(7 if decodes else number(0, count))  # channel 1 of a decoding step says nothing
        rows = split(queries, keys, contexts)
        if rows is None:
            assert not any(context for count, context in zip(queries, contexts, strict=True) if count > 1)
            return
        got, done = set(), [total - count for count, total in zip(queries, keys, strict=True)]
        for request, count, total in zip(*rows, strict=True):
            got |= {(request, done[request] + i, key) for i in range(count) for key in range(total)}
            done[request] += count
        assert done == keys, "every query has its place, in order"
        assert rows.requests == sorted(rows.requests)
        assert got == seen(queries, keys, contexts)

    def test_rows_that_only_fill_a_graph_stay(self) -> None:
        rows = split([3, 0, 1], [3, 0, 9], [2, 0, 0])
        assert rows is not None
        assert list(zip(*rows, strict=True)) == [(0, 2, 2), (0, 1, 3), (1, 0, 0), (2, 1, 9)]

    def test_a_context_in_pieces_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="4 of the 9 tokens of a prompt"):
            split([4], [9], [7])


class TestChecks:
    def test_one_kind_of_mask_in_the_context(self) -> None:
        assert mixed_masks([1, MASK, MASK, SOP], CONFIG) == ""
        assert "100 (mask_token_id) and 101 (gmask_token_id)" in mixed_masks([1, MASK, GMASK, SOP], CONFIG)
        assert mixed_masks([1, MASK, SOP, GMASK], CONFIG) == "", "behind <sop> it is an answer"
        assert mixed_masks([1, MASK, GMASK], CONFIG) == "", "without <sop> there is no context"

    def test_ids_without_a_token(self) -> None:
        assert unknown_ids([0, 149], 150) == ""
        assert unknown_ids([0, 150, 199, 150], 150) == (
            "The ids [150, 199] have no token: there are the ids 0 .. 149."
        )
        assert "[-1]" in unknown_ids([-1], 150)

    def test_ids_are_not_cut(self) -> None:
        assert cut_prompt([1, MASK, SOP], None) == cut_prompt([1, MASK, SOP], 3) == ""
        assert "a prompt of 3 ids" in cut_prompt([1, MASK, SOP], 2)

    def test_no_room(self) -> None:
        assert no_room([7] * 15, 16) == ""
        assert "has 16 tokens and the context of the model 16" in no_room([7] * 16, 16)


def test_the_package_never_imports_vllm() -> None:
    code = "import sys, hf_glm_ernie; from hf_glm_ernie import Glm130bForCausalLM; sys.exit('vllm' in sys.modules)"
    assert fresh_python(["-c", code]).returncode == 0
