"""The table and its two readings, on shapes alone."""

import itertools

import pytest
import torch

from conversion.glm130b import TABLE
from conversion.operations import (
    Concat,
    ConcatBehindAxis,
    ConcatScales,
    DefaultRow,
    Drop,
    Operation,
    RepeatedRows,
    Replicated,
    SameAs,
    Shape,
    Split,
    SplitError,
    SplitGlu,
    SplitGluBehindAxis,
    SplitGluScales,
    SplitQkv,
    SplitQkvBehindAxis,
    SplitQkvScales,
    TensorSpec,
    Tied,
    Transposed,
    matrix_shape,
)
from conversion.state_map import CoverageError, Plan, PlannedTensor, Row, StateMap
from tests.support import tiny
from tests.support.tiny import Sizes, State, equal_bits, expected_state, rank_state, whole_state

OPERATIONS: list[tuple[Operation, Shape]] = [
    (Replicated(), (7,)),
    (Concat(0), (3, 5)),
    (Concat(0), (3,)),
    (Concat(1), (5, 3)),
    (SplitQkv(), (12, 5)),
    (SplitQkv(), (12,)),
    (SplitGlu(), (6, 5)),
    (SplitGlu(), (6,)),
    (ConcatBehindAxis(1), (5, 3)),
    (SplitQkvBehindAxis(), (12, 5)),
    (SplitGluBehindAxis(), (6, 5)),
    (ConcatScales(), (5,)),
    (SplitQkvScales(), (12,)),
    (SplitGluScales(), (6,)),
]


def specs(state: State) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def shapes(state: State) -> dict[str, Shape]:
    """What a model would expect: the state and its tied projection."""
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return expected | {"lm_head.weight": expected["model.embed_tokens.weight"]}


def carry_out(tensor: PlannedTensor, parts: list[State]) -> torch.Tensor:
    """Copies the pieces one by one, checking that they cover the target once."""
    rows, columns = matrix_shape(tensor.spec.shape)
    result = torch.zeros(rows, columns, dtype=tensor.spec.dtype)
    hits = torch.zeros(rows, columns, dtype=torch.int32)
    for piece in tensor.pieces:
        source = parts[piece.part][piece.source]
        source = source.reshape(matrix_shape(tuple(source.shape)))
        (top, left), (to_top, to_left), (height, width) = piece.source_start, piece.target_start, piece.size
        result[to_top : to_top + height, to_left : to_left + width] = source[top : top + height, left : left + width]
        hits[to_top : to_top + height, to_left : to_left + width] += 1
    assert (hits == 1).all(), tensor.name
    return result.reshape(tensor.spec.shape)


def plan_forward(sizes: Sizes, ranks: int) -> tuple[Plan, list[State]]:
    parts = [rank_state(whole_state(sizes), rank, ranks) for rank in range(ranks)]
    expected = shapes(expected_state(whole_state(sizes), sizes))
    return TABLE.forward(specs(parts[0]), Split(ranks, sizes.heads), expected), parts


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("operation", "part"), OPERATIONS, ids=lambda value: str(value))
def test_moves_cover_the_whole_once(operation: Operation, part: Shape, ranks: int) -> None:
    """Every element of a whole tensor is one rank's (each rank's, if replicated), every element of a part used."""
    split = Split(ranks, heads=2 * ranks)
    wholes = operation.whole_shapes(part, split)
    assert len(wholes) == operation.targets
    assert operation.part_shape(wholes, split) == part
    hits = [torch.zeros(matrix_shape(whole), dtype=torch.int32) for whole in wholes]
    for rank in range(ranks):
        used = torch.zeros(matrix_shape(part), dtype=torch.int32)
        for move in operation.moves(part, split, rank):
            for count, (row, column) in ((used, move.part_start), (hits[move.whole], move.whole_start)):
                view = count[row : row + move.size[0], column : column + move.size[1]]
                assert view.shape == move.size
                view += 1
        assert (used == 1).all()
    assert all((count == (ranks if operation.replicated else 1)).all() for count in hits)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_forward_equals_an_independent_merge(ranks: int) -> None:
    sizes = Sizes()
    plan, parts = plan_forward(sizes, ranks)
    result = {tensor.name: carry_out(tensor, parts) for tensor in plan.tensors}
    assert equal_bits(result, expected_state(whole_state(sizes), sizes))
    assert plan.nbytes == sum(tensor.nbytes for tensor in result.values())


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_reverse_equals_an_independent_split(ranks: int) -> None:
    sizes = Sizes()
    merged = expected_state(whole_state(sizes), sizes)
    plan = TABLE.reverse(specs(merged), Split(ranks, sizes.heads), shapes(merged))
    for rank in range(ranks):
        result = {tensor.name: carry_out(tensor, [merged]) for tensor in plan.tensors if tensor.part == rank}
        expected = rank_state(whole_state(sizes), rank, ranks)
        assert equal_bits(result, expected)
        assert list(result) == list(expected)  # the original's order, too


