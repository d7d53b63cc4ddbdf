"""Signals that end a program become an exception, so that what is done is kept and said."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption(KeyboardInterrupt):
    """A signal that asks the program to end.

    Attributes:
        status: The exit status that shells give to a program that a signal ended.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises `Interruption` in here at the first signal; the next one ends the program as if nobody listened.

    Signals that are ignored stay so, as under nohup. Only the main thread can listen.
    """
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before: dict[int, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise Interruption(number)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Interruption", "interruptible"]
