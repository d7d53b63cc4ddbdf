"""Files that are there as wholes or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what was written there gets the name when the block ends well.

    A process that is killed leaves a file of the temporary name, which is its own: should it still be writing when
    another has begun anew, neither sees the other.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file at once."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


__all__ = ["UNFINISHED", "read_json", "write_json", "writing"]
