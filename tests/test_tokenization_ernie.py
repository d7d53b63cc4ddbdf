"""ErnieTokenizer against PaddleNLP's outputs, its files, and how the Auto classes open them."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ErnieConfig,
    ErnieForMaskedLM,
    FillMaskPipeline,
)

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie_offsets import kept_lengths
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary
from tests.reference.ernie_tokenizer import ErnieReference, random_texts, truncated_lengths
from tests.support.ernie_vocabulary import FULL, SMALL, paddle_folder, released_lines, write_vocabulary
from tests.support.fresh import fresh_python


@pytest.fixture(scope="module")
def full() -> Path:
    """The full sets of PaddleNLP's outputs, present beside the repository where it is developed."""
    if not FULL.is_dir():
        pytest.skip("needs the full golden sets beside the repository (../shared/goldens/ernie); the small copy ran")
    return FULL / "tokenizer"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return released_lines()


@pytest.fixture
def tokenizer(tmp_path: Path) -> ErnieTokenizer:
    return ErnieTokenizer(write_vocabulary(tmp_path, SMALL["vocabulary"]))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            yield json.loads(line)


def pairs_of(spans: Any) -> list[tuple[int, ...]]:
    return [tuple(span) for span in spans]


def check_single(tokenizer: ErnieTokenizer, row: dict[str, Any], pair: str | None) -> None:
    """One text, or one pair: ids, types, tokens, places and decoded text."""
    text = row["text"]
    found = tokenizer(text, pair, return_offsets_mapping=True)
    for name in ("input_ids", "token_type_ids"):
        assert found[name] == row[name], text
        assert tokenizer(text, pair)[name] == row[name], text
        assert tokenizer([text], None if pair is None else [pair])[name] == [row[name]], text
    assert found["attention_mask"] == [1] * len(row["input_ids"])
    assert tokenizer.tokenize(text) == row["tokens"]
    if "error" in row["offset_mapping"]:  # PaddleNLP raises: the true places, then
        assert pairs_of(found["offset_mapping"]) == pairs_of(found.encodings[0].offsets), text
    else:
        assert pairs_of(found["offset_mapping"]) == pairs_of(row["offset_mapping"]), text
    assert tokenizer.decode(row["input_ids"]) == row["decoded"], text
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == row["decoded_skip_special"], text
    if "full_tokens" in row:
        assert found.tokens() == row["full_tokens"]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == row["full_tokens"]
    if "tokens_pair" in row:
        assert tokenizer.tokenize(pair) == row["tokens_pair"]


@pytest.mark.parametrize("lower", [True, False])
def test_small_golden(lower: bool, tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path, SMALL["vocabulary"])
    tokenizer = ErnieTokenizer(path, do_lower_case=lower, exact_offsets=False)
    rows = [row for row in SMALL["single"] if row["do_lower_case"] == lower]
    assert any("error" in row["offset_mapping"] for row in rows) == lower
    for row in rows:
        check_single(tokenizer, row, row["pair"])


@pytest.mark.parametrize("name", ["single", "pairs", "cased"])
def test_full_golden(name: str, full: Path) -> None:
    tokenizer = ErnieTokenizer.from_pretrained(full, do_lower_case=name != "cased", exact_offsets=False)
    for row in rows_of(full / f"{name}.jsonl"):
        check_single(tokenizer, row, row["text_pair"])


