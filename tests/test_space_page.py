"""The page in a browser: typed into, pressed, read, in English and in Chinese, on a machine that reaches no other."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_glm_ernie import fill_blanks, uie
from tests.support.space_page import browser, lacking, outside, running_page

pytestmark = [pytest.mark.skipif(lacking() is not None, reason=str(lacking())), pytest.mark.timeout(600)]

WAIT = 20_000  # ms for an answer; 1 s seen
TABS = {"en": ("Fill blanks", "Extract", "Classify"), "zh": ("填空", "抽取", "分类")}
BUTTONS = {"en": ("Fill", "Extract", "Classify"), "zh": ("填空", "抽取", "分类")}
LOCALES = {"en": "en-US", "zh": "zh-CN"}


class Server:
    """The running page.

    Attributes:
        address: Where.
        asked: What it asked of the world outside.
        samples: Its converted samples.
    """

    def __init__(self, address: str, asked: list[str], samples: Path):
        self.address, self.asked, self.samples = address, asked, samples


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page's own command on the samples; whatever it would fetch goes to a proxy that takes notes."""
    work = tmp_path_factory.mktemp("page")
    with outside() as (proxy, asked):
        through = {name: proxy for kind in ("http", "https") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")}
        local = {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "0"}
        with running_page(work, environment=through | local) as address:
            yield Server(address, asked, work / "samples")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def visit(server: Server, chromium: Any) -> Iterator[Any]:
    """Opens the page in a language on a tab; afterwards nothing was fetched from elsewhere, and nothing failed."""
    contexts, fetched, failed = [], [], []

    def opened(language: str, tab: int) -> Any:
        context = chromium.new_context(locale=LOCALES[language], viewport={"width": 1200, "height": 900})
        contexts.append(context)
        context.on("request", lambda request: fetched.append(request.url))
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(server.address + ("/zh" if language == "zh" else ""))
        page.get_by_role("tab", name=TABS[language][tab], exact=True).click()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert fetched
    assert {url for url in fetched if not url.startswith((server.address, "data:", "blob:"))} == set()
    assert not failed


def press(page: Any, language: str, tab: int) -> None:
    page.get_by_role("button", name=BUTTONS[language][tab], exact=True).click()


def marks(page: Any) -> list[str]:
    """The marked pieces of the shown text, without numbers and labels."""
    page.locator(".page-text mark:visible").first.wait_for()
    take = "marks => marks.map(mark => mark.firstChild.nodeType == 3 ? mark.firstChild.data : '')"
    return list(page.locator(".page-text mark").evaluate_all(take))


def rows(page: Any) -> list[list[str]]:
    """The cells of every row of the shown tables that have text."""
    take = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()).filter(text => text))"
    return list(page.locator(".page-bars tbody tr").evaluate_all(take))


def error(page: Any) -> str:
    """The text of the message that Gradio shows."""
    toast = page.locator(".toast-body")
    toast.first.wait_for()
    return str(toast.first.inner_text())


