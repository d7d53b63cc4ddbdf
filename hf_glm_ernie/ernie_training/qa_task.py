"""Reading comprehension as a task: windows in, the answers of the original's rule scored by exact match and F1.

The windows, the choice of an answer and the scores are PaddleNLP's (`ernie_tasks/qa_features.py`, `qa_answers.py`,
`qa_scores.py`). A question's windows are scored together, so scores need the texts beside the logits: the task is told
what it is evaluated on (`ErnieTask.measure_on`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering

from hf_glm_ernie.ernie_tasks.qa_answers import QAAnswer, qa_answers
from hf_glm_ernie.ernie_tasks.qa_features import QAFeature, qa_features

from .qa_kinds import question_kind
from .qa_rows import COLUMNS, read_questions
from .qa_scores import answer_f1, exact_match, qa_scores
from .task import ErnieTask, encoder_config, rows_in

POSITIONS = ("start_positions", "end_positions")
OUTSIDE = [-1, -1]  # in place of `None`, which a column of pairs cannot hold


class Reading(ErnieTask):
    """`context`, `question` and `answers`, in the forms of `qa_rows.py`.

    Settings: `doc_stride` (tokens from one window to the next; a quarter of the length), `n_best` (20),
    `max_answer_length` (30), `version_2_with_negative` (a question may have no answer), `null_score_diff_threshold`,
    `language` (zh: F1 of characters; en: of words).
    """

    columns = COLUMNS
    heads = ("qa_outputs",)
    label_names = POSITIONS
    best = "exact_match"
    reads: tuple[str, ...] | None = (
        *("doc_stride", "n_best", "max_answer_length", "version_2_with_negative", "null_score_diff_threshold"),
        "language",
    )

    def __init__(self, tokenizer: Any, max_length: int, settings: Mapping[str, Any] | None = None):
        super().__init__(tokenizer, max_length, settings)
        self.unit = "words" if self.settings.get("language") == "en" else "characters"
        self._measured: tuple[Any, Any] | None = None

    def read(self, file: Path) -> Any:
        """See [`read_questions`]."""
        return read_questions(file)

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens the encoder with an output for starts and one for ends."""
        return AutoModelForQuestionAnswering.from_pretrained(folder, config=encoder_config(folder), **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes questions and windows of their texts; a long text becomes several rows."""
        stride = self.settings.get("doc_stride") or max(self.max_length // 4, 1)
        features = qa_features(self.tokenizer, rows_in(batch), self.max_length, stride, rows)
        return {
            "input_ids": [one.input_ids for one in features],
            "token_type_ids": [one.token_type_ids for one in features],
            "attention_mask": [[1] * len(one.input_ids) for one in features],
            "start_positions": [one.start_position for one in features],
            "end_positions": [one.end_position for one in features],
            "row": [rows[one.example] for one in features],
            "offsets": [[OUTSIDE if place is None else list(place) for place in one.offsets] for one in features],
        }

    def collator(self) -> Any:
        """Pads windows."""
        return QACollator(self.tokenizer)

    def measure_on(self, rows: Any, encoded: Any) -> None:
        """Keeps the texts and windows that predictions belong to."""
        self._measured = rows, encoded

    def metrics(self, prediction: Any) -> dict[str, float]:
        """`exact_match` and `f1` in percent, see [`qa_scores`].

        Raises:
            ValueError: nobody said what the predictions belong to.
        """
        if self._measured is None:
            raise ValueError("Answers are scored with their texts: call measure_on(rows, encoded) before.")
        rows, encoded = self._measured
        answers = self.answers(rows, encoded, prediction)
        return qa_scores([one.text for one in answers], [one["text"] for one in rows["answers"]], self.unit)

    def answers(self, rows: Any, encoded: Any, prediction: Any) -> list[QAAnswer]:
        """The answers to all questions, from the logits of their windows."""
        features = [
            QAFeature(
                example=one["row"],
                input_ids=[],
                token_type_ids=[],
                offsets=[None if place == OUTSIDE else tuple(place) for place in one["offsets"]],
                start_position=0,
                end_position=0,
            )
            for one in encoded.select_columns(["row", "offsets"])
        ]
        return qa_answers(
            [{"context": context} for context in rows["context"]],
            features,
            *prediction.predictions[:2],
            n_best=self.settings.get("n_best") or 20,
            max_answer_length=self.settings.get("max_answer_length") or 30,
            may_be_unanswerable=bool(self.settings.get("version_2_with_negative")),
            null_threshold=self.settings.get("null_score_diff_threshold") or 0.0,
        )

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by kind of question; the questions whose answer is not an exact match, with the likeliest three."""
        found = self.answers(rows, encoded, prediction)
        groups: dict[str, list[tuple[str, list[str]]]] = {}
        mistakes = []
        for number, (row, answer) in enumerate(zip(rows, found, strict=True)):
            gold = row["answers"]["text"] or []
            kind = question_kind(row["question"])
            groups.setdefault(kind, []).append((answer.text, gold))
            if not max(exact_match(answer.text, one) for one in gold or [""]):
                mistakes.append(self._mistake(number, row, answer) | {"kind": kind})
        by_class = {
            kind: qa_scores([text for text, _ in pairs], [gold for _, gold in pairs], self.unit) | {"gold": len(pairs)}
            for kind, pairs in sorted(groups.items())
        }
        return {"by_class": by_class, "mistakes": mistakes}

    def _mistake(self, number: int, row: Mapping[str, Any], answer: QAAnswer) -> dict[str, Any]:
        texts, starts = (row["answers"][name] or [] for name in ("text", "answer_start"))
        gold = dict.fromkeys(zip(texts, starts, strict=True))
        found = [one for one in answer.candidates if one.text == answer.text and one.end > one.start][:1]
        return {
            "row": number,
            "id": row.get("id", str(number)),
            "question": row["question"],
            "text": row["context"],
            "gold": [{"text": text, "start": start, "end": start + len(text)} for text, start in gold],
            "found": [{"text": one.text, "start": one.start, "end": one.end} for one in found],
            "f1": 100 * max(answer_f1(answer.text, text, self.unit) for text in texts or [""]),
            "candidates": [{"text": one.text, "probability": one.probability} for one in answer.candidates[:3]],
        }


class QACollator:
    """Pads windows to a batch; for the `Trainer`.

    Args:
        tokenizer: Its way of padding.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the model's inputs, (B, T) int64 each, and the positions (B,)."""
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        plain = [{name: row[name] for name in inputs} for row in rows]
        batch = dict(self.tokenizer.pad(plain, padding_side="right", return_tensors="pt"))
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in POSITIONS if name in rows[0]}


__all__ = ["QACollator", "Reading"]
