"""The page of `examples/space` without Gradio: what is typed, what the models are asked, what is shown."""

import contextlib
import io
import json
import math
import re
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.__main__ import main as convert
from hf_glm_ernie import ErnieForUTC, ErnieUTCConfig, __version__, fill_blanks, uie, utc
from tests.support.space_page import GLM_SAMPLE, ROOT, SPACE, UIE_SAMPLE

# isort: split
import page_answers
import page_models
import page_texts
from page_answers import Candidate, Choice, FilledPage, FillSettings
from page_code import classify_code, extract_code, fill_code
from page_handlers import Handlers
from page_models import Opened
from page_refusals import LANGUAGES, REFUSALS, Refusal
from page_schema import LONGEST_SCHEMA, MOST_NAMES, parse_schema
from page_views import (
    Found,
    candidates_html,
    choices_html,
    filled_html,
    flattened,
    found_html,
    percent,
    schema_html,
    segments,
    spans_html,
)

EN, ZH = page_texts.EN, page_texts.ZH


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    """The samples, opened by the page's own code; converted in this process, which saves ten seconds."""
    samples = tmp_path_factory.mktemp("page")
    for role, family, source in (("glm", "glm130b", GLM_SAMPLE), ("uie", "ernie", UIE_SAMPLE)):
        options = [f"--source={source}", f"--output={samples / role}", "--dtype=float32", "--no-reference"]
        assert convert([family, *options]) == 0
    return page_models.open_models(page_models.chosen_names({}, {}), samples)


@pytest.fixture(scope="module")
def glm(models: dict[str, Opened]) -> Opened:
    return models["glm"]


@pytest.fixture(scope="module")
def tiny_utc(models: dict[str, Opened]) -> Opened:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ErnieForUTC(ErnieUTCConfig(vocab_size=1910, max_position_embeddings=64, **sizes)).eval()
    tokenizer = type(models["uie"].tokenizer).from_pretrained(models["uie"].folder)
    return Opened("utc", "utc", "ernie_utc", model.num_parameters(), model, tokenizer)


# Texts of the page --------------------------------------------------------------------------------------------------


def test_both_languages_say_everything() -> None:
    assert EN.keys() == ZH.keys()
    assert all(EN[key] != ZH[key] for key in EN if key not in ("top_p",))
    for key, (english, chinese) in REFUSALS.items():
        fields = [
            sorted(name for _, name, _, _ in string.Formatter().parse(text) if name) for text in (english, chinese)
        ]
        assert fields[0] == fields[1], key


def test_every_word_is_used() -> None:
    code = "".join(path.read_text("utf-8") for path in SPACE.glob("page_*.py") if path.stem != "page_texts")
    built = {"classify_help_utc", "classify_help_glm", "greedy", "beams", "sampling"}  # names put together there
    assert not [key for key in EN if key not in built and f'"{key}"' not in code and f"'{key}'" not in code]
    assert not [
        key for key in REFUSALS if f'Refusal("{key}"' not in code and f'Refusal(\n            "{key}"' not in code
    ]


def test_card_requirements_and_package_name_the_same_versions() -> None:
    card = (SPACE / "README.md").read_text("utf-8")
    sdk_version = re.search(r"^sdk_version: (\S+)$", card, flags=re.MULTILINE)
    assert sdk_version is not None
    lines = (SPACE / "requirements.txt").read_text("utf-8").splitlines()
    assert lines == [f"gradio=={sdk_version[1]}", f"hf-glm-ernie=={__version__}"]
    assert re.search(r"^sdk: gradio$", card, flags=re.MULTILINE)
    for name in re.findall(r"`([\w]+\.(?:py|css))`", card):
        assert (SPACE / name).is_file(), name
    assert {path.name for path in SPACE.glob("*.py")} <= set(re.findall(r"`([\w]+\.py)`", card))


# The schema editor --------------------------------------------------------------------------------------------------

COMPANY: dict[str, Any] = {"company": ["founder", "founding date"]}


