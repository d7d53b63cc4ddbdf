"""Which documents of a corpus are duplicates: signatures, near-duplicates, and finding keys that came before."""

import hashlib
import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from hf_glm_ernie.ernie_corpus import CleanDocuments, CorpusReport, FirstOccurrences, NearDuplicateKeys
from hf_glm_ernie.ernie_corpus.near_duplicates import BandKeys, shingle_hashes
from hf_glm_ernie.ernie_corpus.occurrences import (
    BYTES_A_KEY,
    came_before,
    count_partitions,
    later_occurrences,
    rows_of_unit,
    write_keys,
)
from hf_glm_ernie.ernie_corpus.signatures import document_signature
from tests.reference import corpus_naive as naive
from tests.support.corpus_texts import corpus

CLEAN = CleanDocuments(list)
LONG = ["最长的一句话在这里。", "第二长的话在这里。", "第三长的在这里。"]


def md5(text: str) -> int:
    return int(hashlib.md5(text.encode()).hexdigest(), 16)


def test_the_three_longest_sentences_decide() -> None:
    signature = document_signature([*LONG, "短。"])
    assert int.from_bytes(signature) == sum(map(md5, LONG)) % 2**128
    assert document_signature(["别的。", *reversed(LONG)]) == signature  # the rest differs, and the order
    assert document_signature([f"{LONG[0]} ", f"{LONG[1]}\n", LONG[2]]) == signature
    assert document_signature([*LONG, "这是一句更长的话，所以不一样。"]) != signature
    assert document_signature([*LONG[:2], "第三长的在那里。"]) != signature


def test_fewer_than_three_sentences() -> None:
    assert int.from_bytes(document_signature(LONG[:2])) == sum(map(md5, LONG[:2])) % 2**128
    assert int.from_bytes(document_signature(LONG[:1])) == md5(LONG[0])
    assert document_signature(LONG[:1] * 3) == document_signature(LONG[:1])  # each sentence once
    assert document_signature([]) == bytes(16)


def test_sentences_of_one_length_count_in_the_order_of_characters() -> None:
    sentences = ["甲一。", "乙一。", "丙一。", "丁一。", "戊一。"]
    signatures = {document_signature(order) for order in itertools.permutations(sentences)}
    assert signatures == {(sum(map(md5, sorted(sentences)[-3:])) % 2**128).to_bytes(16)}


def test_a_paragraph_of_another_document_stays() -> None:
    shared = "这一段话在两个文档里都有，一个字也没有改。"
    texts = [f"{shared}\n第一个文档的最长的句子在这里，所以没有人把它当作重复。", f"第二个文档自己的句子。\n{shared}"]
    made = CLEAN({"text": texts})
    assert made["text"] == texts
    assert FirstOccurrences(made["signature"]).is_first.tolist() == [True, True]


def random_keys(rng: np.random.Generator, count: int, kinds: int, dtype: str = "S16") -> np.ndarray:
    drawn = rng.integers(0, kinds, size=count).astype(">u8")
    spread = [hashlib.md5(one.tobytes()).digest()[: np.dtype(dtype).itemsize] for one in drawn]
    return np.array(spread, dtype=dtype)


def later_by_a_set(keys: np.ndarray) -> list[bool]:
    seen: set[bytes] = set()
    return [key in seen or seen.add(key) is not None for key in keys.tolist()]


def test_keys_that_came_before_like_a_set() -> None:
    rng = np.random.default_rng(0)
    for count, kinds in ((0, 1), (1, 1), (50, 1), (300, 40), (300, 10_000)):
        keys = random_keys(rng, count, kinds)
        assert came_before(keys).tolist() == later_by_a_set(keys)
    zeros = np.array([b"\0" * 16, b"\0" * 15 + b"\1", b"a" + b"\0" * 15, b"\0" * 16, b"a" + b"\0" * 15], dtype="S16")
    assert came_before(zeros).tolist() == [False, False, False, True, True]
    same_place = np.array([0, 0, 1])
    assert came_before(np.array([b"k", b"k", b"k"]), same_place).tolist() == [False, False, True]


