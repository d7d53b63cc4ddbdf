"""The files of GLM-130B's tensor-parallel ranks: which are there, and that they are of one checkpoint."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .lazy_files import CheckpointError, TensorFiles
from .places import Place, names_in
from .tensor_names import entries
from .torch_files import open_torch_file

LATEST = "latest"
MARKS = (LATEST, "mp_rank_00_model_states.pt")
"""Of a folder that holds a checkpoint; in an iteration's folder only the second is."""
RANK_FILE = re.compile(r"mp_rank_([0-9]+)_model_states\.pt")
MAX_RANKS = 1024
MAX_LATEST_BYTES = 255  # of a file's name
SHOWN = 8


class RankCheckpoint(TensorFiles):
    """A tensor-parallel checkpoint: `latest` with an iteration, `<iteration>/mp_rank_XX_model_states.pt` per rank.

    Args:
        folder: The folder with `latest`, or the iteration's folder itself.
        sampled: As of `TensorFiles`.

    Attributes:
        iteration: The iteration, as text.
        specs: Name -> shape and dtype, the same on every rank.

    Raises:
        CheckpointError: `latest` missing or pointing nowhere; a rank missing; ranks that differ in names, shapes,
            dtypes or iteration; an unreadable file.
    """

    def __init__(self, folder: Place, sampled: bool = True):
        self.folder = iteration_folder(folder)
        opened = [open_torch_file(path, "module") for path in _rank_paths(self.folder)]
        super().__init__([file for file, _ in opened], sampled)
        self.iteration = self.folder.resolve().name
        self._check_iterations([rest for _, rest in opened])
        self._check_ranks_agree()
        self.specs = {name: stored.spec for name, stored in self.files[0].tensors.items()}

    def _check_iterations(self, rests: Sequence[Mapping[str, Any]]) -> None:
        saved = {
            file.path.name: str(rest["iteration"])
            for file, rest in zip(self.files, rests, strict=True)
            if "iteration" in rest
        }
        if len(set(saved.values())) > 1:
            raise CheckpointError(
                f"{self.folder}: the ranks come from different iterations: "
                f"{', '.join(f'{name} from {iteration}' for name, iteration in saved.items())}. Copy all ranks of "
                "one iteration."
            )

    def _check_ranks_agree(self) -> None:
        first = self.files[0]
        for file in self.files[1:]:
            different = sorted(first.tensors.keys() ^ file.tensors.keys())
            if different:
                holder = first if different[0] in first.tensors else file
                raise CheckpointError(
                    f"{file.path} and {first.path.name} hold different names, {len(different)} of them, e.g. "
                    f"{different[0]} (only in {holder.path.name}). Copy all ranks of one checkpoint."
                )
            for name, stored in file.tensors.items():
                if stored.spec != first.tensors[name].spec:
                    raise CheckpointError(
                        f"{file.path}: {name} is {stored.spec}, in {first.path.name} it is "
                        f"{first.tensors[name].spec}. The ranks come from different checkpoints; copy all "
                        "ranks of one."
                    )

    def ranks_that_differ(self, names: Sequence[str]) -> list[tuple[int, str]]:
        """(rank, name) of every tensor that is not, bit for bit, rank 0's; for small tensors that should be alike."""
        different: list[tuple[int, str]] = []
        for name in names:
            digests = [self.digest(rank, name) for rank in range(len(self.files))]
            different.extend((rank, name) for rank, digest in enumerate(digests) if digest != digests[0])
        return different


def iteration_folder(folder: Place) -> Place:
    """The folder with the rank files of the iteration that `latest` names; raises `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder. --source is the folder that holds `latest`.")
    latest = folder / LATEST
    inside = entries(folder)
    has_ranks = any(map(RANK_FILE.fullmatch, inside))
    iterations = [name for name in inside if (folder / name).is_dir() and _has_ranks(folder / name)]
    shown = ", ".join(iterations[:SHOWN]) + (" ..." if len(iterations) > SHOWN else "")
    present = f"folders with rank files here: {shown or 'none'}"
    if not latest.is_file():
        if has_ranks:
            return folder
        raise CheckpointError(
            f"{folder}: no `latest`, which names the iteration, and no mp_rank_XX_model_states.pt ({present}). Pass "
            "an iteration's folder itself, or write its name into `latest`."
        )
    if has_ranks:
        raise CheckpointError(
            f"{folder}: rank files beside `latest`, so it is not clear which are meant ({present}). Pass the folder "
            "meant."
        )
    with latest.open("rb") as file:
        iteration = file.read(MAX_LATEST_BYTES + 1).decode("utf-8", "replace").strip()
    if iteration not in iterations:
        raise CheckpointError(
            f"{latest}: names the iteration {iteration!r}, but {folder / 'ITERATION'} with rank files is not there "
            f"({present}). Copy that iteration, or correct `latest`."
        )
    return folder / iteration


def _has_ranks(folder: Place) -> bool:
    return any(map(RANK_FILE.fullmatch, names_in(folder)))


def _rank_paths(folder: Place) -> list[Place]:
    paths: dict[int, Place] = {}
    for name in entries(folder):
        match = RANK_FILE.fullmatch(name)
        if match is None:
            continue
        rank = int(match.group(1))
        if rank in paths:
            raise CheckpointError(f"{folder}: rank {rank} is there twice, {paths[rank].name} and {name}. Remove one.")
        if rank >= MAX_RANKS:
            raise CheckpointError(f"{folder}: {name} is no rank of any checkpoint. Remove it.")
        paths[rank] = folder / name
    missing = [rank for rank in range(max(paths)) if rank not in paths]
    if missing:
        names = [f"mp_rank_{rank:02d}_model_states.pt" for rank in missing[:SHOWN]]
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        beside = [folder.parent / name for name in entries(folder.parent)]
        elsewhere = [str(path / name) for name in names for path in beside if (path / name).is_file()]
        hint = f" There is {', '.join(elsewhere)}, of another iteration." if elsewhere else ""
        found = ", ".join(path.name for path in paths.values())
        raise CheckpointError(
            f"{folder}: missing {', '.join(names)}{more}; found {found}.{hint} Copy the missing ranks of this "
            "iteration."
        )
    return [paths[rank] for rank in sorted(paths)]


__all__ = ["LATEST", "MARKS", "MAX_RANKS", "RANK_FILE", "RankCheckpoint", "iteration_folder"]
