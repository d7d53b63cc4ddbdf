"""The shipped ERNIE sample on the true path (PaddleNLP's files, converter, Auto classes, tasks), and its training."""

import json
import random

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, ErnieForMaskedLM, pipeline

from conversion.paddle_files import open_paddle_source
from examples import ernie_tasks
from examples import train_sample_ernie as training
from hf_glm_ernie import ErnieForUIE, ErnieTokenizer, sentence_embeddings, uie
from tests.support.fresh import fresh_python

BLANKS = ernie_tasks.read_lines("blanks.jsonl")
EXTRACTIONS = ernie_tasks.read_lines("extractions.jsonl")
EVENTS = json.loads((ernie_tasks.SAMPLE / "events.json").read_text("utf-8"))
LANGUAGES = sorted(EVENTS)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The finished tour, run as a user runs it, and the folder it converted to."""
    folder = tmp_path_factory.mktemp("tour") / "converted"
    script = ernie_tasks.REPOSITORY / "examples" / "ernie_tasks.py"
    return fresh_python([script, "--output", folder], folder.parent), folder


@pytest.fixture(scope="module")
def masked_lm(tour):
    folder = tour[1] / "masked-lm"
    return AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def extractor(tour):
    folder = tour[1] / "uie"
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_tour_succeeds_and_reports(tour):
    done = tour[0]
    assert done.returncode == 0, done.stderr
    for expected in (
        "$ python -m conversion ernie --source examples/sample-ernie/masked-lm",
        f"of {len(BLANKS)} held-out blanks right",
        f"of {len(EXTRACTIONS)} held-out texts exactly right",
        "法国的首都是[MASK][MASK]。",
        "The capital of France is [MASK].",
        "cosine",
        '"成立时间"',
        EXTRACTIONS[0]["text"],
    ):
        assert expected in done.stdout, expected


def test_auto_classes_open_it(masked_lm, extractor):
    assert [type(part) for part in masked_lm] == [ErnieForMaskedLM, ErnieTokenizer]
    assert [type(part) for part in extractor] == [ErnieForUIE, ErnieTokenizer]


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_blanks_are_filled(masked_lm, language):
    """Facts whose wording the model has not read; measured: 55 of 61 Chinese, 38 of 38 English right."""
    model, tokenizer = masked_lm
    asked = [blank for blank in BLANKS if blank["language"] == language]
    assert training.count_right_blanks(model, tokenizer, asked) >= 0.87 * len(asked)


def test_pipeline_gives_probabilities(masked_lm):
    model, tokenizer = masked_lm
    answers = pipeline("fill-mask", model=model, tokenizer=tokenizer)("雪花是[MASK]色的。", top_k=len(tokenizer))
    assert answers[0]["token_str"] == "白"
    assert answers[0]["sequence"] == "雪 花 是 白 色 的 。"
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_texts_are_read(extractor, language):
    """People and companies the model has not read of; measured: 19 of 20 Chinese, 18 of 20 English right."""
    model, tokenizer = extractor
    asked = [one for one in EXTRACTIONS if one["language"] == language]
    right = training.count_right_extractions(model, tokenizer, {language: EVENTS[language]}, asked)
    assert right >= 0.85 * len(asked)


def test_nested_schema(extractor):
    """A sentence written by hand, and one that has nothing of what is asked."""
    model, tokenizer = extractor
    texts = ["2001年，陈晓雯在杭州创办了白鹿医药公司。", "昨天，小红在河边看见了三只鸭子。"]
    found = uie(model, tokenizer, {"公司": ["创始人", "成立时间"]}, texts)
    assert [training.without_probabilities(answers) for answers in found] == [
        {
            "公司": [
                {
                    "text": "白鹿医药公司",
                    "start": 15,
                    "end": 21,
                    "relations": {
                        "创始人": [{"text": "陈晓雯", "start": 6, "end": 9}],
                        "成立时间": [{"text": "2001年", "start": 0, "end": 5}],
                    },
                }
            ]
        },
        {},
    ]
    assert all(0.9 < answer["probability"] <= 1 for answer in found[0]["公司"])


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ("法国的首都是巴黎。", "巴黎是法国的首都。", "大熊猫最爱吃的食物是竹子。"),
        ("The capital of France is Paris.", "We flew to Paris, the capital of France.", "A baker works in a bakery."),
    ],
)
def test_sentences_about_one_thing_are_alike(tour, one, same, other):
    folder = tour[1] / "masked-lm"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    first, second, third = sentence_embeddings(model, tokenizer, [one, same, other])
    # Measured: 0.95 and 0.34 in Chinese, 0.81 and 0.40 in English.
    assert first @ second > first @ third + 0.2


def test_tour_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not an earlier conversion"):
        ernie_tasks.convert(ernie_tasks.SAMPLE / "uie", tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_columns_count_chinese_characters_twice():
    assert ernie_tasks.padded("首都a", 7) == "首都a  "


def test_sample_is_small_and_in_the_released_format():
    assert sum(path.stat().st_size for path in ernie_tasks.SAMPLE.rglob("*") if path.is_file()) < 3_000_000
    for name, original in (("masked-lm", "ErnieForMaskedLM"), ("uie", "UIE")):
        folder = ernie_tasks.SAMPLE / name
        assert json.loads((folder / "config.json").read_text())["architectures"] == [original]
        specs = open_paddle_source(folder).specs
        assert {spec.dtype for spec in specs.values()} == {torch.float16}
        assert "ernie.pooler.dense.weight" in specs
        tokens = (folder / "vocab.txt").read_text("utf-8").split()
        assert [*tokens[:4], tokens[-1]] == ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]


def test_training_never_reads_a_held_out_wording():
    sentences, blanks = training.read_facts(ernie_tasks.SAMPLE)
    assert blanks == BLANKS
    read = {sentence.text.lower() for sentence in sentences}
    for path in training.SENTENCES:
        read |= set(path.read_text("utf-8").lower().splitlines())
    for blank in blanks:
        assert blank["text"].lower().replace("[mask]", "{}").format(*blank["answer"]) not in read


def names(answers, kinds):
    return {answer["text"] for kind in kinds for answer in answers.get(kind, [])}


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_never_reads_a_held_out_name(language):
    kinds = ("人物", "公司", "person", "company")
    held_out = set().union(*(names(one["answers"], kinds) for one in EXTRACTIONS if one["language"] == language))
    assert len(held_out) > 20
    writer = training.EventWriter(language, EVENTS[language], held_out=False, rng=random.Random(2))
    read = set().union(*(names(writer.write()["answers"], kinds) for _ in range(2000)))
    assert len(read) > 100
    assert not read & held_out


@pytest.mark.parametrize("language", LANGUAGES)
def test_events_are_what_they_say(language):
    """Places are right, and the rows that UIE learns from point at the answers."""
    tokenizer = ErnieTokenizer(str(ernie_tasks.SAMPLE / "uie" / "vocab.txt"))
    writer = training.EventWriter(language, EVENTS[language], held_out=False, rng=random.Random(3))
    for event in [writer.write() for _ in range(50)]:
        for prompt, spans in writer.questions(event):
            encoding = tokenizer(prompt, event["text"]).encodings[0]
            for start, end in spans:
                first, last = encoding.char_to_token(start, 1), encoding.char_to_token(end - 1, 1)
                assert (encoding.offsets[first][0], encoding.offsets[last][1]) == (start, end)
    (row, *_) = training.uie_rows(tokenizer, writer, 10)
    assert len({len(values) for values in row.values()}) == 1
    assert sum(row["start_positions"]) == sum(row["end_positions"])


def test_answers_are_masked_whole():
    tokenizer = ErnieTokenizer(str(ernie_tasks.SAMPLE / "masked-lm" / "vocab.txt"))
    sentences = [training.Sentence("法国的首都是巴黎。", (6, 8)), training.Sentence("云是由水滴组成的。")]
    masking = training.AnswerMasking(tokenizer, answer_share=1.0, mask_share=0.0, rng=random.Random(1))
    rows = masking.rows(tokenizer, sentences)
    batch = masking(rows)
    assert tokenizer.decode(batch["input_ids"][0]).replace(" ", "") == "[CLS]法国的首都是[MASK][MASK]。[SEP]"
    asked = batch["labels"] != -100
    assert asked.sum(-1).tolist() == [2, 0]
    assert tokenizer.convert_ids_to_tokens(batch["labels"][asked]) == ["巴", "黎"]
    assert masking.rows(tokenizer, sentences) == rows  # nothing was changed in place


def test_training_script_runs(tmp_path):
    """A few steps from the texts to the files; loss goes down, and what is held out does not depend on chance."""
    sizes = ["--hidden-size", "32", "--intermediate-size", "48", "--layers", "1", "--heads", "2"]
    steps = ["--masked-lm-steps", "30", "--uie-steps", "30", "--event-texts", "20", "--warmup", "3"]
    rates = ["--learning-rate", "1e-2", "--uie-learning-rate", "1e-2"]
    output = tmp_path / "sample"
    arguments = training.parse_arguments(["--output", str(output), *sizes, *steps, *rates])
    training.main(arguments)
    for name in ("blanks.jsonl", "extractions.jsonl", "facts.json", "events.json", "uie/vocab.txt"):
        assert (output / name).read_bytes() == (ernie_tasks.SAMPLE / name).read_bytes(), name
    written = {path.relative_to(output) for path in output.rglob("*")}
    shipped = {path.relative_to(ernie_tasks.SAMPLE) for path in ernie_tasks.SAMPLE.rglob("*")}
    assert written == {path for path in shipped if path.name != "README.md"}
    record = json.loads((output / "training.json").read_text())
    for name in ("masked-lm", "uie"):
        losses = [loss for _, loss in record[name]["loss"]]
        assert losses[-1] < 0.95 * losses[0], name
    with pytest.raises(SystemExit, match="exists already"):
        training.main(arguments)
