"""Where the sentences of a Chinese or English text end.

The marks are those after which the 10B's tokenizer puts `<S>` (。！？?!；;), and two that it leaves alone: a single …,
and the full stop where white space or the end follows, so that "3.5" stays whole. Closing quotes and brackets belong
to the sentence they end.
"""

import re

CLOSING = r"[”’\"'」』）)\]】》]*"
SENTENCE_END = re.compile(rf"(?:[。！？!?；;…]|\.(?={CLOSING}(?:\s|$)))+{CLOSING}")


def split_sentences(text: str) -> list[str]:
    """Splits a text after each sentence.

    Args:
        text: Any text.

    Returns:
        The sentences in order; joined they are the text. White space stays at the end of the sentence it follows. A
        rest without an end mark is a sentence of its own.
    """
    sentences, start = [], 0
    for match in SENTENCE_END.finditer(text):
        end = match.end()
        while end < len(text) and text[end].isspace():
            end += 1
        sentences.append(text[start:end])
        start = end
    if text[start:].strip():
        sentences.append(text[start:])
    elif text[start:] and sentences:
        sentences[-1] += text[start:]
    return sentences


def ends_a_sentence(text: str) -> bool:
    """Whether the last sentence of a text is complete."""
    stripped = text.rstrip()
    return any(match.end() == len(stripped) for match in SENTENCE_END.finditer(stripped))


def complete_sentences(text: str) -> str:
    """A text without its last sentence where that one has no end."""
    sentences = split_sentences(text)
    return text if ends_a_sentence(text) else "".join(sentences[:-1])


__all__ = ["complete_sentences", "ends_a_sentence", "split_sentences"]
