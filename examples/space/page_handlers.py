"""What happens when a button is pressed: values of components in, values of components out. No Gradio here.

A handler knows its model and the language of its page. It lets the library's errors through; the layout shows them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

import page_answers
from page_answers import FillSettings, Report
from page_code import classify_code, extract_code, fill_code
from page_models import Opened
from page_refusals import Refusal
from page_schema import parse_schema
from page_texts import WORDS
from page_views import candidates_html, choices_html, filled_html, flattened, found_html, schema_html, spans_html


@dataclass(frozen=True)
class Handlers:
    """The page's answers in one language.

    Attributes:
        models: Role -> its model.
        language: `"en"` or `"zh"`.
    """

    models: Mapping[str, Opened]
    language: str

    @property
    def words(self) -> dict[str, str]:
        """The texts of the page."""
        return WORDS[self.language]

    def fill(
        self,
        text: str,
        method: str,
        num_beams: int,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        candidates: int,
        report: Report,
    ) -> tuple[str, str, str]:
        """The filled text and the alternatives as HTML, and the call in Python."""
        opened = self.models["glm"]
        numbers = whole(num_beams=num_beams, seed=seed, max_new_tokens=max_new_tokens, candidates=candidates)
        settings = FillSettings(method=method, temperature=temperature, top_p=top_p, **numbers)
        page = page_answers.fill(opened.model, opened.tokenizer, text, settings, report)
        code = fill_code(opened.folder, text, settings.generate_arguments(), settings.seed)
        return filled_html(page), candidates_html(page.candidates, self.words), code

    def extract(self, text: str, schema: str, text_language: str, threshold: float) -> tuple[str, str, str]:
        """The text in colours and the table as HTML, and the call in Python."""
        opened = self.models["uie"]
        parsed = parse_schema(schema)
        answers = page_answers.extract(opened.model, opened.tokenizer, parsed, text, text_language, threshold)
        found = list(flattened(answers))
        code = extract_code(opened.folder, text, parsed, text_language, threshold)
        return spans_html(text, found), found_html(found, self.words), code

    def preview(self, schema: str) -> str:
        """How the schema editor understands what is being typed, as HTML."""
        if not schema.strip():
            return ""
        try:
            return f'<div class="page-schema">{schema_html(parse_schema(schema))}</div>'
        except Refusal as refusal:
            return f'<p class="page-note wrong">{escape(refusal.text(self.language))}</p>'

    def classify(self, text: str, choices: str, threshold: float, single_label: bool) -> tuple[str, str]:
        """The choices with their probabilities as HTML, and the call in Python."""
        opened = self.models["classifier"]
        labels = page_answers.read_choices(choices)
        answers = page_answers.classify(opened.model, opened.tokenizer, text, labels, threshold, single_label)
        code = classify_code(opened.folder, opened.model_type, text, labels, threshold, single_label)
        return choices_html(answers, self.words), code


def whole(**numbers: float) -> dict[str, int]:
    """Numbers of components, which may come as floats.

    Raises:
        Refusal: one is missing, or has a fraction.
    """
    found = {}
    for name, number in numbers.items():
        if not isinstance(number, int | float) or number != int(number):
            raise Refusal("setting", name=name, value=number, allowed="1, 2, 3 ..")
        found[name] = int(number)
    return found


Handler = Callable[..., tuple[str, ...]]

__all__ = ["Handler", "Handlers", "whole"]