def test_reverse_reads_a_whole_tensor_for_all_ranks_in_a_row() -> None:
    sizes = Sizes()
    merged = expected_state(whole_state(sizes), sizes)
    plan = TABLE.reverse(specs(merged), Split(4, sizes.heads), shapes(merged))
    names = [name for name, _ in itertools.groupby(tensor.name for tensor in plan.tensors)]
    assert len(names) == len(set(names))


def test_leftover_rotary_tables_are_dropped_with_a_reason() -> None:
    sizes = Sizes()
    leftovers = [
        "mixins.rotary-embedding.rotary_emb.inv_freq",
        *(f"transformer.layers.{i}.attention.rotary_emb.inv_freq" for i in range(sizes.layers)),
    ]
    parts = specs(whole_state(sizes)) | {name: TensorSpec((2,), torch.float16) for name in leftovers}
    plan = TABLE.forward(parts, Split(1, sizes.heads), shapes(expected_state(whole_state(sizes), sizes)))
    assert sorted(plan.dropped) == sorted(leftovers)
    assert all("the model computes it" in reason for reason in plan.dropped.values())
    assert not [tensor for tensor in plan.tensors if "inv_freq" in tensor.name]


def test_every_problem_of_a_checkpoint_is_listed_at_once() -> None:
    sizes = Sizes()
    parts = specs(whole_state(sizes))
    expected = shapes(expected_state(whole_state(sizes), sizes))
    removed = "transformer.layers.1.attention.query_key_value.bias"
    del parts[removed]
    parts["transformer.layers.00.input_layernorm.bias"] = parts["transformer.layers.0.input_layernorm.bias"]
    parts["optimizer.step"] = TensorSpec((1,), torch.float32)
    parts["transformer.layers.0.attention.dense.weight"] = TensorSpec((sizes.hidden, sizes.hidden + 4), torch.float16)
    parts["transformer.final_layernorm.bias"] = TensorSpec((), torch.float16)
    expected["model.layers.0.extra.weight"] = (3,)
    del expected["model.norm.weight"]
    with pytest.raises(CoverageError) as caught:
        TABLE.forward(parts, Split(1, sizes.heads), expected)
    assert caught.value.problems == {
        "source names the table does not know": ["optimizer.step", "transformer.layers.00.input_layernorm.bias"],
        "shapes that do not fit": [
            "model.layers.0.self_attn.o_proj.weight from transformer.layers.0.attention.dense.weight: [32, 36], "
            "the model has [32, 32]",
            "transformer.final_layernorm.bias of shape [], 1 rank(s): it is a single number, not a tensor",
        ],
        "target names nothing is made for": [
            "model.layers.0.extra.weight (no row of the table makes it)",
            *(f"model.layers.1.self_attn.{x}_proj.bias (from {removed})" for x in "kqv"),
        ],
        "target names the model does not have": ["model.norm.weight"],
    }
    assert "optimizer.step" in str(caught.value)
    assert "Nothing was written" in str(caught.value)


def test_heads_and_ranks_that_do_not_divide() -> None:
    sizes = Sizes()
    expected = shapes(expected_state(whole_state(sizes), sizes))
    with pytest.raises(CoverageError) as caught:
        TABLE.forward(specs(whole_state(sizes)), Split(3, sizes.heads), expected)
    reason = "a number of attention heads of 8 cannot be divided into 3 equal parts"
    shape = "transformer.layers.0.attention.query_key_value.bias of shape [96], 3 rank(s)"
    assert f"{shape}: {reason}" in caught.value.problems["shapes that do not fit"]
    with pytest.raises(CoverageError, match="a number of query-key-value rows of 96 cannot be divided into 15"):
        TABLE.forward(specs(whole_state(sizes)), Split(1, 5), expected)
    merged = expected_state(whole_state(sizes), sizes)
    with pytest.raises(CoverageError, match="cannot be written as a GLM-130B checkpoint of 16 ranks"):
        TABLE.reverse(specs(merged), Split(16, sizes.heads), expected)