@pytest.mark.parametrize(
    ("typed", "schema"),
    [
        ("person", ["person"]),
        ("person, date\n\n place ", ["person", "date", "place"]),
        ("company: founder, founding date", [COMPANY]),
        ("date, company: founder, founding date\nplace", ["date", COMPANY, "place"]),
        ("人物，时间、地点；公司：创始人", ["人物", "时间", "地点", {"公司": ["创始人"]}]),
        ("评价维度：情感倾向[正向,负向]，观点词", [{"评价维度": ["情感倾向[正向,负向]", "观点词"]}]),
        ('["person", {"company": ["founder", "founding date"]}]', ["person", COMPANY]),
        ('{"company": ["founder", "founding date"]}', COMPANY),
        ('"person"', "person"),
    ],
)
def test_schemas_are_read(typed: str, schema: Any) -> None:
    assert parse_schema(typed) == schema


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (" \n", "is empty"),
        ('{"company": [}', "line 1, column 14"),
        ('["person",\n "date"', "line 2, column 8"),
        (": founder", "Line 1 of the schema has nothing before its colon"),
        ("person\ncompany:", "Line 2 of the schema has nothing behind its colon"),
        ("[" * LONGEST_SCHEMA, "nests too deeply"),
        ("[" * 450 + '"a"' + "]" * 450, "nests too deeply"),  # Python reads this, and the preview could not show it
        ("x" * (LONGEST_SCHEMA + 1), "4,001 characters"),
        ("\n".join(map(str, range(MOST_NAMES + 1))), "has 65 names"),
    ],
)
def test_schemas_that_are_refused(typed: str, said: str) -> None:
    with pytest.raises(Refusal, match=re.escape(said)) as refused:
        parse_schema(typed)
    assert refused.value.text("zh") != refused.value.text("en") == str(refused.value)


def test_the_editor_shows_what_it_understood(models: dict[str, Opened]) -> None:
    handlers = Handlers(models, "zh")
    assert handlers.preview("公司: <创始人>").count('class="tag"') == 2
    assert "&lt;创始人&gt;" in handlers.preview("公司: <创始人>")
    assert "不是合法的 JSON" in handlers.preview("[")
    assert handlers.preview(" ") == ""
    assert re.sub(r"<[^>]+>", " ", schema_html(COMPANY)).split() == ["company", "›", "founder", "founding", "date"]


# Answers as HTML ----------------------------------------------------------------------------------------------------


def plain(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.0%"), (0.0004, "<0.1%"), (0.1234, "12.3%"), (0.9999, ">99.9%"), (1.0, "100.0%")]
)
def test_percent(value: float, shown: str) -> None:
    assert percent(value) == shown


def test_filled_text_keeps_what_was_typed_and_escapes_it() -> None:
    html = filled_html(FilledPage(["<b>a ", " & b ", ""], ["<i>", ""], "", []))
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.count("<mark>") == 2
    assert plain(html) == "&lt;b&gt;a &lt;i&gt;1 &amp; b &nbsp;2"
    assert "<sup>" not in filled_html(FilledPage(["a ", ""], ["b"], "", []))


def test_candidates_name_what_is_left() -> None:
    found = [
        Candidate("a <b>", 0.75, True, False),
        Candidate("c", 0.125, False, True),
        Candidate(" ", 0.0, False, False),
    ]
    html = candidates_html([found], EN)
    assert re.findall(r"[\d.]+%", plain(html)) == ["75.0%", "12.5%", "0.0%", "12.5%"]
    assert html.count('class="chosen"') == 1
    assert "a &lt;b&gt;" in html
    assert EN["else"] in html
    assert EN["nothing"] in html
    assert candidates_html([found, found], EN).count("<table") == 2
    assert EN["else"] not in candidates_html([[Candidate("a", 1.0, True, False)]], EN)


def found(label: str, start: int | None, end: int | None, about: str | None = None) -> Found:
    return Found(("company", label) if about else (label,), about, "", start, end, 0.5)


