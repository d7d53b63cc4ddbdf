"""Checkpoints that lie in a store: the same bytes as from a local folder, and what happens when the network fails.

`memory://` is fsspec's own and in this process; http is a real server. s3 is in test_remote_s3.py.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from conversion import store
from conversion.byte_source import SourceChangedError
from conversion.operations import CheckpointError
from conversion.output_folder import OutputFolder
from conversion.rank_files import MARKS, RankCheckpoint
from conversion.sources import open_source
from conversion.store import StoreError
from conversion.store_source import ObjectPath, parse_place
from tests.support.converting import SIZES, convert, digests, listing, write_settings
from tests.support.converting_ernie import convert as convert_ernie
from tests.support.ernie_goldens import SMALL
from tests.support.plain_parts import cut, write_tar
from tests.support.range_server import Files, serve_files
from tests.support.tiny import whole_state, write_released

ENCODER = sorted(path.parent.name for path in SMALL.glob("*/case.json"))[0]
BIG = bytes(range(256)) * 4 * 1024 * 10  # 10 MiB: more than a request takes


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are made again after a moment."""
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local checkpoint of two ranks."""
    return write_released(tmp_path_factory.mktemp("local") / "glm-130b-sat", whole_state(SIZES), 2)


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it is converted to."""
    out = tmp_path_factory.mktemp("expected")
    assert convert(folder, out / "plain", write_settings(out / "config.json")) == 0
    assert convert(folder, out / "bits", f"--config={out / 'config.json'}", "--bits=4") == 0
    return out