def test_small_golden_of_calls(tmp_path: Path) -> None:
    """Padding and truncation on both sides, every strategy, pairs, with and without special tokens, and places."""
    path = write_vocabulary(tmp_path, SMALL["vocabulary"])
    seen = set()
    for call in SMALL["calls"]:
        tokenizer = ErnieTokenizer(path, exact_offsets=False, **call["sides"])
        found = tokenizer(call["texts"], call["pairs"], **call["options"])
        seen.add((call["options"]["truncation"], call["pairs"] is None, "offset_mapping" in call["out"]))
        for name, values in call["out"].items():
            if name == "offset_mapping":
                assert [pairs_of(row) for row in found[name]] == [pairs_of(row) for row in values], call
            elif name == "special_tokens_mask":
                # PaddleNLP marks the special tokens it adds; the library also marks unknown words and masks in a text.
                assert all(
                    mark >= other
                    for row, others in zip(found[name], values, strict=True)
                    for mark, other in zip(row, others, strict=True)
                )
            else:
                assert found[name] == values, (name, call)
    assert (
        len(seen) == 16
    )  # three values for texts and for pairs, two strategies for pairs only; with and without places


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """A call of the goldens in transformers' words."""
    options = dict(options)
    if "max_seq_len" in options:  # truncates where nothing else is said, as max_length alone does
        options |= {"max_length": options.pop("max_seq_len"), "truncation": True}
    if options.pop("pad_to_max_seq_len", False):
        options["padding"] = "max_length"
    for name in ("return_position_ids", "return_length", "return_dict", "note"):
        options.pop(name, None)
    return options


def test_full_golden_of_calls(full: Path) -> None:
    for row in rows_of(full / "batch.jsonl"):
        options, out = translated(row["kwargs"]), row["out"]
        sides = {name: options.pop(name) for name in ("padding_side", "truncation_side") if name in options}
        tokenizer = ErnieTokenizer.from_pretrained(full, exact_offsets=False, **sides)
        if isinstance(out, list):
            found = windows(tokenizer, row["texts"], row["text_pairs"], options["max_length"], options["stride"])
            assert found["input_ids"] == [one["input_ids"] for one in out]
            assert found["token_type_ids"] == [one["token_type_ids"] for one in out]
            assert found["attention_mask"] == [one["attention_mask"] for one in out]
            if options["stride"]:  # PaddleNLP returns places and samples with windows, and only then
                assert [pairs_of(spans) for spans in found["offset_mapping"]] == [
                    pairs_of(one["offset_mapping"]) for one in out
                ]
                assert found["overflow_to_sample_mapping"] == [one["overflow_to_sample"] for one in out]
            continue
        found = tokenizer(row["texts"], row["text_pairs"], **options)
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            assert found[name] == out[name], row["kwargs"]
        # transformers has neither position_ids nor seq_len, and counts filled-up rows as `length`: PaddleNLP's are
        # what the attention mask says.
        if "length" in out:
            lengths = [sum(mask) for mask in found["attention_mask"]]
            assert lengths == out["length"] == out["seq_len"]
            for positions, mask in zip(out["position_ids"], found["attention_mask"], strict=True):
                assert positions == [index * one for index, one in enumerate(mask)]


def windows(tokenizer: ErnieTokenizer, texts: list[str], pairs: list[str], max_length: int, step: int) -> Any:
    """PaddleNLP's windows over the second text: its `stride` is the step, transformers' is the overlap."""
    found: dict[str, list[Any]] = {}
    for index, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        room = max_length - len(tokenizer.tokenize(text)) - 3
        new = tokenizer(
            text,
            pair,
            truncation="only_second",
            max_length=max_length,
            stride=max(0, room - step) if step else 0,
            return_overflowing_tokens=bool(step),
            return_offsets_mapping=True,
        )
        for name, values in new.items():
            found.setdefault(name, []).extend(values if step else [values])
        if step:
            found["overflow_to_sample_mapping"][-len(new["input_ids"]) :] = [index] * len(new["input_ids"])
    return found


def test_small_golden_of_windows(tmp_path: Path) -> None:
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, SMALL["vocabulary"]), exact_offsets=False)
    for row in SMALL["windows"]:
        found = windows(tokenizer, row["texts"], row["pairs"], row["options"]["max_seq_len"], row["options"]["stride"])
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            assert found[name] == row["out"][name]
        assert [pairs_of(spans) for spans in found["offset_mapping"]] == [
            pairs_of(spans) for spans in row["out"]["offset_mapping"]
        ]
        assert found["overflow_to_sample_mapping"] == row["out"]["overflow_to_sample"]


