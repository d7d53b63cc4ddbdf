"""Tasks whose question stands in the input: UIE's extraction and UTC's choices. Rows are PaddleNLP's."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC

from .counts import NONE, Counts, total
from .prompt_classes import class_counts, prompt_classes, sort_options, split_classes
from .span_scores import THRESHOLD, keep_probabilities, span_counts, span_metrics
from .task import ErnieTask, own_config, rows_in
from .task_mistakes import choice_mistakes, extraction_mistake
from .uie_labels import POSITIONS, UIECollator, encode_uie_rows
from .uie_rows import read_row
from .utc_rows import UTCCollator, add_option_token, encode_utc_rows, option_token_id, read_utc_row
from .utc_scores import holds, option_counts, utc_metrics

ENTITIES, RELATIONS, OPTION_PROMPTS = "entities", "relations", "options"
"""Kinds of UIE's prompts: what is asked of a text, of an answer, and for one of the prompt's options."""


class Extraction(ErnieTask):
    """`content`, `prompt` and `result_list`.

    Settings: `cut` (see [`cut_row`]), `language` (of the prompts), `labels` and `predicates` (known ones, see
    [`prompt_classes`]), `threshold` (0.5).
    """

    columns = ("content", "prompt", "result_list")
    heads = ("linear_start", "linear_end")
    label_names = POSITIONS
    best = "f1"
    reads = ("cut", "language", "labels", "predicates", "threshold")
    keep = staticmethod(keep_probabilities)

    def __init__(self, tokenizer: Any, max_length: int, settings: Mapping[str, Any] | None = None):
        super().__init__(tokenizer, max_length, settings)
        given = {name: value for name, value in self.settings.items() if value is not None}
        self.cut, self.language = given.get("cut", "windows"), given.get("language", "zh")
        self.known = {name: tuple(given.get(name, ())) for name in ("labels", "predicates")}
        self.threshold = given.get("threshold", THRESHOLD)
        self._kinds: list[str] = []

    def open_model(self, folder: str, **options: Any) -> Any:
        """Opens a UIE model, or an encoder with a new head."""
        return ErnieForUIE.from_pretrained(folder, config=own_config(folder, ErnieUIEConfig), **options)

    def encode(self, batch: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Encodes rows; long ones become several."""
        checked = [read_row(row, number) for row, number in zip(rows_in(batch), rows, strict=True)]
        return encode_uie_rows(self.tokenizer, checked, self.max_length, self.cut)

    def collator(self) -> Any:
        """Pads rows, labels with 0."""
        return UIECollator(self.tokenizer)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See [`span_metrics`]; where rows of several kinds were evaluated together, the F1 of each besides."""
        scores = span_metrics(prediction, self.threshold)
        kinds = sorted(set(self._kinds))
        if len(kinds) > 1 and len(self._kinds) == len(prediction.predictions[0]):
            counts = self._counts(prediction)
            for kind in kinds:
                of_kind = (one for one, its in zip(counts, self._kinds, strict=True) if its == kind)
                scores[f"f1_{kind}"] = total(of_kind).f1
        return scores

    def measure_on(self, rows: Any, encoded: Any) -> None:
        """Remembers the kind of every encoded row, for scores by kind."""
        prompts = list(rows["prompt"])
        kinds = [
            OPTION_PROMPTS if prompt.endswith("]") else ENTITIES if name == sort_options(prompt) else RELATIONS
            for prompt, name in zip(prompts, prompt_classes(prompts, self.language, **self.known), strict=True)
        ]
        self._kinds = [kinds[number] for number in encoded["row"]]

    def labels_of(self, rows: Any) -> list[list[str]]:
        """What the prompt of a row asks for; nothing where it has no answer."""
        names = prompt_classes(list(rows["prompt"]), self.language, **self.known)
        return [[name] if found else [] for name, found in zip(names, rows["result_list"], strict=True)]

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by label and relation; the rows that have a wrong or a missing answer.

        As in PaddleNLP's report a class counts its rows with answers. What was found in its rows without any stands
        beside, as `found_without_gold`.
        """
        prompts, numbers = list(rows["prompt"]), list(encoded["row"])
        asked = [prompts[number] for number in numbers]
        counts = self._counts(prediction)
        by_class = {
            name: one.report() | {"found_without_gold": 0}
            for name, one in class_counts(asked, counts, self.language, **self.known).items()
        }
        alarms = [(prompt, one.found) for prompt, one in zip(asked, counts, strict=True) if one.found and not one.gold]
        known = {name: [*self.known[name], *found] for name, found in split_classes(by_class, self.language).items()}
        names = prompt_classes([prompt for prompt, _ in alarms], self.language, **known)
        for name, (_, found) in zip(names, alarms, strict=True):
            by_class.setdefault(name, NONE.report() | {"found_without_gold": 0})["found_without_gold"] += found
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)
        wrong = [
            n
            for n, own in places.items()
            if not all(c.correct == c.found == c.gold for c in map(counts.__getitem__, own))
        ]
        return {"by_class": by_class, "mistakes": [self._mistake(rows, n, places[n], prediction) for n in wrong]}

    def _counts(self, prediction: Any) -> list[Counts]:
        (start, end), (gold_start, gold_end) = prediction.predictions[:2], prediction.label_ids
        return span_counts(start, end, gold_start, gold_end, self.threshold)

    def _mistake(self, rows: Any, number: int, places: Sequence[int], prediction: Any) -> dict[str, Any]:
        starts, ends = prediction.predictions[:2]
        probabilities = [(starts[place], ends[place]) for place in places]
        row = read_row(rows[number], number)
        return extraction_mistake(self.tokenizer, row, probabilities, self.max_length, self.cut, self.threshold)


class Choosing(ErnieTask):
    """`text_a`, `choices` and `labels`, and `text_b` where there is one; setting `threshold` (0.5)."""

    columns = ("text_a", "choices", "labels")
    heads = ("linear_q", "linear_k")
    best = "macro_f1"
    reads = ("threshold",)
    single_label = False

    def learn(self, train: Any) -> None:
        """Finds out whether every row has one label: then the accuracy is logged as well."""
        labels = train["labels"]
        self.single_label = all(isinstance(one, int) or (isinstance(one, list) and len(one) == 1) for one in labels)

    def learn_of_model(self, config: Any, rows: Any) -> None:
        """Finds out the same of what is measured on."""
        self.learn(rows)

    def labels_of(self, rows: Any) -> list[list[str]]:
        """The options that hold, "" where none does."""
        checked = (read_utc_row(row, number) for number, row in enumerate(rows))
        return [[row.choices[label] for label in row.labels] or [""] for row in checked]

    @property
    def threshold(self) -> float:
        """An option holds where its probability is above this."""
        given = self.settings.get("threshold")
        return 0.5 if given is None else given

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
        return utc_metrics(prediction, self.single_label, self.threshold)

    def report(self, rows: Any, encoded: Any, prediction: Any) -> dict[str, Any]:
        """Scores by option; the rows with a wrong one."""
        logits, labels, choices = prediction.predictions, prediction.label_ids, rows["choices"]
        counts = option_counts(choices, logits, labels, self.threshold)

        def names(holding: Any) -> list[list[str]]:
            return [
                [n for n, one in zip(own, row, strict=False) if one] for own, row in zip(choices, holding, strict=True)
            ]

        found, gold = names(holds(logits, self.threshold)), names(labels == 1)
        mistakes = choice_mistakes(rows, found, gold, ("text_a", "text_b"), self.single_label)
        return {"by_class": {name: one.report() for name, one in counts.items()}, "mistakes": mistakes}


__all__ = ["Choosing", "Extraction"]