def test_segments_are_the_text_cut_where_answers_begin_and_end() -> None:
    text = "0123456789"
    answers = [found("a", 1, 5), found("b", 3, 8), found("c", 3, 8, "x"), found("d", None, None), found("e", 9, 10)]
    pieces = segments(text, answers)
    assert [
        (piece.text, [one.label for one in piece.over], [one.label for one in piece.ending]) for piece in pieces
    ] == [
        ("0", [], []),
        ("12", ["a"], []),
        ("34", ["a", "b", "c"], ["a"]),
        ("567", ["b", "c"], ["b", "c"]),
        ("8", [], []),
        ("9", ["e"], ["e"]),
    ]
    assert segments("", []) == []


def test_random_segments_make_up_the_text() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        length = int(torch.randint(1, 30, (1,), generator=generator))
        ends = torch.randint(0, length + 1, (6, 2), generator=generator).sort(-1).values.tolist()
        answers = [found(str(number), *pair) for number, pair in enumerate(ends)]
        text = "x" * length
        pieces = segments(text, answers)
        assert "".join(piece.text for piece in pieces) == text
        assert all(piece.text for piece in pieces)
        for start, end in ends:  # every answer covers its own characters, and ends once
            label = str(ends.index([start, end]))
            covered = sum(len(piece.text) for piece in pieces if label in [one.label for one in piece.over])
            assert covered == end - start


def test_spans_have_colours_labels_and_no_markup_of_the_text() -> None:
    html = spans_html("<Mara> founded", [found("person", 1, 5), found("founder", 1, 5, "Otter"), found("x", 7, 14)])
    assert plain(html) == "&lt;Marapersonfounder&gt; foundedx"
    assert re.findall(r'<mark class="(\S+ \S+)', html) == ["span c0", "span c2"]
    assert 'title="company › founder (Otter), 50.0%"' in html


def test_table_of_answers() -> None:
    answers = {"公司": [{"text": "<b>", "start": 0, "end": 3, "probability": 0.5, "relations": {
        "倾向": [{"text": "正向", "probability": 0.25}]}}]}  # fmt: skip
    flat = list(flattened(answers))
    assert [(one.names, one.about, one.start) for one in flat] == [
        (("公司",), None, 0),
        (("公司", "倾向"), "<b>", None),
    ]
    html = found_html(flat, ZH)
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert re.findall(r'class="percent">([^<]+)<', html) == ["50.0%", "25.0%"]
    assert ZH["nothing_found"] in found_html([], ZH)


def test_bars_of_choices() -> None:
    html = choices_html([Choice("<a>", 0.9, True), Choice("b", 0.1, False)], EN)
    assert html.count('class="chosen"') == 1
    assert "&lt;a&gt;" in html
    assert EN["none_holds"] in choices_html([Choice("b", 0.1, False)], EN)


# Fill blanks --------------------------------------------------------------------------------------------------------

BLANKS = [json.loads(line) for line in (GLM_SAMPLE / "blanks.jsonl").read_text("utf-8").splitlines()]


def test_filled_as_the_library_fills(glm: Opened) -> None:
    for blank in BLANKS[11:14] + BLANKS[-3:-1]:
        page = page_answers.fill(glm.model, glm.tokenizer, blank["text"], FillSettings(candidates=0))
        assert page.blanks == blank["blanks"] == fill_blanks(glm.model, glm.tokenizer, blank["text"]).blanks
        assert page.candidates == []
        typed = re.sub(r"\[[gs]?MASK\]", "", blank["text"]).replace(" ", "")
        assert "".join(page.pieces).replace(" ", "") == typed


def test_alternatives_and_their_probabilities(glm: Opened) -> None:
    text = "二月是[MASK]里最短的[MASK]"
    reports: list[float] = []
    page = page_answers.fill(
        glm.model, glm.tokenizer, text, FillSettings(candidates=6), lambda done, what: reports.append(done)
    )
    assert page.blanks == ["一年", "月份。"]
    assert [[one.text for one in of_blank if one.is_chosen] for of_blank in page.candidates] == [["一年"], ["月份。"]]
    for of_blank in page.candidates:
        shares = [one.probability for one in of_blank]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-5
        assert len(of_blank) <= 6
    # 0.69 and 0.255: what else would stand there is a likely answer, too
    assert page.candidates[1][1].text == "月。"
    assert page.candidates[1][1].probability > 0.1
    assert reports[0] > 0
    assert max(reports) <= 1