def test_facts(full: Path) -> None:
    facts = json.loads((full / "facts.json").read_text(encoding="utf-8"))
    tokenizer = ErnieTokenizer.from_pretrained(full)
    assert len(tokenizer) == facts["len(tokenizer)"] == 39979
    assert tokenizer.vocab_size == facts["vocab_size"]
    assert max(tokenizer.get_vocab().values()) + 1 == 39980
    assert tokenizer.convert_tokens_to_ids("$") == facts["id_of_$"]
    for name in ("unk", "pad", "cls", "sep", "mask"):
        assert getattr(tokenizer, f"{name}_token_id") == facts[f"{name}_id"]
    assert tokenizer.model_max_length == facts["model_max_length"]
    assert list(tokenizer("a")) == [*facts["default_keys"], "attention_mask"]  # PaddleNLP leaves the mask out
    for index in (12084, 39980):  # PaddleNLP raises for ids without a token
        assert facts[f"id_{index}_to_token"]["error"].startswith("ValueError")
        assert tokenizer.convert_ids_to_tokens(index) is None
        assert tokenizer.convert_ids_to_tokens([5, index])[1] is None
        assert tokenizer.decode([index]) == ""
    name = 'constructed directly, not by from_pretrained: tokenize("价格[MASK]元")'
    assert tokenizer.tokenize("价格[MASK]元", split_special_tokens=True) == facts[name]
    assert ErnieTokenizer(full / "vocab.txt").tokenize("价格[MASK]元") == ["价", "格", "[MASK]", "元"]
    added = facts["after add_tokens([OMASK], 新词abc)"]
    tokenizer.add_tokens(["[OMASK]", "新词abc"])
    ids = {token: index + 1 for token, index in added["added"].items()}  # PaddleNLP's 39979 is [UNK]'s
    assert ids == {"[omask]": 39980, "新词abc": 39981}
    assert tokenizer.convert_ids_to_tokens(list(ids.values())) == list(ids)
    moved = [index + (index >= 39979) for index in added['encode("a新词ABCb[OMASK]")']]
    assert tokenizer.encode("a新词ABCb[OMASK]") == moved


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_kept_lengths(strategy: str) -> None:
    for first in range(8):
        for second in (None, *range(8)):
            for excess in range(1, 18):
                found = kept_lengths(first, second, excess, strategy)
                assert found == truncated_lengths(first, second, excess, strategy), (first, second, excess)