@pytest.mark.parametrize("width", [1, 3])
def test_sorted_files_find_the_same_for_any_partitions(tmp_path: Path, width: int) -> None:
    rng = np.random.default_rng(1)
    units = [random_keys(rng, rows * width, 60, "S8").reshape(rows, width) for rows in (40, 0, 1, 30)]
    for unit, keys in enumerate(units):
        write_keys(tmp_path, "some", unit, keys)
    rows = [set(row) for keys in units for row in keys.tolist()]
    before = [any(row & earlier for earlier in rows[:at]) for at, row in enumerate(rows)]
    ends = np.cumsum([len(keys) for keys in units])
    for partitions in (1, 2, 7, 64):
        files = [tmp_path / f"later-{partitions}-{number}.npy" for number in range(partitions)]
        for number, file in enumerate(files):
            places = later_occurrences(tmp_path, "some", len(units), number, partitions)
            assert (np.diff(places.astype(np.int64)) > 0).all()
            np.save(file, places)
        for unit, keys in enumerate(units):
            of_unit = before[ends[unit] - len(keys) : ends[unit]]
            assert rows_of_unit(files, unit).tolist() == np.flatnonzero(of_unit).tolist()
    assert 0 < sum(before) < len(before)


MEASURED = r"""
import re, sys
from pathlib import Path
from hf_glm_ernie.ernie_corpus.occurrences import later_occurrences
folder, partitions = Path(sys.argv[1]), int(sys.argv[2])

def kilobytes(name):
    return int(re.search(name + r":\s*(\d+)", Path("/proc/self/status").read_text())[1])

later_occurrences(folder, "few", 4, 0, 1)  # what numpy itself takes
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
found = len(later_occurrences(folder, "many", 4, 1, partitions))
print(found, (kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which tells the peak of memory")
def test_a_partition_takes_the_memory_that_is_planned(tmp_path: Path) -> None:
    """Bytes a key at the peak: more than the sorted keys themselves take, less than what the plan counts on."""
    rng = np.random.default_rng(2)
    count = 400_000
    for kind, rows in (("few", 1000), ("many", count)):
        for unit in range(4):
            keys = rng.integers(0, 2**63, size=(rows, 2), dtype=np.uint64)
            keys[: rows // 2] = np.random.default_rng(3).integers(0, 2**63, size=(rows // 2, 2), dtype=np.uint64)
            write_keys(tmp_path, kind, unit, keys.view("S16"))
    partitions = 4  # keys begin with a number below 2^63, low byte first: spread over the whole range
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), str(partitions)], capture_output=True, text=True, check=True
    )
    found, taken = map(int, done.stdout.split())
    keys = 4 * count / partitions
    assert found == pytest.approx(keys * 3 / 8, rel=0.02)
    assert 24 < taken / keys < BYTES_A_KEY, taken / keys
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("*.many.*"))
    assert on_disk / (4 * count) == pytest.approx(20, abs=0.01)


def test_how_many_partitions() -> None:
    assert count_partitions(10**9, 2**30) == 60
    assert count_partitions(0, 2**30) == 1


def test_a_filter_of_datasets_whichever_way() -> None:
    texts = corpus(400, seed=3)
    dataset = Dataset.from_dict({"text": texts})
    expected = naive.prepared(texts, list)
    for processes in (None, 2):
        cleaned = dataset.map(CLEAN, batched=True, batch_size=37, num_proc=processes)
        first = FirstOccurrences(cleaned["signature"])
        kept = cleaned.filter(first, batched=True, with_indices=True, num_proc=processes)
        assert kept["text"] == expected
    stream: IterableDataset = dataset.to_iterable_dataset(num_shards=5).map(CLEAN, batched=True, batch_size=41)
    first = FirstOccurrences([row["signature"] for row in stream])
    kept_of_stream = list(stream.filter(first, batched=True, with_indices=True))
    assert [row["text"] for row in kept_of_stream] == expected
    assert len(expected) < len([text for text in cleaned["text"] if text])
    assert CorpusReport.from_counts(cleaned["counts"]) == CorpusReport.from_counts(row["counts"] for row in stream)


def test_a_filter_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"keys of \[15, 16\] bytes"):
        FirstOccurrences([bytes(16), bytes(15)])
    with pytest.raises(ValueError, match=r"keys of \[72\] bytes"):
        FirstOccurrences([bytes(72)])
    with pytest.raises(IndexError, match="document 1 has no key: 1 keys"):
        FirstOccurrences([bytes(16)])({}, [0, 1])
    assert FirstOccurrences([None, None]).is_first.tolist() == [False, False]


# Near-duplicates -----------------------------------------------------------------------------------------------------

datasketch = pytest.importorskip("datasketch", reason="needs datasketch, which finds near-duplicates")


def nearly(rng: random.Random, text: str, share: float) -> str:
    """A text with a share of its characters replaced, all in one place."""
    count = int(len(text) * share)
    start = rng.randrange(len(text) - count)
    return text[:start] + "".join(chr(rng.randrange(0x4E00, 0x5000)) for _ in range(count)) + text[start + count :]


def made_up(rng: random.Random, count: int) -> list[str]:
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.4:
            texts.append(nearly(rng, rng.choice(texts), rng.choice((0.02, 0.05, 0.1, 0.2, 0.4))))
        else:
            texts.append("".join(chr(rng.randrange(0x4E00, 0x6000)) for _ in range(rng.randint(50, 400))))
    return texts


def test_shingles_are_those_of_the_characters() -> None:
    rng = random.Random(0)
    text = "今天 天气\n真好，今天天气真好 today 𠀀😂"
    bare = "".join(text.split())
    shingles = [bare[start : start + 5] for start in range(len(bare) - 4)]
    hashes = shingle_hashes(text)
    assert len(hashes) == len(shingles)
    assert dict(zip(shingles, hashes.tolist(), strict=True)) == {one: int(shingle_hashes(one)[0]) for one in shingles}
    many = {"".join(rng.choice("今天天气真好abc") for _ in range(5)) for _ in range(20_000)}
    # 2^32 values: 20,000^2 / 2^33 = 0.05 collisions are expected
    assert len({int(shingle_hashes(one)[0]) for one in many}) >= len(many) - 1
    assert len(shingle_hashes("短")) == len(shingle_hashes("")) == 1


def test_minhashes_estimate_the_similarity_of_texts() -> None:
    rng = random.Random(1)
    keys = BandKeys(0.8, num_perm=256)
    for share in (0.0, 0.05, 0.2, 0.5):
        text = "".join(chr(rng.randrange(0x4E00, 0x6000)) for _ in range(800))
        other = nearly(rng, text, share)
        one, two = ({bare[at : at + 5] for at in range(len(bare) - 4)} for bare in (text, other))
        similarity = len(one & two) / len(one | two)
        estimate = keys.minhashes([text])[0].jaccard(keys.minhashes([other])[0])
        assert abs(estimate - similarity) <= 4 * (similarity * (1 - similarity) / 256) ** 0.5, share


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_documents_are_those_that_minhash_lsh_finds(threshold: float) -> None:
    """A document is a near-duplicate if datasketch's index of all earlier documents answers to it."""
    texts = made_up(random.Random(2), 400)
    keys = BandKeys(threshold)
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=128)
    found = []
    for number, minhash in enumerate(keys.minhashes(texts)):
        found.append(bool(index.query(minhash)))
        index.insert(number, minhash)
    dataset = Dataset.from_dict({"text": texts}).map(NearDuplicateKeys(threshold), batched=True, batch_size=33)
    first = FirstOccurrences(dataset["near_keys"], key_bytes=8)
    assert (~first.is_first).tolist() == found
    assert 5 < sum(found) < 200


def test_the_law_that_is_told() -> None:
    """The figures of `near_duplicates.py`, which are of datasketch's choice of bands."""
    ranges = BandKeys(0.8).ranges
    bands, rows = len(ranges), ranges[0][1] - ranges[0][0]
    assert (bands, rows) == (9, 13)
    probabilities = [round(1 - (1 - similarity**rows) ** bands, 4) for similarity in (0.7, 0.8, 0.9, 0.97)]
    assert probabilities == pytest.approx([0.08, 0.40, 0.93, 0.9999], abs=0.005)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_refused_thresholds(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"near_duplicates={threshold} must be between 0 and 1"):
        BandKeys(threshold)
    with pytest.raises(ValueError, match="shingle_size=0"):
        BandKeys(0.8, shingle_size=0)
