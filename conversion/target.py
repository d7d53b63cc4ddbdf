"""Where finished files are sent: a repository on the Hub (`hub_target.py`) or a store (`store_target.py`).

A file counts as sent when the place itself tells, or shows when it is read again, that it holds those bytes. What is
there is looked at, not remembered: so a run that was killed at any moment goes on with what has arrived.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from .operations import ConversionError
from .store import ATTEMPTS, is_transient, retried
from .writer import WriteError

SHOWN = 8
Result = TypeVar("Result")


class SendingStoppedError(ConversionError):
    """The run ends, so nobody waits for what is being sent."""


class Target(ABC):
    """A place that files are sent to.

    Args:
        url: As the user gave it.

    Attributes:
        name: The last part of the URL, for the names of local folders.
        scheme: What the URL begins with.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme, _, rest = self.url.partition("://")
        self.name = rest.rpartition("/")[2]

    @abstractmethod
    def check(self) -> None:
        """Makes sure, as far as can be told without sending anything, that files can be sent.

        Raises:
            WriteError: they cannot.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Makes the place where there is none, and sends so little that it shows whether that is allowed.

        Raises:
            WriteError: it is not.
        """

    @abstractmethod
    def names(self) -> set[str]:
        """What is there, beside what every such place has."""

    @abstractmethod
    def holds(self, name: str, sha256: str, path: Path | None) -> bool:
        """Whether a file is there with that content.

        Args:
            name: Its name there.
            sha256: Of the content, hexadecimal.
            path: The same file here, if it is.
        """

    @abstractmethod
    def send(self, path: Path, name: str, sha256: str, on_bytes: Callable[[int], object]) -> None:
        """Sends a large file; returns once `holds` is true of it.

        Args:
            path: The file.
            name: Its name there.
            sha256: Of the content, hexadecimal.
            on_bytes: Called with the number of bytes sent; may raise to end it.

        Raises:
            WriteError: it cannot be sent.
        """

    @abstractmethod
    def send_small(self, folder: Path, names: Sequence[str], sha256: dict[str, str]) -> None:
        """Sends small files in this order, at once where the place can do that.

        Args:
            folder: Where they are.
            names: Their names, there and here.
            sha256: Of each.
        """

    @abstractmethod
    def remove(self, names: Collection[str]) -> None:
        """Removes files that were sent."""

    def asked(self, request: Callable[[], Result], what: str) -> Result:
        """The answer to a request, tried again where it fails.

        Raises:
            WriteError: it goes on failing, or the place refuses.
        """
        try:
            return retried(request)
        except Exception as error:  # of whichever store
            if isinstance(error, WriteError | SendingStoppedError):
                raise
            times = f" Tried {ATTEMPTS} times." if is_transient(error) else ""
            raise WriteError(
                f"{self.url}: {what}: {' '.join(str(error).split())[:400] or type(error).__name__}.{times} What was "
                "sent stays there, what was not stays here; the same command goes on once the cause is gone."
            ) from error

    def refuse_others(self, ours: Collection[str]) -> None:
        """Raises `WriteError` if anything is there that is not ours."""
        if others := sorted(self.names() - set(ours)):
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            raise WriteError(
                f"{self.url}: holds {', '.join(others[:SHOWN])}{more} already, which this conversion did not send. "
                "Choose another --output, or remove what is there."
            )


__all__ = ["SendingStoppedError", "Target"]
