"""Controllable prompts of ERNIE 3.0 Titan: what stands before a text and says how it is to be.

    [CLS] [soft] x N  [t] topic [/t] [k] kw0, kw1 [/k] [senti] label [/senti] [w] About L words [/w]  text

The genre is not written but learned: N placeholders stand for the first N of the genre's soft prompt vectors, and
`genre_ids` tells the model which genre's. Every attribute may be absent. Marks that the vocabulary has as tokens are
one token each, others are written in pieces; [`add_control_marks`] puts them there.

Source: PT = arXiv 2112.12731, section 3.2.2 (its example prints a genre "News", which is not in its list).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken

from hf_glm_ernie.inference.token_ids import special_id, text_ids, token_id

GENRES = (
    "general",
    "Web",
    "QA",
    "Knowledge",
    "Finance",
    "Law",
    "Medical",
    "Novel",
    "Couplet",
    "Poet",
    "Machine Translation",
)
"""The genres of PT; a genre's place in this list is its id."""
SENTIMENTS = ("positive", "negative", "neutral")
ATTRIBUTES = ("genre", "topic", "keywords", "sentiment", "length")
MAX_SOFT_PROMPTS = 64  # vectors per genre; a prompt takes 0..63 of them
SOFT_PROMPT = "[soft]"
MARKS = {name: (f"[{name}]", f"[/{name}]") for name in ("t", "k", "senti", "w")}


class ControlPrompt(NamedTuple):
    """A prompt: `input_ids` from `[CLS]` on, and the `genre_id` that its placeholders refer to (0 without any)."""

    input_ids: list[int]
    genre_id: int


def build_control_prompt(
    tokenizer: Any,
    *,
    genre: str | None = None,
    num_soft_prompts: int | None = None,
    topic: str | None = None,
    keywords: Sequence[str] | None = None,
    sentiment: str | None = None,
    length: int | None = None,
    soft_prompt_token_id: int | None = None,
) -> ControlPrompt:
    """Builds the prompt that a text is generated from, or trained on.

    Args:
        tokenizer: A tokenizer of transformers.
        genre: One of [`GENRES`].
        num_soft_prompts: How many vectors of the genre stand in front, 0..64; `None`: 63 with a genre, the most that
            training sees, and none without.
        topic: In a few words.
        keywords: What the text is to mention.
        sentiment: One of [`SENTIMENTS`].
        length: About how many tokens the text is to have.
        soft_prompt_token_id: The placeholder's id, `config.soft_prompt_token_id`; `None`: the token `[soft]`.

    Returns:
        The ids, from `[CLS]` on, and the genre's id. For `generate`: `input_ids` = a row per prompt, padded on the
        left, `genre_ids` = (B,).

    Raises:
        ValueError: an unknown genre or sentiment, an empty topic or keyword, one that holds a mark of the prompt, a
            length below 1, soft prompts without a genre or too many of them.

    ```python
    >>> from hf_glm_ernie import build_control_prompt

    >>> prompt = build_control_prompt(tokenizer, genre="Novel", topic="大海", sentiment="positive", length=200)
    >>> ids = torch.tensor([prompt.input_ids])
    >>> model.generate(ids, genre_ids=torch.tensor([prompt.genre_id]), max_new_tokens=256)
    ```
    """
    parts, genre_id = control_prompt_parts(
        tokenizer,
        genre=genre,
        num_soft_prompts=num_soft_prompts,
        topic=topic,
        keywords=keywords,
        sentiment=sentiment,
        length=length,
        soft_prompt_token_id=soft_prompt_token_id,
    )
    ids = (text_ids(tokenizer, part) if isinstance(part, str) else part for part in parts)
    return ControlPrompt([index for part in ids for index in part], genre_id)


