"""A source that is changed while it is converted, or between an interruption and the run that goes on.

Whatever is done to it, the result is that of one state of all its files; or there is none, and a message names the
file.
"""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from conversion import job, writer
from conversion.__main__ import main
from conversion.byte_source import SAMPLE_BYTES, WHOLE_BYTES, SourceChangedError, sample_places
from conversion.lazy_files import TensorFiles
from conversion.operations import CheckpointError
from conversion.source_file import FileState, SourceFile
from conversion.torch_files import open_torch_file
from tests.support import converting_ernie, converting_ernie3
from tests.support.converting import SIZES, listing, write_settings
from tests.support.tiny import Sizes, whole_state, write_ice_text_model, write_released

OLD, NEW = 1, 2
"""Seeds of two checkpoints of the same names, shapes and sizes."""


def write_ranks(folder: Path, seed: int) -> None:
    whole = whole_state(SIZES, seed)
    alike = (".weight", "dense_4h_to_h.bias", "attention.dense.bias", "layernorm.bias")  # of vectors: on every rank
    same = {n: t for n, t in whole_state(SIZES, OLD).items() if t.ndim == 1 and n.endswith(alike)}
    write_released(folder, whole | same, 4)
    write_settings(folder / "config.json")


def write_converted(folder: Path, seed: int) -> None:
    with_ranks = folder.with_name(f"{folder.name}-ranks")
    write_ranks(with_ranks, seed)
    command = ["glm130b", f"--source={with_ranks}", f"--output={folder}", "--max-shard-size=10KB", "--no-verify"]
    assert main(command) == 0


def write_pdparams(folder: Path, seed: int) -> None:
    arrays = converting_ernie.small_arrays("masked_lm")
    arrays = {name: (array + seed).astype(array.dtype) for name, array in arrays.items()}
    converting_ernie.write_checkpoint(folder, arrays, converting_ernie.small_settings("masked_lm"))


def write_static(folder: Path, seed: int) -> None:
    arrays = converting_ernie3.random_arrays(converting_ernie3.layout(), seed=seed)
    converting_ernie3.write_static(folder, arrays, converting_ernie3.SIZES.settings)


FAMILIES: dict[str, tuple[Callable[[Path, int], None], list[str], str]] = {
    "glm130b": (write_ranks, ["glm130b", "--max-shard-size=10KB"], "49300/mp_rank_03_model_states.pt"),
    "glm130b-reverse": (
        write_converted,
        ["glm130b", "--reverse", "--tensor-parallel=2"],
        "model-00001-of-*.safetensors",
    ),
    "ernie": (write_pdparams, ["ernie", "--max-shard-size=10KB"], "model_state.pdparams"),
    "ernie3": (write_static, ["ernie3"], "nlu_mask_lm_out_fc.w_0"),
}
"""Family -> (makes a source, the command, a file of the source)."""


