"""The page itself: components, and which handler answers to which button.

English is the page at `/`, Chinese the one at `/zh`: two pages of one app, with the bar that Gradio puts above them
to go from one to the other. All handlers share one place in the queue, because they share the models, the cores and
the generator of random numbers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from page_answers import LONGEST_TEXT, MOST_BEAMS, MOST_CANDIDATES, MOST_NEW_TOKENS
from page_handlers import Handlers
from page_models import Opened
from page_refusals import Refusal
from page_schema import LONGEST_SCHEMA
from page_texts import CLASSIFY_EXAMPLES, EXTRACT_EXAMPLES, FILL_EXAMPLES, TITLE, WORDS

MOST_WAITING = 32
LONGEST_EXAMPLE = 52  # letters on a button; half as many Chinese ones
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
CODE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def build(models: Mapping[str, Opened]) -> gr.Blocks:
    """Lays the page out, with a tab for each role that has a model.

    Args:
        models: Role -> its model.

    Returns:
        The app, with its queue.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        _page(Handlers(models, "en"))
    with app.route(WORDS["zh"]["language"], WORDS["zh"]["path"]):
        _page(Handlers(models, "zh"))
    return app.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def launch_arguments() -> dict[str, Any]:
    """What `launch` is told, wherever the page runs: nothing is fetched from elsewhere, nothing is shared."""
    theme = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=CODE_FONTS).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_padding="0",
        block_shadow="none",
        input_background_fill="*background_fill_primary",
        input_border_width="1px",
        input_border_color="*border_color_primary",
        input_shadow="none",
    )
    return {
        "theme": theme,
        "css_paths": Path(__file__).with_name("page.css"),
        "share": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }


def _page(handlers: Handlers) -> None:
    words = handlers.words
    gr.Navbar(main_page_name=WORDS["en"]["language"])
    _html(f'<header class="page-head"><h1>{escape(TITLE)}</h1><p>{escape(words["subtitle"])}</p></header>')
    if any(opened.is_sample for opened in handlers.models.values()):
        gr.Markdown(words["samples"], elem_classes="page-samples")
    with gr.Tabs():
        for role, tab in (("glm", _fill_tab), ("uie", _extract_tab), ("classifier", _classify_tab)):
            if role in handlers.models:
                tab(handlers)


def _fill_tab(handlers: Handlers) -> None:
    words, examples = handlers.words, _ordered(FILL_EXAMPLES, handlers.language)
    with gr.Tab(words["fill_tab"]), gr.Row(equal_height=False):
        with gr.Column(scale=5):
            text = _text(words["fill_text"], words["fill_help"], next(iter(examples.values()))[0][0])
            button = gr.Button(words["fill_button"], variant="primary")
            settings = _fill_settings(words)
            clicks = _examples(examples, [text])
        with gr.Column(scale=6):
            filled, alternatives = _html(_empty(words["fill_empty"])), _html()
            code = _code(handlers, "glm")

    def fill(
        text: str,
        method: str,
        num_beams: float,
        temperature: float,
        top_p: float,
        seed: float,
        max_new_tokens: float,
        candidates: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio looks for it there
    ) -> tuple[str, ...]:
        values = (text, method, num_beams, temperature, top_p, seed, max_new_tokens, candidates)
        with _explained(handlers):
            return handlers.fill(*values, report=lambda done, what: progress(done, desc=f"{words['working']} {what}"))  # type: ignore[arg-type]

    _connect(handlers, "fill", fill, [text, *settings], [filled, alternatives, code], [button.click, *clicks])


def _fill_settings(words: Mapping[str, str]) -> list[gr.components.Component]:
    """The settings of filling, in the order of the handler's arguments."""
    with gr.Accordion(words["settings"], open=False):
        methods = [(words[name], name) for name in ("greedy", "beams", "sampling")]
        method = gr.Radio(methods, value="greedy", label=words["method"])
        num_beams = gr.Slider(2, MOST_BEAMS, 4, step=1, label=words["num_beams"], visible=False)
        with gr.Row(visible=False) as sampling:
            temperature = gr.Slider(0.05, 2, 1, step=0.05, label=words["temperature"])
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label=words["top_p"])
            seed = gr.Number(0, precision=0, minimum=0, label=words["seed"])
        with gr.Row():
            max_new_tokens = gr.Slider(1, MOST_NEW_TOKENS, 32, step=1, label=words["max_new_tokens"])
            candidates = gr.Slider(0, MOST_CANDIDATES, 5, step=1, label=words["candidates"])

    def shown(chosen: str) -> tuple[Any, Any]:
        return gr.update(visible=chosen == "beams"), gr.update(visible=chosen == "sampling")

    method.change(shown, method, [num_beams, sampling], queue=False, show_progress="hidden", api_visibility="private")
    return [method, num_beams, temperature, top_p, seed, max_new_tokens, candidates]