def control_prompt_parts(
    tokenizer: Any,
    *,
    genre: str | None = None,
    num_soft_prompts: int | None = None,
    topic: str | None = None,
    keywords: Sequence[str] | None = None,
    sentiment: str | None = None,
    length: int | None = None,
    soft_prompt_token_id: int | None = None,
) -> tuple[list[str | list[int]], int]:
    """What [`build_control_prompt`] puts together, for whoever has many prompts' texts tokenized at once.

    Args: those of [`build_control_prompt`].

    Returns:
        The parts of the prompt in order, each ids or a text to be tokenized by itself, without special tokens around
        it. And the genre's id.

    Raises:
        ValueError: as there.
    """
    parts: list[str | list[int]] = [[special_id(tokenizer, "cls")]]
    genre_id = 0
    if genre is not None:
        genre_id = place_of(genre, GENRES, "genre")
        num_soft_prompts = MAX_SOFT_PROMPTS - 1 if num_soft_prompts is None else num_soft_prompts
    if num_soft_prompts:
        parts.append(_soft_prompts(tokenizer, genre, num_soft_prompts, soft_prompt_token_id))
    if topic is not None:
        parts += _marked(tokenizer, "t", _clean(topic, "topic"))
    if keywords is not None:
        if isinstance(keywords, str) or not keywords:
            raise ValueError(f"keywords={keywords!r} must be a list of texts, at least one; None leaves them out.")
        parts += _marked(tokenizer, "k", ", ".join(_clean(one, "keywords") for one in keywords))
    if sentiment is not None:
        place_of(sentiment, SENTIMENTS, "sentiment")
        parts += _marked(tokenizer, "senti", sentiment)
    if length is not None:
        parts += length_parts(tokenizer, length)
    return parts, genre_id


def length_parts(tokenizer: Any, length: int) -> list[str | list[int]]:
    """The end of a prompt, which says how many tokens the text has; see [`control_prompt_parts`].

    Raises:
        ValueError: a length below 1.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length={length!r} must be a whole number of tokens, at least 1.")
    return _marked(tokenizer, "w", f"About {length} words")


def add_control_marks(tokenizer: Any, model: Any | None = None) -> int:
    """Makes each mark of the prompt one token: of a prompt with all attributes, 8 tokens where it was 36 pieces.

    Before a model is trained on such prompts; one that was trained without them knows their pieces only.

    Args:
        tokenizer: Gets the marks it does not have as special tokens; saved with it.
        model: Its embedding, and heads over the vocabulary, get rows for them where the vocabulary has become larger.

    Returns:
        How many marks were new.
    """
    marks = [mark for pair in MARKS.values() for mark in pair]
    new = [mark for mark in marks if token_id(tokenizer, mark) is None]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in new], special_tokens=True)
    if model is not None and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return len(new)


def _soft_prompts(tokenizer: Any, genre: str | None, count: int, placeholder: int | None) -> list[int]:
    if genre is None:
        raise ValueError(f"num_soft_prompts={count} needs a genre whose vectors they are; one of {', '.join(GENRES)}.")
    if not 0 <= count <= MAX_SOFT_PROMPTS:
        raise ValueError(f"num_soft_prompts={count} must be from 0 to {MAX_SOFT_PROMPTS}, the vectors of a genre.")
    if placeholder is None:
        placeholder = token_id(tokenizer, SOFT_PROMPT)
    if placeholder is None:
        raise ValueError(
            f"The tokenizer has no token {SOFT_PROMPT!r} that could stand for a soft prompt. Pass "
            "soft_prompt_token_id=model.config.soft_prompt_token_id."
        )
    return [placeholder] * count


def _marked(tokenizer: Any, name: str, text: str) -> list[str | list[int]]:
    """A text between its two marks, as parts."""
    opening, closing = (mark if (index := token_id(tokenizer, mark)) is None else [index] for mark in MARKS[name])
    return [opening, text, closing]


def place_of(value: str, choices: tuple[str, ...], name: str) -> int:
    """Where a value stands among those that the setting `name` may have.

    Raises:
        ValueError: it is not among them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; the choices are {', '.join(map(repr, choices))}.")
    return choices.index(value)


def _clean(text: Any, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} holds {text!r}, which is no text; None leaves the attribute out.")
    held = [mark for pair in MARKS.values() for mark in pair if mark in text] + [SOFT_PROMPT] * (SOFT_PROMPT in text)
    if held:
        raise ValueError(f"{name} holds {text!r}, with {held[0]!r}, a mark of the prompt itself; leave it out.")
    return text


__all__ = [
    "ATTRIBUTES",
    "GENRES",
    "MAX_SOFT_PROMPTS",
    "SENTIMENTS",
    "ControlPrompt",
    "add_control_marks",
    "build_control_prompt",
    "control_prompt_parts",
    "length_parts",
    "place_of",
]
