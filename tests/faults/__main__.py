"""The long form of the fault tests: `python -m tests.faults`, or `make test-faults`. Prints counts and what is wrong.

Every converter in each direction, and publish, is killed, interrupted, given full disks and failing calls at up to
--most places each, and run again; then come the hostile inputs of every theme.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, Queue

from tqdm import tqdm

from . import hostile, interruptions, runtime_fuzz
from .flows import FLOWS
from .harness import Server, can_build
from .themes import THEMES

Result = tuple[Counter[str], list[str]]
Task = Callable[[Server, Path], Result]


def main() -> int:
    """Runs what is asked for; status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="flows or themes; default: all")
    parser.add_argument("--most", type=int, default=15, help="places at which each kind of fault strikes a flow")
    parser.add_argument(
        "--inputs", type=int, default=1500, help="files damaged at random, and settings that are wrong"
    )
    parser.add_argument("--rows", type=int, default=900, help="random rows and shapes through what must agree")
    parser.add_argument("--jobs", type=int, default=2, help="processes at work")
    options = parser.parse_args()
    if not can_build():
        parser.error("faults are injected by a C library on Linux: `cc` is missing, or this is another system")
    tasks = {name: task for name, task in _tasks(options).items() if not options.only or name in options.only}
    started = time.monotonic()
    counts, wrong = _run(tasks, options.jobs)
    for name, number in counts.items():
        print(f"{name:<32}{number:>7} runs")
    print(f"{counts.total()} runs in {(time.monotonic() - started) / 60:.1f} minutes, {len(wrong)} wrong")
    print("\n".join(wrong))
    return bool(wrong)


def _tasks(options: argparse.Namespace) -> dict[str, Task]:
    def of_flow(flow: interruptions.Flow, server: Server, folder: Path) -> Result:
        return interruptions.campaign(flow, interruptions.KINDS, server, -(-options.most // flow.cost))

    def of_theme(name: str, server: Server, folder: Path) -> Result:
        number, wrong = hostile.campaign(THEMES[name](options.inputs), server, folder)
        return Counter({name: number}), wrong

    def of_rows(server: Server, folder: Path) -> Result:
        return runtime_fuzz.run(options.rows, seed=0)

    flows: dict[str, Task] = {flow.name: partial(of_flow, flow) for flow in FLOWS}
    return flows | {name: partial(of_theme, name) for name in THEMES} | {"rows": of_rows}


def _run(tasks: dict[str, Task], jobs: int) -> Result:
    """Runs tasks, each worker with a server of its own."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        waiting: Queue[tuple[str, Task]] = Queue()
        for item in tasks.items():
            waiting.put(item)

        def work(number: int) -> None:
            with Server(Path(scratch, f"server-{number}")) as server, contextlib.suppress(Empty):
                while True:
                    name, task = waiting.get_nowait()
                    folder = Path(scratch, name)
                    folder.mkdir()
                    ran, bad = task(server, folder)
                    counts.update(ran)
                    wrong.extend(bad)
                    bar.update()
                    bar.write("\n  ".join([f"{name}: {ran.total()} runs, {len(bad)} wrong", *bad[:5]]))

        with tqdm(total=len(tasks), desc="campaigns") as bar, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, range(jobs)))
    return counts, wrong


if __name__ == "__main__":
    sys.exit(main())