def test_a_text_too_short_to_truncate(tokenizer: ErnieTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """Stays whole, as in PaddleNLP, with an error that says so."""
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        found = tokenizer("a b", "the the the", truncation="only_first", max_length=5)
    finally:
        logger.propagate = False
    assert len(found["input_ids"]) == 8
    assert "'only_first' would leave nothing of texts of [2, 3] tokens within max_length=5" in caplog.text


def test_stride_too_long(tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(ValueError, match=r"stride=4 must be smaller than the 3 tokens that max_length=7"):
        tokenizer("a", "the the the the", truncation="only_second", max_length=7, stride=4)


def test_tensors_and_split_words(tokenizer: ErnieTokenizer) -> None:
    found = tokenizer("a", "", return_tensors="pt")
    assert found["input_ids"].tolist() == [[1, tokenizer.convert_tokens_to_ids("a"), 2, 2]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 1]]
    texts, pairs = [["the", "unaffable"], ["a"]], [["25℃", "[MASK]"], [""]]
    split = tokenizer(texts, pairs, is_split_into_words=True, truncation=True, max_length=8, padding=True)
    joined = tokenizer(
        [" ".join(words) for words in texts],
        [" ".join(words) for words in pairs],
        truncation=True,
        max_length=8,
        padding=True,
    )
    assert split["input_ids"] == joined["input_ids"]
    offsets = tokenizer(["각각", "the"], is_split_into_words=True, return_offsets_mapping=True)["offset_mapping"]
    assert offsets[-2] == (0, 3)  # within its word; PaddleNLP has no places for split words
    padded = tokenizer(
        ["각각 x", "a"], return_offsets_mapping=True, padding=True, return_tensors="pt", padding_side="left"
    )
    assert padded["offset_mapping"].shape == (*padded["input_ids"].shape, 2)
    assert padded["offset_mapping"][1, 0].tolist() == [0, 0]


@pytest.mark.parametrize("truncation", [False, True])
def test_pairs_in_one_list(truncation: bool, tokenizer: ErnieTokenizer) -> None:
    texts, pairs = ["a b c d e f", "각각 a"], ["the hello world", ""]
    options = {"truncation": truncation, "max_length": 8, "padding": "max_length", "return_offsets_mapping": True}
    found = tokenizer(list(zip(texts, pairs, strict=True)), **options)
    assert found == tokenizer(texts, pairs, **options)
    assert found["token_type_ids"][1][:5] == [0, 0, 0, 0, 1]


def test_places_in_a_long_text(tokenizer: ErnieTokenizer) -> None:
    """Ten thousand unknown words are not searched one by one through all that follows."""
    text = "각각 a " * 10_000
    start = time.perf_counter()
    found = tokenizer(text, return_offsets_mapping=True)
    assert time.perf_counter() - start < 5  # 0.1 s; quadratic search took 100
    assert found["offset_mapping"][-2] == (len(text) - 2, len(text) - 1)


def reading(path: Path, text: str, **options: Any) -> ErnieTokenizer:
    path.write_bytes(text.encode())
    return ErnieTokenizer(path, **options)


def test_vocabulary_files(tmp_path: Path) -> None:
    """One token a line or with ids, any line ends, a byte order mark, blank lines: the same ids."""
    lines = SMALL["vocabulary"]
    path = tmp_path / "vocab.txt"
    expected = {token: index for index, token in enumerate(lines)}
    kit = [f"{token}\t{index}" for index, token in enumerate(lines)]
    for text in (
        "\n".join(lines),
        "\n".join(lines) + "\n\n\n",
        "\r\n".join(lines) + "\r\n",
        "\ufeff" + "\n".join(lines) + "\n",
        "\n".join(kit) + "\n",
        "\r\n".join(kit),
        "\n".join(reversed(kit[:60])) + "\n" + "\n".join(kit[60:]) + "\n",
    ):
        tokenizer = reading(path, text)
        assert tokenizer.get_vocab() == expected
        assert tokenizer.unk_token_id == len(lines) - 1
        assert tokenizer.encode("$5") == [1, len(lines) - 2, lines.index("5"), 2]
    assert reading(path, "\n".join(["", *lines])).get_vocab()["[PAD]"] == 1  # ids are line numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[PAD]\t0\n[CLS]\n", r"line 2: '\[CLS\]' has no id"),
        ("[PAD]\t0\n[CLS]\tx\n", "line 2: .* is not 'token<tab>id'"),
        ("[PAD]\t0\n[CLS]\t0\n", "line 2: id 0 was given in line 1"),
        ("<s>\n<pad>\n</s>\n<unk>\n", r"has no \[UNK\].*among its 4 tokens.*ernie-3.0-tiny-mini-v2-en"),
        ("[PAD]\n[CLS]\n[SEP]\n[UNK]\n", r"has no \[MASK\] among"),
    ],
)
def test_refused_vocabularies(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        reading(tmp_path / "vocab.txt", text)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no vocabulary file"):
        ErnieTokenizer(tmp_path / "vocab.txt")
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        ErnieTokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    for opening in (ErnieTokenizer, lambda: ErnieTokenizer.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=r"neither vocab.txt nor tokenizer.json"):
            opening()
    (tmp_path / "vocab.txt").write_bytes(b"\x80\x04\x95binary")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        ErnieTokenizer(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        ErnieTokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    with pytest.raises(ValueError, match="holds a WordLevel model"):
        ErnieTokenizer(tokenizer_file=tmp_path / "tokenizer.json")


def test_english_vocabulary(tmp_path: Path) -> None:
    """uie-base-en: BERT's English vocabulary, where [UNK] has the id 100 and nothing is doubled."""
    lines = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff"]
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, [*lines, "##able", "!", "℃"]))
    assert tokenizer.encode("Unaffable ℃ [MASK]! x") == [101, 104, 105, 106, 108, 103, 107, 100, 102]
    assert (len(tokenizer), tokenizer.unk_token_id, tokenizer.add_tokens(["new"])) == (109, 100, 1)
    assert tokenizer.encode("new")[1] == 109