def test_problems_of_a_merged_folder_are_listed() -> None:
    sizes = Sizes()
    merged = specs(expected_state(whole_state(sizes), sizes))
    expected = shapes(expected_state(whole_state(sizes), sizes))
    del merged["model.layers.1.self_attn.q_proj.weight"]
    merged["model.layers.0.self_attn.q_proj.lora_A"] = TensorSpec((1, 2), torch.float16)
    merged["model.layers.2.input_layernorm.bias"] = TensorSpec((32,), torch.float16)
    merged["model.norm.bias"] = TensorSpec((33,), torch.float16)
    merged["model.layers.0.mlp.up_proj.bias"] = TensorSpec((sizes.inner,), torch.float32)
    with pytest.raises(CoverageError) as caught:
        TABLE.reverse(merged, Split(2, sizes.heads), expected)
    problems = caught.value.problems
    assert problems["names the table does not know"] == ["model.layers.0.self_attn.q_proj.lora_A"]
    assert problems["names that are missing"] == ["model.layers.1.self_attn.q_proj.weight"]
    assert problems["names the model does not have"] == ["model.layers.2.input_layernorm.bias"]
    assert problems["shapes that do not fit"] == [
        "model.norm.bias: [33], the model has [32]",
        "transformer.layers.0.mlp.dense_h_to_4h.bias for 2 ranks: model.layers.0.mlp.up_proj.bias, "
        "model.layers.0.mlp.gate_proj.bias must have one dtype, they have torch.float16, torch.float32",
    ]


def test_a_stored_tied_projection_is_left_out_of_the_reverse() -> None:
    sizes = Sizes()
    merged = expected_state(whole_state(sizes), sizes)
    stored = specs(merged) | {"lm_head.weight": specs(merged)["model.embed_tokens.weight"]}
    plan = TABLE.reverse(stored, Split(1, sizes.heads), shapes(merged))
    assert plan.dropped == {"lm_head.weight": "it is model.embed_tokens.weight"}
    assert {tensor.name for tensor in plan.tensors} == whole_state(sizes).keys()


def test_a_long_list_is_shortened_in_the_message_only() -> None:
    sizes = Sizes(layers=12)
    parts = {name: spec for name, spec in specs(whole_state(sizes)).items() if "dense_h_to_4h" not in name}
    with pytest.raises(CoverageError, match=r"target names nothing is made for \(48\)") as caught:
        TABLE.forward(parts, Split(1, sizes.heads), shapes(expected_state(whole_state(sizes), sizes)))
    assert len(caught.value.problems["target names nothing is made for"]) == 48
    assert "... and 36 more" in str(caught.value)


def test_a_table_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names that stand twice in the X table: b\.weight"):
        StateMap("X", [Row("a.weight", ("b.weight",), Concat(0)), Row("c.weight", ("b.weight",), Concat(0))])
    with pytest.raises(ValueError, match="makes 3 tensors"):
        Row("a.weight", ("b.weight",), SplitQkv())
    with pytest.raises(ValueError, match="has no source name"):
        Row("a.weight", ("b.weight",), Tied("c.weight"))


def test_two_rows_that_make_one_tensor_are_found_in_use() -> None:
    """Templates can meet in a name without being equal."""
    table = StateMap(
        "X",
        [
            Row("layers.{i}.a", ("out.{i}",), Replicated()),
            Row("layers.0.b", ("out.0",), Replicated()),
            Row("layers.{i}.c", (), Drop("unused")),
            Row("layers.1.c", (), Drop("unused")),
        ],
    )
    spec = TensorSpec((2,), torch.float16)
    with pytest.raises(CoverageError) as caught:
        table.forward({"layers.0.a": spec, "layers.0.b": spec, "layers.1.c": spec}, Split(1, 1), {"out.0": (2,)})
    assert caught.value.problems == {
        "target names made twice": ["out.0 (from layers.0.a and from layers.0.b)"],
        "source names claimed twice": ["layers.1.c"],
    }


def test_replicated_names() -> None:
    names = TABLE.replicated(list(whole_state(Sizes(layers=1))))
    assert [name.removeprefix("transformer.") for name in names] == [
        "layers.0.input_layernorm.weight",
        "layers.0.input_layernorm.bias",
        "layers.0.attention.dense.bias",
        "layers.0.post_attention_layernorm.weight",
        "layers.0.post_attention_layernorm.bias",
        "layers.0.mlp.dense_4h_to_h.bias",
        "final_layernorm.weight",
        "final_layernorm.bias",
    ]


def test_dtype_applies_to_floating_point_only() -> None:
    sizes = Sizes()
    expected = shapes(expected_state(whole_state(sizes), sizes))
    plan = TABLE.forward(specs(whole_state(sizes)), Split(1, sizes.heads), expected, torch.bfloat16)
    assert {tensor.spec.dtype for tensor in plan.tensors} == {torch.bfloat16}


