"""What must be sure before a source is consumed: that deleting its files gives disk back, and that the conversion
cannot fail on a number half way.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from hf_glm_ernie.weight_only import LARGEST_VALUE

from .byte_source import ByteSource
from .lazy_files import Scratch, TensorFiles
from .operations import CheckpointError, matrix_shape
from .source_file import SourceFile
from .state_map import Plan, PlannedTensor
from .writer import BLOCK_BYTES, DtypeRangeError, WriteError


def refuse_what_stays(files: Iterable[ByteSource]) -> None:
    """Makes sure that files of a source can be deleted, and that this gives disk back.

    Raises:
        CheckpointError: they are not on this machine, or not there.
        WriteError: links, or files or folders that may not be written to.
    """
    for file in files:
        if not isinstance(file, SourceFile):
            raise CheckpointError(
                f"{file.path}: --consume deletes files of this machine, and that one lies elsewhere. Leave it out."
            )
        path = file.path
        if os.path.lexists(path):
            _refuse_link(path, os.lstat(path))
        for needed in (path, path.parent):
            if os.path.lexists(needed) and not os.access(needed, os.W_OK):
                raise WriteError(
                    f"{needed}: --consume deletes the source, and this may not be written to. Change its rights, or "
                    "leave --consume out."
                )


def _refuse_link(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise WriteError(
            f"{path}: a symbolic link, and deleting what it leads to is not what --consume is for. Pass the folder of "
            "the files themselves, or leave --consume out."
        )
    if not stat.S_ISREG(found.st_mode):
        raise WriteError(f"{path}: no plain file, so --consume cannot delete it. Leave --consume out.")
    if found.st_nlink > 1:
        raise WriteError(
            f"{path}: has {found.st_nlink} names (hard links), so deleting one gives no disk back, and holes in it "
            "are in all. Remove the others, or leave --consume out."
        )


def tensors_at_risk(source: TensorFiles, plan: Plan) -> Iterator[tuple[int, str, PlannedTensor]]:
    """(file, name) of every tensor whose numbers may not fit what is made of it, and what that is; once each."""
    seen: set[tuple[int, str]] = set()
    for planned in plan.tensors:
        for piece in planned.pieces:
            key = (source.number_of(piece.part, piece.source), piece.source)
            stored = source.files[key[0]].tensors[key[1]].spec.dtype
            if key not in seen and stored.is_floating_point and _may_not_fit(stored, planned):
                seen.add(key)
                yield piece.part, piece.source, planned


def check_numbers(source: TensorFiles, plan: Plan, on_bytes: Callable[[int], object]) -> None:
    """Reads the tensors that the conversion could fail on because of their numbers, which a later run could not mend.

    Args:
        source: The tensors.
        plan: What is made of them.
        on_bytes: Called with the number of bytes just read.

    Raises:
        DtypeRangeError: a number that the plan's dtype cannot hold, or that cannot be quantized.
    """
    scratch = Scratch(BLOCK_BYTES)
    for part, name, planned in tensors_at_risk(source, plan):
        spec = source.files[source.number_of(part, name)].tensors[name].spec
        for _, values in source.rectangles(part, name, (0, 0), matrix_shape(spec.shape), scratch):
            if not _fits(values, planned):
                raise DtypeRangeError(
                    f"{name}: holds numbers that are not finite, or too large for {planned.name} in "
                    f"{'the integer format' if planned.computation else planned.spec.dtype}. Nothing was deleted. "
                    "Repair the weight, or convert with --dtype bfloat16 or float32 and without --bits."
                )
            on_bytes(values.nbytes)
        source.forget(part, name)


def _may_not_fit(stored: torch.dtype, planned: PlannedTensor) -> bool:
    if planned.computation is not None:
        return True
    target = planned.spec.dtype
    return target.is_floating_point and torch.finfo(target).max < torch.finfo(stored).max


def _fits(values: torch.Tensor, planned: PlannedTensor) -> bool:
    if planned.computation is not None:
        return bool((values.abs().max().float() <= LARGEST_VALUE).item()) if values.numel() else True
    return torch.equal(torch.isfinite(values.to(planned.spec.dtype)), torch.isfinite(values))


__all__ = ["check_numbers", "refuse_what_stays", "tensors_at_risk"]
