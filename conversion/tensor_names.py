"""What a file may call its tensors, and how many there may be: names end up in messages, in JSON, as files."""

from collections.abc import Collection

from .lazy_files import CheckpointError
from .places import Place, names_in

MAX_NAME_CHARACTERS = 512
MAX_TENSORS = 20_000
"""In a file or a folder; GLM-130B has 842 in a rank, ERNIE 3.0's 10B 1,179."""


def check_names(names: Collection[str], path: Place) -> None:
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


def entries(folder: Place) -> list[str]:
    """The sorted names in a folder that may hold a checkpoint.

    Raises:
        CheckpointError: so many that it is none.
    """
    names = []
    for name in names_in(folder):
        names.append(name)
        if len(names) > MAX_TENSORS:
            raise CheckpointError(
                f"{folder}: more than {MAX_TENSORS:,} files, so not a checkpoint's folder. Pass the folder that "
                "holds the weights alone."
            )
    return sorted(names)


__all__ = ["MAX_NAME_CHARACTERS", "MAX_TENSORS", "check_names", "entries"]
