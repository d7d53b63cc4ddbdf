"""Archives in parts that are damaged: every kind of damage, at random places, is named by the right part.

What must be found by the headers alone: parts that are missing, short, long, exchanged, copied, of another archive or
too many, and any changed byte of a header, a pickle or another small record. A changed byte of a tensor is found by
reading everything. A part that holds no header (there are such in an archive this small) has nothing to be told by.
"""

import io
import random
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conversion.archive_check import Survey, survey
from conversion.archive_deep import read_through
from conversion.inspect_report import ERROR, WARNING, Finding
from tests.support.archives import NAME, released_members, write_archive
from tests.support.converting import convert, listing, write_settings
from tests.support.tiny import Sizes, rank_path, whole_state, write_released

SIZES = Sizes()
PART_SIZES = (997, 2500, 3333, 5001, 7777, 12_345)
"""Borders inside of headers, pickles, directories and tensors; no rank's size is a multiple of one."""

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
ORDER = (3, 2, 0, 1)


@dataclass(frozen=True)
class Whole:
    """An archive before it is cut.

    Attributes:
        content: Its bytes.
        headers: (first byte, byte behind the last, what) of everything but tensors and filling.
        tensors: (first byte, byte behind the last) of each.
    """

    content: bytes
    headers: tuple[tuple[int, int, str], ...]
    tensors: tuple[tuple[int, int], ...]

    def has_headers(self, part: int, part_bytes: int) -> bool:
        """Whether a part holds a header that it can be told by."""
        begin, end = part * part_bytes, (part + 1) * part_bytes
        return any(min(stop, end) - max(start, begin) > 20 for start, stop, _ in self.headers)


def layout(content: bytes) -> Whole:
    """Where everything is, read by the standard library."""
    headers: list[tuple[int, int, str]] = []
    tensors = []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar.getmembers():
            at = member.offset_data
            headers.append((at - 512, at - 12, "tar header"))  # 12 bytes of filling
            if member.name.endswith("latest"):
                headers.append((at, at + member.size, "latest"))
            if not member.name.endswith(".pt"):
                continue
            raw = content[at : at + member.size]
            archive = zipfile.ZipFile(io.BytesIO(raw))
            for info in archive.infolist():
                name, extra = struct.unpack("<2H", raw[info.header_offset + 26 : info.header_offset + 30])
                header, data = at + info.header_offset, at + info.header_offset + 30 + name + extra
                headers.append((header, header + 30 + name, "record's header"))
                headers.append((data + info.file_size, data + info.file_size + 16, "descriptor"))
                if "/data/" in info.filename:
                    tensors.append((data, data + info.file_size))
                else:
                    headers.append((data, data + info.file_size, "small record"))
            headers.append((at + archive.start_dir, at + member.size - 98, "directory"))
            headers.append((at + member.size - 98, at + member.size, "end"))
    return Whole(content, tuple(headers), tuple(tensors))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> list[Whole]:
    """Archives of four ranks, two and one; GNU and pax headers."""
    made = []
    for ranks, tar_format in ((4, "gnu"), (2, "pax"), (1, "gnu")):
        folder = write_released(tmp_path_factory.mktemp("unpacked") / "glm-130b-sat", whole_state(SIZES), ranks)
        members = released_members([(rank, rank_path(folder, rank)) for rank in ORDER if rank < ranks])
        archive = write_archive(tmp_path_factory.mktemp("tar"), members, FORMATS[tar_format])
        made.append(layout(archive.parts[0].read_bytes()))
    return made


Parts = list[bytes]


def cut(whole: Whole, part_bytes: int) -> Parts:
    return [whole.content[start : start + part_bytes] for start in range(0, len(whole.content), part_bytes)]


def name_of(number: int) -> str:
    return f"{NAME}.part_{number:02d}"