def test_special_tokens_by_other_names(tmp_path: Path) -> None:
    names = {
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    }
    tokenizer = reading(tmp_path / "vocab.txt", "\n".join([*names.values(), "a"]), **names)
    assert tokenizer("a <mask> b")["input_ids"] == [3, 5, 4, 0, 1]
    tokenizer.save_pretrained(tmp_path)
    assert ErnieTokenizer.from_pretrained(tmp_path)("a <mask> b")["input_ids"] == [3, 5, 4, 0, 1]


def test_saving(lines: list[str], tmp_path: Path) -> None:
    """Line for line the same vocabulary, also from a folder without one; `do_lower_case` survives."""
    path = write_vocabulary(tmp_path, lines)
    tokenizer = ErnieTokenizer(path, do_lower_case=False, model_max_length=77)
    saved = tmp_path / "saved"
    names = {Path(name).name for name in tokenizer.save_pretrained(saved)}
    assert names == {"tokenizer_config.json", "tokenizer.json", "vocab.txt"}
    assert (saved / "vocab.txt").read_bytes() == path.read_bytes()
    again = ErnieTokenizer.from_pretrained(saved)
    assert (again.do_lower_case, again.model_max_length) == (False, 77)
    assert again.tokenize("ÀB") == ErnieReference(lines, do_lower_case=False).tokenize("ÀB")
    lower = ErnieTokenizer.from_pretrained(saved, do_lower_case=True)
    assert lower.tokenize("ÀB") == ErnieReference(lines).tokenize("ÀB")
    (saved / "vocab.txt").unlink()
    alone = ErnieTokenizer.from_pretrained(saved)
    assert alone.get_vocab() == tokenizer.get_vocab()
    (written,) = alone.save_vocabulary(str(tmp_path), "other")
    assert read_vocabulary(written)[0] == read_vocabulary(path)[0]
    assert Path(written).name == "other-vocab.txt"
    assert len(Path(written).read_text(encoding="utf-8").splitlines()) == len(lines)


PLAIN = """
import json, sys
from transformers import AutoTokenizer
texts = json.load(open("texts.json", encoding="utf-8"))
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, texts[::-1], return_offsets_mapping=True)
    row = tokenizer("a", padding="max_length", max_length=5)
    print(json.dumps([dict(found), [tokenizer.decode(ids) for ids in found["input_ids"]], dict(row), len(tokenizer)]))
assert not any(name.startswith("hf_glm_ernie") for name in sys.modules)
"""


def test_plain_auto_tokenizer(lines: list[str], tmp_path: Path) -> None:
    """A process that does not import this package opens the saved folder: same ids, types, exact places, text.

    With or without a model's settings beside it, the host's own or ours.
    """
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, lines))
    for folder, config in (("bare", None), ("native", {"model_type": "ernie"}), ("uie", {"model_type": "ernie_uie"})):
        tokenizer.save_pretrained(tmp_path / folder)
        if config is not None:
            (tmp_path / folder / "config.json").write_text(json.dumps(config))
    texts = [row["text"] for row in SMALL["single"]] + random_texts(300, 9, lines)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = fresh_python(["-P", "-c", PLAIN, "bare", "native", "uie"], tmp_path, check=True)
    assert len(done.stdout.splitlines()) == 3
    expected = tokenizer(texts, texts[::-1], return_offsets_mapping=True)
    for line in done.stdout.splitlines():
        found, decoded, row, size = json.loads(line)
        assert list(found) == ["input_ids", "token_type_ids", "attention_mask", "offset_mapping"]
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            assert found[name] == expected[name]
        assert [pairs_of(spans) for spans in found["offset_mapping"]] == expected["offset_mapping"]
        assert decoded == tokenizer.decode(expected["input_ids"])
        assert row["attention_mask"] == [1, 1, 1, 0, 0]
        assert size == max(tokenizer.get_vocab().values()) + 1 == len(tokenizer) + 1  # the hole is filled in the file


