"""GLM-130B with integer weights: the table with scales derived from the plain one, what the tensors tell, `--bits`.

A released quantized checkpoint holds the weight of each of a layer's four linears as int8, two columns a byte if they
have 4 bits, and beside it `<name>_scale`, fp16, one scale a row. Every rank was quantized by itself, so a weight whose
columns lie on several ranks has, merged, as many scales a row: one for each group of columns. Integers and scales are
rearranged as the weights they stand for and never computed with. How they are stored in a converted folder is the
rule of `hf_glm_ernie.weight_only`. Source: GLM-130B `quantization/layers.py`, `tools/convert_tp.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from hf_glm_ernie.weight_only import METHOD, SUPPORTED_BITS, check_scales, quantize, storage_shape, to_storage

from .lazy_files import CheckpointError, TensorFiles
from .operations import (
    Concat,
    ConcatBehindAxis,
    ConcatScales,
    Operation,
    SettingsError,
    Shape,
    Split,
    SplitGlu,
    SplitGluBehindAxis,
    SplitGluScales,
    SplitQkv,
    SplitQkvBehindAxis,
    SplitQkvScales,
    TensorSpec,
)
from .places import Place
from .state_map import Computation, CoverageError, Plan, PlannedTensor, Row, StateMap
from .writer import DtypeRangeError

SCALE = "_scale"
"""Behind the name of a weight, that of its scales; alike on both sides."""

# What a linear's weight is cut by -> its integers at 8 bits, which a converted folder holds with one more axis; its
# scales. At 4 bits the integers are cut as the weight is.
_INTEGERS_AND_SCALES: dict[Operation, tuple[Operation, Operation]] = {
    SplitQkv(): (SplitQkvBehindAxis(), SplitQkvScales()),
    SplitGlu(): (SplitGluBehindAxis(), SplitGluScales()),
    Concat(1): (ConcatBehindAxis(1), ConcatScales()),
}


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    Attributes:
        bits: 4 or 8.
        groups: Last part of a linear's name in the target model -> groups of columns, each with a scale of its own.
    """

    bits: int
    groups: Mapping[str, int]

    @property
    def config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        several = {name: groups for name, groups in self.groups.items() if groups > 1}
        return {
            "quant_method": METHOD,
            "bits": self.bits,
            "group_size": None,
            "num_groups": several or None,
            "modules_to_not_convert": None,
        }


def plan_merging(
    table: StateMap,
    specs: Mapping[str, TensorSpec],
    split: Split,
    plain: Mapping[str, Shape],
    dtype: torch.dtype | None,
    bits: int | None,
    where: Place,
) -> tuple[Plan, Quantization | None]:
    """Plans the merging of ranks that hold floating-point weights or integers.

    Args:
        table: The plain table.
        specs: Names, shapes and dtypes that every rank holds.
        split: Number of ranks and heads.
        plain: Names and shapes the model has without quantization.
        dtype: What floating-point tensors become, scales excepted; `None` keeps theirs.
        bits: Quantize to 4 or 8 bits, one scale a row; `None` keeps the weights as they are.
        where: The checkpoint, for messages.

    Returns:
        What is written, and how its weights are quantized, by the source or by `bits`; None if they are not.

    Raises:
        ConversionError: names, shapes, dtypes or bits that do not fit; `bits` for integers.
    """
    linear = linear_rows(table)
    stored = read_bits(specs, linear.source_shapes(plain, split), released_form, where)
    if stored is not None:
        if bits is not None:
            raise SettingsError(
                f"--bits {bits}: {where} is quantized already, to {stored} bits, and its integers and scales are "
                "carried over as they are. Leave --bits out, or convert the floating-point weights."
            )
        how = Quantization(stored, released_groups(table, split.ranks))
        shapes = quantized_shapes(plain, linear.target_shapes(plain), how)
        return quantized_table(table, how, split.ranks).forward(specs, split, shapes, dtype), how
    plan = table.forward(specs, split, plain, dtype)
    if bits is None:
        return plan, None
    return quantized_plan(plan, linear.target_shapes(plain), bits), Quantization(bits, released_groups(table, 1))


