"""GLM-130B straight from the parts of its archive: the same bytes as from the unpacked folder, wherever it is cut."""

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from conversion.archive_parts import find_parts
from conversion.byte_source import SourceChangedError
from conversion.operations import CheckpointError
from conversion.rank_files import MARKS, RankCheckpoint
from conversion.sources import open_source
from tests.support.converting import SIZES, convert, digests, listing, write_settings
from tests.support.plain_parts import STEM, cut, write_tar
from tests.support.quantized_tiny import WIDE, whole_quantized, write_quantized
from tests.support.tiny import ITERATION, whole_state, write_released

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
HALF = 64 * 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked checkpoint of two ranks."""
    return write_released(tmp_path_factory.mktemp("unpacked") / "glm-130b-sat", whole_state(SIZES), 2)


@pytest.mark.parametrize("tar_format", FORMATS)
@pytest.mark.parametrize("part_bytes", [509, 4096, 33_333, 10**9])
def test_parts_convert_to_the_bytes_of_the_unpacked_folder(
    folder: Path, tmp_path: Path, tar_format: str, part_bytes: int
) -> None:
    """Parts of 509 bytes have borders inside tar headers, pickles, archive directories and tensors."""
    settings = write_settings(tmp_path / "config.json")
    parts = cut(write_tar(folder, tmp_path / "whole.tar", FORMATS[tar_format]), tmp_path / "parts", part_bytes)
    assert convert(folder, tmp_path / "from-folder", settings) == 0
    assert convert(tmp_path / "parts", tmp_path / "from-parts", settings) == 0
    assert digests(tmp_path / "from-parts") == digests(tmp_path / "from-folder")
    assert len(parts) == -(-(tmp_path / "whole.tar").stat().st_size // part_bytes)


@pytest.mark.parametrize("given", ["first part", "a part", "joined", "folder of the joined"])
def test_what_may_be_named(folder: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "joined").mkdir()
    tar = write_tar(folder, tmp_path / "joined" / STEM)
    parts = cut(tar, tmp_path / "parts", 7777)
    source = {"first part": parts[0], "a part": parts[3], "joined": tar, "folder of the joined": tar.parent}[given]
    settings = write_settings(tmp_path / "settings.json")
    assert convert(source, tmp_path / "out", settings, "--bits=4") == 0
    assert convert(folder, tmp_path / "expected", settings, "--bits=4") == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_releases_in_parts(tmp_path: Path, bits: int) -> None:
    source = write_quantized(tmp_path / "glm-130b-sat", whole_quantized(bits, 2), 2)
    settings = write_settings(tmp_path / "settings.json", **WIDE.settings)
    cut(write_tar(source, tmp_path / "whole.tar"), tmp_path / "parts", 7777)
    assert convert(source, tmp_path / "expected", settings) == 0
    assert convert(tmp_path / "parts", tmp_path / "out", settings) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


def test_parts_by_letters_and_by_long_numbers(folder: Path, tmp_path: Path) -> None:
    tar = write_tar(folder, tmp_path / "whole.tar")
    letters = cut(tar, tmp_path / "letters", 900, lambda number: chr(97 + number // 26) + chr(97 + number % 26))
    numbers = cut(tar, tmp_path / "numbers", 300, "{:04d}".format)
    assert len(letters) > 26
    assert len(numbers) > 100
    for paths in (letters, numbers):
        parts = find_parts(paths[0])
        assert parts is not None
        assert parts.paths == paths
        letters[27].rename(tmp_path / "away") if paths is letters else numbers[101].unlink()
        with pytest.raises(CheckpointError, match=r"missing glm-130b-sat.tar.part_(bb|0101); there are"):
            find_parts(paths[0].parent)


def test_settings_and_tokenizer_lie_beside_the_parts(folder: Path, tmp_path: Path) -> None:
    cut(write_tar(folder, tmp_path / "whole.tar"), tmp_path / "parts", 5000)
    write_settings(tmp_path / "parts" / "config.json")
    assert convert(tmp_path / "parts", tmp_path / "out") == 0
    checkpoint = RankCheckpoint(open_source(tmp_path / "parts", MARKS).place)
    assert checkpoint.iteration == ITERATION


def test_a_part_that_changes_is_found_out(folder: Path, tmp_path: Path) -> None:
    parts = cut(write_tar(folder, tmp_path / "whole.tar"), tmp_path / "parts", 20_000)
    checkpoint = RankCheckpoint(open_source(tmp_path / "parts", MARKS).place)
    name = next(iter(checkpoint.specs))
    checkpoint.check([(0, name), (1, name)])
    content = bytearray(parts[2].read_bytes())
    content[100] ^= 1
    parts[2].write_bytes(content)
    with pytest.raises(SourceChangedError, match=r"part_02: changed while it was converted: it was written to"):
        checkpoint.check([(0, name), (1, name)])


# What is refused


def in_parts(content: bytes, into: Path) -> Path:
    """A tar of two parts, the second the shorter one."""
    into.mkdir()
    (into / f"{STEM}.part_00").write_bytes(content[:HALF])
    (into / f"{STEM}.part_01").write_bytes(content[HALF:])
    return into


def refusal(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says, after which nothing is there."""
    before = listing(tmp_path)
    assert convert(source, tmp_path / "out", write_settings(tmp_path / "s.json")) == 1
    assert set(listing(tmp_path)) - set(before) <= {"s.json"}
    return capsys.readouterr().err