def test_beams_score_as_a_forward_does(glm: Opened) -> None:
    """Each beam's probability is that of its tokens and its end, one forward for each."""
    filled = fill_blanks(glm.model, glm.tokenizer, "二月是[MASK]里最短的[MASK]")
    prompts = list(page_answers.prompts_of_blanks(glm.tokenizer, "二月是[MASK]里最短的[MASK]", filled.blank_ids))
    assert [glm.tokenizer.decode(ids) for ids in filled.blank_ids] == filled.blanks
    assert [prompt[-1] for prompt in prompts] == [glm.tokenizer.sop_token_id] * 2
    for prompt, answer in zip(prompts, filled.blank_ids, strict=True):
        best = page_answers.candidates(glm.model, glm.tokenizer, prompt, answer, 4, 32)[0]
        alone = page_answers.answer_probability(glm.model, prompt, answer)
        # the same sum in fp32 with and without a cache: seen 1e-6
        assert math.isclose(best.probability, alone, abs_tol=2e-5)


def test_what_was_sampled_stands_among_the_alternatives(glm: Opened) -> None:
    settings = FillSettings(method="sampling", temperature=3, top_p=1, seed=3, candidates=3, max_new_tokens=8)
    pages = [page_answers.fill(glm.model, glm.tokenizer, "Half of a dozen is [MASK]", settings) for _ in range(2)]
    assert pages[0] == pages[1]
    chosen = [one for one in pages[0].candidates[0] if one.is_chosen]
    assert [one.text for one in chosen] == pages[0].blanks
    assert len(pages[0].candidates[0]) == 4  # none of the three likeliest
    assert 0 <= chosen[0].probability < 0.01


