"""s3 both ways, against a server on this machine: in pieces, resumed, and nothing but what was sent."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs s3fs (the extra `remote`)")
moto_server = pytest.importorskip(
    "moto.server", reason="needs moto[server], a stand-in for s3: pip install moto[server]"
)

import boto3  # noqa: E402

from conversion import lazy_files, shipping, store_target  # noqa: E402
from conversion.__main__ import main  # noqa: E402
from conversion.byte_source import SourceChangedError  # noqa: E402
from conversion.store_source import ObjectPath  # noqa: E402
from conversion.store_target import PROBE, SHA256, StoreTarget, s3_etag  # noqa: E402
from tests.support.converting import convert, digests, released  # noqa: E402
from tests.support.hub_stand_in import Hub, serve_here  # noqa: E402
from tests.support.plain_parts import cut, write_tar  # noqa: E402
from tests.support.remote_outputs import SHARDS, at, be_impatient, converted, killed, on_hub  # noqa: E402

BUCKET = "checkpoints"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A running stand-in."""
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Its client; the environment says where it is, as it would for any program."""
    given = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    be_impatient(monkeypatch, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("local") / "glm-130b-sat")


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return converted(folder, tmp_path_factory.mktemp("expected") / "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_here(monkeypatch) as hub:
        yield hub


def upload(s3: Any, local: Path, prefix: str) -> None:
    for path in local.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(local)}")


def on_s3(s3: Any, prefix: str) -> dict[str, str]:
    """Name -> SHA-256 of what lies under a prefix."""
    found = {}
    for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", []):
        body = s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        found[entry["Key"].removeprefix(f"{prefix}/")] = hashlib.sha256(body).hexdigest()
    return found


@pytest.mark.parametrize("bits", [None, 4])
def test_parts_on_s3_to_s3(folder: Path, expected: dict[str, str], tmp_path: Path, s3: Any, bits: int | None) -> None:
    cut(write_tar(folder, tmp_path / "whole.tar"), tmp_path / "parts", 3333)
    (tmp_path / "parts" / "config.json").write_bytes((folder / "config.json").read_bytes())
    upload(s3, tmp_path / "parts", "glm/parts")
    more = [*SHARDS, *([f"--bits={bits}"] if bits else [])]
    if bits:
        assert convert(folder, tmp_path / "bits", *more) == 0
        expected = digests(tmp_path / "bits")
    url = f"s3://{BUCKET}/glm"
    assert main(["glm130b", f"--source={url}/parts", f"--output={url}/converted", *more]) == 0
    assert on_s3(s3, "glm/converted") == expected
    assert not os.listdir()


def test_parts_on_s3_to_the_hub(
    folder: Path,
    expected: dict[str, str],
    tmp_path: Path,
    s3: Any,
    hub: Hub,
) -> None:
    cut(write_tar(folder, tmp_path / "whole.tar"), tmp_path / "parts", 9999)
    upload(s3, tmp_path / "parts", "glm")
    settings = f"--config={folder / 'config.json'}"
    assert main(["glm130b", f"--source=s3://{BUCKET}/glm", "--output=hf://me/glm", settings, *SHARDS]) == 0
    assert on_hub(hub) == expected


def test_back_from_s3(folder: Path, tmp_path: Path, s3: Any) -> None:
    assert convert(folder, tmp_path / "there", *SHARDS) == 0
    upload(s3, tmp_path / "there", "there")
    back = ["--reverse", "--tensor-parallel=2"]
    assert convert(tmp_path / "there", tmp_path / "expected", *back) == 0
    assert main(["glm130b", f"--source=s3://{BUCKET}/there", f"--output=s3://{BUCKET}/back", *back]) == 0
    assert on_s3(s3, "back") == digests(tmp_path / "expected")


def test_a_file_in_pieces_has_the_etag_computed_here(tmp_path: Path, s3: Any) -> None:
    """Two pieces of 16 MiB and a rest; sent again it is known by what s3 keeps of it, without the file."""
    path = tmp_path / "x"
    content = os.urandom(2**20) * 33 + b"end"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    target = StoreTarget(f"s3://{BUCKET}/pieces")
    counted: list[int] = []
    target.send(path, "x", sha256, counted.append)
    assert sum(counted) == len(content)
    head = s3.head_object(Bucket=BUCKET, Key="pieces/x")
    assert head["ETag"] == f'"{s3_etag(path, store_target.PIECE_BYTES)}"'
    assert head["ETag"].endswith('-3"')
    assert head["Metadata"] == {SHA256: sha256}
    assert target.holds("x", sha256, None)
    assert target.holds("x", sha256, path)
    assert not target.holds("x", "0" * 64, None)
    s3.put_object(Bucket=BUCKET, Key="pieces/x", Body=content[:-1] + b"!")  # without our line, of the same size
    assert not target.holds("x", sha256, path)
    assert not target.holds("x", sha256, None)
    s3.put_object(Bucket=BUCKET, Key="pieces/x", Body=content)  # by somebody else, whole: read again
    assert target.holds("x", sha256, None)


MOMENTS = {
    "after the second shard was sent": (shipping.Shipping, "verified", 2, False),
    "before the small files": (shipping.Shipping, "deliver", 1, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_gone_on_with(folder: Path, expected: dict[str, str], s3: Any, moment: str) -> None:
    arguments = [f"--source={folder}", f"--output=s3://{BUCKET}/glm", *SHARDS]
    with killed(arguments, at(*MOMENTS[moment])):
        there = {entry["Key"]: entry["LastModified"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
        assert f"glm/{PROBE}" in there
        assert "glm/config.json" not in there
        assert len(there) == 3 if "second" in moment else 5
    assert main(["glm130b", *arguments]) == 0
    assert on_s3(s3, "glm") == expected
    after = {entry["Key"]: entry["LastModified"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert all(after[name] == time for name, time in there.items() if name.endswith(".safetensors"))


def test_an_object_that_is_replaced_is_not_read_on(s3: Any) -> None:
    """s3 is asked for the object with the ETag that was planned from: no mixture, however short ago it changed."""
    content = os.urandom(2**21)
    s3.put_object(Bucket=BUCKET, Key="x", Body=content)
    source = ObjectPath.of(f"s3://{BUCKET}/x").bytes()
    assert source.read_bytes(100, 50) == content[100:150]
    s3.put_object(Bucket=BUCKET, Key="x", Body=os.urandom(2**21))
    for _ in range(2):
        with pytest.raises(SourceChangedError, match=f"s3://{BUCKET}/x: changed while it was converted: it was rep"):
            source.read_bytes(10**6, 1000)


def test_a_source_that_changes_takes_back_what_was_sent(
    folder: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(s3, folder, "source")
    real = shipping.Shipping.verified

    def change(*arguments: Any) -> bool:
        result = real(*arguments)
        key = next(name for name in on_s3(s3, "source") if "mp_rank_01" in name)
        content = s3.get_object(Bucket=BUCKET, Key=f"source/{key}")["Body"].read()
        s3.put_object(Bucket=BUCKET, Key=f"source/{key}", Body=content[:-1] + b"x")
        return result

    monkeypatch.setattr(shipping.Shipping, "verified", change)
    arguments = [f"--source=s3://{BUCKET}/source", f"--output=s3://{BUCKET}/glm", *SHARDS]
    assert main(["glm130b", *arguments]) == 1
    assert "mp_rank_01_model_states.pt: changed while it was converted" in capsys.readouterr().err
    assert not [name for name in on_s3(s3, "glm") if name != PROBE]
    assert not os.listdir()


@pytest.mark.parametrize("url", ["s3://no-such-bucket/glm", "s3://no-such-bucket"])
def test_a_bucket_that_is_not_there(folder: Path, s3: Any, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """None is made."""
    assert main(["glm130b", f"--source={folder}", f"--output={url}", *SHARDS]) == 1
    assert f"error: {url}: " in capsys.readouterr().err
    assert main(["glm130b", f"--source={url}", "--output=out"]) == 1
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == [BUCKET]
    assert not os.listdir()


def test_ctrl_c_ends_the_sending(
    folder: Path, expected: dict[str, str], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = lazy_files.LazyFile.rectangles, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 60:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    arguments = ["glm130b", f"--source={folder}", f"--output=s3://{BUCKET}/glm", *SHARDS]
    with monkeypatch.context() as patched:
        patched.setattr(lazy_files.LazyFile, "rectangles", interrupted)
        assert main(arguments) == 130
    assert os.listdir() == ["glm-s3.incomplete"]
    assert main(arguments) == 0
    assert on_s3(s3, "glm") == expected
