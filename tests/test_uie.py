"""Information extraction: equal to the original's Taskflow, or different on purpose and as documented."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_glm_ernie.ernie_tasks.uie import uie
from hf_glm_ernie.ernie_tasks.uie_schema import SchemaNode, read_schema
from hf_glm_ernie.ernie_tasks.uie_spans import pair_spans
from hf_glm_ernie.ernie_tasks.uie_windows import cut_sentences
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.reference import uie_naive
from tests.support.ernie_pdparams import converted
from tests.support.ernie_task_goldens import UIE as CONTENT
from tests.support.ernie_task_goldens import UIE_SETTINGS as SETTINGS
from tests.support.ernie_task_goldens import flat, tokenizer_of, uie_model

TEXTS = CONTENT["texts"]
# Products of two fp32 probabilities, stored with seven digits; 1.8e-6 seen.
PROBABILITY = 1e-5
OPTIONS = "情感倾向[正向,负向]"


@pytest.fixture(scope="module")
def model() -> ErnieForUIE:
    return uie_model()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ErnieTokenizer:
    return tokenizer_of(CONTENT["vocab"], tmp_path_factory.mktemp("vocab"))


def answers_of(model: Any, tokenizer: Any, name: str, texts: list[str]) -> list[dict[str, Any]]:
    case = CONTENT["cases"][name]
    settings = {SETTINGS[key]: value for key, value in case["settings"].items()}
    # The original's windows do not overlap, so two of the cases have other windows by default.
    return uie(model, tokenizer, case["schema"], texts, overlap=0, **settings)


def same(ours: Any, theirs: Any) -> bool:
    a, b = flat(ours), flat(theirs)
    return [row[:4] for row in a] == [row[:4] for row in b] and all(
        abs(x[4] - y[4]) < PROBABILITY for x, y in zip(a, b, strict=True)
    )


# Where the original goes wrong: (case, index of the text) -> why.
DIFFERENT = {
    ("opinions", 5): "two options above the threshold: the original takes one in the order of a hash",
    ("sentences", 15): "the original loses count at line breaks",
}


@pytest.mark.parametrize("name", list(CONTENT["cases"]))
def test_answers_are_the_originals(name: str, model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    ours, theirs = answers_of(model, tokenizer, name, TEXTS), CONTENT["cases"][name]["answers"]
    assert len(ours) == len(theirs) == len(TEXTS)
    assert sum(len(flat(one)) for one in theirs) >= 2
    assert [i for i in range(len(TEXTS)) if not same(ours[i], theirs[i])] == [i for n, i in DIFFERENT if n == name]


def test_the_likeliest_option_is_chosen(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    ours = answers_of(model, tokenizer, "opinions", TEXTS)[5]["评价维度"]
    theirs = CONTENT["cases"]["opinions"]["answers"][5]["评价维度"]
    options = "情感倾向[正向，负向]"
    chosen = [
        (o["relations"].pop(options)[0], t["relations"].pop(options)[0]) for o, t in zip(ours, theirs, strict=True)
    ]
    assert same({"": ours}, {"": theirs})  # all else is equal
    assert [(o["text"], t["text"]) for o, t in chosen] == [("负向", "负向"), ("负向", "正向"), ("负向", "负向")]
    assert chosen[1][0]["probability"] > chosen[1][1]["probability"]


def test_sentences_keep_their_place_behind_line_breaks(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    [ours] = answers_of(model, tokenizer, "sentences", [TEXTS[15]])
    theirs = CONTENT["cases"]["sentences"]["answers"][15]
    assert TEXTS[15].startswith("\n")
    assert [(row[2] - 1, row[3] - 1) for row in flat(ours)] == [row[2:4] for row in flat(theirs)]


@pytest.mark.parametrize("name", list(CONTENT["cases"]))
def test_offsets_are_places_in_the_text(name: str, model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    for text, answers in zip(TEXTS, answers_of(model, tokenizer, name, TEXTS), strict=True):
        for _, found, start, end, _ in flat(answers):
            assert found
            assert start is None or text[start:end] == found


def test_answers_do_not_depend_on_the_other_texts(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    depends = 0
    for name, case in CONTENT["cases"].items():
        depends += len(case["together"])  # the original's do
        for index in {20, 4, *map(int, case["together"])}:
            alone = answers_of(model, tokenizer, name, [TEXTS[index]])[0]
            assert same(answers_of(model, tokenizer, name, TEXTS)[index], alone)
    assert depends == 3


def test_batches_and_lengths_change_nothing(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    schema = CONTENT["cases"]["mixed"]["schema"]
    expected = uie(model, tokenizer, schema, TEXTS, threshold=0.2)
    for batch_size in (1, 7, 500):
        got = uie(model, tokenizer, schema, TEXTS[::-1], threshold=0.2, batch_size=batch_size)[::-1]
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("max_length", [24, 60, 128])
def test_the_slow_way_gives_the_same(max_length: int, model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    tree: dict[str, Any] = {
        "时间": {},
        "歌曲名称": {"歌手": {"专辑": {}}, "专辑": {}},
        "评价维度": {"观点词": {}, OPTIONS: {}},
    }
    for text in TEXTS[::2]:
        expected = uie_naive.extract(model, tokenizer, tree, text, max_length, 0.3)
        assert same(uie(model, tokenizer, tree, text, threshold=0.3, max_length=max_length, overlap=0)[0], expected)


def test_pairing_is_the_pointer_walk() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        start, end = rng.random((2, rng.integers(1, 14)))
        expected = uie_naive.pairs(np.flatnonzero(start > 0.6).tolist(), np.flatnonzero(end > 0.6).tolist())
        assert pair_spans(start, end, 0.6) == expected


def test_original_probabilities_and_spans_end_to_end(shared_ernie: Path) -> None:
    folder = shared_ernie / "e2e" / "mlm_real_vocab_uie"
    model, tokenizer = converted(folder), ErnieTokenizer(str(folder / "vocab.txt"))
    goldens = np.load(folder / "golden_uie.npz")
    for i, case in enumerate(json.loads((folder / "golden_uie.json").read_text(encoding="utf-8"))):
        batch = tokenizer([case["prompt"]], [case["text"]], return_token_type_ids=True)
        length = sum(case["attention_mask"])
        assert batch["input_ids"][0] == case["input_ids"][:length]
        assert batch["token_type_ids"][0] == case["token_type_ids"][:length]
        assert [list(pair) for pair in batch.encodings[0].offsets] == case["offset_mapping"][:length]
        names = ("input_ids", "token_type_ids", "position_ids", "attention_mask")
        with torch.no_grad():
            output = model(**{name: torch.tensor([case[name]]) for name in names})
        start, end = output.start_prob[0].double().numpy(), output.end_prob[0].double().numpy()
        # fp32 in another order of additions: 1.2e-7 seen
        assert np.abs(start - goldens[f"start_prob.{i}"]).max() < 2e-5
        assert np.abs(end - goldens[f"end_prob.{i}"]).max() < 2e-5
        assert pair_spans(start, end, 0.5) == sorted((s[0], e[0]) for s, e in case["spans"])
        # Most of these spans of a random model touch padding or special tokens, which is no answer.
        [answers] = uie(model, tokenizer, case["prompt"], case["text"], max_length=case["max_seq_len"])
        assert 0 < len(answers[case["prompt"]]) < len(case["spans"])
        for answer in answers[case["prompt"]]:
            assert case["text"][answer["start"] : answer["end"]] == answer["text"] != ""


class Scripted:
    """A model that starts and ends answers at given tokens, the same in every row: 0 is [CLS], -1 the last [SEP]."""

    def __init__(self, spans: list[tuple[int, int, float]], positions: int = 128):
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.spans, self.training, self.device = spans, False, torch.device("cpu")
        self.rows: list[list[int]] = []

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def eval(self) -> None:
        self.train(False)

    def __call__(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        assert not self.training
        start, end = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
        for row, length in enumerate(attention_mask.sum(-1).tolist()):
            self.rows.append(input_ids[row, :length].tolist())
            for first, last, probability in self.spans:
                if -length <= first < length and -length <= last < length:
                    start[row, first % length], end[row, last % length] = probability, probability
        return SimpleNamespace(start_prob=start, end_prob=end)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 5, 0.9)], []),  # from [CLS] into the text
        ([(3, 5, 0.9)], []),  # from the [SEP] before the text
        ([(5, -1, 0.9)], []),  # into the last [SEP]
        ([(1, 5, 0.9)], []),  # from the prompt into the text
        ([(1, 2, 0.9)], []),  # an answer in a prompt without options
        ([(4, 5, 0.9)], ["明天"]),
        ([(0, 0, 0.9), (4, 5, 0.9), (-1, -1, 0.9)], ["明天"]),
    ],
)
def test_special_tokens_are_no_answers(
    spans: list[tuple[int, int, float]], expected: list[str], tokenizer: ErnieTokenizer
) -> None:
    [answers] = uie(Scripted(spans), tokenizer, "时间", "明天上午")  # [CLS] 时 间 [SEP] 明 天 上 午 [SEP]
    assert [answer["text"] for answer in answers.get("时间", [])] == expected


def test_options_are_read_from_the_prompt_only_where_it_has_them(tokenizer: ErnieTokenizer) -> None:
    # [CLS] 情 感 倾 向 [ 正 向 , 负 向 ] [SEP] ...: one answer in the prompt and one in the text
    model = Scripted([(6, 7, 0.8), (9, 10, 0.9), (13, 13, 0.7)])
    [answers] = uie(model, tokenizer, ["情感倾向［正向，负向］ ", {"情感倾向[正向,负向]": "时间"}], "明天上午")
    assert answers["情感倾向［正向，负向］ "] == [{"text": "负向", "probability": pytest.approx(0.81)}]
    assert answers[OPTIONS][0]["text"] == "负向"
    [answers] = uie(Scripted([(13, 13, 0.7)]), tokenizer, OPTIONS, "明天上午")
    assert answers[OPTIONS][0]["start"] == 0  # no option was chosen: what was found in the text stands


def test_windows_vote_on_options(tokenizer: ErnieTokenizer) -> None:
    class ByLength(Scripted):
        def __call__(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> Any:
            self.spans = [(9, 10, 0.99)]
            outputs = super().__call__(input_ids, **inputs)
            short = inputs["attention_mask"].sum(-1) < 20  # the last window; the others choose the first option
            other = Scripted([(6, 7, 0.6)])(input_ids, **inputs)
            for name in ("start_prob", "end_prob"):
                getattr(outputs, name)[~short] = getattr(other, name)[~short]
            return outputs

    [answers] = uie(ByLength([]), tokenizer, OPTIONS, "明" * 14 + "天", max_length=11 + 3 + 7, overlap=0)
    assert answers[OPTIONS] == [{"text": "正向", "probability": pytest.approx(0.36)}]  # two windows to one


def test_a_window_with_more_tokens_than_characters_is_cut_again(tokenizer: ErnieTokenizer, caplog: Any) -> None:
    class Doubled:
        """Every character of a text is two tokens."""

        is_fast, pad_token_id = True, 0

        def __call__(self, prompts: list[str], texts: list[str], **options: Any) -> Any:
            rows = []
            for prompt, text in zip(prompts, texts, strict=True):
                offsets = [(0, 0), *((i, i + 1) for i in range(len(prompt))), (0, 0)]
                segments = [None] + [0] * len(prompt) + [None] + [1] * (2 * len(text)) + [None]
                offsets += [(i // 2, i // 2 + 1) for i in range(2 * len(text))] + [(0, 0)]
                ids = [7] * len(offsets)
                rows.append(SimpleNamespace(ids=ids, type_ids=ids, sequence_ids=segments, offsets=offsets))
            return SimpleNamespace(encodings=rows)

    text = "0123456789abcdefghijklmnopqrstuvwxyz"
    model = Scripted([(5, 5, 0.9), (-2, -2, 0.9)], positions=16)
    [answers] = uie(model, Doubled(), "时间", text, overlap=0)
    assert max(map(len, model.rows)) <= 16
    found = "".join(answer["text"] for answer in answers["时间"])
    assert [text[a["start"] : a["end"]] for a in answers["时间"]] == list(found) == sorted(found)
    assert (sum(len(row) for row in model.rows) - 5 * len(model.rows)) == 2 * len(text)  # all was read, once


def test_a_long_answer_is_not_asked_about(model: ErnieForUIE, tokenizer: ErnieTokenizer, caplog: Any) -> None:
    text = "明" * 40
    [answers] = uie(Scripted([(4, -2, 0.9)]), tokenizer, {"时间": ["专辑"]}, text, max_length=46)
    assert answers == {"时间": [{"text": text, "start": 0, "end": 40, "probability": pytest.approx(0.81)}]}


def test_unknown_words_keep_their_place(tokenizer: ErnieTokenizer) -> None:
    text = "𠀀Ünknöwn😀 明天\u200b上午"  # [CLS] 时 间 [SEP] [UNK] [UNK] [UNK] 明 天 上 午 [SEP]
    [answers] = uie(Scripted([(4, 4, 0.9), (5, 5, 0.9), (6, 6, 0.9), (7, 9, 0.9)]), tokenizer, "时间", text)
    assert [answer["text"] for answer in answers["时间"]] == ["𠀀", "Ünknöwn", "😀", "明天\u200b上"]


def test_equal_questions_are_asked_once(tokenizer: ErnieTokenizer) -> None:
    model = Scripted([(4, 4, 0.9), (6, 6, 0.9)])
    [answers] = uie(model, tokenizer, ["时间", {"时间": ["专辑"]}, {"时间": "地点"}], "明天明天")
    assert len(model.rows) == 3  # 时间, 明的专辑 and 明的地点, although 明 was found twice
    assert [list(answer["relations"]) for answer in answers["时间"]] == [["专辑", "地点"], ["专辑", "地点"]]
    first, second = (answer["relations"]["专辑"] for answer in answers["时间"])
    assert first == second
    assert first[0] is not second[0]


def test_empty_texts(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    assert uie(model, tokenizer, "时间", []) == []
    assert uie(Scripted([(4, 4, 0.9)]), tokenizer, "时间", ["", " \n"]) == [{}, {}]
    # The prompt stands alone then, and an option may still be chosen, as in the original.
    assert uie(Scripted([(6, 7, 0.9)]), tokenizer, OPTIONS, "")[0][OPTIONS][0]["text"] == "正向"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [(0, "")]),
        ("\n \n", [(0, "")]),
        ("一。二！三？四?五", [(0, "一。"), (2, "二！"), (4, "三？"), (6, "四?"), (8, "五")]),
        ("他说：“好。”然后……走了。\n\n完 ", [(0, "他说：“好。”"), (7, "然后……"), (11, "走了。"), (16, "完")]),
        ("a......b...c", [(0, "a......"), (7, "b...c")]),
        ("啊？！好", [(0, "啊？"), (2, "！好")]),  # as the original: the second mark opens the next sentence
    ],
)
def test_sentences(text: str, sentences: list[tuple[int, str]]) -> None:
    assert cut_sentences(text) == sentences
    assert all(text[offset:].startswith(sentence) for offset, sentence in sentences)


def test_schemas() -> None:
    expected = [SchemaNode("甲", [SchemaNode("乙", [SchemaNode("丙")]), SchemaNode("丁")])]
    assert read_schema({"甲": [{"乙": "丙"}, "丁"]}) == expected
    assert read_schema(["甲", {"甲": {"乙": ["丙"]}}, {"甲": ["丁", "乙"]}]) == expected
    assert read_schema("甲") == read_schema(["甲"]) == read_schema({"甲": []}) == [SchemaNode("甲")]


def test_prompts() -> None:
    assert SchemaNode("歌手").prompt("风") == "风的歌手"
    assert SchemaNode("情感倾向［正向，负向］").prompt() == OPTIONS
    assert SchemaNode("Company").prompt("Ａnna", "en") == "Company of Anna"
    sentiment = SchemaNode("Sentiment classification [negative, positive]")
    assert sentiment.prompt("film", "en") == "Sentiment classification of film [negative, positive]"


@pytest.mark.parametrize(
    ("schema", "settings", "error", "message"),
    [
        ([], {}, ValueError, "empty"),
        ({}, {}, ValueError, "empty"),
        (None, {}, TypeError, "schema is a NoneType"),
        ([3], {}, TypeError, r"schema\[0\] is a int"),
        ({"a": None}, {}, TypeError, r"schema\['a'\] is a NoneType"),
        ([["a", "b"]], {}, TypeError, "list inside a list"),
        ({3: ["a"]}, {}, TypeError, "names 3"),
        (["a", " "], {}, ValueError, "empty name"),
        ("]正向,负向[", {}, ValueError, "brackets"),
        ("情感[正向", {}, ValueError, "brackets"),
        ("a" * 200, {}, ValueError, "leaves no room"),
        ("a", {"threshold": 1.01}, ValueError, r"threshold=1\.01 is no probability: give a number in \[0, 1\]"),
        ("a", {"threshold": -1e-9}, ValueError, r"threshold=-1e-09 is no probability"),
        ("a", {"threshold": float("nan")}, ValueError, r"threshold=nan is no probability"),
        ("a", {"threshold": "0.5"}, ValueError, r"threshold='0\.5' is no probability"),
        ("a", {"batch_size": 0}, ValueError, "batch_size=0"),
        ("a", {"language": "ch"}, ValueError, "language='ch'"),
        ("a", {"max_length": 4}, ValueError, "max_length=4"),
    ],
)
def test_refusals(
    schema: Any, settings: dict[str, Any], error: type[Exception], message: str, tokenizer: ErnieTokenizer
) -> None:
    with pytest.raises(error, match=message):
        uie(Scripted([]), tokenizer, schema, "文", **settings)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0, ["明", "天", "午"]),  # whatever has a probability at all
        (0.5, ["明", "天"]),
        (0.75, ["天"]),  # 0.75 is not above it
        (1, ["天"]),  # what is certain
        (1.0, ["天"]),
    ],
)
def test_thresholds_from_0_to_1(threshold: float, expected: list[str], tokenizer: ErnieTokenizer) -> None:
    model = Scripted([(4, 4, 0.75), (5, 5, 1.0), (7, 7, 1e-6)])
    [answers] = uie(model, tokenizer, "时间", "明天上午", threshold=threshold)
    assert [answer["text"] for answer in answers["时间"]] == expected


def test_a_row_is_never_longer_than_the_model_reads(tokenizer: ErnieTokenizer, caplog: Any) -> None:
    text = "明" * 30
    for max_length, said in ((None, 0), (24, 0), (25, 1), (np.int64(4000), 2)):
        model = Scripted([], positions=24)
        uie(model, tokenizer, "时间", text, max_length=max_length)
        assert max(map(len, model.rows)) == 24
        assert len(caplog.records) == said
    assert "max_length=4000, but Scripted reads at most 24 tokens at once" in caplog.text


class SlowTokenizer(SimpleNamespace):
    is_fast = False

    def __call__(self, *texts: str) -> None: ...


def test_a_dict_is_the_record_of_one_text(model: ErnieForUIE, tokenizer: ErnieTokenizer) -> None:
    plain = uie(model, tokenizer, ["时间", "选手"], TEXTS[0])
    assert uie(model, tokenizer, ["时间", "选手"], {"text": TEXTS[0]}) == plain
    assert uie(model, tokenizer, ["时间", "选手"], [{"content": TEXTS[0]}]) == plain
    with pytest.raises(TypeError, match=r"texts\[0\] is a dict with \['title'\]; a dict holds one text"):
        uie(model, tokenizer, "时间", {"title": TEXTS[0]})


def test_texts_and_tokenizers_are_checked(tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] is a NoneType"):
        uie(Scripted([]), tokenizer, "a", ["文", None])
    with pytest.raises(ValueError, match="no character offsets"):
        uie(Scripted([]), SlowTokenizer(), "a", "文")


def test_progress_and_mode(model: ErnieForUIE, tokenizer: ErnieTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    uie(model, tokenizer, "时间", ["文"] * 64)
    assert capsys.readouterr().err == ""
    uie(model, tokenizer, "时间", ["文"] * 65)
    assert "Extracting" in capsys.readouterr().err
    uie(model, tokenizer, "时间", ["文"] * 65, show_progress=False)
    assert capsys.readouterr().err == ""
    model.train()
    uie(model, tokenizer, "时间", "文", show_progress=True)
    assert "Extracting" in capsys.readouterr().err
    assert model.training
    model.eval()
