"""Which tensor of one checkpoint format is made of which pieces of another; shapes and names only, no files.

A format is a tuple of `Row`s: one source name, the names it becomes, one operation (`operations`) that says how the
source tensors make the target ones. A `StateMap` accounts for every name on both sides before anybody writes a byte,
and reads its table both ways: the inverse is derived and never written.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from .operations import (
    ConversionError,
    Drop,
    FoldedRow,
    Operation,
    SameAs,
    Shape,
    Split,
    SplitError,
    TensorSpec,
    Tied,
    matrix_shape,
    with_row_added,
)

LAYER = "{i}"
"""Stands for the layer number in a name template."""


class CoverageError(ConversionError):
    """Names or shapes on the two sides of a table do not meet.

    Attributes:
        problems: Title -> sorted names, complete; the message shortens long lists.
    """

    def __init__(self, what: str, advice: str, problems: Mapping[str, Sequence[str]]):
        self.problems = {title: sorted(names) for title, names in problems.items() if names}
        lines = [f"{what}:"]
        for title, names in self.problems.items():
            shown = names if len(names) <= 12 else [*names[:12], f"... and {len(names) - 12} more"]
            lines.append(f"  {title} ({len(names)}):")
            lines.extend(f"    {name}" for name in shown)
        super().__init__("\n".join([*lines, advice]))

    @classmethod
    def check(cls, what: str, advice: str, problems: Mapping[str, Sequence[str]]) -> None:
        """Raises the error if there is any problem."""
        if any(problems.values()):
            raise cls(what, advice, problems)


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle to be copied: from `source` of file `part` into the tensor that owns the piece.

    `transposed`: the source is seen with rows and columns exchanged, and `source_start` counts in that view.
    `repeated`: one row of the source, for every row of the size.
    """

    part: int
    source: str
    source_start: tuple[int, int]
    target_start: tuple[int, int]
    size: tuple[int, int]
    transposed: bool = False
    repeated: bool = False

    def taken_from(self, tensor: "PlannedTensor") -> Iterator["Piece"]:
        """This piece, where its source is itself planned: its parts of the pieces that make that one."""
        top, left = self.source_start
        bottom, right = top + (1 if self.repeated else self.size[0]), left + self.size[1]
        for piece in tensor.pieces:
            rows = max(top, piece.target_start[0]), min(bottom, piece.target_start[0] + piece.size[0])
            columns = max(left, piece.target_start[1]), min(right, piece.target_start[1] + piece.size[1])
            if rows[0] >= rows[1] or columns[0] >= columns[1]:
                continue
            skipped = rows[0] - piece.target_start[0], columns[0] - piece.target_start[1]
            yield replace(
                piece,
                source_start=(piece.source_start[0] + skipped[0], piece.source_start[1] + skipped[1]),
                target_start=(self.target_start[0] + rows[0] - top, self.target_start[1] + columns[0] - left),
                size=(self.size[0] if self.repeated else rows[1] - rows[0], columns[1] - columns[0]),
                repeated=self.repeated,
            )