def test_auto_tokenizer_with_this_package(tmp_path: Path) -> None:
    """PaddleNLP's folders, with new, old or no model settings, and saved ones; other folders stay the host's."""
    AutoTokenizer.register(ErnieUIEConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)  # as the package does
    lines = SMALL["vocabulary"]
    old = paddle_folder(tmp_path / "old", lines)
    (old / "model_config.json").write_text(json.dumps({"init_class": "ErnieModel", "hidden_size": 6}))
    folders = [
        paddle_folder(tmp_path / "new", lines, {"model_type": "ernie", "architectures": ["UIE"]}),
        paddle_folder(tmp_path / "bare", lines),
        old,
    ]
    ErnieTokenizer.from_pretrained(old).save_pretrained(tmp_path / "saved")
    for folder in [*folders, tmp_path / "saved"]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer) is ErnieTokenizer, folder
        assert tokenizer.tokenize("25℃ [MASK]") == ["2", "##5", "℃", "[MASK]"]
        assert tokenizer.model_max_length == 2048
        assert not AutoTokenizer.from_pretrained(folder, do_lower_case=False).do_lower_case
    others = paddle_folder(tmp_path / "bert", lines, {"model_type": "ernie"}, tokenizer_class="BertTokenizer")
    assert type(AutoTokenizer.from_pretrained(others)) is BertTokenizer
    (others / "tokenizer_config.json").unlink()
    assert type(AutoTokenizer.from_pretrained(others)) is BertTokenizer


def test_auto_tokenizer_on_original_folders(full: Path) -> None:
    AutoTokenizer.register(ErnieUIEConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)  # as the package does
    for name in ("e2e/mlm_real_vocab", "e2e/mlm_real_vocab_uie", "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(full.parent / name)
        assert type(tokenizer) is ErnieTokenizer
        assert tokenizer("价格[MASK]")["input_ids"][-2:] == [3, 2]


def test_fill_mask(tmp_path: Path) -> None:
    """The host's pipeline finds the mask and names what it is filled with, ids without a token included."""
    tokenizer = ErnieTokenizer(write_vocabulary(tmp_path, SMALL["vocabulary"]))
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ErnieForMaskedLM(ErnieConfig(vocab_size=len(SMALL["vocabulary"]) + 20, **size)).eval()
    torch.nn.init.zeros_(model.cls.predictions.bias)
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("元")] = 99.0
        model.cls.predictions.bias[len(SMALL["vocabulary"]) + 3] = 98.0
    first, second = FillMaskPipeline(model=model, tokenizer=tokenizer)("价格[MASK]", top_k=2)
    assert (first["token_str"], first["sequence"]) == ("元", "价 格 元")
    assert second["token_str"] == ""


def test_training_a_vocabulary(tmp_path: Path) -> None:
    """Keeps the rules of cutting; ids and special tokens are the new vocabulary's."""
    tokenizer = ErnieTokenizer.from_pretrained(paddle_folder(tmp_path, SMALL["vocabulary"]))
    trained = tokenizer.train_new_from_iterator([["今天25℃", "price 100￥ today"] * 5], 60)
    assert isinstance(trained, ErnieTokenizer)
    assert "℃" in trained.tokenize("25℃")
    assert trained.encode("今 [MASK]") == trained.convert_tokens_to_ids(["[CLS]", "今", "[MASK]", "[SEP]"])
    assert len(trained) == max(trained.get_vocab().values()) + 1