Sources = Callable[[str], Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Family -> a folder with two of its sources and what becomes of the old one."""

    @cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        make, command, _ = FAMILIES[family]
        make(folder / "old", OLD)
        make(folder / "new", NEW)
        assert main([*command, f"--source={folder / 'old'}", f"--output={folder / 'result'}", "--no-verify"]) == 0
        return folder

    return made


class Case:
    """A copy of a family's old source, about to be converted into an empty folder."""

    def __init__(self, family: str, sources: Sources, folder: Path):
        _, command, file = FAMILIES[family]
        made = sources(family)
        self.source, self.work = folder / "old", folder / "work"
        shutil.copytree(made / "old", self.source)
        self.work.mkdir()
        (self.file,), (self.other,) = self.source.glob(file), (made / "new").glob(file)
        self.result = made / "result"
        assert self.file.stat().st_size == self.other.stat().st_size
        self.command = [*command, f"--source={self.source}", f"--output={self.work / 'out'}"]

    def run_with(self, change: Callable[[], Any], writes: int = 3) -> int:
        """The status of the command when something happens after so many writes."""
        with after_writes(writes, change):
            return main(self.command)

    def interrupt(self, writes: int = 3) -> None:
        assert self.run_with(interrupt, writes) == 130
        assert (self.work / "out.incomplete").is_dir()


def interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def after_writes(writes: int, change: Callable[[], Any]) -> Iterator[None]:
    real, count = writer.pwrite_all, 0

    def write(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == writes:
            change()
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "pwrite_all", write)
        yield
    assert count >= writes


def keep_time(path: Path, change: Callable[[], Any]) -> None:
    """Makes a change and sets the time of the content back."""
    times = path.stat()
    change()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def overwrite(path: Path, other: Path) -> None:
    """Writes in place, keeping the inode."""
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def replace(path: Path, other: Path) -> None:
    """Puts another file with the same time in its place."""
    fresh = path.with_name(f".{path.name}.new")
    shutil.copyfile(other, fresh)
    os.utime(fresh, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    fresh.replace(path)


CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "overwritten": overwrite,
    "overwritten, time kept": lambda path, other: keep_time(path, lambda: overwrite(path, other)),
    "replaced, time kept": replace,
    "cut short": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "cut short, time kept": lambda path, other: keep_time(path, lambda: os.truncate(path, 100)),
    "removed": lambda path, other: path.unlink(),
}


OTHERS = [(family, "overwritten, time kept") for family in list(FAMILIES)[1:]]


@pytest.mark.parametrize(("family", "change"), [("glm130b", change) for change in CHANGES] + OTHERS)
def test_a_file_that_changes_while_it_is_read_leaves_nothing_and_is_named(
    family: str, sources: Sources, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(family, sources, tmp_path)
    assert case.run_with(lambda: CHANGES[change](case.file, case.other)) == 1
    assert f"{case.file}: changed while it was converted: " in capsys.readouterr().err
    assert listing(case.work) == []


@pytest.mark.parametrize(("family", "change"), [("ernie", "removed"), ("ernie3", "overwritten, time kept")])
def test_a_file_that_changes_behind_its_reading_does_so_too(
    family: str, sources: Sources, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All was written and verified: only the look before the publication can find it."""
    case = Case(family, sources, tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        real = job.Job.check_source

        def check(self: job.Job) -> None:
            CHANGES[change](case.file, case.other)
            real(self)

        patch.setattr(job.Job, "check_source", check)
        assert main(case.command) == 1
    assert f"{case.file}: changed while it was converted: " in capsys.readouterr().err
    assert listing(case.work) == []


HARMLESS: dict[str, Callable[[Path], Any]] = {
    "a hard link": lambda path: os.link(path, path.parent.parent.parent / "link"),
    "other rights": lambda path: path.chmod(0o600),
    "the same content and time": lambda path: keep_time(path, lambda: overwrite(path, path)),
}


@pytest.mark.parametrize(("family", "change"), [*zip(FAMILIES, HARMLESS, strict=False)])
def test_what_leaves_the_content_alone_does_not_matter(
    family: str, sources: Sources, change: str, tmp_path: Path
) -> None:
    case = Case(family, sources, tmp_path)
    quiet = Lock()  # the reading thread looks too, and between writing and setting the time back it would see a change
    real = FileState.of

    def look(file: Path | int) -> FileState:
        with quiet:
            return real(file)

    def alter() -> None:
        with quiet:
            HARMLESS[change](case.file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileState, "of", look)
        assert case.run_with(alter) == 0
    assert same_weights(case.work / "out", case.result)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two results hold the same files, and the weights are the same in every byte."""
    small = (".md", ".json", ".py")
    names = [name for name in listing(other) if (other / name).is_file()]
    weights = [name for name in names if not name.endswith(small)]
    assert weights
    return listing(one) == listing(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in weights
    )


@pytest.mark.parametrize(("family", "change"), [("glm130b", "replaced, time kept"), *OTHERS])
def test_a_file_of_equal_size_and_time_is_not_mixed_with_what_was_written_before(
    family: str, sources: Sources, change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(family, sources, tmp_path)
    case.interrupt()
    before = listing(case.work)
    CHANGES[change](case.file, case.other)
    assert main(case.command) == 1
    assert "left by a conversion of another source or with other options" in capsys.readouterr().err
    assert listing(case.work) == before


@pytest.mark.parametrize("family", ["glm130b-reverse"])
def test_an_interrupted_run_goes_on_with_the_same_source(family: str, sources: Sources, tmp_path: Path) -> None:
    case = Case(family, sources, tmp_path)
    case.interrupt()
    os.link(case.file, tmp_path / "link")
    assert main(case.command) == 0
    assert same_weights(case.work / "out", case.result)


def cut_short_while_read(case: Case) -> None:
    os._exit(case.run_with(lambda: [os.truncate(path, 200) for path in case.file.parent.iterdir()]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_becomes_shorter_does_not_end_the_process(family: str, sources: Sources, tmp_path: Path) -> None:
    """Mapped, it would: a signal, without a word."""
    case = Case(family, sources, tmp_path)
    process = multiprocessing.get_context("fork").Process(target=cut_short_while_read, args=(case,))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    assert listing(case.work) == []


# What is beside the weights, and options

WITH_TOKENIZER = Sizes(vocabulary=512)
BESIDE: dict[str, Callable[[Path], Any]] = {
    "the tokenizer is taken away": lambda source: (source / "ice_text.model").unlink(),
    "the tokenizer is another": lambda source: (source / "ice_text.model").write_bytes(
        (source / "ice_text.model").read_bytes().replace("语".encode(), "词".encode())
    ),
    "the settings are others": lambda source: write_settings(
        source / "config.json", max_sequence_length=32, num_image_tokens=10
    ),
    "the iteration's name is": lambda source: (source / "latest").write_text("49300\n"),
}


@pytest.mark.parametrize("change", BESIDE)
def test_what_is_beside_the_weights_belongs_to_the_source(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    write_released(source, whole_state(WITH_TOKENIZER), 2)
    write_settings(source / "config.json", num_image_tokens=10)
    write_ice_text_model(source / "ice_text.model")
    command = ["glm130b", f"--source={source}", f"--output={work / 'out'}", "--max-shard-size=10KB"]
    with after_writes(3, interrupt):
        assert main(command) == 130
    before = listing(work)
    assert "out.incomplete/ice_text.model" in before
    BESIDE[change](source)
    assert main(command) == 1
    assert "left by a conversion of another source or with other options" in capsys.readouterr().err
    assert listing(work) == before


def test_settings_that_change_meanwhile(sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("ernie3", sources, tmp_path)
    assert case.run_with((case.source / "ernie_config.json").unlink) == 1
    assert "ernie_config.json: changed while it was converted: it is not there" in capsys.readouterr().err
    assert listing(case.work) == []


OPTIONS = {
    "glm130b": ["--dtype=float32", "--bits=8", "--replicated-from-rank-0", "--max-shard-size=30KB"],
    "glm130b-reverse": ["--dtype=float32", "--tensor-parallel=4"],
    "ernie": ["--dtype=float16", "--task=features", "--layer-norm-eps=1e-5"],
    "ernie3": ["--dtype=float16", "--layer-norm-eps=1e-5", "--branch-num-attention-heads=4"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_belongs_to_the_source(
    family: str, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(family, sources, tmp_path)
    case.interrupt()
    before = listing(case.work)
    for option in OPTIONS[family]:
        assert main([*case.command, option]) == 1, option
        assert "left by a conversion of another source or with other options" in capsys.readouterr().err
        assert listing(case.work) == before
    assert main(case.command) == 0


# Samples, and what the system says


def test_samples_are_spread_and_every_tensor_has_one() -> None:
    assert sample_places(0, []) == ()
    assert sample_places(WHOLE_BYTES, [5]) == (0,)  # the whole file
    for size in (WHOLE_BYTES + 1, 3 * 10**7, 33 * 10**9):
        starts = [200, size // 3, size - 1]
        places = sample_places(size, starts)
        assert places[0] == 0
        assert places[-1] == size - SAMPLE_BYTES  # the last byte is in it
        assert {200, size // 3} <= set(places)
        assert len(places) <= 260
        assert max(b - a for a, b in pairwise(places)) <= max(size // 7, 2**27)


@pytest.mark.parametrize("place", ["a tensor alone", "the last byte", "a stretch"])
def test_a_large_file_is_known_by_samples(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.pt"
    state = {f"layer.{i}": torch.zeros(300, 1000, dtype=torch.float16) for i in range(20)}
    torch.save({"module": state}, path)
    opened, _ = open_torch_file(path, "module")
    source = TensorFiles([opened])
    identity = source.identity()
    source.check_content()
    stored = opened.tensors["layer.7"]
    at, nbytes = {
        "a tensor alone": (stored.offset, 2),
        "the last byte": (path.stat().st_size - 1, 1),
        "a stretch": (stored.offset + 10**5, path.stat().st_size // 7),
    }[place]

    def change() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\x01" * nbytes)

    keep_time(path, change)
    with pytest.raises(SourceChangedError, match=r"its content is another, although its time was kept"):
        source.check([(0, "layer.3")])
    if place == "a tensor alone":  # the others damage the archive
        assert TensorFiles([open_torch_file(path, "module")[0]]).identity() != identity


def test_a_file_that_changes_while_its_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"module": {"a": torch.zeros(3)}}, path)
    opened, _ = open_torch_file(path, "module")
    keep_time(path, lambda: overwrite(path, path))
    with pytest.raises(SourceChangedError, match="while it was looked at"):
        TensorFiles([opened])


def test_a_disk_that_fails_to_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    file = SourceFile(tmp_path / "a", FileState.of(tmp_path / "a"))
    assert bytes(file.read_bytes(2, 3)) == b"cde"

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match=r"a: 3 bytes at 2 cannot be read \(Input/output error\)"):
        file.read_bytes(2, 3)
