"""What all builders of ERNIE 3.0's pre-training rows share: checks, randomness, the map function.

A builder turns one row of data into one row of the model's inputs. It is a pure function of the row and of a
generator, and the generator is a pure function of (seed, task, epoch, index of the row). So the result depends
neither on the number of processes or workers nor on who builds which row, and no two workers can draw the same
numbers for different rows: workers and ranks share out the indices.

A builder is a function for `datasets.Dataset.map`, and any program may call it the same way:

    dataset.map(KnowledgeMasking(tokenizer), batched=True, with_indices=True, remove_columns=dataset.column_names)

Source: arXiv 2107.02137 (P10), section 3.2; arXiv 2112.12731 (PT), section 3.
"""

import abc
import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hf_glm_ernie.inference.token_ids import special_id

from .tokens import Asking, Tokens, tokens_of

IGNORED = -100  # label of what no loss is taken of
TOGETHER = 64  # rows whose texts go through the tokenizer in one call: more are no faster, and take more memory


def row_generator(seed: int, task: str, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one row, independent of those of every other row, epoch and task.

    Args:
        seed: The user's seed, at least 0.
        task: Any name.
        epoch: How often the data were read before, at least 0.
        index: The row's place in the data, at least 0.

    Raises:
        ValueError: a negative number.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("index", index)):
        if value < 0:
            raise ValueError(f"{name}={value} must be at least 0.")
    numbers: Any = [seed, zlib.crc32(task.encode()), epoch, index]
    if max(numbers) < 2**32:  # what NumPy makes of the list, in half of the time
        numbers = np.array(numbers, np.uint32)
    return np.random.Generator(np.random.PCG64(numbers))


def checked_text(row: Mapping[str, Any], column: str) -> str:
    """A text column of a row.

    Raises:
        ValueError: the column is missing, no string, or empty but for white space.
    """
    text = row.get(column)
    if not isinstance(text, str):
        raise ValueError(
            f"column {column!r} holds {text!r}, not a string; the row has the columns {sorted(row)}."
            if column in row
            else f"there is no column {column!r}; the row has {sorted(row)}."
        )
    if not text.strip():
        raise ValueError(f"column {column!r} is an empty text ({text!r}); leave such rows out.")
    return text