@pytest.fixture
def memory() -> Iterator[str]:
    """A store in this process."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    for name in list(fs.store):
        fs.rm_file(name)
    fs.pseudo_dirs[1:] = []


@pytest.fixture
def files() -> Iterator[Files]:
    """A web server."""
    pytest.importorskip("aiohttp", reason="needs aiohttp, which reads http for fsspec: the extra `remote`")
    with serve_files() as served:
        yield served


def put(local: Path, into: str) -> None:
    """Copies a folder into the store in memory."""
    fs = fsspec.filesystem("memory")
    for path in local.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{into}/{path.relative_to(local)}", path.read_bytes())


def upload(local: Path, files: Files, name: str) -> None:
    """Puts a folder on the web server."""
    for path in local.rglob("*"):
        if path.is_file():
            files.content[f"{name}/{path.relative_to(local)}"] = path.read_bytes()


@pytest.mark.parametrize(
    ("scheme", "form", "bits"),
    [
        ("memory", "iteration", None),
        ("memory", "parts", 4),
        ("memory", "tar", None),
        ("http", "folder", None),
        ("http", "a part", None),
        ("http", "parts", 4),
    ],
)
def test_forms_convert_to_the_same_bytes(
    folder: Path, expected: Path, tmp_path: Path, memory: str, files: Files, scheme: str, form: str, bits: int | None
) -> None:
    """config.json lies beside the weights, in the store."""
    here = tmp_path / "here"
    if form in ("folder", "iteration"):
        for path in folder.rglob("*.*"):
            copy = here / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        (here / "latest").write_bytes((folder / "latest").read_bytes())
    else:
        cut(write_tar(folder, tmp_path / "whole.tar"), here, 10**9 if form == "tar" else 3333)
    inside = here / next(here.glob("4*")).name if form == "iteration" else here
    (inside / "config.json").write_bytes((expected / "config.json").read_bytes())
    upload(here, files, "models/glm")
    put(here, f"{memory}/models/glm")
    url = f"{memory if scheme == 'memory' else files.url}/models/glm"
    url += {"iteration": f"/{inside.name}", "a part": "/glm-130b-sat.tar.part_01"}.get(form, "")
    assert convert(url, tmp_path / "out", *([f"--bits={bits}"] if bits else [])) == 0
    assert digests(tmp_path / "out") == digests(expected / ("bits" if bits else "plain"))


def test_a_converted_folder_goes_back(folder: Path, expected: Path, tmp_path: Path, memory: str, files: Files) -> None:
    put(expected / "plain", f"{memory}/glm")
    upload(expected / "plain", files, "glm")
    back = ["--reverse", "--tensor-parallel=2"]
    for number, url in enumerate((f"{memory}/glm", f"{files.url}/glm/")):
        assert convert(url, tmp_path / str(number), *back) == 0
        assert convert(expected / "plain", tmp_path / f"local-{number}", *back) == 0
        assert digests(tmp_path / str(number)) == digests(tmp_path / f"local-{number}")


def test_a_large_stretch_is_cut_and_asked_for_at_once(files: Files) -> None:
    files.content["x"] = BIG
    source = ObjectPath.of(f"{files.url}/x").bytes()
    assert source.read_bytes(1000, 9 * 2**20) == BIG[1000 : 1000 + 9 * 2**20]
    ranges = [line for line in files.requests if "bytes=" in line]
    assert len(ranges) == 8
    files.requests.clear()
    assert source.read_bytes(5, 100) == BIG[5:105]
    assert files.requests == ["GET x bytes=5-104"]
    places = [(number * 1000, 30) for number in range(200)]
    assert source.read_many(places) == [BIG[at : at + n] for at, n in places]


def test_failing_requests_are_made_again(folder: Path, expected: Path, tmp_path: Path, files: Files) -> None:
    """Every seventh request fails with 500, 503 or 429, every eleventh is cut short."""
    upload(folder, files, "glm")
    files.fails = {number: (500, 503, 429)[number % 3] for number in range(5, 3000, 7)}
    files.cuts = set(range(9, 3000, 11))
    settings = f"--config={expected / 'config.json'}"
    assert convert(f"{files.url}/glm", tmp_path / "out", settings) == 0
    assert digests(tmp_path / "out") == digests(expected / "plain")


@pytest.mark.parametrize("how", ["fails", "cuts"])
def test_a_server_that_goes_on_failing(
    folder: Path, expected: Path, tmp_path: Path, files: Files, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output is kept as it is; the same command goes on when the server is well."""
    upload(folder, files, "glm")
    arguments = [f"--source={files.url}/glm", f"--config={expected / 'config.json'}"]
    assert convert(Path(), tmp_path / "out", *arguments) == 0
    number = len(files.requests) - 12  # in the last look at the source
    files.requests.clear()
    if how == "fails":
        files.fails = dict.fromkeys(range(number, number + 10_000), 503)
    else:
        files.cuts = set(range(number, number + 10_000))
    assert convert(Path(), tmp_path / "again", *arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{files.url}/glm" in said
    assert "run the same command again" in said
    files.fails, files.cuts = {}, set()
    assert convert(Path(), tmp_path / "again", *arguments) == 0
    assert digests(tmp_path / "again") == digests(expected / "plain")


@pytest.mark.parametrize("marks", [True, False])
def test_an_object_that_is_replaced(folder: Path, files: Files, marks: bool) -> None:
    """By an ETag, or, of a server that tells none, by the sample of the content."""
    files.has_marks = marks
    upload(folder, files, "glm")
    checkpoint = RankCheckpoint(open_source(ObjectPath.of(f"{files.url}/glm"), MARKS).place)
    checkpoint.check_content()
    name = next(name for name in files.content if name.endswith("01_model_states.pt"))
    content = bytearray(files.content[name])
    content[len(content) // 2] ^= 1
    files.content[name] = bytes(content)
    time.sleep(1.1)
    said = r"01_model_states.pt: changed while it was converted: it" + ("( was replaced)" if marks else "s content")
    with pytest.raises(SourceChangedError, match=said):
        checkpoint.check_content()


def test_a_range_is_one_of_the_object_that_was_planned_from(files: Files) -> None:
    """However short ago it was replaced."""
    files.content["x"] = BIG
    source = ObjectPath.of(f"{files.url}/x").bytes()
    assert source.read_bytes(7, 100) == BIG[7:107]
    files.content["x"] = BIG[::-1]
    with pytest.raises(SourceChangedError, match="x: changed while it was converted: it was replaced"):
        source.read_bytes(0, 1000)


def test_an_object_that_goes_or_shrinks(memory: str) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{memory}/x", BIG)
    source = ObjectPath.of(f"{memory}/x").bytes()
    fs.pipe_file(f"{memory}/x", BIG[:1000])
    with pytest.raises(SourceChangedError, match="it had 10,485,760 bytes and has 1,000"):
        source.read_bytes(10**6, 1000)
    fs.rm_file(f"{memory}/x")
    source.expire()
    time.sleep(1.1)
    source.expire()
    with pytest.raises(SourceChangedError, match="it is not there any more"):
        source.look()


def test_looks_are_shared_and_last_a_while(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion looks after every tensor at every file: one round of requests every few seconds is enough."""
    fs = fsspec.filesystem("memory")
    for number in range(20):
        fs.pipe_file(f"{memory}/{number}", BIG[:2000])
    places = [ObjectPath.of(f"{memory}/0").parent / str(number) for number in range(20)]
    assert all(isinstance(place, ObjectPath) for place in places)
    sources = [place.bytes() for place in places]
    asked: list[str] = []
    fs_class = type(places[0].store.fs)
    real = fs_class.info
    monkeypatch.setattr(fs_class, "info", lambda self, path, **_: asked.append(path) or real(self, path))
    for source in sources * 5:
        source.look()
    assert not asked
    monkeypatch.setattr(store, "FRESH_SECONDS", 0.05)
    time.sleep(0.1)
    monkeypatch.setattr(store, "FRESH_SECONDS", 30)
    sources[3].look()
    assert len(asked) in (0, 20)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", "s4://bucket/x: cannot be opened|s4://bucket: cannot be opened"),
        ("memory://bucket/none", "no such folder"),
        ("hf://datasets/me/x", "Data sets and Spaces hold no checkpoints"),
        ("http://127.0.0.1:9/x.tar?sig=secret", "a URL with a `\\?` names no folder"),
        ("memory://a/../b", "no name in a store"),
        ("zip::memory://a.zip", "a chain of URLs|no such folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # argparse's, for what is no URL of a store
        assert convert(url, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert any(part in error for part in said.replace("\\", "").split("|")), error
    assert "secret" not in error
    assert not listing(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(store, "url_to_fs", missing)
    with pytest.raises(StoreError, match=r"s3://bucket: Install s3fs to access S3. Run: pip install s3fs"):
        ObjectPath.of("s3://bucket/x").bytes()


def test_secrets_in_a_url_stay_out_of_messages() -> None:
    assert str(parse_place("http://me:secret@127.0.0.1:1/x")) == "http://127.0.0.1:1/x"


def test_a_server_without_ranges(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked for that would send the whole file."""
    files.has_ranges = False
    files.content["glm/x.tar"] = BIG
    assert convert(f"{files.url}/glm/x.tar", tmp_path / "out") == 1
    assert "sends no parts of files. Download it" in capsys.readouterr().err
    assert not [line for line in files.requests if line.startswith("GET glm/x.tar")]


def test_a_claimed_settings_file(folder: Path, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, f"{memory}/glm")
    fsspec.filesystem("memory").pipe_file(f"{memory}/glm/config.json", bytes(20_000_001))
    with pytest.raises(CheckpointError, match=r"glm/config.json: 20,000,001 bytes, which no such file has"):
        open_source(ObjectPath.of(f"{memory}/glm"), MARKS, ("config.json",))


# ERNIE's readers take local files: the source is copied first


@pytest.fixture
def encoder(memory: str) -> str:
    """A small ERNIE in the store, with what a training run left beside it."""
    put(SMALL / ENCODER, f"{memory}/ernie")
    fsspec.filesystem("memory").pipe_file(f"{memory}/ernie/optimizer.pdopt", BIG)
    return f"{memory}/ernie"


@pytest.mark.parametrize("is_file", [False, True])
def test_ernie_is_copied_beside_the_output_and_the_copy_goes(encoder: str, tmp_path: Path, is_file: bool) -> None:
    url = f"{encoder}/model_state.pdparams" if is_file else encoder
    assert convert_ernie(SMALL / ENCODER, tmp_path / "expected") == 0
    assert convert_ernie(url, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


def test_an_interrupted_ernie_goes_on_with_its_copy(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(OutputFolder, "publish", lambda _: signal.raise_signal(signal.SIGTERM))
        assert convert_ernie(encoder, tmp_path / "out") == 143
    assert {path.name for path in tmp_path.iterdir()} == {"out.incomplete", "out.source"}
    copied = tmp_path / "out.source" / "files"
    assert listing(copied) == sorted(path.name for path in (SMALL / ENCODER).iterdir())
    weights = (copied / "model_state.pdparams").stat()
    (copied / "config.json").write_text("{}")
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{encoder}/config.json", (SMALL / ENCODER / "config.json").read_bytes())  # made anew: fetched again
    seen = []
    monkeypatch.setattr(
        OutputFolder, "recheck", lambda *_: seen.append((copied / "model_state.pdparams").stat()) or []
    )
    assert convert_ernie(encoder, tmp_path / "out") == 0
    assert [(one.st_ino, one.st_mtime_ns) for one in seen] == [(weights.st_ino, weights.st_mtime_ns)]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    capsys.readouterr()


def test_a_refused_ernie_leaves_no_copy(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fsspec.filesystem("memory").pipe_file(f"{encoder}/model_state.pdparams", b"no weights")
    assert convert_ernie(encoder, tmp_path / "out") == 1
    assert not listing(tmp_path)
    (tmp_path / "out.source").mkdir()
    assert convert_ernie(encoder, tmp_path / "out") == 1
    assert "out.source: is there already, and no copy of a source" in capsys.readouterr().err
    assert convert_ernie(f"{encoder}/none", tmp_path / "other") == 1
    assert "ernie/none: no such file or folder" in capsys.readouterr().err
    assert listing(tmp_path) == ["out.source"]