def plan_splitting(
    table: StateMap,
    specs: Mapping[str, TensorSpec],
    split: Split,
    plain: Mapping[str, Shape],
    dtype: torch.dtype | None,
    told: int | None,
    where: Place,
) -> tuple[Plan, Quantization | None]:
    """Plans the splitting of a converted folder with floating-point weights or integers.

    Args and result as of `plan_merging`, with the ranks to be written, and the bits that config.json tells.

    Raises:
        ConversionError: names, shapes, dtypes, bits or groups that do not fit, or that the ranks cannot hold.
    """
    linear = linear_rows(table).target_shapes(plain)
    bits = read_bits(specs, linear, lambda shape, width: storage_shape(shape[0], shape[1], width), where)
    if bits != told:
        raise CheckpointError(
            f"{where}: quantization_config of config.json says bits {told}, the tensors say {bits}. The files do not "
            "belong together; copy the folder again."
        )
    if bits is None:
        return table.reverse(specs, split, plain, dtype), None
    how = Quantization(bits, stored_groups(table, specs, split.ranks))
    shapes = quantized_shapes(plain, linear, how)
    return quantized_table(table, how, split.ranks).reverse(specs, split, shapes, dtype), how


def without_quantized(plan: Plan, sources: Mapping[str, TensorSpec]) -> tuple[Plan, list[TensorSpec]]:
    """The plan and the sources without integers and scales, whose dtypes the format fixes."""
    tensors = (t for t in plan.tensors if t.spec.dtype.is_floating_point and not t.name.endswith(SCALE))
    floating = (s for name, s in sources.items() if s.dtype.is_floating_point and not name.endswith(SCALE))
    return replace(plan, tensors=tuple(tensors)), list(floating)


def notices_on_quantization(how: Quantization | None, asked_for: int | None) -> list[str]:
    """What the user should know of the quantization of a converted folder, one line at most."""
    if how is None:
        return []
    if asked_for is not None:
        return [
            f"the weights of all linears are quantized to {asked_for} bits, one scale a row; --reverse writes a "
            "quantized checkpoint, the floating-point weights do not come back"
        ]
    several = sorted((name, groups) for name, groups in how.groups.items() if groups > 1)
    scales = f"; scales a row: {', '.join(f'{name} {groups}' for name, groups in several)}" if several else ""
    return [f"quantized to {how.bits} bits; integers and scales are carried over as they are{scales}"]


def notices_on_copies(table: StateMap, how: Quantization | None, ranks: int) -> list[str]:
    """Says where several ranks are written with the same scales, one line at most."""
    if how is None:
        return []
    most = released_groups(table, ranks)
    copied = sorted(name for name, groups in how.groups.items() if groups < most[name])
    if not copied:
        return []
    return [
        f"ranks that share a group of columns hold copies of its scales ({', '.join(copied)}): every value stays, but "
        "read again there is a group for each rank"
    ]


def linear_rows(table: StateMap) -> StateMap:
    """The rows of a plain table whose source is the weight of a linear: what can be quantized."""
    rows = [
        row
        for row in table.rows
        if row.source is not None and row.source.endswith(".weight") and row.operation in _INTEGERS_AND_SCALES
    ]
    return StateMap(table.format_name, rows)


