"""An archive of a checkpoint and its parts, the plain way: `tarfile` and slices. For tiny checkpoints.

`archives.py` writes those of released sizes, and says where everything lies.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path

from .tiny import ITERATION

STEM = "glm-130b-sat.tar"
ORDER = ("01", "latest", "00")


def write_tar(folder: Path, path: Path, tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """An archive of a checkpoint, the members in the released archive's manner: not in the order of their names."""
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name in ORDER:
            inside = name if name == "latest" else f"{ITERATION}/mp_rank_{name}_model_states.pt"
            archive.add(folder / inside, f"{folder.name}/{inside}")
    return path


def cut(path: Path, into: Path, part_bytes: int, name: Callable[[int], str] = "{:02d}".format) -> list[Path]:
    """The parts of a file, as `split` makes them."""
    into.mkdir()
    content = path.read_bytes()
    parts = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        parts.append(into / f"{STEM}.part_{name(number)}")
        parts[-1].write_bytes(content[start : start + part_bytes])
    return parts
