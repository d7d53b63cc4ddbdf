r"""GLM-130B's chat template, and texts in which the layout of a row is written out.

A row of this model has one context, read in both directions, and one answer behind `<sop>`. So of a chat only the last
assistant turn can be an answer; everything before it is context:

- One user turn is a prompt, as it stands: the row is `tokenizer(prompt, answer)`, id for id, the row of
  `InstructionPairs`. A chat without an answer, under `add_generation_prompt`, is `tokenizer(prompt)`.
- Several turns, a system turn among them, stand on lines of their own. No names of roles are written: the released
  model was trained on none, and turns take turns.
- A blank in the context (`[MASK]`, `[sMASK]`, `[gMASK]`) is what the answer fills, and then no `[gMASK]` is put behind
  the context. A blank that an earlier assistant turn filled is written filled.
- The mask for `assistant_only_loss` covers the last assistant turn and its `<eop>`. What comes after that turn cannot
  be in its row and is left out. To train on every assistant turn of a chat, make a row of each:
  [`one_chat_an_answer`].

The template writes its text for [`Glm130bTokenizer`], which takes it apart again ([`written_layout`]), so that context
and answer are tokenized each by itself, as everywhere. What a message holds beside masks is text: `<eop>` or `</s>`
typed by a user is no token.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .tokenization_rows import Part, parts_at_masks

MASK_PATTERN = re.compile(r"\[[sg]?MASK\]")

# Everything before message number `context.answer` is context; without an answer that is all of them.
CHAT_TEMPLATE = """\
{%- set masks = ['[MASK]', '[sMASK]', '[gMASK]'] -%}
{%- set context = namespace(text='', mask='', at_end=false, answer=messages|length) -%}
{%- for message in messages -%}
  {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
    {{- raise_exception("GLM-130B's chat template knows the roles system, user and assistant, and found "
        ~ message['role'] ~ ". Write what it says into one of these.") -}}
  {%- elif message['content'] is not string -%}
    {{- raise_exception("The content of a message must be a string for GLM-130B, which reads text only.") -}}
  {%- elif message['role'] == 'assistant' and not add_generation_prompt -%}
    {%- set context.answer = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- set answered = context.answer < messages|length -%}
{%- for message in messages[:context.answer] -%}
  {%- set context.mask = '' -%}
  {%- for mask in masks if mask in context.text -%}{%- set context.mask = mask -%}{%- endfor -%}
  {%- if message['role'] == 'assistant' and context.mask -%}
    {%- set context.text = context.text.replace(context.mask, message['content'], 1) -%}
  {%- else -%}
    {%- set context.text = context.text ~ ('' if loop.first else '\\n') ~ message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{{- context.text -}}
{%- if answered or add_generation_prompt -%}
  {%- set context.mask = '' -%}
  {%- for mask in masks if mask in context.text -%}
    {%- set context.mask = mask -%}
    {%- set context.at_end = context.at_end or context.text.endswith(mask) -%}
  {%- endfor -%}
  {{- ('' if context.at_end else eos_token) if context.mask else '[gMASK]' -}}
  {{- '<sop>' -}}
{%- endif -%}
{%- if answered -%}
  {%- generation -%}{{- messages[context.answer]['content'] ~ '<eop>' -}}{%- endgeneration -%}
{%- endif -%}
"""


def written_layout(text: str, sop: str, eop: str, eos: str, strict: bool) -> tuple[str, str, str, str] | None:
    """Finds the layout of a row that a text has written out: context, mask or `</s>`, `<sop>`, answer.

    It is `<sop>` right behind a mask, or behind a `</s>` that has a mask before it: what a default call writes and
    decodes to, and the chat template renders.

    Args:
        text: The text.
        sop: `<sop>`.
        eop: `<eop>`.
        eos: `</s>`.
        strict: Whether a second layout is an error; else it is taken for none.

    Returns:
        The context with its masks, `</s>` or nothing, the answer, and what closes it (`<eop>`, `</s>`, one behind
        the other, or nothing); or `None` where nothing is written out.

    Raises:
        ValueError: several layouts.
    """
    if sop not in text:
        return None
    written = []
    for match in re.finditer(rf"({MASK_PATTERN.pattern}|{re.escape(eos)}){re.escape(sop)}", text):
        if match[1] != eos or MASK_PATTERN.search(text, 0, match.start()):
            written.append(match)
    if len(written) > 1 and strict:
        one, other = written[:2]
        raise ValueError(
            f"The text has the layout of a row written out {len(written)} times, as {one[0]!r} at character "
            f"{one.start()} and {other[0]!r} at {other.start()}: a row has one context and one answer. "
            "Take it out of the messages, or pass split_special_tokens=True if it is not meant as layout."
        )
    if len(written) != 1:
        return None
    (match,) = written
    end = eos if match[1] == eos else ""
    context = text[: match.end(1) - len(end)]
    rest = text[match.end() :]
    closing = re.search(rf"(?:{re.escape(eop)})?(?:{re.escape(eos)})?\Z", rest)
    assert closing is not None
    return context, end, rest[: closing.start()], closing[0]


def parts_of_layout(
    layout: tuple[str, str, str, str], sop: str, ids: Mapping[str, int], mask_ids: Mapping[str, int]
) -> list[Part]:
    """The parts of a written layout, each token of it a part with a place in the text.

    Args:
        layout: From [`written_layout`].
        sop: `<sop>`.
        ids: The ids of `<sop>`, `<eop>` and `</s>`.
        mask_ids: The ids of the masks.

    Returns:
        The parts; that of the answer has `opens` set.
    """
    context, end, answer, closing = layout
    parts = parts_at_masks([context], False, MASK_PATTERN, mask_ids)
    place = len(context)
    for token in (end, sop):
        if token:
            parts.append(Part(token, place, None, [ids[token]], is_mask=True))
            place += len(token)
    if answer:
        parts.append(Part(answer, place, None, [], opens=True))
        place += len(answer)
    for match in re.finditer("|".join(re.escape(token) for token in ids if token != sop), closing):
        parts.append(Part(match[0], place + match.start(), None, [ids[match[0]]], is_mask=True))
    return parts


def refuse_masks_to_sanitize(conversation: Any) -> None:
    """Raises where a message holds a mask that is to be kept as text: the template could not tell it from a blank.

    Args:
        conversation: One chat or several, as `apply_chat_template` takes them.

    Raises:
        ValueError: a mask in a message.
    """
    if isinstance(conversation, str):
        if mask := MASK_PATTERN.search(conversation):
            raise ValueError(
                f"sanitize_control_tokens=True would keep {mask[0]} in a message as text, but GLM-130B's chat "
                "template takes it for the blank to fill. Leave the argument out, or the mask; every other token that "
                "is typed in a message is text anyway."
            )
        return
    values = conversation.values() if isinstance(conversation, Mapping) else getattr(conversation, "messages", ())
    if isinstance(conversation, list | tuple):
        values = conversation
    for value in values:
        refuse_masks_to_sanitize(value)


class ChatTemplateMixin:
    """`apply_chat_template` for a tokenizer that takes a written layout apart."""

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the host; the layout that the template writes is taken apart again, see the top of the file.

        Args:
            conversation: As in the host.
            *args: As in the host.
            **kwargs: As in the host.

        Returns:
            As in the host; the ids are those of a default call on context and answer.

        Raises:
            ValueError: as in the host; several layouts; a mask in a message with `sanitize_control_tokens`.
        """
        template = args[2] if len(args) > 2 else kwargs.get("chat_template")
        host: Any = super()
        own = host.get_chat_template(template, args[0] if args else kwargs.get("tools")) == CHAT_TEMPLATE
        told: dict[str, Any] = {"chat": "own" if own else "other"}
        if kwargs.get("sanitize_control_tokens"):
            if not own:
                return host.apply_chat_template(conversation, *args, **kwargs)
            refuse_masks_to_sanitize(conversation)
            del kwargs["sanitize_control_tokens"]  # what the own template lets through is text but for these
            told["split_special_tokens"] = True
        kwargs["tokenizer_kwargs"] = told | (kwargs.get("tokenizer_kwargs") or {})
        return host.apply_chat_template(conversation, *args, **kwargs)


def one_chat_an_answer(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Makes of each chat one for every assistant turn in it, which stands last; for `datasets.map(batched=True)`.

    The old columns do not fit the new rows: also pass `remove_columns=dataset.column_names`.

    Args:
        batch: Columns, `messages` among them: lists of messages with `role` and `content`.

    Returns:
        The column `messages`.

    Raises:
        ValueError: there is no such column.
    """
    if "messages" not in batch:
        raise ValueError(f"The data set has no column 'messages'; it has {sorted(batch)}. Rename the one with chats.")
    chats = [
        list(chat[: end + 1])
        for chat in batch["messages"]
        for end, message in enumerate(chat)
        if message["role"] == "assistant"
    ]
    return {"messages": chats}


__all__ = [
    "CHAT_TEMPLATE",
    "MASK_PATTERN",
    "ChatTemplateMixin",
    "one_chat_an_answer",
    "parts_of_layout",
    "refuse_masks_to_sanitize",
    "written_layout",
]
