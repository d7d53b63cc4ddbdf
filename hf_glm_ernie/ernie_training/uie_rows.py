"""Rows of UIE's training data: checked, and long contents cut into pieces with the answers re-based.

A row is `{"content", "prompt", "result_list": [{"text", "start", "end"}, ...]}`. An answer stands in the content, or
it is an option of the prompt: then its offsets are negative and count back from the content's first character, with
one place for the `[SEP]` between, so that the last character of the prompt is at -2. Offsets are code points, the end
is excluded.

Contents are cut as PaddleNLP's reader cuts them: every `max_length - len(prompt) - 3` characters, and before an
answer that would be cut through. Every piece keeps the options; one without answers is a row without answers. The
differences, each where PaddleNLP goes wrong:

- Blanks in front of a long content are removed, and the answers move with it (there they stay, and all are shifted).
- Answers are taken by their place, whatever their order (there only the first of the list is looked at, and others
  come into the next piece with negative offsets, as if they were options).
- No answer is cut through: where several overlap, the cut moves before all of them (there only before the first).
  One for which there is no such place, or that is longer than a piece, is left out, with a notice (there it gets a
  negative start).
- Offsets outside the content, or outside the prompt, are an error (there the last token of the row is set).

Source: PaddleNLP, `model_zoo/uie/utils.py` (`reader`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from transformers.utils import logging

from hf_glm_ernie.ernie_tasks.uie_windows import SPECIAL_TOKENS, cut_sentences

logger = logging.get_logger(__name__)

CUTS = ("windows", "sentences")


class Answer(NamedTuple):
    """An answer: characters `start` to `end` of the content, end excluded, negative for an option; and its text."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class UIERow:
    """A prompt about a content and its answers.

    Attributes:
        content: The text; may be empty.
        prompt: What is asked.
        answers: In the order of the data.
        number: Of the row in its data, for messages.
        begin: Where the content begins in that of the row it was cut from.
    """

    content: str
    prompt: str
    answers: tuple[Answer, ...]
    number: int = 0
    begin: int = 0

    def in_prompt(self, option: Answer) -> tuple[int, int]:
        """Start and end of an option, in characters of the prompt."""
        before = len(self.prompt) + 1
        return option.start + before, option.end + before

    def as_dict(self) -> dict[str, Any]:
        """The row in PaddleNLP's form."""
        found = [{"text": text, "start": start, "end": end} for start, end, text in self.answers]
        return {"content": self.content, "result_list": found, "prompt": self.prompt}


def read_row(row: Mapping[str, Any], number: int) -> UIERow:
    """Checks a row.

    Args:
        row: `content`, `prompt` and `result_list`, whose entries have `start` and `end`; `None` for no answers.
        number: Of the row in its data, for the message.

    Raises:
        ValueError: a content that is no text, a prompt that is none or blank, an answer that is empty, outside the
            content, or outside the prompt.
    """
    where = f"Row {number} of the data"
    content, prompt = row.get("content"), row.get("prompt")
    if not isinstance(content, str):
        raise ValueError(f"{where} has no text in column 'content': found {content!r}.")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} has no text in column 'prompt': found {prompt!r}.")
    answers = tuple(_read_answer(answer, where, content, prompt) for answer in row.get("result_list") or ())
    return UIERow(content, prompt, answers, number)


def _read_answer(answer: Any, where: str, content: str, prompt: str) -> Answer:
    try:
        start, end = answer["start"], answer["end"]
    except (TypeError, KeyError):
        raise ValueError(f"{where} has an answer without start and end: {answer!r}.") from None
    if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
        raise ValueError(f"{where} has an answer at {start!r}..{end!r}; start and end are whole numbers.")
    if start >= 0 and not start < end <= len(content):
        raise ValueError(
            f"{where} has an answer at {start}..{end}, which is outside its content of {len(content)} characters, or "
            "empty."
        )
    if start < 0 and not -len(prompt) - 1 <= start < end <= -1:
        raise ValueError(
            f"{where} has an option at {start}..{end}, which is outside its prompt {prompt!r}, or empty: a negative "
            "offset counts back from the content, so that the last character of the prompt is -2 and the first "
            f"{-len(prompt) - 1}. Is the label one of the options?"
        )
    before = len(prompt) + 1
    text = content[start:end] if start >= 0 else prompt[start + before : end + before]
    given = answer.get("text")
    return Answer(start, end, text if given is None else given)


