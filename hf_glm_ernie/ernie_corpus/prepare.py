"""Files of any size to a corpus for pre-training, in any number of processes.

Three stages (`stages.py`): clean every unit; find which keys came before; write what is left. Between them only the
keys of all documents are shared, as files. Everything is written into `OUTPUT.incomplete`, which is renamed when all
is there; a run that was stopped is gone on with by the same call.
"""

import dataclasses
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeAlias

from tqdm.auto import tqdm

from .finished_files import UNFINISHED, read_json, write_json
from .near_duplicates import SHINGLE_SIZE, BandKeys
from .occurrences import count_partitions
from .reading import ERROR, LINES, SAMPLE_BY, SKIP
from .report import CorpusReport
from .stages import (
    JIEBA,
    OUTPUT_FORMATS,
    PARQUET,
    SEGMENTERS,
    Job,
    clean_unit,
    find_duplicates,
    unit_report,
    write_unit,
)
from .text_rules import MIN_WORDS
from .units import cut_units, find_files
from .words import jieba_words

REPORT, PLAN = "report.json", "plan.json"
LEAST_MEMORY = 2**20


@dataclasses.dataclass(frozen=True)
class CorpusArguments:
    """How a corpus is prepared.

    Attributes:
        column: Where JSON lines and parquet have the text.
        sample_by: What a document is in `.txt`, as `datasets` calls it: a "line", a "paragraph" (up to a blank line)
            or the whole "document".
        unreadable: "error": a record that cannot be read ends the run. "skip": it is left out and counted.
        min_words: Sentences of fewer words are dropped.
        segmenter: What is a word of Chinese text: "jieba", or "characters": each of them is one, which is three
            times faster.
        near_duplicates: Jaccard similarity of documents of which only the first is kept. Default: none are looked for.
        shingle_size: Characters of the shingles whose sets are compared.
        word_spans: Adds the column `spans` for [`KnowledgeMasking`].
        output_format: "parquet" or "jsonl".
        unit_size: Bytes of input that become one file: small files are put together up to this.
        memory: Bytes a process may take to find duplicates.
        workers: How many processes.
        progress: Bars.

    Raises:
        ValueError: a value that is not one of the above.
    """

    column: str = "text"
    sample_by: str = LINES
    unreadable: str = ERROR
    min_words: int = MIN_WORDS
    segmenter: str = JIEBA
    near_duplicates: float | None = None
    shingle_size: int = SHINGLE_SIZE
    word_spans: bool = False
    output_format: str = PARQUET
    unit_size: int = 2**28
    memory: int = 2**30
    workers: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("sample_by", SAMPLE_BY),
            ("unreadable", (ERROR, SKIP)),
            ("segmenter", tuple(SEGMENTERS)),
            ("output_format", OUTPUT_FORMATS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {list(allowed)}.")
        for name, least in (("min_words", 0), ("unit_size", 1), ("memory", LEAST_MEMORY), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.near_duplicates is not None:
            BandKeys(self.near_duplicates, shingle_size=self.shingle_size)
        if self.segmenter == JIEBA:
            next(jieba_words("a"))  # says at once if it is not installed

    @property
    def settings(self) -> dict[str, object]:
        """What changes the files; the rest changes only how they are made."""
        others = ("memory", "workers", "progress")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in others}


def prepare_corpus(
    inputs: Sequence[str | Path], output: str | Path, arguments: CorpusArguments | None = None
) -> CorpusReport:
    """Prepares a corpus as ERNIE 3.0's was, and writes it with a report.

    Repeated characters, repeated paragraphs, sentences of few words and documents that share the three longest
    sentences with an earlier one are dropped; near-duplicates of an earlier one if asked for. Earlier is earlier in
    the list of files. The files written, `corpus-NNNNN.parquet` and `report.json`, do not depend on the number of
    processes. A run that was stopped is gone on with by the same call.

    Args:
        inputs: Files, addresses or patterns: [`read_corpus`] says of what kinds.
        output: A folder that is not there.
        arguments: How (default: the paper's rules).

    Returns:
        What was read, dropped for which reason, and written.

    Raises:
        FileExistsError: the output is there, or what is there of it was begun from other files or with other settings.
        ValueError: no files, files of unknown kinds or damaged, records that cannot be read.
        OSError: a file cannot be read or written.
        ImportError: a package is missing.
    """
    arguments, output = arguments or CorpusArguments(), Path(output)
    if output.exists():
        raise FileExistsError(f"{output} already exists: give another folder, or remove it.")
    job = Job(
        output.with_name(f"{output.name}.incomplete"),
        tuple(cut_units(find_files(inputs), arguments.unit_size)),
        arguments.settings,
    )
    _begin(job)
    report = _run(job, arguments)
    write_json(
        job.work / REPORT,
        {"settings": job.settings, "files": sum(len(unit.files) for unit in job.units)} | report.to_json(),
    )
    _finish(job)
    os.replace(job.work, output)
    return report


def _begin(job: Job) -> None:
    """Makes the folder of the run, or holds the one that is there against what is asked for."""
    plan = {"settings": job.settings, "files": [[[one.path, one.size] for one in unit.files] for unit in job.units]}
    if (job.work / PLAN).exists():
        begun = read_json(job.work / PLAN)
        differing = [name for name in job.settings if begun["settings"].get(name) != job.settings[name]]
        differing += ["the list of files or their sizes"] * (begun["files"] != plan["files"])
        if differing:
            raise FileExistsError(
                f"{job.work} was begun otherwise: {', '.join(differing)}. Repeat the call that began it, or remove it "
                "to begin anew."
            )
    elif job.work.exists():
        shutil.rmtree(job.work)
    for folder in _folders(job):
        (job.work / folder).mkdir(parents=True, exist_ok=True)
    if not (job.work / PLAN).exists():
        write_json(job.work / PLAN, plan)


def _finish(job: Job) -> None:
    """Removes all but the corpus, in an order in which a run that is stopped here, too, can be gone on with.

    What stage 1 finished goes first: then whatever else is gone is made again. Without a plan all begins anew.
    """
    for folder in _folders(job):
        shutil.rmtree(job.work / folder)
    for path in job.work.glob(f"*{UNFINISHED}"):
        path.unlink()
    (job.work / PLAN).unlink()


def _folders(job: Job) -> list[str]:
    return ["cleaned", "keys", *job.kinds, "written"]


def _run(job: Job, arguments: CorpusArguments) -> CorpusReport:
    units = range(len(job.units))
    with _Processes(job, min(arguments.workers, len(units)), arguments.progress) as processes:
        processes(clean_unit, units, "Cleaning", sum(unit.size for unit in job.units), "B")
        for kind in job.kinds:
            found = sum(read_json(job.file("cleaned", unit, "json"))["keys"][kind] for unit in units)
            partitions = count_partitions(found, arguments.memory)
            for stale in set((job.work / kind).iterdir()) - set((job.work / kind).glob(f"*.of-{partitions:05d}.npy")):
                stale.unlink()  # of a run with other memory: its parts are cut otherwise
            name = f"Duplicates ({kind})"
            processes(find_duplicates, range(partitions), name, partitions, "part", kind, partitions)
        processes(write_unit, units, "Writing", len(units), "file")
    return sum((unit_report(job, unit) for unit in units), CorpusReport())


Stage: TypeAlias = Callable[..., int]
"""Takes the job, a number and what else the stage needs; returns by how much the bar moves."""

_jobs: list[Job] = []
"""In a worker its one job: sent once, not with every number, for it has the names of all files."""


def _start_worker(job: Job) -> None:
    """Takes the job, and sees to it that a worker does not outlive the process that started it."""
    _jobs.append(job)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(stage: Stage, number: int, *others: Any) -> int:
    return stage(_jobs[0], number, *others)


class _Processes:
    """Runs a stage for many numbers, in this process or in others, with a bar.

    Others come from a server that has imported this package once and begun nothing: a fork of this process would
    inherit the threads of torch, pyarrow and fsspec in an unknown state, and each that is spawned would import it all.
    """

    def __init__(self, job: Job, workers: int, progress: bool) -> None:
        self.job, self.progress = job, progress
        self.pool: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            self.pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, stage: Stage, numbers: range, name: str, total: int, unit: str, *others: Any) -> None:
        """Runs the stage for every number; the first error ends it."""
        with tqdm(total=total, desc=name, unit=unit, unit_scale=True, disable=not self.progress) as bar:
            if self.pool is None:
                for number in numbers:
                    bar.update(stage(self.job, number, *others))
                return
            futures: set[Future[int]] = {self.pool.submit(_work, stage, number, *others) for number in numbers}
            for future in futures:
                future.add_done_callback(lambda done: bar.update(0 if done.exception() else done.result()))
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()


__all__ = ["CorpusArguments", "prepare_corpus"]
