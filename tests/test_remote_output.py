"""Outputs that are sent to the Hub or a store while they are made: whole, resumed, or refused.

The Hub is a stand-in; `local://` and `memory://` are stores of fsspec's own. s3 is in test_remote_s3.py.
"""

import hashlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import constants

from conversion import shipping
from conversion.__main__ import main
from conversion.hub_target import HubTarget
from conversion.lazy_files import LazyFile
from conversion.output_folder import OutputFolder
from conversion.store_target import StoreTarget, piece_bytes, s3_etag
from conversion.target import SendingStoppedError
from tests.support.converting import convert, digests, listing, released
from tests.support.ernie_goldens import SMALL
from tests.support.hub_stand_in import Hub, serve_here
from tests.support.remote_outputs import SHARDS, at, be_impatient, converted, killed, on_hub


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requests are made again after a moment; work folders are made in a folder of the test's."""
    be_impatient(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("local") / "glm-130b-sat")


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return converted(folder, tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with a token at hand."""
    with serve_here(monkeypatch) as hub:
        yield hub


def send(folder: Path, url: str, *arguments: str) -> int:
    """Runs the command."""
    return main(["glm130b", f"--source={folder}", f"--output={url}", *SHARDS, *arguments])


def test_to_the_hub(folder: Path, expected: dict[str, str], hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert send(folder, "hf://me/glm", "--private") == 0
    said = capsys.readouterr().out
    assert "sent to      hf://me/glm" in said
    assert said.splitlines()[-1] == "done: hf://me/glm"
    assert on_hub(hub) == expected
    repository = hub.repositories["me/glm"]
    assert repository.private
    shards = [name for name in expected if name.endswith(".safetensors")]
    assert len(shards) == 4
    assert repository.commits[1:-1] == [f"Add {name}" for name in sorted(shards)]
    assert "config.json" in list(repository.history.values())[-1]
    assert all("config.json" not in files for files in list(repository.history.values())[:-1])
    assert not os.listdir()


def test_to_a_store(folder: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json and the index go last; the work folder never holds more than two shards."""
    order: list[str] = []
    most: list[int] = []
    real = StoreTarget.send

    def look(self: StoreTarget, path: Path, name: str, *rest: Any) -> None:
        order.append(name)
        most.append(len([one for one in listing(Path("work")) if one.endswith(".safetensors")]))
        real(self, path, name, *rest)

    monkeypatch.setattr(StoreTarget, "send", look)
    assert send(folder, f"local://{tmp_path}/models/glm", "--work=work") == 0
    assert digests(tmp_path / "models" / "glm") == expected
    assert order[-2:] == ["model.safetensors.index.json", "config.json"]
    assert max(most) <= 2
    assert not os.listdir()


def test_a_dry_run_sends_nothing(folder: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """And says the disk that is needed: the two shards in a row that take the most."""
    assert convert(folder, tmp_path / "out", *SHARDS) == 0
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    capsys.readouterr()
    for url in ("hf://me/glm", f"local://{tmp_path}/models/glm"):
        assert send(folder, url, "--dry-run") == 0
        said = capsys.readouterr().out
        assert f"disk needed  {max(map(sum, pairwise(sizes))):,} bytes" in said
        assert said.splitlines()[-1] == "dry run: nothing was written"
    assert not hub.repositories
    assert not (tmp_path / "models").exists()
    assert not os.listdir()


def test_from_the_hub_to_the_hub_and_back(
    folder: Path, expected: dict[str, str], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank files are sent as rank files; read again from there they convert to the same bytes."""
    assert send(folder, "hf://models/me/glm") == 0
    back = ["--reverse", "--tensor-parallel=2", "--max-shard-size=5GB"]
    assert send(Path(), "hf://me/ranks", "--source=hf://models/me/glm", *back) == 0
    assert hub.repositories["me/ranks"].files.keys() == {
        *(".gitattributes", "latest", "49300/mp_rank_00_model_states.pt", "49300/mp_rank_01_model_states.pt"),
    }
    settings = f"--config={folder / 'config.json'}"
    assert convert("hf://models/me/ranks@main", tmp_path / "again", settings, *SHARDS) == 0
    assert {name: digest for name, digest in digests(tmp_path / "again").items() if "safetensors" in name} == {
        name: digest for name, digest in expected.items() if "safetensors" in name
    }
    capsys.readouterr()


def test_a_commit_while_a_repository_is_read_changes_nothing(
    folder: Path, expected: dict[str, str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read at the commit that was the last when it was opened."""
    target = HubTarget("hf://me/ranks")
    target.prepare()
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.*")] + ["latest"]
    target._commit({name: (folder / name).read_bytes() for name in names}, digests(folder), "ranks")
    real = OutputFolder.add
    times = []

    def commit_meanwhile(self: OutputFolder, write: Callable[[Path], object]) -> None:
        if not times:
            noise = dict.fromkeys(names, b"other")
            target._commit(noise, dict.fromkeys(names, hashlib.sha256(b"other").hexdigest()), "others")
        times.append(1)
        real(self, write)

    monkeypatch.setattr(OutputFolder, "add", commit_meanwhile)
    assert convert("hf://models/me/ranks", tmp_path / "out", *SHARDS) == 0
    assert digests(tmp_path / "out") == expected
    assert hub.repositories["me/ranks"].files["latest"] == b"other"


# Interrupted


MOMENTS = {
    "before anything is made": (OutputFolder, "add", 1, True),
    "before the second shard is sent": (shipping.Shipping, "verified", 2, True),
    "after the second shard was sent": (shipping.Shipping, "verified", 2, False),
    "after that was noted": (OutputFolder, "shipped", 2, False),
    "before the small files": (shipping.Shipping, "deliver", 1, True),
    "after the small files": (shipping.Shipping, "deliver", 1, False),
}


@pytest.mark.parametrize(
    ("kind", "moment"),
    [("store", moment) for moment in MOMENTS]
    + [("hub", moment) for moment in list(MOMENTS)[2:] if "noted" not in moment],
)
def test_a_killed_run_is_gone_on_with(
    folder: Path, expected: dict[str, str], hub: Hub, tmp_path: Path, kind: str, moment: str
) -> None:
    """No shard is sent twice that is there whole."""
    url = "hf://me/glm" if kind == "hub" else f"local://{tmp_path}/models/glm"
    arguments = [f"--source={folder}", f"--output={url}", *SHARDS]
    with killed(arguments, at(*MOMENTS[moment])):
        assert len(os.listdir()) == 1
    if kind == "store":
        there = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.safetensors")}
    assert main(["glm130b", *arguments]) == 0
    assert not os.listdir()
    if kind == "hub":
        assert on_hub(hub) == expected
        sent = Counter(line for line in hub.requests if line.startswith("PUT /objects/"))
        assert set(sent.values()) == {1}
    else:
        assert digests(tmp_path / "models" / "glm") == expected
        assert all(path.stat().st_mtime_ns == time for path, time in there.items())


def test_a_shard_that_was_cut_short_is_sent_again(folder: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """As a store without pieces and commits leaves it."""
    there = tmp_path / "models" / "glm"
    arguments = [f"--source={folder}", f"--output=local://{there}", *SHARDS]
    with killed(arguments, at(shipping.Shipping, "verified", 3, False)):
        shards = sorted(there.glob("*.safetensors"))
        shards[-1].write_bytes(shards[-1].read_bytes()[:1000])
    assert main(["glm130b", *arguments]) == 0
    assert digests(there) == expected


def test_a_shard_that_went_or_changed_since(
    folder: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "models" / "glm"
    arguments = [f"--source={folder}", f"--output=local://{there}", *SHARDS]
    with killed(arguments, at(OutputFolder, "shipped", 3, False)):
        shards = sorted(there.glob("*.safetensors"))
        shards[0].unlink()
        content = bytearray(shards[1].read_bytes())
        content[-1] ^= 1
        shards[1].write_bytes(content)
    assert main(["glm130b", *arguments]) == 1
    assert f"holds {shards[1].name} already, which this conversion did not send" in capsys.readouterr().err
    shards[1].unlink()
    assert main(["glm130b", *arguments]) == 0
    assert digests(there) == expected


def test_ctrl_c(
    folder: Path,
    expected: dict[str, str],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = LazyFile.rectangles
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    original = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background may ignore it
    try:
        with monkeypatch.context() as patched:
            patched.setattr(LazyFile, "rectangles", interrupted)
            assert send(folder, "hf://me/glm") == 130
    finally:
        signal.signal(signal.SIGINT, original)
    assert "glm-hf.incomplete is kept; the same command goes on from here" in capsys.readouterr().err
    assert send(folder, "hf://me/glm") == 0
    assert on_hub(hub) == expected


@pytest.mark.parametrize("request_", ["PUT /objects", "POST /api/models/me/glm/commit", "POST /me/glm.git/info/lfs"])
def test_the_network_stumbles(
    folder: Path,
    expected: dict[str, str],
    hub: Hub,
    request_: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fails[request_] = [503, 0, 500]
    assert send(folder, "hf://me/glm") == 0
    assert not hub.fails[request_]
    assert on_hub(hub) == expected


def test_the_network_goes_down(
    folder: Path,
    expected: dict[str, str],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After two shards: what is kept is said, and the same command goes on."""
    real = HubTarget.send
    times = []

    def down(self: HubTarget, path: Path, name: str, *rest: Any) -> None:
        times.append(name)
        if len(times) == 3:
            hub.fails["POST /api/models/me/glm/commit"] = [403] * 10
        real(self, path, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(HubTarget, "send", down)
        assert send(folder, "hf://me/glm") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "hf://me/glm: model-00003-of-00004.safetensors cannot be sent: " in said
    assert "the same command goes on once the cause is gone" in said
    assert len(on_hub(hub)) == 2
    hub.fails.clear()
    assert send(folder, "hf://me/glm") == 0
    assert on_hub(hub) == expected


def test_a_source_that_changes_takes_back_what_was_sent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    rank = next(copy.rglob("*01_model_states.pt"))
    real = shipping.Shipping.verified

    def change(*arguments: Any) -> bool:
        result = real(*arguments)
        os.utime(rank, ns=(1, 1))
        return result

    monkeypatch.setattr(shipping.Shipping, "verified", change)
    assert send(copy, f"local://{tmp_path}/models/glm") == 1
    assert "changed while it was converted" in capsys.readouterr().err
    assert not list((tmp_path / "models").rglob("*.safetensors"))
    assert not os.listdir()


def test_sending_that_is_ended_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 2**20)
    target, calls = StoreTarget("memory://ended"), []

    def end(nbytes: int) -> None:
        calls.append(nbytes)
        raise SendingStoppedError("the run ends")

    with pytest.raises(SendingStoppedError):
        target.send(tmp_path / "x", "x", "", end)
    assert len(calls) == 1


def test_ernie_from_a_store_to_a_store(tmp_path: Path) -> None:
    """Of its source there is a copy here meanwhile."""
    name = sorted(path.parent.name for path in SMALL.glob("*/case.json"))[0]
    assert main(["ernie", f"--source={SMALL / name}", f"--output={tmp_path / 'expected'}", "--no-reference"]) == 0
    arguments = ["ernie", f"--source=local://{SMALL / name}", f"--output=local://{tmp_path}/there/ernie"]
    assert main(arguments) == 0
    assert digests(tmp_path / "there" / "ernie") == digests(tmp_path / "expected")
    assert not os.listdir()


# Refused


def refusal(folder: Path, url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says, after which nothing was made here."""
    assert send(folder, url, *arguments) == 1
    assert not os.listdir()
    return capsys.readouterr().err


def test_a_target_with_other_files(folder: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HubTarget("hf://me/glm").prepare()
    hub.repositories["me/glm"].files["model-00001-of-00004.safetensors"] = b"someone's"
    assert "holds model-00001-of-00004.safetensors already" in refusal(folder, "hf://me/glm", capsys)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "notes.txt").write_text("someone's")
    assert "holds notes.txt already" in refusal(folder, f"local://{tmp_path}/models", capsys, "--dry-run")


def test_files_that_appear_meanwhile(
    folder: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = tmp_path / "models" / "glm"
    real = shipping.Shipping.verified

    def appear(*arguments: Any) -> bool:
        (there / "stranger.bin").write_bytes(b"x")
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(shipping.Shipping, "verified", appear)
        assert send(folder, f"local://{there}") == 1
    assert "holds stranger.bin already" in capsys.readouterr().err
    assert not (there / "config.json").exists()
    (there / "stranger.bin").unlink()
    assert send(folder, f"local://{there}") == 0
    assert digests(there) == expected


def test_what_arrived_damaged(
    folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.damaged.add("model-00002-of-00004.safetensors")
    assert send(folder, "hf://me/glm") == 1
    assert "model-00002-of-00004.safetensors did not arrive as it was sent" in capsys.readouterr().err
    assert "config.json" not in hub.repositories["me/glm"].files
    fs = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(fs, "put_file", lambda self, path, url, **_: self.pipe_file(url, b"x" * os.path.getsize(path)))
    assert send(folder, "memory://damaged/glm") == 1
    assert "model-00001-of-00004.safetensors did not arrive as it was sent" in capsys.readouterr().err
    fsspec.filesystem("memory").rm("/damaged", recursive=True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://glm", "'glm' is not OWNER/NAME: it has no owner. For example: --output hf://my-name/glm-130b-int4"),
        ("hf://me/glm/inside", "is not OWNER/NAME"),
        ("http://127.0.0.1:1/x", "http cannot be written to"),
        ("s4://bucket/x", "cannot be opened"),
        ("memory://a/../b", "no name in a store"),
        ("hf://other/glm", "the repository cannot be made: "),
    ],
)
def test_targets_that_cannot_be(
    folder: Path, hub: Hub, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(folder, url, capsys)
    assert not hub.repositories


def test_tokens(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub.role = "read"
    assert "hf://me/glm: the token may only read" in refusal(folder, "hf://me/glm", capsys)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the token is not accepted" in refusal(folder, "hf://me/glm", capsys)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    assert "--output hf:// needs a token with write access" in refusal(folder, "hf://me/glm", capsys)
    assert not hub.repositories


@pytest.mark.parametrize("option", ["--no-verify", "--reference"])
def test_options_that_need_the_files_here(folder: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "are for outputs that stay here" in refusal(folder, "memory://x/y", capsys, option)
    assert convert(folder, Path("out"), "--private") == 1
    assert "--work and --private go with a URL" in capsys.readouterr().err


def test_the_etag_of_a_file_in_pieces(tmp_path: Path) -> None:
    """As s3 computes it; checked against a server's in test_remote_s3.py."""
    path = tmp_path / "x"
    path.write_bytes(b"abcdefghij")
    assert s3_etag(path, 6) == hashlib.md5(b"abcdefghij").hexdigest()
    pieces = b"".join(hashlib.md5(piece).digest() for piece in (b"abcd", b"efgh", b"ij"))
    assert s3_etag(path, 4) == f"{hashlib.md5(pieces).hexdigest()}-3"
    assert piece_bytes(5 * 10**9) == 2**24
    assert -(-(10**12) // piece_bytes(10**12)) <= 10_000
