"""Corpora prepared from files: formats, damage, any number of processes, kills, the command line."""

import bz2
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node

from hf_glm_ernie import __main__ as package
from hf_glm_ernie.ernie_corpus import (
    CleanDocuments,
    CorpusArguments,
    CorpusReport,
    prepare_corpus,
    read_corpus,
    stages,
)
from hf_glm_ernie.ernie_corpus import prepare as prepare_module
from hf_glm_ernie.ernie_corpus.near_duplicates import BandKeys
from hf_glm_ernie.ernie_corpus.reading import UnreadableRecord
from hf_glm_ernie.ernie_corpus.units import SourceFile, Unit, cut_units, find_files
from tests.reference import corpus_naive as naive
from tests.support.corpus_texts import corpus
from tests.support.finetuning import cache_in
from tests.support.page_blocks import check_shown, run_page

ROOT = Path(__file__).parents[1]
TEXTS = corpus(300, seed=5)
QUIET: dict[str, Any] = {"segmenter": "characters", "progress": False}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path) -> Any:
    with cache_in(tmp_path / "cache"):
        yield


def json_lines(texts: Sequence[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, key: text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def write_parts(folder: Path, texts: Sequence[str] = TEXTS, files: int = 6) -> list[str]:
    """The texts in as many files, one of them empty, of every format."""
    folder.mkdir()
    size = -(-len(texts) // (files - 1))
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    writers: list[Callable[[Path, Sequence[str]], Any]] = [
        lambda path, part: path.with_suffix(".jsonl").write_bytes(json_lines(part)),
        lambda path, part: path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(json_lines(part))),
        lambda path, part: pq.write_table(pa.table({"text": part}), path.with_suffix(".parquet"), row_group_size=7),
        lambda path, part: path.with_suffix(".jsonl.bz2").write_bytes(bz2.compress(json_lines(part))),
    ]
    parts.insert(2, [])
    for number, part in enumerate(parts):
        writers[number % len(writers)](folder / f"part-{number}", part)
    return sorted(str(path) for path in folder.iterdir())


def output_of(folder: Path) -> dict[str, Any]:
    """Name -> rows, or the report."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_text("utf-8")
    return found


def texts_of(folder: Path) -> list[str]:
    return [row["text"] for rows in output_of(folder).values() if isinstance(rows, list) for row in rows]


# Reading -------------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_texts_in_order(tmp_path: Path) -> None:
    stream = read_corpus(write_parts(tmp_path / "in"))
    assert [row["text"] for row in stream] == TEXTS
    assert stream.num_shards == 6
    by_rank = [[row["text"] for row in split_dataset_by_node(stream, rank, 2)] for rank in (0, 1)]
    assert sorted(by_rank[0] + by_rank[1]) == sorted(TEXTS)
    assert all(by_rank)


@pytest.mark.parametrize("sample_by", ["line", "paragraph", "document"])
def test_plain_text_is_read_as_datasets_reads_it(tmp_path: Path, sample_by: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("第一行\r\n二\u2028行\n\n第三行\n第四行\n\n\n\n第五行".encode())
    theirs = load_dataset("text", data_files=str(path), split="train", sample_by=sample_by)["text"]
    mine = [row["text"] for row in read_corpus([str(path)], sample_by=sample_by)]
    assert [text.replace("\r\n", "\n").strip("\n") for text in mine] == [
        text.strip("\n") for text in theirs if text.strip()
    ]


def test_what_no_document_is_has_its_place(tmp_path: Path) -> None:
    broken = [
        (b'{"text": "a"', "no JSON: Expecting ',' delimiter"),
        (b'["a"]', "['a'] is no JSON object"),
        (b'{"content": "a", "id": 3}', "no 'text' but ['content', 'id']; name the text's key with --column"),
        (b'{"text": 7}', "'text' is 7: a text is needed"),
        (b'{"text": null}', "'text' is None: a text is needed"),
        (b'{"text": "\xff"}', "no JSON: 'utf-8' codec can't decode byte 0xff"),
        (b'{"text": "\\ud800"}', "'text' is no Unicode text"),
        (b"[" * 100_000, "no JSON: maximum recursion depth"),
    ]
    for line, message in broken:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "also good"}\n')
        with pytest.raises(UnreadableRecord, match=re.escape(f"{path}, line 3: {message}")):
            list(read_corpus([str(path)]))
        rows = list(read_corpus([str(path)], unreadable="skip"))
        assert [row["text"] for row in rows] == ["good", None, "also good"]
        assert message in rows[1]["unreadable"]
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe\n")
    with pytest.raises(UnreadableRecord, match=r"a\.txt, line 2: no UTF-8"):
        list(read_corpus([str(tmp_path / "a.txt")]))
    pq.write_table(pa.table({"text": ["good", None]}), tmp_path / "a.parquet")
    with pytest.raises(UnreadableRecord, match=r"a\.parquet, row 2: 'text' is None"):
        list(read_corpus([str(tmp_path / "a.parquet")]))
    with pytest.raises(ValueError, match=r"no column 'body' but \['text'\]"):
        list(read_corpus([str(tmp_path / "a.parquet")], column="body"))


@pytest.mark.parametrize("unreadable", ["error", "skip"])
def test_files_that_break_off_are_errors(tmp_path: Path, unreadable: str) -> None:
    whole = gzip.compress(json_lines(TEXTS))
    for name, content in (
        ("a.jsonl.gz", whole[: len(whole) // 2]),
        ("b.jsonl.gz", json_lines(TEXTS)),
        ("c.jsonl.gz", whole[:40] + b"\0\0\0\0" + whole[44:]),
        ("d.parquet", json_lines(TEXTS)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged behind (line|row) \d+"):
            list(read_corpus([str(path)], unreadable=unreadable))
    with pytest.raises(FileNotFoundError):
        list(read_corpus([str(tmp_path / "none.jsonl")], unreadable=unreadable))


def test_files_are_found_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "a[1].jsonl"):
        (tmp_path / name).write_text("x" * 10)
    (tmp_path / "folder.jsonl").mkdir()
    found = find_files([tmp_path / "c.txt", f"{tmp_path}/?.jsonl", tmp_path / "a[1].jsonl"])
    assert [Path(file.path).name for file in found] == ["c.txt", "a.jsonl", "b.jsonl", "a[1].jsonl"]
    assert {file.size for file in found} == {10}
    for inputs, error, message in (
        ([], ValueError, "No input"),
        ([f"{tmp_path}/*.json"], ValueError, "no file matches"),
        ([tmp_path], ValueError, "is a folder: name its files"),
        ([tmp_path / "a.jsonl", f"{tmp_path}/*.jsonl"], ValueError, "is named twice"),
        ([tmp_path / "none.jsonl"], FileNotFoundError, "none.jsonl"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            find_files(inputs)
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a\.csv: the name must end in one of \.jsonl"):
        find_files([tmp_path / "a.csv"])


def test_units_are_files_in_order() -> None:
    files = [SourceFile(str(number), size) for number, size in enumerate((3, 3, 5, 1, 20, 1, -1, 9))]
    units = cut_units(files, 10)
    assert [[file.size for file in unit.files] for unit in units] == [[3, 3], [5, 1], [20], [1, -1, 9]]
    assert cut_units([], 10) == []
    assert units[3] == Unit(tuple(files[5:]))
    assert units[3].size == 10


# Preparing -----------------------------------------------------------------------------------------------------------


def test_a_corpus_is_what_the_reference_makes(tmp_path: Path) -> None:
    inputs = write_parts(tmp_path / "in")
    report = prepare_corpus(inputs, tmp_path / "out", CorpusArguments(**QUIET, unit_size=1))
    expected = naive.prepared(TEXTS, list)
    assert texts_of(tmp_path / "out") == expected
    rows = load_dataset("parquet", data_files=f"{tmp_path}/out/*.parquet", split="train")
    assert rows.column_names == ["text", "sentences"]
    assert ["".join(sentences) for sentences in rows["sentences"]] == rows["text"] == expected
    assert report.written.documents == len(expected)
    assert report.written.characters == sum(map(len, expected))
    assert report.written.sentences == sum(map(len, rows["sentences"]))
    assert report.written.paragraphs == sum(text.count("\n") + 1 for text in expected)
    assert report.read.documents == len(TEXTS)
    assert report.dropped["duplicate documents"].documents > 20
    written = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert CorpusReport.from_json(written) == report
    assert written["files"] == 6
    assert written["settings"]["segmenter"] == "characters"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "in", "out"]


def test_any_number_of_processes_and_parts_gives_the_same_files(tmp_path: Path) -> None:
    inputs = write_parts(tmp_path / "in")
    outputs = []
    for number, options in enumerate(({}, {"workers": 2, "memory": 2**20}, {"unit_size": 2**30})):
        settings = {"unit_size": 1, "near_duplicates": 0.7, "word_spans": True} | QUIET | options
        prepare_corpus(inputs, tmp_path / str(number), CorpusArguments(**settings))
        outputs.append(output_of(tmp_path / str(number)))
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 6  # a unit for each file, but for that of the empty one, and the report
    assert texts_of(tmp_path / "2") == texts_of(tmp_path / "0")
    counts = [{**json.loads(one["report.json"]), "settings": None} for one in outputs]
    assert counts[0] == counts[2]
    assert counts[0]["dropped"]["near-duplicates"]["documents"] > 0


def test_near_duplicates_are_those_of_minhash_lsh(tmp_path: Path) -> None:
    datasketch = pytest.importorskip("datasketch", reason="needs datasketch, which finds near-duplicates")
    report = prepare_corpus(
        write_parts(tmp_path / "in"), tmp_path / "out", CorpusArguments(**QUIET, near_duplicates=0.6)
    )
    texts = [text for text in CleanDocuments(list)({"text": TEXTS})["text"] if text]
    index = datasketch.MinHashLSH(threshold=0.6, num_perm=128)
    kept, seen = [], set()
    for number, (text, minhash) in enumerate(zip(texts, BandKeys(0.6).minhashes(texts), strict=True)):
        is_new = naive.signature(text) not in seen and not index.query(minhash)
        kept += [text] * is_new
        seen.add(naive.signature(text))
        index.insert(number, minhash)
    assert texts_of(tmp_path / "out") == kept
    exact = naive.prepared(TEXTS, list)
    assert report.dropped["near-duplicates"].documents == len(exact) - len(kept) > 0


def test_json_lines_and_spans(tmp_path: Path) -> None:
    inputs = write_parts(tmp_path / "in", TEXTS[:40])
    for form in ("jsonl", "parquet"):
        arguments = CorpusArguments(**QUIET, word_spans=True, output_format=form)
        prepare_corpus(inputs, tmp_path / form, arguments)
    lines = (tmp_path / "jsonl" / "corpus-00000.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == output_of(tmp_path / "parquet")["corpus-00000.parquet"]
    assert json.loads(lines[0]).keys() == {"text", "sentences", "spans"}


def test_unreadable_records_are_counted_or_end_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS[:5]) + b"not JSON\n" + json_lines(TEXTS[5:9]) + b"{}\n")
    with pytest.raises(UnreadableRecord, match=r"a\.jsonl, line 6: no JSON"):
        prepare_corpus([path], tmp_path / "out", CorpusArguments(**QUIET))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match=r"out\.incomplete was begun otherwise: unreadable\. Repeat"):
        prepare_corpus([path], tmp_path / "out", CorpusArguments(**QUIET, unreadable="skip"))
    report = prepare_corpus([path], tmp_path / "other", CorpusArguments(**QUIET, unreadable="skip"))
    assert report.unreadable == 2
    assert report.read.documents == 9
    assert report.describe().endswith("skipped: 2 unreadable records")
    path.write_bytes(json_lines(TEXTS[:9]))
    with pytest.raises(FileExistsError, match="begun otherwise: the list of files or their sizes"):
        prepare_corpus([path], tmp_path / "out", CorpusArguments(**QUIET))


def test_a_run_that_was_stopped_while_it_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_parts(tmp_path / "in")
    arguments = CorpusArguments(**QUIET, unit_size=1, near_duplicates=0.7)
    prepare_corpus(inputs, tmp_path / "whole", arguments)
    remove = shutil.rmtree
    for last in ("cleaned", "keys", "signatures", "written", None):

        def stopping(folder: Path, last: str | None = last) -> None:
            remove(folder)
            if Path(folder).name == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(prepare_module.shutil, "rmtree", stopping)
            patch.setattr(prepare_module.os, "replace", os.replace if last else stop_at_folders)
            with pytest.raises(KeyboardInterrupt):
                prepare_corpus(inputs, tmp_path / "out", arguments)
    assert not (tmp_path / "out").exists()
    prepare_corpus(inputs, tmp_path / "out", arguments)
    assert output_of(tmp_path / "out") == output_of(tmp_path / "whole")


def stop_at_folders(source: Path, target: Path, replace: Callable[..., None] = os.replace) -> None:
    if Path(source).is_dir():
        raise KeyboardInterrupt
    replace(source, target)


def test_nothing_is_left_of_anything(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["", "短。", "也短！"]))
    report = prepare_corpus([tmp_path / "a.jsonl"], tmp_path / "out", CorpusArguments(**QUIET))
    assert report.written.numbers == (0, 0, 0, 0)
    assert report.dropped["no sentence left"].documents == 3
    assert os.listdir(tmp_path / "out") == ["report.json"]


@pytest.mark.parametrize("stage", ["clean_unit", "find_duplicates", "write_unit"])
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Stopped in the third call of a stage, in the midst of writing; what was finished is not made again."""
    inputs = write_parts(tmp_path / "in")
    arguments = CorpusArguments(**QUIET, unit_size=1, near_duplicates=0.7)
    prepare_corpus(inputs, tmp_path / "whole", arguments)
    monkeypatch.setattr(prepare_module, "count_partitions", lambda keys, memory: 5)
    original, calls = getattr(stages, stage), []

    def stopping(job: Any, number: int, *others: Any) -> int:
        calls.append(number)
        if len(calls) == 3:
            monkeypatch.setattr(os, "replace", stop)
        return original(job, number, *others)

    def stop(*paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, stage, stopping)
        replace = os.replace
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(inputs, tmp_path / "out", arguments)
        monkeypatch.setattr(os, "replace", replace)
    work = tmp_path / "out.incomplete"
    assert list(work.rglob("*.unfinished"))
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in (".json", ".npy", ".parquet")}
    kept = {path: time_ for path, time_ in times.items() if path.parent.name == "cleaned" and path.suffix == ".json"}
    seen: dict[Path, int] = {}

    def looking(job: Any, number: int) -> int:
        seen.update({path: path.stat().st_mtime_ns for path in kept})
        return stages.write_unit(job, number)

    monkeypatch.setattr(prepare_module, "write_unit", looking)
    prepare_corpus(inputs, tmp_path / "out", arguments)
    assert output_of(tmp_path / "out") == output_of(tmp_path / "whole")
    assert kept
    assert seen == kept


@pytest.mark.slow
@pytest.mark.timeout(1500)  # of processes that import torch, on a machine that may be busy
def test_the_same_after_kills(tmp_path: Path) -> None:
    """The whole command killed (SIGKILL) while two processes clean, then run by one; no process outlives it."""
    inputs = write_parts(tmp_path / "in")
    prepare_corpus(inputs, tmp_path / "whole", CorpusArguments(**QUIET, unit_size=1))
    words = ["-m", "hf_glm_ernie", "prepare-corpus", *inputs, "--output", str(tmp_path / "out"), "--workers", "2"]
    words += ["--unit-size", "1B", "--segmenter", "characters", "--no-progress"]
    running = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    work = tmp_path / "out.incomplete"
    while running.poll() is None and not list(work.glob("cleaned/*.json")):
        time.sleep(0.005)
    children = processes_of(running.pid)
    running.kill()
    running.wait()
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlived the command"
        time.sleep(0.05)
    words[words.index("--workers") + 1] = "1"
    assert package.main(words[2:]) == 0
    assert output_of(tmp_path / "out") == output_of(tmp_path / "whole")


def processes_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(one) for one in children.read_text().split()] if children.exists() else []


