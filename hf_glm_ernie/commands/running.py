"""The frame of a command that makes files: what it says, its exit statuses, and requests to end."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Made = TypeVar("Made")

DONE, REFUSED = 0, 1  # 2 is argparse's


def run(work: Callable[[], Made], describe: Callable[[Made], str]) -> int:
    """Does a command's work and says what came of it.

    A request to end (SIGTERM) is met as an interruption is, by an exception inside of `work`: what was being made is
    removed.

    Args:
        work: Does it. A ValueError, OSError or ImportError is a refusal: its text goes to stderr.
        describe: What goes to stdout, from what `work` returned.

    Returns:
        The exit status: 0, or 1 if it was refused.

    Raises:
        SystemExit: a request to end, of the status that shells give to it.
    """
    before = signal.signal(signal.SIGTERM, _end)
    try:
        made = work()
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write(f"{describe(made)}\n")
    return DONE


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


__all__ = ["DONE", "REFUSED", "run"]
