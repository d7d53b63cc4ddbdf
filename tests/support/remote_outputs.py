"""What tests of outputs that are sent to the Hub or a store need: what is expected there, and runs that are killed."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conversion import store
from conversion.__main__ import main

from .converting import convert, digests
from .forked import die, killed_in_child
from .hub_stand_in import Hub

SHARDS = ("--max-shard-size=12000",)  # four of them


def be_impatient(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Requests are made again after a moment; work folders are made in `folder / "work"`."""
    patch.setattr(store, "FIRST_WAIT", 0.01)
    (folder / "work").mkdir()
    patch.chdir(folder / "work")


def converted(source: Path, output: Path) -> dict[str, str]:
    """Name -> SHA-256 of what a checkpoint is converted to."""
    assert convert(source, output, *SHARDS) == 0
    return digests(output)


def on_hub(hub: Hub, repo: str = "me/glm") -> dict[str, str]:
    """Name -> SHA-256 of what a repository holds, without its .gitattributes."""
    files = hub.repositories[repo].files
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != ".gitattributes"}


@contextmanager
def killed(arguments: list[str], patch: Callable[[Callable[..., None]], None]) -> Iterator[None]:
    """Runs the command in a child that is killed where `patch` has it call what it is given."""

    def working() -> None:
        patch(die)
        main(["glm130b", *arguments])

    killed_in_child(working)
    yield


def at(owner: Any, name: str, number: int, before: bool) -> Callable[[Callable[..., None]], None]:
    """A patch that ends the child before or after the n-th call of a method."""

    def patch(last: Callable[..., None]) -> None:
        real, calls = getattr(owner, name), []

        def called(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if before and len(calls) == number:
                last()
            result = real(*arguments, **options)
            if not before and len(calls) == number:
                last()
            return result

        setattr(owner, name, called)

    return patch