@dataclass(frozen=True, slots=True)
class Computation:
    """How a planned tensor is made from a gathered one with as many rows, some rows at a time.

    Attributes:
        gathered: The tensor that the pieces make.
        rows: Given the number of the first row and a function that gathers a block of rows from there: what computes
            the same rows of the planned tensor. It is asked for the blocks in order, in the thread that reads, and
            reads at once whatever is needed. What it returns is called in any thread, for several blocks at a time.
    """

    gathered: TensorSpec
    rows: Callable[[int, Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written, and where each of its rectangles comes from.

    The pieces cover it (or what it is computed from); where two overlap, the later one counts.
    """

    part: int  # output rank; 0 for a merged tensor
    name: str
    spec: TensorSpec
    pieces: tuple[Piece, ...]
    computation: Computation | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to be written, in the order of the table; name -> reason of what is left out."""

    tensors: tuple[PlannedTensor, ...]
    dropped: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors to be written."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)

    def read_from(self, names: Mapping[str, str]) -> "Plan":
        """The same plan for a source with other names: name here -> name there."""
        tensors = (
            replace(tensor, pieces=tuple(replace(piece, source=names[piece.source]) for piece in tensor.pieces))
            for tensor in self.tensors
        )
        return replace(self, tensors=tuple(tensors))

    def behind(self, first: "Plan") -> "Plan":
        """The same plan for the source of a plan that makes its source; what either leaves out is left out.

        Args:
            first: Its tensors are what this plan's pieces name; they are copied, not computed.
        """
        made = {tensor.name: tensor for tensor in first.tensors}
        tensors = (
            replace(
                tensor, pieces=tuple(one for piece in tensor.pieces for one in piece.taken_from(made[piece.source]))
            )
            for tensor in self.tensors
        )
        return Plan(tuple(tensors), {**first.dropped, **self.dropped})


@dataclass(frozen=True)
class Row:
    """One line of a table: a source name template, its target name templates, the operation between them.

    `{i}` stands for the layer number. A `Tied` row has no source.
    """

    source: str | None
    targets: tuple[str, ...]
    operation: Operation

    def __post_init__(self) -> None:
        if len(self.targets) != self.operation.targets:
            raise ValueError(
                f"{self.operation} makes {self.operation.targets} tensors, the row of {self.source} names "
                f"{self.targets}"
            )
        if (self.source is None) != isinstance(self.operation, Tied):
            raise ValueError(f"a tied row has no source name and every other row has one: {self}")


def pair(
    source: str,
    targets: tuple[str, ...],
    weight: Operation,
    bias: Operation,
    parts: tuple[str, str] = (".weight", ".bias"),
) -> tuple[Row, Row]:
    """The rows of a weight and the bias that goes with it.

    Args:
        source: Their module in the source format.
        targets: The modules it becomes.
        weight: Operation between the weights.
        bias: Operation between the biases.
        parts: What stands behind `source` for each of the two.
    """
    weights, biases = ((f"{target}.weight" for target in targets), (f"{target}.bias" for target in targets))
    return Row(source + parts[0], tuple(weights), weight), Row(source + parts[1], tuple(biases), bias)


class StateMap:
    """A table with its two readings, `forward` (merge the ranks) and `reverse` (split again).

    Args:
        format_name: What the source format is called in messages.
        rows: The table. A name may stand in it once on each side.

    Raises:
        ValueError: a template stands twice on one side of the table.
    """

    def __init__(self, format_name: str, rows: Sequence[Row]):
        self.format_name = format_name
        self.rows = tuple(rows)
        sources = [row.source for row in rows if row.source is not None]
        targets = [target for row in rows for target in row.targets]
        for side in (sources, targets):
            twice = sorted({name for name in side if side.count(name) > 1})
            if twice:
                raise ValueError(f"names that stand twice in the {format_name} table: {', '.join(twice)}")
        self._source_patterns = [(row, _pattern(row.source)) for row in rows if row.source is not None]
        self._target_patterns = [(row, _pattern(target)) for row in rows for target in row.targets]

    def forward(
        self,
        parts: Mapping[str, TensorSpec],
        split: Split,
        expected: Mapping[str, Shape],
        dtype: torch.dtype | None = None,
    ) -> Plan:
        """Plans the merging of ranks.

        Args:
            parts: Names, shapes and dtypes that every rank holds.
            split: Number of ranks and heads.
            expected: Names and shapes the target model has, tied names included.
            dtype: What floating-point tensors become; `None` keeps each tensor's own.

        Raises:
            CoverageError: unclaimed sources; targets missing, unexpected or made twice; shapes that differ.
        """
        claims, unclaimed, twice = _claim(self._source_patterns, parts)
        problems: dict[str, list[str]] = {
            "source names the table does not know": unclaimed,
            "source names claimed twice": twice,
        }
        tensors: list[PlannedTensor] = []
        dropped: dict[str, str] = {}
        made: dict[str, str] = {}
        duplicates, shapes = [], []
        for row, layer, name in self._in_table_order(claims):
            if isinstance(row.operation, Drop):
                dropped[name] = row.operation.reason
            if isinstance(row.operation, SameAs):
                dropped[name] = f"the same as {_fill(row.operation.of, layer)}"
            targets = [_fill(template, layer) for template in row.targets]
            duplicates += [f"{target} (from {made[target]} and from {name})" for target in targets if target in made]
            made |= dict.fromkeys(targets, name)
            try:
                wholes, pieces = _merge(row, name, parts[name].shape, split)
                if isinstance(row.operation, FoldedRow):
                    of = parts.get(row.operation.of)
                    row.operation.check(parts[name].shape, None if of is None else of.shape)
            except SplitError as error:
                shapes.append(f"{name} of shape {_text(parts[name].shape)}, {split.ranks} rank(s): {error}")
                continue
            for target, shape, of_target in zip(targets, wholes, pieces, strict=True):
                spec = TensorSpec(shape, _target_dtype(row.operation, parts[name].dtype, dtype))
                planned = PlannedTensor(0, target, spec, tuple(of_target))
                if isinstance(row.operation, FoldedRow) and target == targets[0]:
                    planned = _with_row_beside(planned, row.operation)
                tensors.append(planned)
        problems["target names made twice"] = duplicates
        problems["shapes that do not fit"] = shapes + _shape_differences(tensors, expected)
        problems["target names nothing is made for"] = self._missing(made, expected)
        problems["target names the model does not have"] = [name for name in made if name not in expected]
        CoverageError.check(
            f"this is not a complete {self.format_name} checkpoint",
            "Nothing was written. Compare the files with the list of names in conversion/README.md and with --config.",
            problems,
        )
        return Plan(tuple(tensors), dropped)

    def reverse(
        self,
        wholes: Mapping[str, TensorSpec],
        split: Split,
        expected: Mapping[str, Shape],
        dtype: torch.dtype | None = None,
    ) -> Plan:
        """Plans the splitting of whole tensors into the source format; the derived inverse of `forward`.

        The tensors come rank by rank of one source name, then the next name, so that a whole tensor is read while it
        is still cached.

        Args:
            wholes: Names, shapes and dtypes of the merged checkpoint.
            split: Number of ranks to write, and heads.
            expected: Names and shapes the model has, tied names included.
            dtype: What floating-point tensors become; `None` keeps each tensor's own.

        Raises:
            CoverageError: unclaimed or missing names; shapes or dtypes that do not fit together or do not divide.
        """
        claims, unclaimed, twice = _claim(self._target_patterns, wholes)
        dropped = {name: f"it is {row.operation.of}" for row, _, name in claims if isinstance(row.operation, Tied)}
        present = {name for _, _, name in claims}
        tied = {target for row in self.rows if isinstance(row.operation, Tied) for target in row.targets}
        differing = [
            f"{name}: {_text(spec.shape)}, the model has {_text(expected[name])}"
            for name, spec in wholes.items()
            if name in expected and spec.shape != expected[name]
        ]
        tensors: list[PlannedTensor] = []
        groups = {(row, layer) for row, layer, _ in claims if row.source is not None}
        for row, layer, _ in self._in_table_order([(row, layer, "") for row, layer in groups]):
            names = [_fill(target, layer) for target in row.targets]
            if any(name not in wholes for name in names):
                continue  # already among the missing names
            source = _fill(str(row.source), layer)
            try:
                tensors += _split(row, source, {name: wholes[name] for name in names}, split, dtype)
            except SplitError as error:
                differing.append(f"{source} for {split.ranks} ranks: {error}")
        tensors += self._second_copies(tensors)
        problems = {
            "names the table does not know": unclaimed,
            "names claimed twice": twice,
            "names the model does not have": [name for name in present if name not in expected],
            "names that are missing": [name for name in expected if name not in present and name not in tied],
            "shapes that do not fit": differing,
        }
        several = split.ranks > 1
        CoverageError.check(
            f"this folder cannot be written as a {self.format_name} checkpoint"
            + (f" of {split.ranks} ranks" if several else ""),
            "Nothing was written."
            + (" --tensor-parallel must divide the heads, the vocabulary and the inner size." if several else ""),
            problems,
        )
        return Plan(tuple(tensors), dropped)

    def _second_copies(self, tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
        """What the source format holds twice."""
        by_name = {(tensor.part, tensor.name): tensor for tensor in tensors}
        copies = [
            (row.source, row.operation.of)
            for row in self.rows
            if isinstance(row.operation, SameAs) and row.source is not None
        ]
        return [
            replace(by_name[part, of], name=source) for part, name in by_name for source, of in copies if name == of
        ]

    def replicated(self, names: Sequence[str]) -> list[str]:
        """Those of the source names whose tensor every rank holds in full."""
        return [
            name
            for row, pattern in self._source_patterns
            if row.operation.replicated
            for name in names
            if pattern.fullmatch(name)
        ]

    def source_shapes(self, expected: Mapping[str, Shape], split: Split) -> dict[str, Shape]:
        """Every source name the expected names call for, with one rank's shape.

        Raises:
            SplitError: the expected shapes do not divide.
        """
        claims, _, _ = _claim(self._target_patterns, expected)
        shapes: dict[str, Shape] = {}
        for row, layer in {(row, layer): None for row, layer, _ in claims if row.source is not None}:
            wholes = [expected[_fill(target, layer)] for target in row.targets]
            shapes[_fill(str(row.source), layer)] = row.operation.part_shape(wholes, split)
        return shapes

    def target_shapes(self, expected: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of the expected names that the table makes, with their shapes."""
        patterns = [pattern for _, pattern in self._target_patterns]
        return {n: shape for n, shape in expected.items() if any(pattern.fullmatch(n) for pattern in patterns)}

    def _missing(self, made: Mapping[str, str], expected: Mapping[str, Shape]) -> list[str]:
        """Expected names nothing makes, each with the source name that would; a tied name needs only what it is tied
        to.
        """
        absent = [name for name in expected if name not in made]
        claims, unclaimed, _ = _claim(self._target_patterns, absent)
        missing = [f"{name} (no row of the table makes it)" for name in unclaimed]
        for row, layer, name in claims:
            if row.source is not None:
                missing.append(f"{name} (from {_fill(row.source, layer)})")
        return missing

    def _in_table_order(self, claims: Sequence[tuple[Row, str | None, str]]) -> list[tuple[Row, str | None, str]]:
        """Rows before the first layered row, then layer by layer, then the rest."""
        order = {row: index for index, row in enumerate(self.rows)}
        layered = [index for row, index in order.items() if LAYER in (row.source or "")]

        def key(claim: tuple[Row, str | None, str]) -> tuple[int, int, int, str]:
            row, layer, name = claim
            group = 1 if layer is not None else (0 if not layered or order[row] < layered[0] else 2)
            return group, int(layer or 0), order[row], name

        return sorted(claims, key=key)


def _pattern(template: str) -> re.Pattern[str]:
    # A layer number has no leading zero: `layers.00` is not `layers.0`; and no model has a million layers.
    return re.compile(re.escape(template).replace(re.escape(LAYER), "(?P<i>0|[1-9][0-9]{0,5})"))


def _fill(template: str, layer: str | None) -> str:
    return template if layer is None else template.replace(LAYER, layer)


def _merge(row: Row, name: str, shape: Shape, split: Split) -> tuple[tuple[Shape, ...], list[list[Piece]]]:
    """Shapes of the whole tensors a source tensor makes, and the pieces of each. Raises `SplitError`."""
    if not row.targets:
        return (), []
    if not shape:
        raise SplitError("it is a single number, not a tensor")
    wholes = row.operation.whole_shapes(shape, split)
    pieces: list[list[Piece]] = [[] for _ in row.targets]
    for rank in range(1 if row.operation.replicated else split.ranks):
        for move in row.operation.moves(shape, split, rank):
            piece = Piece(rank, name, move.part_start, move.whole_start, move.size, move.transposed)
            pieces[move.whole].append(piece)
    return wholes, pieces


def _with_row_beside(tensor: PlannedTensor, operation: FoldedRow) -> PlannedTensor:
    """The first whole tensor of a `FoldedRow`: computed from its rows and, beside each, the row to be added."""
    rows, columns = matrix_shape(tensor.spec.shape)
    beside = Piece(0, operation.of, (operation.row, 0), (0, columns), (rows, columns), repeated=True)
    gathered = TensorSpec((rows, 2 * columns), torch.float32)
    computation = Computation(gathered, lambda start, gather: partial(with_row_added, gather()))
    return replace(tensor, pieces=(*tensor.pieces, beside), computation=computation)


def _split(
    row: Row, source: str, wholes: Mapping[str, TensorSpec], split: Split, dtype: torch.dtype | None
) -> Iterator[PlannedTensor]:
    """The tensor of each rank, made from the whole ones of a row. Raises `SplitError`."""
    names, dtypes = list(wholes), list(dict.fromkeys(spec.dtype for spec in wholes.values()))
    if len(dtypes) > 1 and not isinstance(row.operation, FoldedRow):  # there one of the two is read
        raise SplitError(f"{', '.join(names)} must have one dtype, they have {', '.join(sorted(map(str, dtypes)))}")
    shape = row.operation.part_shape([spec.shape for spec in wholes.values()], split)
    spec = TensorSpec(shape, _target_dtype(row.operation, dtypes[-1], dtype))
    for rank in range(split.ranks):
        pieces = tuple(
            Piece(
                0,
                names[move.whole],
                move.whole_start,
                move.part_start,
                move.size[::-1] if move.transposed else move.size,
                move.transposed,
            )
            for move in row.operation.moves(shape, split, rank)
        )
        yield PlannedTensor(rank, source, spec, pieces)


def _claim(
    patterns: Sequence[tuple[Row, re.Pattern[str]]], names: Iterable[str]
) -> tuple[list[tuple[Row, str | None, str]], list[str], list[str]]:
    """(row, layer, name) of every name a row claims; the names no row claims; the names several rows claim."""
    claims, unclaimed, twice = [], [], []
    for name in names:
        rows = [
            (row, match.groupdict().get("i"), name) for row, pattern in patterns if (match := pattern.fullmatch(name))
        ]
        claims.extend(rows[:1])
        if not rows:
            unclaimed.append(name)
        elif len(rows) > 1:
            twice.append(name)
    return claims, unclaimed, twice


def _target_dtype(operation: Operation, source: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    kept = wanted is None or operation.keeps_dtype or not source.is_floating_point
    return source if kept or wanted is None else wanted


def _shape_differences(tensors: Sequence[PlannedTensor], expected: Mapping[str, Shape]) -> list[str]:
    return [
        f"{tensor.name} from {tensor.pieces[0].source}: {_text(tensor.spec.shape)}, the model has "
        f"{_text(expected[tensor.name])}"
        for tensor in tensors
        if tensor.name in expected and tensor.spec.shape != expected[tensor.name]
    ]


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


__all__ = [
    "Computation",
    "ConversionError",
    "CoverageError",
    "Piece",
    "Plan",
    "PlannedTensor",
    "Row",
    "Shape",
    "Split",
    "StateMap",
    "TensorSpec",
    "pair",
]