def cut_row(row: UIERow, max_length: int, cut: str = "windows") -> list[UIERow]:
    """Cuts a row into pieces that leave room for the prompt.

    Args:
        row: Of [`read_row`].
        max_length: Tokens of a row with its prompt; a piece has at most `max_length - len(prompt) - 3` characters.
        cut: `"windows"`: as long as they may be, as PaddleNLP's; `"sentences"`: no longer than that, and where
            possible behind the end of a sentence.

    Returns:
        The row as it is, where its content fits, else its pieces in order.

    Raises:
        ValueError: a prompt that leaves no room for a content.
    """
    limit = max_length - len(row.prompt) - SPECIAL_TOKENS
    if limit < 1:
        raise ValueError(
            f"Row {row.number} of the data has a prompt of {len(row.prompt)} characters, {row.prompt[:40]!r}..., "
            f"which leaves no room for the content in max_length={max_length} tokens. Raise it, or shorten the prompt."
        )
    if len(row.content.strip()) <= limit:
        return [row]
    return cut_content(row, limit, cut)


def cut_content(row: UIERow, limit: int, cut: str = "windows") -> list[UIERow]:
    """Cuts a row's content, without the blanks around it, into pieces of at most `limit` characters."""
    text, shift = row.content.strip(), len(row.content) - len(row.content.lstrip())
    options = [answer for answer in row.answers if answer.start < 0]
    answers = []
    for one in row.answers:
        start, end = max(one.start - shift, 0), min(one.end - shift, len(text))  # blanks around it are in no piece
        if one.start >= 0 and 0 < end - start <= limit:
            answers.append(Answer(start, end, one.text if end - start == one.end - one.start else text[start:end]))
    places = _cuts(text, answers, limit, cut)
    pieces, kept = [], len(options)
    for begin, stop in pairwise(places):
        own = [Answer(s - begin, e - begin, t) for s, e, t in answers if begin <= s and e <= stop]
        kept += len(own)
        pieces.append(UIERow(text[begin:stop], row.prompt, (*options, *own), row.number, row.begin + shift + begin))
    if kept < len(row.answers):
        logger.warning(
            f"Row {row.number} of the data, prompt {row.prompt[:40]!r}: {len(row.answers) - kept} of its answers are "
            f"blank, longer than {limit} characters or cannot be kept whole, and are left out."
        )
    return pieces


def _cuts(text: str, answers: Sequence[Answer], limit: int, cut: str) -> list[int]:
    """Where pieces begin, and the end of the last one."""
    ends = [offset for offset, _ in cut_sentences(text)] if cut == "sentences" else []
    ends = [place for place in ends if not any(start < place < end for start, end, _ in answers)]
    places = [0]
    while len(text) - places[-1] > limit:
        begin = places[-1]
        sentence = max((place for place in ends if begin < place <= begin + limit), default=None)
        places.append(_before_answers(begin, begin + limit, answers) if sentence is None else sentence)
    return [*places, len(text)]


def _before_answers(begin: int, wanted: int, answers: Iterable[Answer]) -> int:
    """The last place up to `wanted` that cuts through no answer; where there is none, the first such start."""
    ahead = [(start, end) for start, end, _ in answers if start >= begin]
    place, first = wanted, None
    while through := [start for start, end in ahead if start < place < end]:
        place = min(through)
        if place == begin:
            return wanted if first is None else first
        first = place if first is None else first
    return place


__all__ = ["CUTS", "Answer", "UIERow", "cut_content", "cut_row", "read_row"]
