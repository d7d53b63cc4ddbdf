"""Information extraction with UIE: texts and a schema in, answers with offsets and probabilities out.

The schema is asked level by level. All questions of a level, over all texts and names, go through the model together:
equal questions to one text once, windows of like length in one batch.

Answers are those of PaddleNLP's `Taskflow("information_extraction")`, but where that goes wrong:

- A span that begins or ends at a special token or at padding is no answer (there: an empty text or one cut wrongly).
- Whether a name asks for an option is read off the name; an answer inside the prompt counts there only. (There the
  first answer of the whole batch decides for every text, and the other texts' answers are lost or mixed up.)
- Of several options above the threshold the likeliest is taken (there: one in the order of a hash).
- Answers are sorted by position (there: in the order of a hash).
- Each question's windows are as wide as its own prompt allows. (There the width follows from the prompt that sorts
  last, so answers depend on the other texts, and what does not fit is cut off.) A window with more tokens than
  characters is cut again rather than truncated.
- Offsets are where tokens really stand (there: where a search finds them, a guess for unknown words).
- With `split_sentences`, offsets count the line breaks that separate sentences.
- White space at the end of a prompt does not shift the option read from it.
- A name that stands twice in one place of the schema is asked once (there its relations end up at other answers).
- Windows of a long text overlap (there an answer over an edge is lost or cut); `overlap=0` gives the original's.
- Given aspects are asked about whichever way the schema names them (there `{"评价维度": [...]}`, which its documents
  show, asks `房间的评价维度`).

Source: PaddleNLP 2.8.1, `paddlenlp/taskflow/information_extraction.py` (`UIETask`), and of aspects
`paddlenlp/taskflow/sentiment_analysis.py` (`UIESentaTask`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_glm_ernie.host_arguments import (
    check_model_and_tokenizer,
    flags,
    one_of,
    probability_threshold,
    whole_number,
)
from hf_glm_ernie.inference.batches import FEW_BATCHES, in_batches

from .records import text_records
from .runners import read_length, run_model
from .uie_schema import LANGUAGES, SchemaNode, read_aspects, read_schema
from .uie_spans import Span, batch_spans, elect_option, merge_windows
from .uie_windows import SPECIAL_TOKENS, EncodedWindow, Window, cut_windows, encode_windows, shared

logger = logging.get_logger(__name__)

# Windows encoded ahead, in batches: enough to sort by length, little enough to hold.
BATCHES_AHEAD = 64
GIVER = "an ErnieForUIE, the OnnxEncoder of a folder exported from one, or what gives the same outputs"


@dataclass
class _Question:
    """What is asked of one text: a schema name, at the top or about an earlier answer."""

    text: int
    node: SchemaNode
    prompt: str
    about: dict[str, Any] | None


def uie(
    model: Any,
    tokenizer: Any,
    schema: Any,
    texts: str | dict[str, str] | list[str | dict[str, str]],
    *,
    threshold: float = 0.5,
    batch_size: int = 16,
    max_length: int | None = None,
    overlap: int | None = None,
    split_sentences: bool = False,
    allow_nested: bool = False,
    aspects: list[str] | None = None,
    language: str = "zh",
    show_progress: bool | None = None,
) -> list[dict[str, list[dict[str, Any]]]]:
    """Extracts what a schema names from texts.

    Args:
        model: An [`ErnieForUIE`], the [`OnnxEncoder`] of a folder exported from one, or anything that is called with
            the same inputs (`input_ids`, `token_type_ids`, `attention_mask`, each (B, T) int64) and returns
            `start_prob` and `end_prob`, each (B, T), by name.
        tokenizer: Its tokenizer, one of the `tokenizers` library (it gives the offsets).
        schema: Names, relations, events and options, nested to any depth: `["时间", "选手"]`, `"情感倾向[正向,负向]"`,
            `{"歌曲名称": ["歌手", "专辑"]}`, `[{"评价维度": ["观点词", "情感倾向[正向,负向]"]}]`.
        texts: One text or several; a dict `{"text": ...}` is the record of one.
        threshold: An answer starts and ends where the probability is above this, in [0, 1] (`position_prob` in
            PaddleNLP): at 0 wherever there is any, at 1 where it is certain.
        batch_size: Windows per forward.
        max_length: Tokens per window with its prompt; `None`: 512, or as many as the model has positions for. More
            than that is cut down to it, with a warning.
        overlap: Characters that neighbouring windows of a long text share, at most half of a window: an answer of up
            to so many is whole in one of them. `None`: 64, or a quarter of a window where that is less. 0: none, as
            in PaddleNLP.
        split_sentences: Whether every sentence is read alone.
        allow_nested: Whether answers to one question may overlap, as 北京 and 北京大学. `False`: as in PaddleNLP, of
            such answers one is found.
        aspects: What the schema is asked about in every text, as in PaddleNLP's `sentiment_analysis`, instead of
            aspects found there: `["房间", "位置"]` with the schema `["观点词", "情感倾向[正向,负向,未提及]"]`, or with
            that below `"评价维度"`.
        language: `"zh"` asks `subject的name`, `"en"` asks `name of subject`.
        show_progress: Whether to show a progress bar; `None`: from a few batches on.

    Returns:
        For each text a dict from the schema's names to answers, names without an answer left out. An answer is a dict
        of `text`, `start` and `end` (characters of the text as given, end excluded), `probability`, and `relations`
        where something was found about it. An option chosen from the prompt has no `start` and `end`. Given aspects
        are the answers of `"评价维度"` (`"Aspect"` in English), all of them and in their order, with `text` and, where
        something was found, `relations`.

    Raises:
        TypeError: texts that are not strings, a schema of something else than names, lists and dicts, no model or no
            tokenizer where it belongs, a model without these outputs, a setting of another type.
        ValueError: an empty schema, name, or list of aspects, unclosed options, a name that leaves no room for text,
            a setting out of range, a tokenizer without offsets, outputs of another shape or that are no probabilities.

    ```python
    >>> from transformers import AutoModel, AutoTokenizer
    >>> from hf_glm_ernie import uie

    >>> model = AutoModel.from_pretrained("uie-base-converted")
    >>> tokenizer = AutoTokenizer.from_pretrained("uie-base-converted")
    >>> uie(model, tokenizer, {"歌曲名称": ["歌手"]}, "《告别了》是孙耀威在专辑爱的故事里面的歌曲")
    ```
    """
    check_model_and_tokenizer(model, tokenizer, any_callable=True)
    nodes = read_schema(schema)
    plain = text_records(texts)
    threshold, batch_size = probability_threshold("threshold", threshold), whole_number("batch_size", batch_size)
    max_length = read_length(model, tokenizer, max_length)
    one_of("language", language, LANGUAGES)
    flags(split_sentences=split_sentences, allow_nested=allow_nested)
    overlap = None if overlap is None else whole_number("overlap", overlap, least=0)
    results, level = _first_level(nodes, len(plain), aspects, language)
    _check_room(tokenizer, level, max_length, overlap)
    settings = _Settings(threshold, batch_size, max_length, overlap, split_sentences, allow_nested, show_progress)
    reader = _Reader(model, tokenizer, settings)
    while level:
        answers = reader.answer(level, plain)
        below: list[_Question] = []
        for question, given in zip(level, answers, strict=True):
            if not given:
                continue
            into = results[question.text] if question.about is None else question.about.setdefault("relations", {})
            into[question.node.name] = given
            below += [
                _Question(question.text, child, child.prompt(answer["text"], language), answer)
                for child in question.node.children
                for answer in given
            ]
        level = below
    return results


def _first_level(
    nodes: list[SchemaNode], texts: int, aspects: Any, language: str
) -> tuple[list[dict[str, list[dict[str, Any]]]], list[_Question]]:
    """The results as they begin, and what is asked first."""
    if aspects is None:
        return [{} for _ in range(texts)], [
            _Question(i, node, node.prompt(), None) for node in nodes for i in range(texts)
        ]
    name, nodes, given = read_aspects(nodes, aspects, language)
    results: list[dict[str, list[dict[str, Any]]]] = [{name: [{"text": one} for one in given]} for _ in range(texts)]
    return results, [
        _Question(i, node, node.prompt(about["text"], language), about)
        for node in nodes
        for i, result in enumerate(results)
        for about in result[name]
    ]


@dataclass(frozen=True)
class _Settings:
    """Of `uie`, checked."""

    threshold: float
    batch_size: int
    max_length: int
    overlap: int | None
    split_sentences: bool
    allow_nested: bool
    show_progress: bool | None


class _Reader:
    """Puts the questions of a level to the model."""

    def __init__(self, model: Any, tokenizer: Any, settings: _Settings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings

    def answer(self, questions: list[_Question], texts: list[str]) -> list[list[dict[str, Any]]]:
        """Returns the answers to each question, in the order of the text."""
        windows: list[Window] = []
        first_like: dict[tuple[int, str], int] = {}
        for i, question in enumerate(questions):
            if first_like.setdefault((question.text, question.prompt), i) == i:
                windows += self._windows(i, question, texts[question.text])
        read: dict[int, list[tuple[Window, list[Span]]]] = {}
        for window, spans in self._read(windows):
            read.setdefault(window.question, []).append((window, spans))
        nested, answers = self.settings.allow_nested, []
        for question in questions:
            of_question = read.get(first_like[question.text, question.prompt], [])
            answers.append(_answers(question, texts[question.text], of_question, nested))
        return answers

    def _windows(self, index: int, question: _Question, text: str) -> Iterator[Window]:
        if len(question.prompt) + SPECIAL_TOKENS >= self.settings.max_length:
            logger.warning(
                f"The prompt {question.prompt[:40]!r}... of {len(question.prompt)} characters leaves no room for the "
                f"text in {self.settings.max_length} tokens: nothing is asked about that answer."
            )
            return iter(())
        return cut_windows(
            index,
            question.prompt,
            text,
            self.settings.max_length,
            self.settings.split_sentences,
            self.settings.overlap,
        )

    def _read(self, windows: list[Window]) -> Iterator[tuple[Window, list[Span]]]:
        """Yields every window with its spans; those of one text in order."""
        settings = self.settings
        ahead = settings.batch_size * BATCHES_AHEAD
        few = len(windows) <= FEW_BATCHES * settings.batch_size
        hidden = few if settings.show_progress is None else not settings.show_progress
        with tqdm(total=len(windows), desc="Extracting", unit="window", disable=hidden) as progress:
            for begin in range(0, len(windows), ahead):
                encoded = encode_windows(
                    self.tokenizer, windows[begin : begin + ahead], settings.max_length, settings.overlap
                )
                lengths = [len(one.input_ids) for one in encoded]
                spans = in_batches(
                    self.model, partial(self._spans, encoded), lengths, settings.batch_size, bar=progress
                )
                yield from ((one.window, own) for one, own in zip(encoded, spans, strict=True))

    def _spans(self, encoded: list[EncodedWindow], indices: list[int]) -> list[list[Span]]:
        """One forward, and the spans of every window in it."""
        batch = [encoded[i] for i in indices]
        width = max(len(one.input_ids) for one in batch)
        shape = (len(batch), width)
        ids, types, mask = np.full(shape, self.tokenizer.pad_token_id), np.zeros(shape, int), np.zeros(shape, int)
        for row, one in enumerate(batch):
            length = len(one.input_ids)
            ids[row, :length], types[row, :length], mask[row, :length] = one.input_ids, one.token_type_ids, 1
        arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        outputs = run_model(self.model, inputs, {"start_prob": shape, "end_prob": shape}, GIVER)
        start, end = (_probabilities(name, tensor) for name, tensor in outputs.items())
        return batch_spans(batch, start, end, self.settings.threshold, self.settings.allow_nested)


def _probabilities(name: str, tensor: torch.Tensor) -> np.ndarray:
    """(B, T) float64 from what a model gave."""
    values = tensor.detach().double().cpu().numpy()
    if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
        raise ValueError(
            f"The model gives {name} from {np.min(values):g} to {np.max(values):g}, which are no probabilities. "
            "Logits need a sigmoid first; NaN comes from weights or from a dtype that is too narrow for them."
        )
    return values


def _answers(
    question: _Question, text: str, read: list[tuple[Window, list[Span]]], nested: bool
) -> list[dict[str, Any]]:
    """The answers to one question, from the spans of its windows."""
    windows, spans = [window for window, _ in read], [own for _, own in read]
    if question.node.offers_options:
        elected = elect_option(question.prompt, spans)
        if elected is not None:
            return [elected]
    return [
        {"text": text[span.start : span.end], "start": span.start, "end": span.end, "probability": span.probability}
        for span in merge_windows(windows, spans, nested)
    ]


def _check_room(tokenizer: Any, questions: list[_Question], max_length: int, overlap: int | None) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets. Load the tokenizer with AutoTokenizer (one of "
            "the `tokenizers` library, as ErnieTokenizer)."
        )
    for question in {question.prompt: question for question in questions}.values():
        name, prompt = question.node.name, question.prompt
        width = max_length - len(prompt) - SPECIAL_TOKENS
        if width < 1:
            raise ValueError(
                f"The schema's name {name[:40]!r} has {len(name)} characters and its question {len(prompt)}, which "
                f"leaves no room for text in max_length={max_length} tokens (the model has at most that many "
                "positions). Shorten it or raise max_length."
            )
        if overlap is not None and overlap > shared(width, overlap):
            raise ValueError(
                f"overlap={overlap} is more than half of a window: beside {prompt[:40]!r} a window has {width} "
                f"characters. Give at most {width // 2}, or raise max_length."
            )


__all__ = ["uie"]