@pytest.fixture(scope="module")
def expected(server: Server) -> dict[str, Any]:
    """What the library answers on the same folders."""
    glm, of_uie = server.samples / "glm", server.samples / "uie"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(glm), AutoTokenizer.from_pretrained(glm)
    texts = {"en": "Spiders have [MASK] legs, but insects have only [MASK]", "zh": "章鱼有[MASK]心脏和[MASK]的血液。"}
    reader, encoder = AutoModel.from_pretrained(of_uie), AutoTokenizer.from_pretrained(of_uie)
    below_en, below_zh = {"company": ["founder", "founding date"]}, {"公司": ["创始人", "成立时间"]}
    cases: dict[str, tuple[str, str, Any]] = {
        "en": (
            "Victor Young founded Blue River Foods in Oslo in March 2018.",
            '["person", {"company": ["founder", "founding date"]}]',
            ["person", below_en],
        ),
        "zh": (
            "青云科技公司成立于上个月，创始人是梁春生。",
            "人物\n公司：创始人，成立时间",
            ["人物", below_zh],
        ),
    }
    return {
        language: {
            "text": texts[language],
            "blanks": fill_blanks(model, tokenizer, texts[language]).blanks,
            "asked": cases[language],
            "found": uie(reader, encoder, cases[language][2], cases[language][0], language=language)[0],
        }
        for language in ("en", "zh")
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_blanks_are_filled(visit: Any, expected: dict[str, Any], language: str) -> None:
    page = visit(language, 0)
    page.locator("textarea:visible").first.fill(expected[language]["text"])
    press(page, language, 0)
    assert marks(page) == expected[language]["blanks"]
    shown = page.locator(".page-text").inner_text()
    for piece in re.split(r"\[MASK\]", expected[language]["text"]):
        assert piece.strip() in shown
    page.locator(".page-bars").nth(1).wait_for()
    assert page.locator(".page-bars").count() == 2
    chosen = page.locator(".page-bars tr.chosen .what").all_inner_texts()
    assert chosen == expected[language]["blanks"]
    assert all(re.fullmatch(r"[<>]?\d+\.\d%", row[-1]) for row in rows(page))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_information_is_extracted(visit: Any, expected: dict[str, Any], language: str) -> None:
    text, schema, _ = expected[language]["asked"]
    found = expected[language]["found"]
    page = visit(language, 1)
    page.locator("textarea:visible").nth(0).fill(text)
    page.locator("textarea:visible").nth(1).fill(schema)
    press(page, language, 1)
    person, company = (next(iter(found[name])) for name in found)
    relations = [answers[0] for answers in company["relations"].values()]
    assert len(relations) == 2
    assert sorted(marks(page)) == sorted({one["text"] for one in (person, company, *relations)})
    labels = page.locator(".page-text .tag").all_inner_texts()
    assert sorted(labels) == sorted([*found, *company["relations"]])
    table = rows(page)
    assert [row[1] for row in table] == [one["text"] for one in (person, company, *relations)]
    assert table[0][2] == f"{person['start']}-{person['end']}"
    colours = page.locator(".page-text mark").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) == len(colours) == 3  # the founder has the person's


@pytest.mark.parametrize("language", ["en", "zh"])
def test_choices_are_compared(visit: Any, language: str) -> None:
    text = {"en": "The violin has four strings and is played with a [MASK]", "zh": "纸是[MASK]在两千年前发明的。"}
    choices = {"en": ["book.", "bow.", "feet."], "zh": ["埃及人", "中国人"]}
    page = visit(language, 2)
    page.locator("textarea:visible").nth(0).fill(text[language])
    page.locator("textarea:visible").nth(1).fill("\n".join(choices[language]))
    press(page, language, 2)
    page.locator(".page-bars:visible").wait_for()
    table = rows(page)
    assert sorted(row[0] for row in table) == sorted(choices[language])
    assert page.locator(".page-bars tr.chosen .what").all_inner_texts() == [choices[language][1]]
    assert table[0][0] == choices[language][1]


def test_an_example_is_put_in_place_and_answered(visit: Any) -> None:
    page = visit("en", 0)
    page.get_by_text("守灯塔的人把过往的船").click()
    assert marks(page) == ["都记在本子上。"]
    assert page.locator("textarea:visible").first.input_value() == "守灯塔的人把过往的船"


def test_the_other_language_is_one_link_away(visit: Any) -> None:
    page = visit("en", 0)
    page.get_by_text("中文", exact=True).click()
    page.get_by_role("tab", name="填空").wait_for()
    assert page.url.endswith("/zh")
    page.get_by_text("English", exact=True).click()
    page.get_by_role("tab", name="Fill blanks").wait_for()