def test_beam_search_of_the_page_is_the_library_s(glm: Opened) -> None:
    text = "The capital of Japan is Tokyo, a city of [MASK]"
    page = page_answers.fill(glm.model, glm.tokenizer, text, FillSettings(method="beams", num_beams=3))
    assert page.blanks == fill_blanks(glm.model, glm.tokenizer, text, num_beams=3, max_new_tokens=32).blanks


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("", {}, "The text is empty"),
        ("x" * 8001, {}, "8,001 characters"),
        ("[MASK]" * 9, {}, "9 blanks"),
        ("a [MASK] b [gMASK]", {}, "two kinds of mask"),
        ("word " * 1500, {}, "No room is left"),
        ("a [MASK]", {"max_new_tokens": 257}, "max_new_tokens has the value|max_new_tokens is 257"),
        ("a [MASK]", {"method": "guessing"}, "method is 'guessing'"),
        ("a [MASK]", {"method": "sampling", "temperature": 0.0}, "temperature is 0.0"),
        ("a [MASK]", {"seed": None}, "seed is None"),
    ],
)
def test_what_is_refused_before_or_by_the_library(glm: Opened, text: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        page_answers.fill(glm.model, glm.tokenizer, text, FillSettings(**settings))


def test_a_blank_filled_with_a_blank_is_shown_without_marks(glm: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = fill_blanks(glm.model, glm.tokenizer, "Half of a dozen is [MASK]")
    monkeypatch.setattr(
        page_answers, "fill_blanks", lambda *_, **__: type(filled)("whole", ["a", "b"], [], [[1], [2]])
    )
    page = page_answers.fill(glm.model, glm.tokenizer, "Half of a dozen is [MASK]", FillSettings())
    assert (page.pieces, page.blanks, page.candidates) == (["whole"], [], [])


def test_no_prompt_behind_an_answer_that_holds_a_mask(glm: Opened) -> None:
    tokenizer = glm.tokenizer
    answers = [[tokenizer.mask_token_id], [5]]
    assert len(list(page_answers.prompts_of_blanks(tokenizer, "a [MASK] b [MASK]", answers))) == 1


# Extract and classify -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_extraction_is_the_library_s(models: dict[str, Opened], language: str) -> None:
    text, schema, of = page_texts.EXTRACT_EXAMPLES[language][0]
    opened = models["uie"]
    answers = page_answers.extract(opened.model, opened.tokenizer, parse_schema(schema), text, of, 0.5)
    assert answers == uie(opened.model, opened.tokenizer, parse_schema(schema), text, language=of)[0]
    spans, table, code = Handlers(models, language).extract(text, schema, of, 0.5)
    flat = list(flattened(answers))
    assert len(flat) >= 7  # a company, who founded it and when, and the rest
    assert all(text[one.start : one.end] == one.text for one in flat)
    assert spans.count("<mark") == len({(one.start, one.end) for one in flat})
    assert table.count("<tr>") == len(flat) + 1
    assert "uie(" in code


@pytest.mark.parametrize(
    ("schema", "error", "said"),
    [('{"a": 1}', TypeError, r"schema\['a'\] is a int"), ("a[b", ValueError, "brackets do not enclose")],
)
def test_a_schema_the_library_refuses(models: dict[str, Opened], schema: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        Handlers(models, "en").extract("text", schema, "en", 0.5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_are_classified_as_they_should(models: dict[str, Opened], language: str) -> None:
    for text, choices in page_texts.CLASSIFY_EXAMPLES[language]:
        labels = page_answers.read_choices(choices)
        opened = models["classifier"]
        answers = page_answers.classify(opened.model, opened.tokenizer, text, labels, 0.5, True)
        assert math.isclose(sum(one.probability for one in answers), 1.0, abs_tol=1e-9)
        assert [one.label for one in answers if one.holds] == [answers[0].label] == [labels[0]]


def test_a_choice_does_not_lose_to_its_own_beginning(glm: Opened) -> None:
    answers = page_answers.classify(
        glm.model, glm.tokenizer, "[MASK]是自然界里最硬的东西。", ["金", "金刚石"], 0.5, True
    )
    assert answers[0].label == "金刚石"
    shares = [page_answers.answer_probability(glm.model, prompt, ids) for prompt, ids in _asked(glm)]
    # against single forwards in fp32: seen 7e-9
    assert math.isclose(answers[0].probability, shares[1] / sum(shares), abs_tol=2e-5)


def _asked(glm: Opened) -> list[tuple[list[int], list[int]]]:
    prompt = glm.tokenizer("[MASK]是自然界里最硬的东西。")["input_ids"]
    return [(prompt, glm.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in ("金", "金刚石")]


@pytest.mark.parametrize("single_label", [True, False])
def test_utc_classifies(tiny_utc: Opened, single_label: bool) -> None:
    labels = ["这是一条好评", "这是一条差评", "其他"]
    arguments = (tiny_utc.model, tiny_utc.tokenizer)
    answers = page_answers.classify(*arguments, "房间干净明亮", labels, 0.5, single_label)
    expected = utc(*arguments, labels, "房间干净明亮", single_label=single_label, threshold=0.5)[0]["predictions"]
    assert {one.label: one.probability for one in answers if one.holds} == {
        one["label"]: one["score"] for one in expected
    }
    assert len(answers) == (1 if single_label else 3)


@pytest.mark.parametrize(
    ("text", "choices", "said"),
    [
        ("", "a\nb", "The text is empty"),
        ("a", "a", "at least two choices"),
        ("a", "a\n \na", "'a' stands there twice"),
        ("a", "\n".join(map(str, range(33))), "33 choices"),
        ("a", "a\n" + "b" * 201, "201 characters"),
        ("a [MASK] b [MASK]", "a\nb", "several blanks"),
        ("a [sMASK]", "a\nb", r"not of a \[sMASK\]"),
        ("word " * 1500, "a\nb", "and the model's context has"),
    ],
)
def test_what_classification_refuses(models: dict[str, Opened], text: str, choices: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Handlers(models, "en").classify(text, choices, 0.5, True)


# The same in Python -------------------------------------------------------------------------------------------------


def run(code: str, model: Opened, monkeypatch: pytest.MonkeyPatch) -> str:
    """What code prints, with the model at hand in place of one that is opened anew."""
    for auto, thing in (("AutoModel", model.model), ("AutoModelForCausalLM", model.model), ("AutoTokenizer", None)):
        given = model.tokenizer if thing is None else thing
        monkeypatch.setattr(f"transformers.{auto}.from_pretrained", lambda *_, _given=given, **__: _given)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


def test_the_python_that_is_shown_gives_the_answer(
    models: dict[str, Opened], tiny_utc: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    glm, of_uie = models["glm"], models["uie"]
    settings = FillSettings(method="sampling", seed=7, max_new_tokens=8)
    text = "Half of a 'dozen' is [MASK]"
    page = page_answers.fill(glm.model, glm.tokenizer, text, settings)
    code = fill_code("folder", text, settings.generate_arguments(), settings.seed)
    assert run(code, glm, monkeypatch).strip() == f"{page.text} {page.blanks}"
    text, schema, language = page_texts.EXTRACT_EXAMPLES["zh"][1]
    answers = page_answers.extract(of_uie.model, of_uie.tokenizer, parse_schema(schema), text, language, 0.4)
    printed = run(extract_code("folder", text, parse_schema(schema), language, 0.4), of_uie, monkeypatch)
    assert printed.strip() == str([answers])
    shown = [(glm, True, "Half of a dozen is"), (tiny_utc, True, "房间"), (tiny_utc, False, "房间")]
    for opened, single_label, text in shown:
        choices = ["six.", "ten."]
        found = page_answers.classify(opened.model, opened.tokenizer, text, choices, 0.5, single_label)
        code = classify_code("folder", opened.model_type, text, choices, 0.5, single_label)
        printed = run(code, opened, monkeypatch)
        numbers = [float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", printed)]
        assert numbers
        for one in found:
            if one.holds:  # equal but for fp32, in which GLM-130B's shares are printed
                assert min(abs(number - one.probability) for number in numbers) < 1e-7


# Which models -------------------------------------------------------------------------------------------------------


def test_where_names_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = page_models.chosen_names
    assert names({}, {}) == {"glm": None, "uie": None, "classifier": None}
    assert names({"glm": "a"}, {"PAGE_GLM": "b", "PAGE_UIE": "c"}) == {"glm": "a", "uie": "c", "classifier": None}
    monkeypatch.setattr(page_models, "MODELS_FILE", tmp_path / "models.json")
    (tmp_path / "models.json").write_text('{"uie": "me/uie"}')
    assert names({}, {"PAGE_UIE": ""}) == {"glm": "none", "uie": "me/uie", "classifier": None}
    for wrong in ('["me/uie"]', '{"uie": 3}', '{"bert": "me/bert"}'):
        (tmp_path / "models.json").write_text(wrong)
        with pytest.raises(ValueError, match="keys among glm, uie, classifier"):
            names({}, {})


def test_models_are_named_and_of_the_right_type(models: dict[str, Opened], tmp_path: Path) -> None:
    assert models.keys() == {"glm", "uie", "classifier"}
    assert models["classifier"] is models["glm"]
    assert all(opened.is_sample for opened in models.values())
    with pytest.raises(ValueError, match="its model type is 'ernie_uie'; glm130b is expected"):
        page_models.open_models({"glm": models["uie"].folder, "uie": "none"}, tmp_path)
    with pytest.raises(ValueError, match="no model to show"):
        page_models.open_models(dict.fromkeys(("glm", "uie", "classifier"), "none"), tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        page_models.open_models({"glm": "none", "uie": str(tmp_path / "nowhere")}, tmp_path)
    assert page_models.unopened({"glm": "me/glm", "uie": "none", "classifier": None}).keys() == {"glm", "classifier"}


def test_a_space_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    role = page_models.Role("glm", ("glm130b",), ("glm130b", tmp_path / "no-samples"))
    monkeypatch.setattr(page_models, "ROLES", (role,))
    with pytest.raises(ValueError, match="the samples come with a checkout"):
        page_models.open_models({}, tmp_path)


def test_the_page_imports_nothing_of_the_repository_but_the_package() -> None:
    assert (ROOT / "examples" / "space" / "app.py").is_file()
    for path in SPACE.glob("*.py"):
        assert not re.search(
            r"^\s*(from|import) (examples|tests|conversion)\b", path.read_text("utf-8"), flags=re.MULTILINE
        )