class Folder:
    """A folder of parts that is written over and over; a part that is None is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def write(self, parts: list[bytes | None]) -> Path:
        for old in self.path.iterdir():
            old.unlink()
        for number, content in enumerate(parts):
            if content is not None:
                (self.path / name_of(number)).write_bytes(content)
        return self.path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "parts")


def surveyed(path: Path) -> Survey:
    found = survey(path)
    assert found is not None
    return found


def told(found: Survey) -> list[Finding]:
    return [finding for finding in found.findings if finding.severity in (ERROR, WARNING)]


def named(findings: list[Finding]) -> list[set[str]]:
    """The parts that each finding names."""
    return [{place.file for place in finding.places} for finding in findings]


def flipped(content: bytes, at: int, rng: random.Random) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


# Damage of whole parts. Each kind changes the parts, and tells which are bad and whether that must be found.

Damaged = tuple[list[bytes | None], set[int]]


def missing(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], None, *parts[k + 1 :]], {k}


def short(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], parts[k][: rng.randrange(len(parts[k]) // 2)], *parts[k + 1 :]], {k}


def long(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], parts[k] + b"more", *parts[k + 1 :]], {k}


def zeros(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], bytes(len(parts[k])), *parts[k + 1 :]], {k}


def foreign(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], rng.randbytes(len(parts[k])), *parts[k + 1 :]], {k}


def copied(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts[:k], parts[j], *parts[k + 1 :]], {k}


def exchanged(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    changed: list[bytes | None] = list(parts)
    changed[k], changed[j] = parts[j], parts[k]
    return changed, {k, j}


def too_many(parts: Parts, rng: random.Random, k: int, j: int) -> Damaged:
    return [*parts, rng.randbytes(len(parts[0]))], {len(parts)}


KINDS: tuple[Callable[[Parts, random.Random, int, int], Damaged], ...] = (
    *(missing, short, long, zeros, foreign, copied, exchanged, too_many),
)


def cases(whole: Whole, rng: random.Random, count: int) -> Iterator[tuple[int, Parts, int, int]]:
    """(size of a part, the parts, two of them that can be told by their headers)."""
    last = max(stop for _, stop, _ in whole.headers)
    for _ in range(count):
        part_bytes = rng.choice(PART_SIZES)
        known = [part for part in range(last // part_bytes) if whole.has_headers(part, part_bytes)]
        k, j = rng.sample(known, 2)
        yield part_bytes, cut(whole, part_bytes), k, j


@pytest.mark.parametrize("part_bytes", [509, *PART_SIZES, 10**9])
def test_nothing_is_wrong_with_sound_parts(wholes: list[Whole], folder: Folder, part_bytes: int) -> None:
    for whole in wholes:
        found = surveyed(folder.write([*cut(whole, part_bytes)]))
        assert not found.findings
        assert not read_through(found, lambda nbytes: None)[0]
        assert not found.renames


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_whole_parts(wholes: list[Whole], folder: Folder, kind: Callable[..., Damaged]) -> None:
    rng = random.Random(kind.__name__)
    count = 0
    for whole in wholes:
        for _, parts, k, j in cases(whole, rng, 10):
            changed, bad = kind(parts, rng, k, j)
            findings = told(surveyed(folder.write(changed)))
            names = {name_of(number) for number in bad}
            assert names <= set().union(*named(findings)), (kind.__name__, findings)
            assert all(places & names for places in named(findings)), (kind.__name__, k, findings)
            count += 1
    assert count == 30


def test_changed_bytes_of_headers(wholes: list[Whole], folder: Folder) -> None:
    rng = random.Random(17)
    kinds: Counter[str] = Counter()
    for whole in wholes:
        for what in sorted({header[2] for header in whole.headers}):
            for _ in range(7):
                part_bytes = rng.choice(PART_SIZES)
                start, stop, _ = rng.choice([header for header in whole.headers if header[2] == what])
                at = rng.randrange(start, stop)
                changed = layout_of_parts(flipped(whole.content, at, rng), part_bytes)
                findings = told(surveyed(folder.write(changed)))
                bad = name_of(at // part_bytes)
                assert findings, (what, at)
                assert all(bad in places for places in named(findings)), (what, at, bad, findings)
                within = at % part_bytes
                ranges = [place for finding in findings for place in finding.places if place.file == bad]
                assert any(place.start is not None and place.start <= within < (place.stop or 0) for place in ranges)
                kinds[what] += 1
    assert kinds["tar header"] == kinds["directory"] == 21


def layout_of_parts(content: bytes, part_bytes: int) -> list[bytes | None]:
    return [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]


def test_changed_bytes_of_tensors(wholes: list[Whole], folder: Folder) -> None:
    rng = random.Random(18)
    for whole in wholes:
        for _ in range(10):
            part_bytes = rng.choice(PART_SIZES)
            start, stop = rng.choice(whole.tensors)
            at = rng.randrange(start, stop)
            found = surveyed(folder.write(layout_of_parts(flipped(whole.content, at, rng), part_bytes)))
            assert not found.findings
            progress: list[int] = []
            (finding,), deep = read_through(found, progress.append)
            bad, within = name_of(at // part_bytes), at % part_bytes
            (place,) = [place for place in finding.places if place.file == bad]
            assert place.start is not None
            assert place.start <= within < (place.stop or 0)
            assert finding.tensor.startswith("transformer.")
            assert ("in 2 parts, and which of them" in finding.text) == (len(finding.places) == 2)
            assert sum(progress) == deep.nbytes


def test_two_kinds_of_damage_at_once(wholes: list[Whole], folder: Folder) -> None:
    """Both are named, unless one hides the other; no sound part is."""
    rng = random.Random(19)
    both = 0
    for whole in wholes:
        for part_bytes, parts, k, j in cases(whole, rng, 30):
            kind = rng.choice([missing, zeros, foreign, short])
            changed, _ = kind(parts, rng, k, j)
            at = rng.choice([header for header in whole.headers if header[0] // part_bytes != k])[0] + 5
            other = at // part_bytes
            if other == k or changed[other] is None:
                continue
            changed[other] = flipped(changed[other] or b"", at % part_bytes, rng)
            findings = told(surveyed(folder.write(changed)))
            names = {name_of(k), name_of(other)}
            assert name_of(k) in set().union(*named(findings)), (kind.__name__, k, other, findings)
            assert all(places & names for places in named(findings)), (kind.__name__, k, other, findings)
            both += names <= set().union(*named(findings))
    assert both > 60


# What is said


def texts(path: Path) -> str:
    found = surveyed(path)
    return "\n".join(f"{one.kind}: {one.text} [{', '.join(map(str, one.places))}]" for one in found.findings)


def test_names_that_were_exchanged(wholes: list[Whole], folder: Folder) -> None:
    parts = cut(wholes[0], 5001)
    parts[3], parts[7] = parts[7], parts[3]
    found = surveyed(folder.write([*parts]))
    assert len(found.findings) == 1
    text = found.findings[0].text
    assert f"{name_of(7)} holds what {name_of(3)} should, and {name_of(3)} what {name_of(7)} should" in text
    assert found.findings[0].remedy == f"Exchange the names of {name_of(7)} and {name_of(3)}."
    assert found.renames == {name_of(7): name_of(3), name_of(3): name_of(7)}
    assert not read_through(found, lambda nbytes: None)[0]  # read as it was meant
    for old, new in found.renames.items():
        (folder.path / old).rename(folder.path / f"{new}.new")
    for path in list(folder.path.glob("*.new")):
        path.rename(path.with_suffix(""))
    assert not surveyed(folder.path).findings


def test_the_last_parts_are_missing(wholes: list[Whole], folder: Folder) -> None:
    parts = cut(wholes[0], 5001)
    last = max(stop for _, stop, _ in wholes[0].headers) // 5001
    said = texts(folder.write([*parts[: last - 2]]))
    assert said.startswith("missing: ")
    assert f"{name_of(last - 2)}, {name_of(last - 1)}, {name_of(last)}" in said


def test_missing_parts_hide_no_other_damage(wholes: list[Whole], folder: Folder) -> None:
    """All are named at once, and the tensor that is damaged between them."""
    parts: list[bytes | None] = [*cut(wholes[0], 5001)]
    start, stop = next(one for one in wholes[0].tensors if one[0] // 5001 == one[1] // 5001 == 5)
    parts[5] = flipped(parts[5] or b"", (start + stop) // 2 % 5001, random.Random(1))
    parts[0] = parts[2] = parts[9] = None
    found = surveyed(folder.write(parts))
    assert [finding.kind for finding in found.findings] == ["missing"]
    assert named(list(found.findings)) == [{name_of(0), name_of(2), name_of(9)}]
    (finding,), _ = read_through(found, lambda nbytes: None)
    assert named([finding]) == [{name_of(5)}]
    assert found.again == [name_of(0), name_of(2), name_of(9)]


def test_downloads(wholes: list[Whole], folder: Folder) -> None:
    parts = cut(wholes[0], 5001)
    path = folder.write([*parts[:4], bytes(5001), *parts[5:]])
    (path / f"{name_of(4)}.aria2").write_bytes(b"")
    said = texts(path)
    assert said == f"downloading: still being downloaded: {name_of(4)}.aria2 is there [{name_of(4)}]"


def test_the_same_part_twice(wholes: list[Whole], folder: Folder) -> None:
    parts = cut(wholes[0], 5001)
    path = folder.write([*parts])
    (path / f"{NAME}.part_003").write_bytes(parts[3])
    assert "extra: the same part as" in texts(path)
    parts[6] = parts[2]
    assert texts(folder.write([*parts])) == f"copy: {name_of(6)} is a copy of {name_of(2)} [{name_of(6)}]"


def test_parts_of_another_archive_beside(wholes: list[Whole], folder: Folder) -> None:
    path = folder.write([*cut(wholes[0], 5001)])
    (path / "other.tar.part_00").write_bytes(b"other")
    assert "extra: 1 parts of another archive, other.tar" in texts(path)


def test_checksums_that_were_never_written(tmp_path: Path) -> None:
    """torch can be told not to compute them."""
    torch.serialization.set_crc32_options(False)
    try:
        folder = write_released(tmp_path / "unpacked", whole_state(SIZES), 1)
    finally:
        torch.serialization.set_crc32_options(True)
    archive = write_archive(tmp_path / "tar", released_members([(0, rank_path(folder, 0))]), part_bytes=7777)
    found = surveyed(archive.parts[0].parent)
    assert not found.findings
    (finding,), deep = read_through(found, lambda nbytes: None)
    assert finding.kind == "unchecked"
    assert "have no checksum" in finding.text
    assert deep.nbytes == 0


def test_what_is_no_archive(tmp_path: Path) -> None:
    assert survey(tmp_path) is None
    (tmp_path / "readme.txt").write_text("nothing")
    assert survey(tmp_path / "readme.txt") is None
    for content in (b"", b"\0", b"x" * 5000, bytes(5000)):
        (tmp_path / name_of(0)).write_bytes(content)
        found = surveyed(tmp_path)
        assert found.findings or not any(content)


# What the converter says


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_converter_names_the_part(
    wholes: list[Whole],
    folder: Folder,
    kind: Callable[..., Damaged],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = random.Random(20)
    settings = write_settings(tmp_path / "s.json")
    for _, parts, k, j in cases(wholes[0], rng, 3):
        changed, bad = kind(parts, rng, k, j)
        source = folder.write(changed)
        before = listing(tmp_path)
        assert convert(source, tmp_path / "out", settings) == 1
        said = capsys.readouterr().err
        assert all(name_of(number) in said for number in bad), said
        assert "Traceback" not in said
        assert listing(tmp_path) == before


def test_the_converter_takes_no_changed_header_for_sound(
    wholes: list[Whole], folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record's header tells how long it is itself, and the pickle which record a tensor is in."""
    whole, rng = wholes[0], random.Random(21)
    settings = write_settings(tmp_path / "s.json")
    headers = [header for header in whole.headers if header[2] == "record's header"]
    pickles = [header for header in whole.headers if header[2] == "small record" and header[1] - header[0] > 500]
    places = [rng.choice(headers)[0] + rng.choice((28, 29)) for _ in range(8)]
    places += [rng.randrange(*rng.choice(pickles)[:2]) for _ in range(8)]
    for at in places:
        source = folder.write(layout_of_parts(flipped(whole.content, at, rng), 5001))
        assert convert(source, tmp_path / "out", settings) == 1
        assert name_of(at // 5001) in capsys.readouterr().err
