"""Tasks whose question stands in the input: UIE's extraction and UTC's choices. Rows are PaddleNLP's."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC

from .prompt_classes import class_counts
from .span_scores import keep_probabilities, span_counts, span_metrics
from .task import ErnieTask, own_config, rows_in
from .uie_labels import POSITIONS, UIECollator, encode_uie_rows
from .uie_rows import read_row
from .utc_rows import UTCCollator, add_option_token, encode_utc_rows, option_token_id, read_utc_row
from .utc_scores import holds, option_counts, utc_metrics


class Extraction(ErnieTask):
    """`content`, `prompt` and `result_list`; settings `cut` (see [`cut_row`]) and `language` (of the prompts)."""

    columns = ("content", "prompt", "result_list")
    heads = ("linear_start", "linear_end")
    label_names = POSITIONS
    best = "f1"
    keep = staticmethod(keep_probabilities)

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens a UIE model, or an encoder with a new head."""
        return ErnieForUIE.from_pretrained(folder, config=own_config(folder, ErnieUIEConfig), **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes rows; long ones become several."""
        checked = [read_row(row, number) for row, number in zip(rows_in(batch), rows, strict=True)]
        return encode_uie_rows(self.tokenizer, checked, self.max_length, self.settings.get("cut", "windows"))

    def collator(self) -> Any:
        """Pads rows, labels with 0."""
        return UIECollator(self.tokenizer)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`span_metrics`]."""
        return span_metrics(prediction)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by label and relation; the rows that have a wrong or a missing answer, with their counts."""
        prompts = list(rows["prompt"])
        numbers = list(encoded["row"])
        counts = span_counts(*prediction.predictions[:2], *prediction.label_ids)
        by_class = class_counts([prompts[number] for number in numbers], counts, self.settings.get("language", "zh"))
        mistakes = [
            {"row": number, "prompt": prompts[number], "correct": one.correct, "found": one.found, "gold": one.gold}
            for number, one in zip(numbers, counts, strict=True)
            if not one.correct == one.found == one.gold
        ]
        return {"by_class": {name: one.report() for name, one in by_class.items()}, "mistakes": mistakes}


class Choosing(ErnieTask):
    """`text_a`, `choices` and `labels`, and `text_b` where there is one."""

    columns = ("text_a", "choices", "labels")
    heads = ("linear_q", "linear_k")
    best = "macro_f1"
    single_label = False

    def learn(self, train: Any) -> None:
        """Finds out whether every row has one label: then the accuracy is logged as well."""
        labels = train["labels"]
        self.single_label = all(isinstance(one, int) or (isinstance(one, list) and len(one) == 1) for one in labels)

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens a UTC model, or an encoder with a new head.

        Raises:
            ValueError: a model without an embedding row for `[O-MASK]`, where only an adapter is to be trained.
        """
        model = ErnieForUTC.from_pretrained(folder, config=own_config(folder, ErnieUTCConfig), **options)
        add_option_token(self.tokenizer)
        if (
            option_token_id(self.tokenizer) >= model.config.vocab_size
            and self.settings.get("method", "full") != "full"
        ):
            raise ValueError(
                f"{folder} has no embedding row for [O-MASK], and an adapter trains none: use --method full, or a UTC "
                "model."
            )
        add_option_token(self.tokenizer, model)
        return model

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes rows, each with its own choices."""
        add_option_token(self.tokenizer)
        checked = [read_utc_row(row, number) for row, number in zip(rows_in(batch), rows, strict=True)]
        return encode_utc_rows(self.tokenizer, checked, self.max_length)

    def collator(self) -> Any:
        """Pads rows and choices."""
        return UTCCollator(self.tokenizer)

    @staticmethod
    def keep(outputs: Any, labels: Any) -> Any:  # type: ignore[override]  # a function in place of None
        """The logits."""
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`utc_metrics`]."""
        return utc_metrics(prediction, self.single_label)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by option; the rows with a wrong one."""
        logits, labels = prediction.predictions, prediction.label_ids
        counts = option_counts(rows["choices"], logits, labels)
        wrong = ((holds(logits) != (labels == 1)) & (labels >= 0)).any(-1)
        by_class = {name: one.report() for name, one in counts.items()}
        return {"by_class": by_class, "rows_with_mistakes": wrong.nonzero()[0].tolist()}


__all__ = ["Choosing", "Extraction"]
