"""`inspect` on the parts of GLM-130B's archive: which are missing, short, swapped, too many, damaged."""

import io
import tarfile
from pathlib import Path

import pytest

from conversion.consume_state import write_mark
from conversion.inspect_command import inspect
from conversion.inspect_look import Question
from conversion.inspect_report import Report
from tests.support.converting import SIZES, write_settings
from tests.support.plain_parts import STEM, cut, write_tar
from tests.support.tiny import whole_state, write_released

PART_BYTES = 9_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_released(folder / "glm-130b-sat", whole_state(SIZES), 2)
    return write_tar(folder / "glm-130b-sat", folder / "whole.tar")


def parts_of(archive: Path, into: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    parts = cut(archive, into, part_bytes)
    write_settings(into / "config.json")
    return parts


def look(source: Path, deep: bool = False) -> Report:
    return inspect(Question(source), deep)


def named(report: Report) -> list[tuple[str, str]]:
    """(kind, part) of everything that stands in the way."""
    return [(found.kind, place.file) for found in report.errors for place in found.places]


def part(number: int) -> str:
    return f"{STEM}.part_{number:02d}"


@pytest.mark.parametrize("part_bytes", [601, 4096, PART_BYTES, 10**6])
def test_all_is_there(archive: Path, tmp_path: Path, part_bytes: int) -> None:
    parts = parts_of(archive, tmp_path / "parts", part_bytes)
    for source in (tmp_path / "parts", parts[-1]):
        report = look(source, deep=True)
        assert (report.status, report.form) == ("complete", "parts of the released archive")
        assert report.nbytes == (len(parts), archive.stat().st_size)
        assert report.sizes["hidden_size"] == 32
        assert report.command.startswith("python -m conversion glm130b --source=")
    assert [file.tensors for file in report.files if file.is_member] == [27, 27]


def test_the_joined_archive(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "joined").mkdir()
    tar = tmp_path / "joined" / STEM
    tar.write_bytes(archive.read_bytes())
    write_settings(tmp_path / "joined" / "config.json")
    for source in (tar, tar.parent):
        assert (look(source).status, look(source).form) == ("complete", "the released archive, joined")
    tar.write_bytes(archive.read_bytes()[:40_000])
    assert named(look(tar)) == [("short", STEM)]


@pytest.mark.parametrize("gone", [{0}, {1}, {3}, {1, 4}, {2, 3}])
def test_missing_parts(archive: Path, tmp_path: Path, gone: set[int]) -> None:
    parts = parts_of(archive, tmp_path / "parts")
    for number in gone:
        parts[number].unlink()
    report = look(tmp_path / "parts", deep=True)
    assert {name for _, name in named(report)} == {part(number) for number in gone}
    assert {kind for kind, _ in named(report)} == {"missing"}
    assert report.status == "incomplete"


def test_parts_behind_the_last_are_missed_by_the_headers(archive: Path, tmp_path: Path) -> None:
    parts = parts_of(archive, tmp_path / "parts")
    for path in parts[4:]:
        path.unlink()
    assert named(look(tmp_path / "parts")) == [("missing", part(number)) for number in range(4, len(parts))]


def test_the_end_of_the_archive(archive: Path, tmp_path: Path) -> None:
    """A member may end where the part does: what closes the tar is then missing alone."""
    with tarfile.open(archive) as opened:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in opened)
    parts = parts_of(archive, tmp_path / "parts", end // 2)
    assert len(parts) == 3
    parts[2].unlink()
    assert named(look(tmp_path / "parts")) == [("missing", part(2))]
    (tmp_path / "parts" / part(2)).write_bytes(bytes(1024))
    assert look(tmp_path / "parts").status == "complete"


@pytest.mark.parametrize("number", [0, 2, 5])
def test_short_parts(archive: Path, tmp_path: Path, number: int) -> None:
    parts = parts_of(archive, tmp_path / "parts")
    parts[number].write_bytes(parts[number].read_bytes()[:5000])
    report = look(tmp_path / "parts", deep=True)
    assert ("short", part(number)) in named(report)
    assert {name for _, name in named(report)} == {part(number)}
    places = [place for found in report.errors for place in found.places if found.kind == "short"]
    assert [(place.start, place.stop) for place in places] == [(5000, PART_BYTES)]


def test_parts_that_took_one_anothers_place(archive: Path, tmp_path: Path) -> None:
    count = len(parts_of(archive, tmp_path / "count"))
    for first in range(count - 1):
        for second in range(first + 1, count):
            folder = tmp_path / f"{first}-{second}"
            parts = parts_of(archive, folder)
            contents = parts[first].read_bytes(), parts[second].read_bytes()
            parts[first].write_bytes(contents[1])
            parts[second].write_bytes(contents[0])
            report = look(folder)
            names = {name for _, name in named(report)}
            assert names == {part(first), part(second)}, (first, second, report.errors)
            assert {found.kind for found in report.errors} == {"swapped"}
            told = report.errors[0].text.partition(",")[0]
            assert told in {f"{part(a)} holds what {part(b)} should" for a, b in ((first, second), (second, first))}


def test_parts_of_too_many(archive: Path, tmp_path: Path) -> None:
    parts = parts_of(archive, tmp_path / "parts")
    for number in (len(parts), 41):
        (tmp_path / "parts" / part(number)).write_bytes(bytes(range(256)) * 20)
    (tmp_path / "parts" / "other.tar.part_00").write_bytes(b"x")
    report = look(tmp_path / "parts")
    assert sorted(named(report)) == [
        ("extra", part(len(parts))),
        ("extra", part(41)),
        ("extra", "other.tar.part_00"),
    ]


def test_downloads(archive: Path, tmp_path: Path) -> None:
    parts = parts_of(archive, tmp_path / "parts")
    parts[3].with_name(parts[3].name + ".aria2").write_bytes(b"control")
    parts[3].write_bytes(bytes(PART_BYTES))
    parts[5].rename(parts[5].with_name(parts[5].name + ".crdownload"))
    report = look(tmp_path / "parts", deep=True)
    assert report.status in ("downloading", "incomplete")
    assert {name for _, name in named(report)} == {part(3), part(5)}
    assert ("downloading", part(3)) in named(report)
    assert ("downloading", part(5)) in named(report)


def test_a_flipped_byte_is_named_by_its_part(archive: Path, tmp_path: Path) -> None:
    """Everywhere in a part: headers of the tar, of records, pickles, tensors."""
    parts = parts_of(archive, tmp_path / "parts")
    for number in (0, 1, 4):
        whole = parts[number].read_bytes()
        for at in range(7, len(whole), 1511):
            content = bytearray(whole)
            content[at] ^= 4
            parts[number].write_bytes(content)
            report = look(tmp_path / "parts", deep=True)
            if report.status != "complete":  # else in the space between members, which no checksum covers
                assert part(number) in {name for _, name in named(report)}, (number, at, report.errors)
            else:
                assert whole[at] == 0
        parts[number].write_bytes(whole)


def test_archives_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("photo.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    report = look(path)
    assert report.status == "unknown"
    path.write_bytes(b"\x1f\x8b" + bytes(1000))
    assert "compressed with gzip" in look(path).errors[0].text
    path.write_bytes(b"")
    assert look(path).exit_status == 1


def test_parts_that_a_conversion_is_deleting(archive: Path, tmp_path: Path) -> None:
    """What is missing there is no damage, and the way out is to go on."""
    parts = parts_of(archive, tmp_path / "parts")
    parts[1].unlink()
    write_mark(tmp_path / "parts", tmp_path / "out", "0" * 64)
    report = look(tmp_path / "parts")
    assert [found.kind for found in report.errors] == ["unfinished"]
    assert f"with --consume, and --output {tmp_path / 'out'}" in report.errors[0].text
