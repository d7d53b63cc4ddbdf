"""`inspect --deep`: a changed byte is found, and where it is; what has no checksums is said to have none."""

import json
import os
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conversion.__main__ import main
from conversion.inspect_command import inspect
from conversion.inspect_files import places_of
from conversion.inspect_look import Question
from conversion.inspect_report import Finding, Report
from conversion.source_file import SourceFile
from conversion.source_span import Segment, SourceSpan
from conversion.torch_zip import damaged_headers, read_records
from tests.support.converting import SIZES, write_settings
from tests.support.tiny import rank_path, whole_state, write_released

SAMPLES = Path(__file__).parents[1] / "examples"


def look(source: Path, deep: bool = True) -> Report:
    return inspect(Question(source), deep)


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def places(findings: list[Finding]) -> list[tuple[str, int | None, int | None]]:
    return [(place.file, place.start, place.stop) for found in findings for place in found.places]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_released(tmp_path / "glm", whole_state(SIZES), 2)
    write_settings(tmp_path / "glm" / "config.json")
    return tmp_path / "glm"


def test_tensors_of_a_rank(folder: Path) -> None:
    """A byte in a record: the record is named, and no other."""
    path = rank_path(folder, 1)
    whole = path.read_bytes()
    records = read_records(SourceFile.of(path))
    assert look(folder).status == "complete"
    for name, record in records.items():
        if name not in ("data/0", "data/7", "data/13", "data/26"):
            continue
        flipped(path, record.offset + record.nbytes // 2)
        (found,) = look(folder).errors
        start = record.offset
        assert places([found]) == [("49300/mp_rank_01_model_states.pt", start, start + record.nbytes)]
        assert found.kind == "damaged"
        assert found.tensor.startswith("transformer.")
        assert not look(folder).command
        assert look(folder, deep=False).status == "complete"  # which reads no tensor
        path.write_bytes(whole)


def test_bytes_all_over_an_archive(folder: Path) -> None:
    """In headers, pickle, directory and the space between: found, if anything says what they were."""
    path = rank_path(folder, 0)
    whole = path.read_bytes()
    source = SourceFile.of(path)
    records = read_records(source)
    pickle = records["data.pkl"]
    directory = max(record.offset + record.nbytes for record in records.values())
    name = "49300/mp_rank_00_model_states.pt"
    for at in random.Random(0).sample(range(directory), 20):
        flipped(path, at)
        found = look(folder).errors
        assert found
        assert {place.file for one in found for place in one.places} == {name}
        path.write_bytes(whole)
    for at in (pickle.offset, pickle.offset + 50, pickle.offset + pickle.nbytes - 1):
        flipped(path, at)
        (found,) = look(folder, deep=False).errors  # the pickle is looked at in any case
        assert places([found]) == [(name, pickle.offset, pickle.offset + pickle.nbytes)]
        path.write_bytes(whole)
    flipped(path, 12)  # the time in the first record's header, which nothing depends on
    assert look(folder, deep=False).status == "complete"
    (found,) = look(folder).errors
    assert places([found])[0][:2] == (name, 0)
    assert "the tensors can be read" in found.text
    path.write_bytes(whole)
    flipped(path, len(whole) - 22)  # the end of the archive
    (found,) = look(folder).errors
    assert places([found])[0][2] == len(whole)


def test_archives_without_checksums(folder: Path) -> None:
    """torch can be told to compute none."""
    torch.serialization.set_crc32_options(False)
    try:
        write_released(folder.parent / "other", whole_state(SIZES), 2)
    finally:
        torch.serialization.set_crc32_options(True)
    write_settings(folder.parent / "other" / "config.json")
    report = look(folder.parent / "other")
    assert report.status == "complete"
    assert sum(found.kind == "unchecked" for found in report.findings) == 2


def test_converted_folders_by_the_recorded_sha256(tmp_path: Path) -> None:
    source, output = SAMPLES / "sample-ernie" / "uie", tmp_path / "out"
    assert main(["ernie", f"--source={source}", f"--output={output}", "--no-reference"]) == 0
    assert look(output).status == "complete"
    flipped(output / "model.safetensors", -1)
    (found,) = look(output).errors
    size = (output / "model.safetensors").stat().st_size
    assert (found.kind, places([found])) == ("mismatch", [("model.safetensors", 0, size)])
    assert look(output, deep=False).status == "complete"
    (output / "conversion.json").unlink()
    report = look(output)
    assert report.status == "complete"
    assert "unchecked" in [found.kind for found in report.findings]


def test_downloads_from_the_hub_by_their_names_in_the_cache(tmp_path: Path) -> None:
    """The cache calls a large file after its SHA-256, a local folder's metadata hold it."""
    source, output = SAMPLES / "sample-ernie" / "uie", tmp_path / "out"
    assert main(["ernie", f"--source={source}", f"--output={output}", "--no-reference"]) == 0
    sha256 = json.loads((output / "conversion.json").read_text())["sha256"]["model.safetensors"]
    (output / "conversion.json").unlink()
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    blob = snapshot.parent.parent / "blobs" / sha256
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    (output / "model.safetensors").rename(blob)
    for path in output.iterdir():
        path.rename(snapshot / path.name)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{sha256}")
    assert look(snapshot).status == "complete"
    flipped(blob, -1)
    assert [found.kind for found in look(snapshot).errors] == ["mismatch"]
    (blob.parent / "0123.incomplete").write_bytes(b"")
    assert look(snapshot, deep=False).status == "complete"  # another file's, perhaps of another revision
    local = tmp_path / "local"
    metadata = local / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    metadata.parent.mkdir(parents=True)
    for path in snapshot.iterdir():
        (local / path.name).write_bytes(path.read_bytes())
    metadata.write_text(f"commit\n{sha256}\n1.0\n")
    assert [found.kind for found in look(local).errors] == ["mismatch"]


def test_a_disk_that_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stretch that fails is named, and what lies behind it is read."""
    folder = write_released(tmp_path / "glm", whole_state(replace(SIZES, vocabulary=8000)), 2)
    write_settings(folder / "config.json")
    path = rank_path(folder, 0)
    records = read_records(SourceFile.of(path))
    bad = next(record for name, record in records.items() if name == "data/0")
    at = bad.offset + 30_000
    last = next(record for name, record in records.items() if name == "data/26")
    flipped(path, last.offset)
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path) and offset <= at < offset + len(buffers[0]):
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc, by which the test knows which file is read")
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr("conversion.inspect_deep.BLOCK_BYTES", 4096)
    monkeypatch.setattr("conversion.inspect_deep.RETRY_BYTES", 256)
    found = look(folder).errors
    assert [one.text.startswith("the system cannot read it (Input/output error)") for one in found] == [True, False]
    (_, start, stop) = places(found)[0]
    assert start is not None
    assert stop is not None
    assert start <= at < stop <= start + 256
    assert found[1].tensor.startswith("transformer.")


def test_rates_are_measured_from_large_reads_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = look(folder)
    assert report.deep is not None
    assert report.deep.nbytes == sum(path.stat().st_size for path in (folder / "49300").iterdir())
    assert not report.is_measured
    monkeypatch.setattr("conversion.inspect_report.MEASURABLE_BYTES", 1000)
    assert report.is_measured
    need = report.needs[0]
    assert need.seconds(report.rate) == (need.read_bytes + 2 * need.disk_bytes) / report.deep.rate


def test_members_are_named_by_the_parts_they_lie_in(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(bytes(10))
    span = SourceSpan(tmp_path / "whole", [Segment(SourceFile.of(path), 0, 10) for path in paths])
    found = places_of(span.part(tmp_path / "member", 4, 12), "member", 2, 10)
    assert [(place.file, place.start, place.stop) for place in found] == [("a", 6, 10), ("b", 0, 4)]


def test_records_behind_4_gib_are_sound(tmp_path: Path) -> None:
    """torch writes the sizes behind a record in eight bytes from there on, however small it is. The data is a hole."""
    with FakeTensorMode():
        state = {"large": torch.empty(2**31 + 2**20, dtype=torch.float16), "small": torch.empty(9)}
    path = tmp_path / "rank.pt"
    with torch.serialization.skip_data(materialize_fake_tensors=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"module": state}, path)
    assert read_records(SourceFile.of(path))["data/1"].offset > 2**32
    assert list(damaged_headers(SourceFile.of(path))) == []
