"""What a file may call its tensors: names that end up in messages, in JSON and, of static variables, as files."""

from collections.abc import Collection
from pathlib import Path

from .lazy_files import CheckpointError

MAX_NAME_CHARACTERS = 512
MAX_TENSORS = 50_000
"""In one file; GLM-130B has 842 in a rank, ERNIE 3.0's 10B 1,179."""


def check_names(names: Collection[str], path: Path) -> None:
    """Makes sure that the names in a file are of a length and number that a checkpoint's are, and text.

    Raises:
        CheckpointError: they are not.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(names):,} tensors, no checkpoint has more than {MAX_TENSORS:,}.")
    for name in names:
        if not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise CheckpointError(
                f"{path}: a tensor whose name has {len(name):,} characters ({name[:40]!r}); a checkpoint's have 1 to "
                f"{MAX_NAME_CHARACTERS}. Copy the file again."
            )
        if not name.isprintable():
            raise CheckpointError(
                f"{path}: a tensor is called {name!r}, with characters that cannot be printed. Copy the file again."
            )


__all__ = ["MAX_NAME_CHARACTERS", "MAX_TENSORS", "check_names"]