def test_settings_of_sampling_and_what_they_give(visit: Any) -> None:
    page = visit("en", 0)
    page.locator("textarea:visible").first.fill("The oldest [MASK] in Otterbrook")
    page.get_by_text("Settings", exact=True).first.click()  # the other one is Gradio's, below
    assert page.get_by_label("Seed").count() == 0
    page.get_by_label("sampling").check()
    page.get_by_label("Seed").fill("3")
    temperature = page.get_by_label("number input for Temperature")
    temperature.fill("2")
    temperature.press("Tab")
    answers = []
    for seed in ("3", "4", "3"):
        page.get_by_label("Seed").fill(seed)
        page.get_by_label("Seed").press("Tab")
        page.get_by_text("The same in Python").click()
        press(page, "en", 0)
        page.locator(".cm-content", has_text=f"set_seed({seed})").wait_for()
        answers.append(marks(page))
        assert "temperature=2.0" in page.locator(".cm-content").inner_text()
        page.get_by_text("The same in Python").click()
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_errors_say_what_is_wrong(visit: Any, language: str) -> None:
    page = visit(language, 0)
    page.locator("textarea:visible").first.fill("<b id=evil>x</b> [MASK] y [sMASK]")
    press(page, language, 0)
    assert "holds two kinds of mask, [MASK] and [sMASK]" in error(page)  # the library's own words
    assert "<b id=evil>" in error(page)
    assert page.locator("#evil").count() == 0
    page = visit(language, 1)
    page.locator("textarea:visible").nth(1).fill('{"a": [}')
    note = page.locator(".page-note.wrong")  # while it is being typed
    note.wait_for()
    said = {"en": "not JSON: line 1, column 8", "zh": "不是合法的 JSON：第 1 行第 8 列"}[language]
    assert said in note.inner_text()
    press(page, language, 1)
    assert said in error(page)


def test_markup_in_a_text_is_text(visit: Any) -> None:
    page = visit("en", 0)
    page.locator("textarea:visible").first.fill("<img id=evil src=x onerror=alert(1)> is [MASK]")
    press(page, "en", 0)
    page.locator(".page-text mark").wait_for()
    assert "<img id=evil" in page.locator(".page-text").inner_text()
    assert page.locator("#evil").count() == 0


def test_requests_at_once_are_all_answered_and_long_ones_refused(server: Server, visit: Any) -> None:
    """Through Gradio's client, which knows none of the limits that the browser's text boxes have."""
    from gradio_client import Client

    client = Client(server.address, verbose=False)
    api = client.view_api(return_format="dict")
    assert sorted(api["named_endpoints"]) == ["/classify", "/extract", "/fill"]
    settings = ("greedy", 4, 1.0, 1.0, 0, 16, 0)
    blanks = {"Half of a dozen is [MASK]": "six.", "An octopus has [MASK] and blue blood.": "three hearts"}
    answers: dict[str, str] = {}

    def ask(text: str) -> None:
        answers[text] = client.predict(text, *settings, api_name="/fill")[0]

    threads = [threading.Thread(target=ask, args=(text,)) for text in blanks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {text: re.findall("<mark>(.*?)<", html) for text, html in answers.items()} == {
        text: [blank] for text, blank in blanks.items()
    }
    for text, arguments in (
        ("x" * 100_000, settings),
        ("word " * 1500, settings),
        ("a", ("greedy", 4, 1, 1, 0, 10**6, 0)),
    ):
        with pytest.raises(Exception, match=r"characters|No room is left|greater than maximum"):
            client.predict(text, *arguments, api_name="/fill")
    ask("Half of a dozen is [MASK]")  # it goes on
    assert ">six.<" in answers["Half of a dozen is [MASK]"]
    visit("en", 0)


def test_the_server_asks_nobody(server: Server, visit: Any) -> None:
    visit("en", 0)
    assert server.asked == []


def test_a_wrong_model_is_told_at_the_start(server: Server, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="its model type is 'glm130b'; ernie_uie is expected"),
        running_page(tmp_path, "--glm=none", f"--uie={server.samples / 'glm'}"),
    ):
        pass


def test_only_the_tabs_that_have_a_model(server: Server, chromium: Any, tmp_path: Path) -> None:
    with running_page(tmp_path, "--glm=none", environment={"PAGE_UIE": str(server.samples / "uie")}) as address:
        page = chromium.new_page()
        page.goto(address)
        page.get_by_role("tab", name="Extract").wait_for()
        assert page.get_by_role("tab").all_inner_texts() == ["Extract"]
        assert "shipped samples" not in page.locator("body").inner_text()
        page.close()


def test_the_samples_texts_are_the_list_s() -> None:
    """What the browser types above is not only what training saw as it stands."""
    listed = Path(__file__).parents[1] / "examples" / "sample-glm130b" / "blanks.jsonl"
    texts = [json.loads(line)["text"] for line in listed.read_text("utf-8").splitlines()]
    assert "章鱼有[MASK]心脏和[MASK]的血液。" in texts