def _extract_tab(handlers: Handlers) -> None:
    words, examples = handlers.words, _ordered(EXTRACT_EXAMPLES, handlers.language)
    first_text, first_schema, _ = next(iter(examples.values()))[0]
    with gr.Tab(words["extract_tab"]), gr.Row(equal_height=False):
        with gr.Column(scale=5):
            text = _text(words["extract_text"], None, first_text)
            schema = gr.Textbox(
                first_schema,
                lines=4,
                max_lines=12,
                max_length=LONGEST_SCHEMA,
                label=words["schema"],
                info=words["schema_help"],
                elem_classes="page-editor",
            )
            tree = _html(handlers.preview(first_schema))
            button = gr.Button(words["extract_button"], variant="primary")
            with gr.Accordion(words["settings"], open=False), gr.Row():
                languages = [(words["in_english"], "en"), (words["in_chinese"], "zh")]
                text_language = gr.Radio(languages, value=handlers.language, label=words["text_language"])
                threshold = gr.Slider(0, 0.99, 0.5, step=0.01, label=words["threshold"])
            clicks = _examples(examples, [text, schema, text_language])
        with gr.Column(scale=6):
            spans, table = _html(_empty(words["extract_empty"])), _html()
            code = _code(handlers, "uie")

    def extract(
        text: str,
        schema: str,
        text_language: str,
        threshold: float,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008  # Gradio looks for it there
    ) -> tuple[str, ...]:
        progress(0, desc=words["working"])
        with _explained(handlers):
            return handlers.extract(text, schema, text_language, threshold)

    inputs = [text, schema, text_language, threshold]
    _connect(handlers, "extract", extract, inputs, [spans, table, code], [button.click, *clicks])
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    schema.change(handlers.preview, schema, tree, trigger_mode="always_last", **quiet)


def _classify_tab(handlers: Handlers) -> None:
    words, examples = handlers.words, _ordered(CLASSIFY_EXAMPLES, handlers.language)
    first_text, first_choices = next(iter(examples.values()))[0]
    is_utc = handlers.models["classifier"].model_type == "ernie_utc"
    with gr.Tab(words["classify_tab"]), gr.Row(equal_height=False):
        with gr.Column(scale=5):
            text = _text(words["classify_text"], words[f"classify_help_{'utc' if is_utc else 'glm'}"], first_text)
            choices = gr.Textbox(
                first_choices, lines=4, max_lines=12, label=words["choices"], info=words["choices_help"]
            )
            button = gr.Button(words["classify_button"], variant="primary")
            with gr.Accordion(words["settings"], open=False, visible=is_utc), gr.Row():
                single_label = gr.Checkbox(not is_utc, label=words["single_label"])
                threshold = gr.Slider(0, 0.99, 0.5, step=0.01, label=words["threshold"])
            clicks = _examples(examples, [text, choices])
        with gr.Column(scale=6):
            bars = _html(_empty(words["classify_empty"]))
            code = _code(handlers, "classifier")

    def classify(
        text: str,
        choices: str,
        threshold: float,
        single_label: bool,
        progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008  # Gradio looks for it there
    ) -> tuple[str, ...]:
        progress(0, desc=words["working"])
        with _explained(handlers):
            return handlers.classify(text, choices, threshold, single_label)

    inputs = [text, choices, threshold, single_label]
    _connect(handlers, "classify", classify, inputs, [bars, code], [button.click, *clicks])


# What the tabs have in common.


def _ordered(examples: Mapping[str, list[list[str]]], language: str) -> dict[str, list[list[str]]]:
    """The examples of both languages, the page's own first."""
    return {language: examples[language]} | dict(examples)


def _text(label: str, info: str | None, value: str) -> gr.Textbox:
    return gr.Textbox(value, lines=4, max_lines=16, max_length=LONGEST_TEXT, label=label, info=info)


def _empty(text: str) -> str:
    return f'<p class="page-empty">{escape(text)}</p>'


def _html(value: str = "") -> gr.HTML:
    """HTML of the page's own, which `page.css` draws."""
    return gr.HTML(value, apply_default_css=False, elem_classes="page-html")


def _code(handlers: Handlers, role: str) -> gr.Code:
    """Where the call behind an answer is shown, and whose answer it is."""
    with gr.Accordion(handlers.words["python"], open=False):
        code = gr.Code(language="python", interactive=False, show_label=False, container=False)
    opened, words = handlers.models[role], handlers.words
    _html(
        f'<p class="page-model">{escape(words["model"])}: <code>{escape(opened.name)}</code>, '
        f"{opened.parameters:,} {escape(words['parameters'])}</p>"
    )
    return code


def _examples(examples: Mapping[str, list[list[str]]], inputs: list[Any]) -> list[Any]:
    """A list of examples for each language; what happens once one has been put in place."""
    shown = [
        gr.Examples(rows, inputs, label=WORDS[language]["examples"], example_labels=[_short(row[0]) for row in rows])
        for language, rows in examples.items()
    ]
    return [one.load_input_event.then for one in shown]


def _short(text: str) -> str:
    """An example as its button names it."""
    width = LONGEST_EXAMPLE if text.isascii() else LONGEST_EXAMPLE // 2
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _connect(
    handlers: Handlers, name: str, run: Any, inputs: list[Any], outputs: list[Any], events: list[Any]
) -> None:
    """Lets events run a handler; the first of the English page is the app's API."""
    for number, event in enumerate(events):
        is_api = number == 0 and handlers.language == "en"
        event(
            run,
            inputs,
            outputs,
            api_name=name if is_api else None,
            api_visibility="public" if is_api else "private",
            concurrency_limit=1,
            concurrency_id="models",
        )


@contextmanager
def _explained(handlers: Handlers) -> Iterator[None]:
    """Errors that a person can do something about, as Gradio shows them; its messages are HTML, so texts are escaped.

    Raises:
        gr.Error: with the library's own message, or the page's.
    """
    try:
        yield
    except Refusal as refusal:
        said = refusal.text(handlers.language)
    except (ValueError, TypeError) as error:
        said = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        said = handlers.words["memory"]
    else:
        return
    raise gr.Error(escape(said), print_exception=False)


__all__ = ["build", "launch_arguments"]
