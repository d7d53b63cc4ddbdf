"""A conversion that only copies: tensors in memory into three shards, so that an output folder can be tried alone."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conversion import writer
from conversion.job import Job, run
from conversion.operations import matrix_shape
from conversion.state_map import Piece, Plan, PlannedTensor, TensorSpec
from conversion.verify import verify_file
from conversion.writer import OutputFile, WriteError, plan_shards

from .tiny import equal_bits


class Memory:
    """Tensors in memory as a source, noting what is handed back."""

    def __init__(self, *parts: dict[str, torch.Tensor]):
        self.parts = parts
        self.forgotten: list[tuple[int, str]] = []

    def rectangles(
        self, part: int, name: str, start: tuple[int, int], size: tuple[int, int], scratch: Any
    ) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        matrix = self.parts[part][name].reshape(matrix_shape(tuple(self.parts[part][name].shape)))
        for row in range(size[0]):  # the reader decides how many parts there are
            yield (row, 0), matrix[start[0] + row : start[0] + row + 1, start[1] : start[1] + size[1]]

    def check(self, tensors: set[tuple[int, str]]) -> None:
        pass

    def check_content(self) -> None:
        pass

    def forget(self, part: int, name: str) -> None:
        self.forgotten.append((part, name))

    def identity(self) -> list[tuple[str | int, ...]]:
        return [("memory",)]


def copied(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None, source: str | None = None
) -> PlannedTensor:
    """A plan that copies a whole tensor."""
    size = (tensor.shape[0], tensor.shape[1] if tensor.ndim > 1 else 1)
    piece = Piece(0, source or name, (0, 0), (0, 0), size)
    return PlannedTensor(0, name, TensorSpec(tuple(tensor.shape), dtype or tensor.dtype), (piece,))


STATE = {f"layer.{i}": torch.randn(10 + i, 8).half() for i in range(6)}


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def write_digests(folder: Path, digests: Mapping[str, str]) -> None:
    (folder / "digests.json").write_text(json.dumps(digests))


def job(
    state: dict[str, torch.Tensor] | None = None,
    files: list[OutputFile] | None = None,
    options: dict[str, str] | None = None,
    write_last: Callable[[Path, Mapping[str, str]], None] = write_digests,
) -> Job:
    """A job that copies `state` from memory into three shards."""
    state = STATE if state is None else state
    tensors = [copied(name, tensor) for name, tensor in state.items()]
    files = files or list(plan_shards(tensors, 464, {"format": "pt"}))
    return Job(
        title="copy",
        source=Memory(state),  # type: ignore[arg-type]
        plan=Plan(tuple(tensors), {}),
        files=files,
        options=options or {},
        write_first=write_config,
        write_last=write_last,
        reopen=lambda folder: {tensor.name: tensor.spec for tensor in tensors},
    )


def result(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of shards."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def go(work: Job, output: Path, verify: bool = True) -> None:
    run(work, output, verify_file if verify else None, show_progress=False)


def fail_after(calls: int, error: BaseException) -> Callable[..., None]:
    """A `pwrite_all` that fails, as on a full disk, after some blocks."""
    real, count = writer.pwrite_all, Counter[str]()

    def write(*arguments: Any) -> None:
        count["calls"] += 1
        if count["calls"] > calls:
            raise error
        real(*arguments)

    return write


NAMES = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
"""The files of `job`."""


def stopped(tmp_path: Path, blocks: int = 3, error: BaseException | None = None, work: Any = None) -> Path:
    """An incomplete folder with so many tensors; the first file of two is complete after three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "pwrite_all", fail_after(blocks, error or KeyboardInterrupt()))
        with pytest.raises((KeyboardInterrupt, WriteError)):
            go(work or job(), tmp_path / "out")
    return tmp_path / "out.incomplete"


def is_whole(tmp_path: Path) -> bool:
    """Whether the output is complete, and nothing is beside it."""
    small = ["config.json", "digests.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*small, *NAMES]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    return equal_bits(result(tmp_path / "out"), STATE)


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ".conversion" / "journal.jsonl").read_text().splitlines()]
