"""The texts that `pretrain_ernie3.py` and `distil_ernie3.py` train on, all this project's own.

Documents are stories made up of `sample-ernie3/stories.json`, in Chinese and English: a person, a place and a thing,
several times a day. Their names are combined anew in each document, and one combination of seven occurs in no training
text. The knowledge graph is `sample-ernie/facts.json`: facts, and sentences that say them, of which every eighth is
kept back.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_glm_ernie import Ernie3Tokenizer, add_control_marks
from hf_glm_ernie.tokenization_ernie_unicode import build_normalizer, build_pre_tokenizer

EXAMPLES = Path(__file__).resolve().parent
STORIES = EXAMPLES / "sample-ernie3" / "stories.json"
FACTS = EXAMPLES / "sample-ernie" / "facts.json"
STORIES_PER_DOCUMENT = 8
RELATIONS = ("首都", "capitals")  # of the facts; as many as two minutes can teach
HELD_OUT = 7  # of so many combinations of a person, a place and a thing, one occurs in no training text


@dataclass(frozen=True)
class Story:
    """A made-up story.

    Attributes:
        language: "zh" or "en".
        sentences: In their order.
        genre: One of the genres of the controllable task.
        topic: In one word.
        sentiment: "positive", "negative" or "neutral".
        names: What fills the slots: "p" a person, "l" a place, "o" a thing.
    """

    language: str
    sentences: tuple[str, ...]
    genre: str
    topic: str
    sentiment: str
    names: dict[str, str]

    @property
    def text(self) -> str:
        """The sentences in a row."""
        return (" " if self.language == "en" else "").join(self.sentences)


class StoryWriter:
    """Makes up stories of one language.

    Args:
        path: `stories.json`.
        language: "zh" or "en".
        held_out: Whether to combine names that training does not see together, and only these.
        rng: Draws.
    """

    def __init__(self, path: Path, language: str, held_out: bool, rng: random.Random) -> None:
        found = json.loads(path.read_text("utf-8"))[language]
        self.language, self.held_out, self.rng = language, held_out, rng
        self.names: dict[str, list[str]] = found["names"]
        self.plots: list[dict[str, Any]] = found["stories"]

    def document(self) -> list[Story]:
        """Stories of one person, one place and one thing."""
        names = self._names()
        return [self._story(self.rng.choice(self.plots), names) for _ in range(STORIES_PER_DOCUMENT)]

    def texts(self) -> Iterator[str]:
        """All sentences, names and words of prompts, for the vocabulary."""
        for plot in self.plots:
            for wordings in plot["sentences"]:
                for wording in wordings:
                    for slot, names in self.names.items():
                        yield from (wording.replace(f"{{{slot}}}", f" {name} ") for name in names)
            yield from (plot["topic"], plot["sentiment"])
        yield "About words"  # of a prompt that asks for a length

    def _names(self) -> dict[str, str]:
        while True:
            places = {slot: self.rng.randrange(len(names)) for slot, names in self.names.items()}
            if (sum(places.values()) % HELD_OUT == 0) == self.held_out:
                return {slot: self.names[slot][place] for slot, place in places.items()}

    def _story(self, plot: dict[str, Any], names: dict[str, str]) -> Story:
        sentences = tuple(self.rng.choice(wordings).format(**names) for wordings in plot["sentences"])
        return Story(self.language, sentences, plot["genre"], plot["topic"], plot["sentiment"], names)


def read_triples(path: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Writes every fact of the knowledge graph as a triple, beside each sentence that says it.

    Returns:
        Rows of head, relation, tail, sentence: those to train on, and every eighth, which is kept back. Its fact is
        known from other sentences.
    """
    rows: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    number = itertools.count()
    for group in json.loads(path.read_text("utf-8")):
        for head, tail in group["rows"] if group["about"] in RELATIONS else ():
            for template in group["templates"]:
                sentence = template.format(head, tail)
                if head in sentence and tail in sentence:
                    kept_back = next(number) % 8 == 0
                    row = {"head": head, "relation": group["about"], "tail": tail, "sentence": sentence}
                    rows[kept_back].append(row)
    return rows


def build_tokenizer(texts: Sequence[str], folder: Path) -> Ernie3Tokenizer:
    """Makes a vocabulary of all words and characters of the texts, in the released order, and the tokenizer on it."""
    normalizer, pre_tokenizer = build_normalizer(do_lower_case=True), build_pre_tokenizer()
    words = {word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = {chr(code) for code in range(33, 127) if not chr(code).isupper()}
    pieces = {f"##{character}" for character in characters if character.isalnum()}
    tokens = [*sorted(characters), *sorted(pieces), *sorted(words - characters)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", *tokens, "[UNK]"]) + "\n", "utf-8")
    return Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None)


class Texts:
    """Everything the two scripts read, and the tokenizer on it.

    Args:
        documents: Made-up documents per language.
        seed: Decides them.
        folder: Where the vocabulary is written.

    Attributes:
        documents: To train on, each a list of stories.
        unseen: Documents of other combinations of names, a twentieth as many.
        triples: Head, relation, tail and sentence, to train on.
        kept_back: The same, with sentences that no training text has.
        tokenizer: On all words of all texts; the marks of controllable prompts are one token each.
    """

    def __init__(self, documents: int, seed: int, folder: Path) -> None:
        rng = random.Random(seed)
        writers = {
            held_out: [StoryWriter(STORIES, one, held_out, rng) for one in ("zh", "en")] for held_out in (False, True)
        }
        self.documents = [writer.document() for _ in range(documents) for writer in writers[False]]
        self.unseen = [writer.document() for _ in range(max(documents // 20, 1)) for writer in writers[True]]
        self.triples, self.kept_back = read_triples(FACTS)
        words = [text for writer in writers[False] for text in writer.texts()]
        words += [row[part] for row in self.triples + self.kept_back for part in ("sentence", "relation")]
        self.tokenizer = build_tokenizer(words, folder)
        add_control_marks(self.tokenizer)  # before there is a model: then none has to be resized
        plots = [[plot["topic"] for plot in writer.plots] for writer in writers[False]]
        self.topics = {topic: number for names in plots for number, topic in enumerate(names)}


__all__ = ["Story", "StoryWriter", "Texts", "build_tokenizer", "read_triples"]