def checked_texts(row: Mapping[str, Any], column: str, least: int) -> list[str]:
    """A column with a list of texts, at least `least` of them and none of them empty.

    Raises:
        ValueError: the column is missing, no list of strings, too short, or holds an empty text.
    """
    texts = row.get(column)
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"column {column!r} must be a list of strings, got {texts!r}; split_sentences() makes one.")
    if len(texts) < least:
        raise ValueError(f"column {column!r} has {len(texts)} sentences, at least {least} are needed; leave it out.")
    empty = [place for place, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(f"{column}[{empty[0]}] is an empty text; leave it out.")
    return list(texts)


def fitted(ids: list[int], room: int, truncation: bool, what: str) -> list[int]:
    """The first `room` ids.

    Args:
        ids: Ids of a text.
        room: How many may stay; at least 1 to be of use.
        truncation: Whether more may be cut off at the end.
        what: What the ids are, for the message.

    Raises:
        ValueError: there is no room at all, or there are more ids and `truncation` is off.
    """
    if room < 1:
        raise ValueError(f"max_length leaves no room for {what}: {1 - room} tokens more are needed at least.")
    if len(ids) > room and not truncation:
        raise ValueError(
            f"{what} has {len(ids)} tokens and max_length leaves room for {room}. Split it, raise max_length, or pass "
            "truncation=True to cut its end off."
        )
    return ids[:room]


@dataclasses.dataclass(frozen=True)
class RowBuilder(abc.ABC):
    """Builds the rows of one task: a map function for `datasets`, `batched=True, with_indices=True`.

    Args:
        tokenizer: A tokenizer of transformers. Rows are built from its ids alone; the vocabulary does not matter.
        max_length: Tokens per row at most, special tokens included.
        truncation: Whether longer texts are cut; otherwise they are refused.
        seed: Decides all random choices, with the epoch and the row's index.
        epoch: Another epoch makes other choices; `dataclasses.replace(builder, epoch=1)`.
    """

    tokenizer: Any
    max_length: int = dataclasses.field(default=512, kw_only=True)
    truncation: bool = dataclasses.field(default=False, kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)
    epoch: int = dataclasses.field(default=0, kw_only=True)

    task: ClassVar[str]
    label_column: ClassVar[str] = "labels"  # what a row is to teach: a label per token, or in other columns per row

    @abc.abstractmethod
    def build(self, row: Mapping[str, Any], generator: np.random.Generator, max_length: int) -> Asking:
        """Builds one row of inputs, as lists and numbers, without padding.

        A generator function: what it yields, a list of texts, comes back as their [`Tokens`], and what it returns is
        the row. So the texts of many rows go through the tokenizer together.

        Args:
            row: One row of data.
            generator: Makes the row's random choices.
            max_length: Tokens the row may have.

        Raises:
            ValueError: the row does not serve the task.
        """

    def row(self, row: Mapping[str, Any], index: int, epoch: int, max_length: int) -> dict[str, Any]:
        """Builds the row that stands at `index` of the data, with the random choices of `epoch`.

        Args:
            row: One row of data.
            index: Its place in the data.
            epoch: How often the data were read before.
            max_length: Tokens the row may have.

        Returns:
            The row of inputs and the `task`.

        Raises:
            ValueError: the row does not serve the task; the message names the task and the index.
        """
        return self.rows([row], [(index, epoch)], max_length)[0]

    def rows(
        self, rows: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]], max_length: int
    ) -> list[dict[str, Any]]:
        """[`row`] of many, their texts tokenized together.

        Args:
            rows: Rows of data.
            places: (index, epoch) of each.
            max_length: Tokens each row may have.

        Returns:
            The rows of inputs, each with its `task`.

        Raises:
            ValueError: a row does not serve the task; the message names the task and the index.
        """
        building = [
            self.build(row, row_generator(self.seed, self.task, epoch, index), max_length)
            for row, (index, epoch) in zip(rows, places, strict=True)
        ]
        built: list[dict[str, Any]] = []
        for start in range(0, len(rows), TOGETHER):
            numbers = [index for index, _ in places[start : start + TOGETHER]]
            built += self._together(building[start : start + TOGETHER], numbers)
        return built

    def _together(self, building: Sequence[Asking], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows that are being built, and the index of each: all of them ask, are answered, ask again."""
        built: dict[int, dict[str, Any]] = {}
        answers: dict[int, list[Tokens] | None] = dict.fromkeys(range(len(building)))
        while answers:
            asked: dict[int, list[str]] = {}
            for at in list(answers):
                tokens = answers.pop(at)  # kept nowhere, so that what one row looks up of them is gone with it
                try:
                    asked[at] = next(building[at]) if tokens is None else building[at].send(tokens)
                except StopIteration as done:
                    built[at] = {"task": self.task, **done.value}
                except ValueError as error:
                    raise ValueError(f"{self.task}, row {numbers[at]}: {error}") from error
            tokens_in_order = iter(tokens_of(self.tokenizer, [text for texts in asked.values() for text in texts]))
            answers = {at: list(itertools.islice(tokens_in_order, len(texts))) for at, texts in asked.items()}
        return [built[at] for at in range(len(building))]

    def filler(self) -> dict[str, Any]:
        """A row of the task that nothing is learned from: `[CLS]` alone, without a label."""
        ids = [special_id(self.tokenizer, "cls")]
        return {
            "task": self.task,
            "input_ids": ids,
            self.label_column: [IGNORED] if self.label_column == "labels" else IGNORED,
        }

    def __call__(self, rows: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        """Builds a batch of rows.

        Args:
            rows: Columns of the data.
            indices: Place of each row in the data.

        Returns:
            Columns of inputs, one row for each row.

        Raises:
            ValueError: a row does not serve the task.
        """
        given = [{name: column[place] for name, column in rows.items()} for place in range(len(indices))]
        built = self.rows(given, [(index, self.epoch) for index in indices], self.max_length)
        return {name: [row[name] for row in built] for name in built[0]} if built else {}


__all__ = [
    "IGNORED",
    "RowBuilder",
    "checked_text",
    "checked_texts",
    "fitted",
    "row_generator",
]
