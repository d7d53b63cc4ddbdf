"""How the tensors of one checkpoint format make those of another: rectangles, no names and no files.

An operation lists rectangles ("these rows and columns of that rank's tensor are those of the whole one"); read one way
they merge the ranks, read the other way they split again, so the inverse of an operation is derived and never written.
A format that is not tensor-parallel has one rank.

Vectors are treated as matrices of one column: (n,) is n rows of width 1.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

Shape = tuple[int, ...]


LONGEST_WORD, LONGEST_MESSAGE = 300, 4000
"""Characters of an error: a name out of a file may have millions."""


class ConversionError(ValueError):
    """Base of every error of a conversion that its user can mend. The message says what, where, and what to do."""

    def __init__(self, message: str):
        super().__init__(shortened(message))


def shortened(message: str) -> str:
    """A message whose endless words, and then itself, lose their middle."""
    message = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: _without_middle(word.group(), LONGEST_WORD), message)
    return _without_middle(message, LONGEST_MESSAGE)


def _without_middle(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}[... {len(text) - 2 * half:,} characters ...]{text[-half:]}"


class CheckpointError(ConversionError):
    """The files are not the checkpoint they should be. The message names the file, what is wrong and what to do."""


class SettingsError(ConversionError):
    """A setting is missing, contradicts the tensors or the tokenizer, or is not possible."""


class SplitError(ConversionError):
    """A tensor cannot be cut into (or put together from) the given number of ranks and heads."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without reading it."""

    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    def of_dtype(self, dtype: torch.dtype) -> "TensorSpec":
        """The same shape in another dtype."""
        return TensorSpec(self.shape, dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return matrix_shape(self.shape)[0] * self.row_nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row; of one element for a vector."""
        return matrix_shape(self.shape)[1] * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Split:
    """How one model lies on its tensor-parallel ranks."""

    ranks: int
    heads: int  # of the whole model


WHOLE = Split(ranks=1, heads=1)
"""Not split."""


@dataclass(frozen=True, slots=True)
class Move:
    """A rectangle of one rank's tensor and its place in the whole one, (row, column) each.

    `size` is that of the rectangle in the whole tensor; `transposed`, it lies the other way round in the rank's, and
    both starts are (0, 0).
    """

    part_start: tuple[int, int]
    whole: int  # which of the row's targets
    whole_start: tuple[int, int]
    size: tuple[int, int]
    transposed: bool = False


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """(rows, columns) of a tensor seen as a matrix; everything after the first dimension is one column axis.

    A leading axis of length 1 before two or more others does not count: (1, n, m) are n rows of width m.
    """
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    rows = shape[0] if shape else 1
    columns = 1
    for length in shape[1:]:
        columns *= length
    return rows, columns


def divide(length: int, parts: int, what: str) -> int:
    """`length / parts`, or `SplitError` naming what does not divide."""
    if parts < 1 or length % parts:
        raise SplitError(f"{what} of {length} cannot be divided into {parts} equal parts")
    return length // parts


class Operation:
    """How the tensors of all ranks make the whole one(s). `targets` is the number of whole tensors."""

    targets: ClassVar[int] = 1
    replicated: ClassVar[bool] = False  # every rank holds the same copy
    keeps_dtype: ClassVar[bool] = False  # the format fixes it, whatever the other tensors become

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Shapes of the whole tensors, from one rank's shape. Raises `SplitError`."""
        raise NotImplementedError

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """One rank's shape, from the shapes of the whole tensors. Raises `SplitError`."""
        raise NotImplementedError

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """The rectangles of one rank. All ranks together cover every whole tensor once; replicated, each rank does."""
        raise NotImplementedError


@dataclass(frozen=True)
class Replicated(Operation):
    """Every rank holds the same tensor: merging takes rank 0's, splitting writes it to all."""

    replicated: ClassVar[bool] = True

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """The copy itself."""
        return (part,)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """The copy itself."""
        return wholes[0]

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """All of it."""
        yield Move((0, 0), 0, (0, 0), matrix_shape(part))


@dataclass(frozen=True)
class Concat(Operation):
    """Ranks follow one another along dimension `dim` (0 or 1)."""

    dim: int

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Longer along `dim`."""
        return (tuple(n * split.ranks if d == self.dim else n for d, n in enumerate(part)),)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """Shorter along `dim`."""
        what = ("a number of rows", "a number of columns")[self.dim]
        return tuple(divide(n, split.ranks, what) if d == self.dim else n for d, n in enumerate(wholes[0]))

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """One rectangle per rank."""
        size = matrix_shape(part)
        start = rank * size[self.dim]
        yield Move((0, 0), 0, (start, 0) if self.dim == 0 else (0, start), size)


@dataclass(frozen=True)
class SplitQkv(Operation):
    """Rows are ordered [head, (q, k, v), head_dim], each rank holding its heads; the whole tensors are q, k and v."""

    targets: ClassVar[int] = 3

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Three tensors of all heads."""
        local_heads = divide(split.heads, split.ranks, "a number of attention heads")
        head_dim = divide(part[0], 3 * local_heads, "a number of query-key-value rows")
        return ((split.heads * head_dim, *part[1:]),) * 3

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """The rows of all three for one rank's heads."""
        if len(set(wholes)) != 1:
            raise SplitError(f"query, key and value differ in shape: {', '.join(map(str, wholes))}")
        divide(split.heads, split.ranks, "a number of attention heads")
        divide(wholes[0][0], split.heads, "a number of query rows")
        return (3 * wholes[0][0] // split.ranks, *wholes[0][1:])

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """One rectangle per head and tensor."""
        local_heads = split.heads // split.ranks
        rows, columns = matrix_shape(part)
        head_dim = rows // (3 * local_heads)
        for whole in range(3):
            for head in range(local_heads):
                part_row = (3 * head + whole) * head_dim
                yield Move((part_row, 0), whole, ((rank * local_heads + head) * head_dim, 0), (head_dim, columns))


@dataclass(frozen=True)
class SplitGlu(Operation):
    """Each rank holds [part of the first half; part of the second half]; the whole tensors are the two halves."""

    targets: ClassVar[int] = 2

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Two halves of the inner size."""
        return ((divide(part[0], 2, "a number of GLU rows") * split.ranks, *part[1:]),) * 2

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """One rank's part of both halves."""
        if wholes[0] != wholes[1]:
            raise SplitError(f"the two GLU halves differ in shape: {wholes[0]} and {wholes[1]}")
        return (2 * divide(wholes[0][0], split.ranks, "an inner size"), *wholes[0][1:])

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """One rectangle per half."""
        rows, columns = matrix_shape(part)
        for whole in range(2):
            yield Move((whole * (rows // 2), 0), whole, (rank * (rows // 2), 0), (rows // 2, columns))


class _LeadingAxis(Operation):
    """Mixed into an operation: the whole tensors have one more axis, of length 1, in front."""

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """One axis more."""
        return tuple((1, *whole) for whole in super().whole_shapes(part, split))

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """One axis less."""
        without = [whole[1:] for whole in wholes if len(whole) == 3 and whole[0] == 1]
        if len(without) != len(wholes):
            raise SplitError("a matrix with one more axis in front, of length 1, is expected")
        return super().part_shape(without, split)


@dataclass(frozen=True)
class ConcatBehindAxis(_LeadingAxis, Concat):
    """`Concat` into a tensor with an axis of length 1 in front."""


@dataclass(frozen=True)
class SplitQkvBehindAxis(_LeadingAxis, SplitQkv):
    """`SplitQkv` into tensors with an axis of length 1 in front."""


@dataclass(frozen=True)
class SplitGluBehindAxis(_LeadingAxis, SplitGlu):
    """`SplitGlu` into tensors with an axis of length 1 in front."""


class _ColumnOfScales(Operation):
    """Mixed into an operation on rows: a rank holds one scale a row, the whole tensor is a matrix of one column."""

    keeps_dtype: ClassVar[bool] = True

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """A column of what the operation makes of the rows."""
        if len(part) != 1:
            raise SplitError("there is one scale a row, so they are a vector")
        return super().whole_shapes((*part, 1), split)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """One rank's rows."""
        rows, *groups = super().part_shape(wholes, split)
        if groups != [1]:
            raise SplitError("a rank holds one scale a row, for all columns")
        return (rows,)


@dataclass(frozen=True)
class SplitQkvScales(_ColumnOfScales, SplitQkv):
    """Scales of the rows that `SplitQkv` orders."""


@dataclass(frozen=True)
class SplitGluScales(_ColumnOfScales, SplitGlu):
    """Scales of the rows that `SplitGlu` orders."""


@dataclass(frozen=True)
class ConcatScales(Operation):
    """Each rank holds some columns of a matrix, and one scale a row for them; the whole tensor has a column for each.

    Attributes:
        ranks_per_group: How many neighbouring ranks hold the same scales. More than one only read backwards: a group
            of columns is cut, and every rank that holds a part of it needs its scale.
    """

    ranks_per_group: int = 1
    keeps_dtype: ClassVar[bool] = True

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """A column per group."""
        if len(part) != 1:
            raise SplitError("there is one scale a row, so they are a vector")
        return ((part[0], divide(split.ranks, self.ranks_per_group, "a number of ranks")),)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """One column."""
        rows, groups = matrix_shape(wholes[0])
        if groups * self.ranks_per_group != split.ranks:
            raise SplitError(
                f"{groups} scales a row, {self.ranks_per_group} rank(s) for each, do not lie on {split.ranks} rank(s)"
            )
        return (rows,)

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """The column of the rank's group."""
        yield Move((0, 0), 0, (0, rank // self.ranks_per_group), matrix_shape(part))


@dataclass(frozen=True)
class Transposed(Operation):
    """A matrix whose rows are the whole one's columns. Of one rank."""

    replicated: ClassVar[bool] = True

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Rows and columns exchanged."""
        if len(part) != 2:
            raise SplitError("only a matrix can be transposed")
        return (part[::-1],)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """Rows and columns exchanged."""
        return self.whole_shapes(wholes[0], split)[0]

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """All of it."""
        yield Move((0, 0), 0, (0, 0), matrix_shape(part[::-1]), transposed=True)


class _MoreRows(Operation):
    """`count` rows stand twice in the whole tensor. Of one rank."""

    replicated: ClassVar[bool] = True
    count: int

    def _check(self, rows: int) -> None:
        """Raises `SplitError` if a tensor of so many rows does not have those that are meant."""
        raise NotImplementedError

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """`count` rows more."""
        self._check(part[0])
        return ((part[0] + self.count, *part[1:]),)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """`count` rows less."""
        rows, *columns = wholes[0]
        self._check(rows - self.count)
        return (rows - self.count, *columns)


@dataclass(frozen=True)
class DefaultRow(_MoreRows):
    """Row `row` is copied to row 0, and what stood there becomes one more row at the end.

    For an embedding table whose reader looks row 0 up by default where the original's default is `row`. Read
    backwards, row 0 is the newer of the two copies.
    """

    row: int
    count: int = field(default=1, init=False, repr=False)

    def _check(self, rows: int) -> None:
        if not 0 < self.row < rows:
            raise SplitError(f"there is no row {self.row}; rows 1 to {rows - 1} can be made the default")

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """The rows between stay; row `row` is listed last, so that backwards its copy in row 0 has the last word."""
        rows, columns = matrix_shape(part)
        yield Move((1, 0), 0, (1, 0), (rows - 1, columns))
        yield Move((0, 0), 0, (rows, 0), (1, columns))
        yield Move((self.row, 0), 0, (0, 0), (1, columns))


@dataclass(frozen=True)
class RepeatedRows(_MoreRows):
    """Rows `start` to `start + count - 1` stand twice: where they were, and again behind, before all that followed.

    For a table in which the original looks two tokens up in one row and the reader does not. Read backwards, of the
    two copies the later one is kept.
    """

    start: int
    count: int

    def _check(self, rows: int) -> None:
        if self.count < 1 or not 0 <= self.start <= rows - self.count:
            raise SplitError(f"there are no rows {self.start} to {self.start + self.count - 1} in {rows} to repeat")

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """The later copy is listed last, so that backwards it has the last word."""
        rows, columns = matrix_shape(part)
        behind = self.start + self.count
        yield Move((0, 0), 0, (0, 0), (behind, columns))
        yield Move((self.start, 0), 0, (behind, 0), (rows - self.start, columns))


@dataclass(frozen=True)
class FoldedRow(Operation):
    """Row `row` of the source tensor `of` is added to every row; the second whole tensor is the source as it was.

    For two tables whose rows are always looked up together and added, one of them at the same row. Of one rank. The
    sum is `with_row_added`'s; read backwards the second tensor is taken, so that no rounding stays behind.
    """

    of: str
    row: int
    targets: ClassVar[int] = 2
    replicated: ClassVar[bool] = True

    def whole_shapes(self, part: Shape, split: Split) -> tuple[Shape, ...]:
        """Both have the source's."""
        if len(part) != 2:
            raise SplitError("only to the rows of a matrix can a row be added")
        return (part, part)

    def part_shape(self, wholes: Sequence[Shape], split: Split) -> Shape:
        """That of both."""
        if wholes[0] != wholes[1]:
            raise SplitError(f"with the row added it is {wholes[0]}, without it {wholes[1]}")
        return wholes[1]

    def moves(self, part: Shape, split: Split, rank: int) -> Iterator[Move]:
        """All of it, twice; what is to be added comes beside. Backwards the second one has the last word."""
        yield Move((0, 0), 0, (0, 0), matrix_shape(part))
        yield Move((0, 0), 1, (0, 0), matrix_shape(part))

    def check(self, part: Shape, of: Shape | None) -> None:
        """Raises `SplitError` if there is no such row to be added to rows of a shape."""
        if of is None or len(of) != 2 or of[1] != part[1] or not 0 <= self.row < of[0]:
            has = "is not there" if of is None else f"has the shape {list(of)}"
            raise SplitError(f"row {self.row} of {self.of} is to be added to rows of {part[1]}, and {self.of} {has}")


def with_row_added(beside: torch.Tensor) -> torch.Tensor:
    """The sum that `FoldedRow` stands for.

    Args:
        beside: (rows, 2 * columns) fp32: in each row one of the table, and behind it the row to be added.

    Returns:
        (rows, columns) fp32, to be rounded once to whatever it is stored in.
    """
    columns = beside.shape[1] // 2
    return beside[:, :columns] + beside[:, columns:]


@dataclass(frozen=True)
class SameAs(Operation):
    """A second copy, in the source format, of its tensor `of`. It is not carried over, and written again backwards."""

    of: str
    targets: ClassVar[int] = 0


@dataclass(frozen=True)
class Drop(Operation):
    """A leftover that is not carried over. It is listed with its reason, and the inverse does not bring it back."""

    reason: str
    targets: ClassVar[int] = 0


@dataclass(frozen=True)
class Tied(Operation):
    """A target the model has but the files do not: it is the same tensor as `of`."""

    of: str


__all__ = [
    "WHOLE",
    "CheckpointError",
    "Concat",
    "ConcatBehindAxis",
    "ConcatScales",
    "ConversionError",
    "DefaultRow",
    "Drop",
    "FoldedRow",
    "Move",
    "Operation",
    "RepeatedRows",
    "Replicated",
    "SameAs",
    "SettingsError",
    "Shape",
    "Split",
    "SplitError",
    "SplitGlu",
    "SplitGluBehindAxis",
    "SplitGluScales",
    "SplitQkv",
    "SplitQkvBehindAxis",
    "SplitQkvScales",
    "TensorSpec",
    "Tied",
    "Transposed",
    "divide",
    "matrix_shape",
    "with_row_added",
]