def test_split_errors_name_the_numbers() -> None:
    with pytest.raises(SplitError, match="query, key and value differ in shape"):
        SplitQkv().part_shape([(4, 2), (4, 2), (2, 2)], Split(1, 2))
    with pytest.raises(SplitError, match="the two GLU halves differ in shape"):
        SplitGlu().part_shape([(4, 2), (2, 2)], Split(1, 2))


def test_tiny_states_are_what_they_claim() -> None:
    """The independent splitter puts a whole together again."""
    whole = whole_state(Sizes())
    assert equal_bits(tiny.rank_state(whole, 0, 1), whole)
    halves = [rank_state(whole, rank, 2) for rank in range(2)]
    name = "transformer.layers.0.attention.dense.weight"
    assert torch.equal(torch.cat([half[name] for half in halves], dim=1), whole[name])


def test_transposed_reads_back_what_it_wrote() -> None:
    table = StateMap("test", (Row("in", ("out",), Transposed()),))
    there = table.forward({"in": TensorSpec((3, 5), torch.float32)}, Split(1, 1), {"out": (5, 3)})
    back = table.reverse({"out": TensorSpec((5, 3), torch.float32)}, Split(1, 1), {"out": (5, 3)})
    (forth,), (piece,) = there.tensors[0].pieces, back.tensors[0].pieces
    assert (there.tensors[0].spec.shape, forth.size, forth.transposed) == ((5, 3), (5, 3), True)
    assert (back.tensors[0].spec.shape, piece.size, piece.transposed) == ((3, 5), (3, 5), True)
    with pytest.raises(CoverageError, match="only a matrix can be transposed"):
        table.forward({"in": TensorSpec((3,), torch.float32)}, Split(1, 1), {"out": (3,)})


@pytest.mark.parametrize("row", [1, 3])
def test_default_row_moves_row_0_behind_the_last_and_back(row: int) -> None:
    source = torch.arange(8.0).view(4, 2)
    whole = torch.full((5, 2), -1.0)
    for move in DefaultRow(row).moves((4, 2), Split(1, 1), 0):
        copied = source[move.part_start[0] : move.part_start[0] + move.size[0]]
        whole[move.whole_start[0] : move.whole_start[0] + move.size[0]] = copied
    assert whole[0].equal(source[row])
    assert whole[4].equal(source[0])
    assert whole[1:4].equal(source[1:])
    whole[0] += 100  # trained on; the stale copy in `row` must not win
    back = torch.full((4, 2), -1.0)
    for move in DefaultRow(row).moves((4, 2), Split(1, 1), 0):
        copied = whole[move.whole_start[0] : move.whole_start[0] + move.size[0]]
        back[move.part_start[0] : move.part_start[0] + move.size[0]] = copied
    assert back[0].equal(source[0])
    assert back[row].equal(source[row] + 100)


def test_repeated_rows_move_what_follows_and_back() -> None:
    """Of the two copies the later one counts backwards."""
    source = torch.arange(10.0).view(5, 2)
    whole = torch.full((7, 2), -1.0)
    operation = RepeatedRows(start=1, count=2)
    assert operation.whole_shapes((5, 2), Split(1, 1)) == ((7, 2),)
    assert operation.part_shape([(7, 2)], Split(1, 1)) == (5, 2)
    for move in operation.moves((5, 2), Split(1, 1), 0):
        copied = source[move.part_start[0] : move.part_start[0] + move.size[0]]
        whole[move.whole_start[0] : move.whole_start[0] + move.size[0]] = copied
    assert whole.equal(source[[0, 1, 2, 1, 2, 3, 4]])
    whole[1:3] -= 100
    back = torch.full((5, 2), -1.0)
    for move in operation.moves((5, 2), Split(1, 1), 0):
        copied = whole[move.whole_start[0] : move.whole_start[0] + move.size[0]]
        back[move.part_start[0] : move.part_start[0] + move.size[0]] = copied
    assert back.equal(source)
    for start, count in ((4, 2), (0, 0), (-1, 1)):
        with pytest.raises(SplitError, match=f"there are no rows {start} to {start + count - 1} in 5"):
            RepeatedRows(start, count).whole_shapes((5, 2), Split(1, 1))


def test_second_copies_are_dropped_and_written_again() -> None:
    table = StateMap("test", (Row("a", ("b",), Replicated()), Row("copy", (), SameAs("a"))))
    spec = TensorSpec((2, 3), torch.float32)
    there = table.forward({"a": spec, "copy": spec}, Split(1, 1), {"b": (2, 3)})
    assert there.dropped == {"copy": "the same as a"}
    back = table.reverse({"b": spec}, Split(1, 1), {"b": (2, 3)})
    assert [tensor.name for tensor in back.tensors] == ["a", "copy"]
    assert back.tensors[0].pieces == back.tensors[1].pieces