def test_an_error_in_a_worker_is_the_command_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inputs = write_parts(tmp_path / "in")
    (tmp_path / "in" / "bad.jsonl").write_bytes(b"{\n")
    words = ["--segmenter", "characters", "--no-progress", "--workers", "2", "--unit-size", "1B"]
    output = ["--output", str(tmp_path / "out")]
    assert package.main(["prepare-corpus", *inputs, str(tmp_path / "in" / "bad.jsonl"), *output, *words]) == 1
    assert "bad.jsonl, line 1: no JSON" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_parts(tmp_path / "in", TEXTS[:60])
    words = ["prepare-corpus", *inputs, "--output", str(tmp_path / "out"), "--min-words", "3", "--format", "jsonl"]
    assert package.main([*words, "--no-progress"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert f"{CorpusReport.from_json(report).describe()}\n" == capsys.readouterr().out
    assert package.main([*words, "--no-progress"]) == 1
    assert "already exists: give another folder" in capsys.readouterr().err
    words[words.index("--output") + 1] = str(tmp_path / "second")
    for more, message in (
        (["--memory", "5"], "--memory='5' has no unit"),
        (["--workers", "0"], "workers=0 must be at least 1"),
        (["--near-duplicates", "1.5"], "near_duplicates=1.5 must be between 0 and 1"),
    ):
        assert package.main([*words, *more]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_by": "word"}, "sample_by='word' must be one of ['line', 'paragraph', 'document']"),
        ({"unreadable": "ignore"}, "unreadable='ignore' must be one of"),
        ({"segmenter": "spaces"}, "segmenter='spaces' must be one of ['jieba', 'characters']"),
        ({"output_format": "csv"}, "output_format='csv' must be one of ['parquet', 'jsonl']"),
        ({"min_words": -1}, "min_words=-1 must be at least 0"),
        ({"memory": 5}, "memory=5 must be at least 1048576"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CorpusArguments(**arguments)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jieba", reason="needs jieba, which the page's command cuts Chinese text with")
    pytest.importorskip("datasketch", reason="needs datasketch, which finds near-duplicates")
    monkeypatch.chdir(tmp_path)
    check_shown(run_page("corpus.md"))


def test_packages_that_are_missing_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arguments in (("datasketch", {"near_duplicates": 0.8}), ("jieba", {"segmenter": "jieba"})):
        monkeypatch.setitem(sys.modules, name, None)
        prepare_module.jieba_words.__globals__["_jieba"].cache_clear()
        with pytest.raises(ImportError, match=f"need the package {name}: pip install"):
            CorpusArguments(**({"segmenter": "characters"} | arguments))


def test_a_signal_ends_the_command_and_leaves_what_is_finished(tmp_path: Path, monkeypatch: Any) -> None:
    def interrupted(job: Any, number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    inputs = write_parts(tmp_path / "in", TEXTS[:30])
    monkeypatch.setattr(prepare_module, "write_unit", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    words = ["prepare-corpus", *inputs, "--output", str(tmp_path / "out"), "--segmenter", "characters"]
    with pytest.raises(SystemExit) as ended:
        package.main([*words, "--no-progress"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert list((tmp_path / "out.incomplete" / "cleaned").glob("*.json"))