def quantized_table(table: StateMap, quantization: Quantization, ranks: int) -> StateMap:
    """The table of the quantized format: a plain table with a row for the scales behind each linear's weight.

    Args:
        table: The plain table.
        quantization: Bits and groups.
        ranks: Number of ranks; a multiple of every number of groups.
    """
    linear = set(linear_rows(table).rows)
    rows: list[Row] = []
    for row in table.rows:
        if row not in linear:
            rows.append(row)
            continue
        integers, scales = _INTEGERS_AND_SCALES[row.operation]
        if isinstance(scales, ConcatScales):
            scales = ConcatScales(ranks // quantization.groups[_linear_name(row.targets[0])])
        rows.append(row if quantization.bits == 4 else replace(row, operation=integers))
        rows.append(Row(f"{row.source}{SCALE}", tuple(target + SCALE for target in row.targets), scales))
    return StateMap(table.format_name, rows)


def quantized_shapes(plain: Mapping[str, Shape], linear: Mapping[str, Shape], how: Quantization) -> dict[str, Shape]:
    """Names and shapes of a model with quantized linears.

    Args:
        plain: Names and shapes of the model without quantization.
        linear: Those of them that are quantized.
        how: Bits and groups.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in plain.items():
        if name in linear:
            shapes[name] = storage_shape(shape[0], shape[1], how.bits)
            shapes[name + SCALE] = (shape[0], how.groups[_linear_name(name)])
        else:
            shapes[name] = shape
    return shapes


def released_groups(table: StateMap, ranks: int) -> dict[str, int]:
    """Linear -> groups of columns in a checkpoint of so many ranks: each rank was quantized by itself."""
    return {linear: ranks if by_columns else 1 for linear, by_columns in _cut_by_columns(table).items()}


def stored_groups(table: StateMap, specs: Mapping[str, TensorSpec], ranks: int) -> dict[str, int]:
    """Linear -> groups of columns in a converted folder, if the released format can hold them.

    Args:
        table: The plain table.
        specs: Names, shapes and dtypes in the folder.
        ranks: How many ranks are to be written.

    Raises:
        SettingsError: groups that cannot lie on that many ranks, or on any.
    """
    groups: dict[str, int] = {}
    for name, spec in specs.items():
        if name.endswith(f".weight{SCALE}") and len(spec.shape) == 2:
            groups.setdefault(_linear_name(name), spec.shape[1])
    for linear, by_columns in _cut_by_columns(table).items():
        count = groups.setdefault(linear, 0)
        if count < 1:
            raise SettingsError(f"{linear} has no scales of shape (rows, groups). Convert or quantize it again.")
        if count > 1 and not by_columns:
            raise SettingsError(
                f"{linear} has {count} scales a row; the released format has one there, on any number of ranks. Only "
                "a folder that was quantized without group_size can be written in it."
            )
        if ranks % count:
            raise SettingsError(
                f"--tensor-parallel {ranks}: {linear} has {count} scales a row, one for each of {count} ranks, and a "
                f"rank can hold only one. Pass --tensor-parallel {count}, or a multiple of it."
            )
    return groups


def _cut_by_columns(table: StateMap) -> dict[str, bool]:
    """Linear -> whether a rank holds some of its columns, not some of its rows."""
    return {
        _linear_name(target): isinstance(_INTEGERS_AND_SCALES[row.operation][1], ConcatScales)
        for row in linear_rows(table).rows
        for target in row.targets
    }


def read_bits(
    specs: Mapping[str, TensorSpec], linear: Mapping[str, Shape], form: Callable[[Shape, int], Shape], where: Place
) -> int | None:
    """Tells from names, dtypes and shapes how many bits the weights of a checkpoint have.

    Args:
        specs: What the checkpoint holds.
        linear: Names of the linears' weights, and the shapes they have without quantization.
        form: (shape without quantization, bits) -> shape of the integers in this kind of checkpoint.
        where: The checkpoint, for messages.

    Returns:
        4 or 8; None if nothing is quantized.

    Raises:
        CoverageError: some weights are quantized and others not, or differently; integers without scales or scales
            without integers; a dtype or shape the format does not have.
    """
    numbers = {name: spec for name, spec in specs.items() if not spec.dtype.is_floating_point}
    scales = {name: spec for name, spec in specs.items() if name.endswith(f".weight{SCALE}")}
    if not numbers and not scales:
        return None
    quantized = {name: spec for name, spec in numbers.items() if name in linear}
    bits = {
        name: next((width for width, shape in _forms(linear[name], form).items() if shape == spec.shape), None)
        for name, spec in quantized.items()
    }
    usual = max(SUPPORTED_BITS, key=list(bits.values()).count)
    problems = {
        "weights that are not quantized, while others are": [n for n in linear if n in specs and n not in numbers],
        "integers that are not the weight of one of a layer's four linears": [
            f"{name}: {spec}" for name, spec in numbers.items() if name not in linear
        ],
        "quantized weights without scales": [name for name in quantized if name + SCALE not in scales],
        "scales without a quantized weight": [name for name in scales if name.removesuffix(SCALE) not in quantized],
        "quantized weights that are not int8": [
            f"{name}: {spec}" for name, spec in quantized.items() if spec.dtype != torch.int8
        ],
        "scales that are not float16": [
            f"{name}: {spec}" for name, spec in scales.items() if spec.dtype != torch.float16
        ],
        "shapes that neither 8 nor 4 bits have": [
            f"{name}: {quantized[name]}; "
            + ", ".join(f"{n} bits have {list(shape)}" for n, shape in _forms(linear[name], form).items())
            for name, width in bits.items()
            if width is None
        ],
        f"weights of other than {usual} bits, which most have": [
            f"{name}: {width} bits" for name, width in bits.items() if width not in (None, usual)
        ],
    }
    CoverageError.check(
        f"{where}: the quantized weights do not fit together",
        "Nothing was written. All four weights of every layer are quantized alike, each with its scales, or none is; "
        "copy the files of one checkpoint.",
        problems,
    )
    return usual


def released_form(plain: Shape, bits: int) -> Shape:
    """Shape of a rank's integers; two columns share a byte at 4 bits."""
    return plain if bits == 8 else (plain[0], plain[1] // 2)


def _forms(plain: Shape, form: Callable[[Shape, int], Shape]) -> dict[int, Shape]:
    """Bits -> shape of the integers, for those widths that the number of columns allows."""
    return {bits: form(plain, bits) for bits in SUPPORTED_BITS if bits == 8 or plain[1] % 2 == 0}


def check_scales_of(source: TensorFiles, specs: Mapping[str, TensorSpec], paths: Sequence[Place]) -> None:
    """Reads every scale once, before anything is written.

    Args:
        source: Where the tensors are.
        specs: What it holds.
        paths: The file of each rank, or the one folder; for messages.

    Raises:
        CheckpointError: a scale is NaN, infinite, zero or negative.
    """
    for part, path in enumerate(paths):
        for name in specs:
            if not name.endswith(SCALE):
                continue
            scale = source.tensor(part, name)
            try:
                check_scales(scale if scale.ndim == 2 else scale.reshape(-1, 1), f"{path}: {name}")
            except (TypeError, ValueError) as error:
                raise CheckpointError(str(error)) from error


def quantized_plan(plan: Plan, linear: Mapping[str, Shape], bits: int) -> Plan:
    """Puts integers and scales, to be computed while streaming, in the place of the linears' weights.

    Args:
        plan: A plan of floating-point tensors.
        linear: Names of those that are quantized, and their shapes.
        bits: 4 or 8.

    Raises:
        SettingsError: 4 bits and an odd number of columns.
    """
    tensors: list[PlannedTensor] = []
    for tensor in plan.tensors:
        if tensor.name not in linear:
            tensors.append(tensor)
            continue
        rows, columns = linear[tensor.name]
        if bits == 4 and columns % 2:
            raise SettingsError(
                f"--bits 4: {tensor.name} has {columns} columns, and two columns share a byte. Pass --bits 8."
            )
        quantizer = RowQuantizer(tensor.name, bits)
        integers = TensorSpec(storage_shape(rows, columns, bits), torch.int8)
        scales = TensorSpec((rows, 1), torch.float16)
        tensors += [
            replace(tensor, spec=integers, computation=Computation(tensor.spec, quantizer.integers)),
            replace(
                tensor, name=tensor.name + SCALE, spec=scales, computation=Computation(tensor.spec, quantizer.scales)
            ),
        ]
    return replace(plan, tensors=tuple(tensors))


class RowQuantizer:
    """Quantizes a weight block by block; one scale a row, so a block of rows is all that is needed.

    The scales of a block are kept until they are asked for, so that a weight whose integers are written first is read
    and quantized once.

    Args:
        name: The weight, for messages.
        bits: 4 or 8.
    """

    def __init__(self, name: str, bits: int):
        self._name = name
        self._bits = bits
        self._kept: dict[int, Future[torch.Tensor]] = {}  # first row -> scales of the block, (rows, 1)

    def integers(self, start: int, gather: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Computes the stored integers of a block of rows, (rows, bytes a row)."""
        self._kept[start] = Future()
        return partial(self._integers, gather(), self._kept[start])

    def scales(self, start: int, gather: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Computes the scales of a block of rows, (rows, 1), or waits for those that come with its integers."""
        kept = self._kept.pop(start, None)
        return partial(self._scales, gather()) if kept is None else kept.result

    def _integers(self, rows: torch.Tensor, kept: "Future[torch.Tensor]") -> torch.Tensor:
        try:
            q, scale = self._quantize(rows)
        except BaseException as error:
            kept.set_exception(error)
            raise
        kept.set_result(scale)
        return to_storage(q, self._bits).flatten(0, -2)

    def _scales(self, rows: torch.Tensor) -> torch.Tensor:
        return self._quantize(rows)[1]

    def _quantize(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return quantize(rows, self._bits)
        except ValueError as error:
            raise DtypeRangeError(f"--bits {self._bits}: {self._name}: {error}") from error


def _linear_name(name: str) -> str:
    """`q_proj` of `model.layers.{i}.self_attn.q_proj.weight`."""
    return name.removesuffix(SCALE).split(".")[-2]


__all__ = [
    "SCALE",
    "Quantization",
    "RowQuantizer",
    "check_scales_of",
    "notices_on_copies",
    "notices_on_quantization",
    "plan_merging",
    "plan_splitting",
    "without_quantized",
]