def test_compressed_archives(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = gzip.compress(write_tar(folder, tmp_path / "whole.tar").read_bytes())
    source = in_parts(content, tmp_path / "parts")
    said = refusal(source, tmp_path, capsys)
    assert "part_*: compressed with gzip" in said
    assert "gunzip" in said


def test_a_sparse_member(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python writes none, so the header of GNU tar's old form is written here: type S, one stretch, the real size."""
    info = tarfile.TarInfo(f"glm-130b-sat/{ITERATION}/mp_rank_00_model_states.pt")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"%011o\0" % 0 + b"%011o\0" % 512
    header[483:495] = b"%011o\0" % 10**6
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = write_tar(folder, tmp_path / "whole.tar").read_bytes()
    said = refusal(in_parts(bytes(header) + bytes(512) + content, tmp_path / "parts"), tmp_path, capsys)
    assert "mp_rank_00_model_states.pt is stored sparse" in said


def names_of(content: bytes) -> list[tarfile.TarInfo]:
    """The members of an archive."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmembers()


@pytest.mark.parametrize("member", [1, 2])
def test_a_damaged_header_is_not_taken_for_the_end(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], member: int
) -> None:
    content = bytearray(write_tar(folder, tmp_path / "whole.tar").read_bytes())
    at = names_of(content)[member].offset
    content[at + 3] ^= 4
    part, byte = (0, at) if at < HALF else (1, at - HALF)
    said = refusal(in_parts(bytes(content), tmp_path / "parts"), tmp_path, capsys)
    assert f"{STEM}.part_0{part}: byte {byte:,}: no tar header where glm-130b-sat/" in said


def test_a_last_part_that_is_missing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = in_parts(write_tar(folder, tmp_path / "whole.tar").read_bytes(), tmp_path / "parts")
    (source / f"{STEM}.part_01").unlink()
    assert "are missing. The parts behind the last one are missing" in refusal(source, tmp_path, capsys)


def test_an_archive_without_its_end(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_tar(folder, tmp_path / "whole.tar").read_bytes()
    last = names_of(content)[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    said = refusal(in_parts(content[:end], tmp_path / "parts"), tmp_path, capsys)
    assert "without the empty block that closes a tar" in said


@pytest.mark.parametrize("name", ["../latest", "/latest", "a\nb"])
def test_unsafe_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    assert "a member is called" in refusal(tmp_path / "whole.tar", tmp_path, capsys)


def test_two_members_of_one_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(write_tar(folder, tmp_path / "whole.tar"), "a") as archive:
        archive.add(folder / "latest", "glm-130b-sat/latest")
    assert "two members are called glm-130b-sat/latest" in refusal(tmp_path / "whole.tar", tmp_path, capsys)


def test_a_header_that_claims_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long name of 2 GB: the claim is refused, nothing is allocated for it."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**31
    (tmp_path / "whole.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    assert "a header that claims 2,147,4" in refusal(tmp_path / "whole.tar", tmp_path, capsys)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([900, 900, 700, 900, 100], "part_02 (700) bytes; every part but the last has 900"),
        ([900, 900, 901], "part_02: 901 bytes, more than the parts before it (900)"),
        ([900, 900, 0], "part_02: 0 bytes"),
    ],
)
def test_sizes_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: Sequence[int], said: str
) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / f"{STEM}.part_{number:02d}").write_bytes(bytes(size))
    assert said in refusal(tmp_path, tmp_path.parent, capsys)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["part_00", "part_02"], "missing glm-130b-sat.tar.part_01; there are 2 parts up to glm-130b-sat.tar.part_02"),
        (["part_00", "part_01", "part_1"], "part_01 and glm-130b-sat.tar.part_1 are the same part"),
        (["part_00", "part_01", "part_01.aria2"], "part_01 still being downloaded"),
    ],
)
def test_names_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: Sequence[str], said: str
) -> None:
    for name in names:
        (tmp_path / f"{STEM}.{name}").write_bytes(bytes(900))
    assert said in refusal(tmp_path, tmp_path.parent, capsys)


def test_parts_of_two_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (f"{STEM}.part_00", "other.tar.part_00"):
        (tmp_path / name).write_bytes(bytes(900))
    assert "parts of 2 archives: glm-130b-sat.tar.part_*, other.tar.part_*" in refusal(
        tmp_path, tmp_path.parent, capsys
    )
