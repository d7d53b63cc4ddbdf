"""The writer of the tests' archives (`support/archives.py`), against the standard library's and the system's tar."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks.make_checkpoint_glm130b import RELEASED, Shape, write_archive_of, write_checkpoint
from tests.support.archives import cut, data_extents, released_members, write_archive

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
TINY = Shape(hidden=16, inner=24, layers=1, heads=4, vocabulary=32)


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[int, Path]]:
    """Two files in the wrong order, the second mostly a hole."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(range(256)) * 5)
    with second.open("wb") as file:
        file.write(b"begins")
        file.seek(2**20)
        file.write(b"ends")
    return [(5, second), (0, first)]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_joined_parts_are_a_tar_of_the_files(
    tmp_path: Path, files: list[tuple[int, Path]], tar_format: str
) -> None:
    """Cut inside a header, at a border of blocks, twice inside the data and inside the empty blocks at the end."""
    members = released_members(files)
    whole = write_archive(tmp_path / "whole", members, FORMATS[tar_format])
    data = whole.members["glm-130b-sat/49300/mp_rank_05_model_states.pt"].data
    borders = (700, 1536, data + 1, data + 2**20 + 2, whole.size - 100)
    archive = write_archive(tmp_path / "parts", members, FORMATS[tar_format], borders=borders)
    joined = b"".join(part.read_bytes() for part in archive.parts)
    assert [part.name for part in archive.parts] == [f"glm-130b-sat.tar.part_{n:02d}" for n in range(6)]
    assert joined == whole.parts[0].read_bytes()
    assert joined == b"".join(part.read_bytes() for part in cut(whole.parts[0], borders))
    with tarfile.open(whole.parts[0]) as tar:
        assert tar.getnames() == [name for name, _ in members]
        for (name, content), info in zip(members, tar.getmembers(), strict=True):
            assert (info.offset, info.offset_data) == (archive.members[name].header, archive.members[name].data)
            assert info.isdir() == (content is None)
            if content is not None:
                wanted = content if isinstance(content, bytes) else content.read_bytes()
                assert tar.extractfile(info).read() == wanted  # type: ignore[union-attr]  # a file has content
    for offset in (0, 699, 700, data, data + 1, whole.size - 1):
        part, place = archive.at(offset)
        assert part.read_bytes()[place] == joined[offset]


def test_borders_that_do_not_rise_are_refused(tmp_path: Path, files: list[tuple[int, Path]]) -> None:
    for borders in ((700, 700), (0,), (10**9,)):
        with pytest.raises(ValueError, match="they rise"):
            write_archive(tmp_path / "parts", released_members(files), borders=borders)


def test_a_checkpoint_becomes_the_released_archive(tmp_path: Path) -> None:
    """What the system's tar takes out of the parts is the checkpoint."""
    write_checkpoint(tmp_path / "checkpoint", TINY, 2, headers_only=False)
    archive = write_archive_of(tmp_path / "checkpoint", tmp_path / "parts", part_bytes=3000, order=(1, 0))
    assert [part.stat().st_size for part in archive.parts[:-1]] == [3000] * (len(archive.parts) - 1)
    if shutil.which("tar"):
        joined = b"".join(part.read_bytes() for part in archive.parts)
        subprocess.run(["tar", "-xf", "-", "-C", tmp_path], input=joined, check=True)
        for path in (tmp_path / "checkpoint").rglob("*"):
            if path.is_file() and path.name != "config.json":
                there = tmp_path / "glm-130b-sat" / path.relative_to(tmp_path / "checkpoint")
                assert there.read_bytes() == path.read_bytes()


def test_the_released_size_takes_no_disk(tmp_path: Path) -> None:
    if not hasattr(os, "SEEK_DATA"):
        pytest.skip("the system cannot tell where the holes of a file are (SEEK_DATA)")
    write_checkpoint(tmp_path / "checkpoint", RELEASED, 8, headers_only=True)
    archive = write_archive_of(tmp_path / "checkpoint", tmp_path / "parts")
    assert len(archive.parts) == 60  # as released
    assert {part.stat().st_size for part in archive.parts[:-1]} == {4 * 2**30}
    assert sum(part.stat().st_blocks * 512 for part in archive.parts) < 64 * 2**20
    for rank in range(8):
        name = f"mp_rank_{rank:02d}_model_states.pt"
        part, place = archive.at(archive.members[f"glm-130b-sat/49300/{name}"].data)
        path = tmp_path / "checkpoint" / "49300" / name
        with path.open("rb") as file, part.open("rb") as there:
            there.seek(place)
            assert there.read(4096) == file.read(4096)
            assert sum(stop - start for start, stop in data_extents(file)) < 8 * 2**20
