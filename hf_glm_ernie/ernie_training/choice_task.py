"""Multiple choice as a task: C3's questions, CHID's idioms, and rows like them; the host's multiple choice head."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForMultipleChoice

from .choice_features import ChoiceCollator, assign_choices, choice_loss, encode_choices
from .choice_rows import COLUMNS, read_choices
from .task import ErnieTask, encoder_config, rows_in


class MultipleChoice(ErnieTask):
    """`context`, `question`, `choices` and `label`, in the forms of `choice_rows.py`.

    Rows of a `group` (CHID's blanks with shared candidates) take no choice twice, once [`measure_on`] has said which
    rows predictions belong to.
    """

    columns = COLUMNS
    reads: tuple[str, ...] | None = ()
    loss: Callable[..., Any] | None = staticmethod(choice_loss)
    _groups: Sequence[Any] | None = None

    def read(self, file: Path) -> Any:
        """See [`read_choices`]."""
        return read_choices(file)

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the encoder with one output, the score of a choice."""
        return AutoModelForMultipleChoice.from_pretrained(folder, config=encoder_config(folder), **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes rows, each with its own choices."""
        return encode_choices(self.tokenizer, rows_in(batch), rows, self.max_length)

    def collator(self) -> Any:
        """Pads choices and tokens."""
        return ChoiceCollator(self.tokenizer)

    def measure_on(self, rows: Any, encoded: Any) -> None:
        """Keeps which rows share their choices."""
        self._groups = list(rows["group"]) if "group" in rows.column_names else None

    @staticmethod
    def keep(outputs: Any, labels: Any) -> Any:  # type: ignore[override]  # a function in place of None
        """The logits."""
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def metrics(self, prediction: Any) -> dict[str, float]:
        """`accuracy`; and, where rows share their choices, `accuracy_alone`, each row for itself."""
        right = prediction.label_ids[:, 0]
        chosen, alone = (
            assign_choices(prediction.predictions, prediction.label_ids[:, 1], groups)
            for groups in (self._groups, None)
        )
        scores = {"accuracy": float((chosen == right).mean())}
        return scores | ({"accuracy_alone": float((alone == right).mean())} if self._groups else {})

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by the number of choices; the rows whose choice is wrong, with both texts."""
        right, counts = prediction.label_ids.T
        groups = list(rows["group"]) if "group" in rows.column_names else None
        chosen = assign_choices(prediction.predictions, counts, groups)
        by_class = {}
        for count in np.unique(counts).tolist():
            own = (chosen == right)[counts == count]
            by_class[f"{count} choices"] = {
                "accuracy": float(own.mean()),
                "correct": int(own.sum()),
                "gold": len(own),
            }
        mistakes = []
        for number in (chosen != right).nonzero()[0].tolist():
            row = rows[number]
            found, gold = (row["choices"][int(place)] for place in (chosen[number], right[number]))
            told = {"gold": [{"text": gold}], "found": [{"text": found}], "choices": row["choices"]}
            mistakes.append({"row": number, "question": row["question"], "text": row["context"], **told})
        return {"by_class": by_class, "mistakes": mistakes}


__all__ = ["MultipleChoice"]
