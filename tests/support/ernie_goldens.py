"""Golden cases of the original ERNIE programs: where they lie, and how one is run on the converted model.

PaddleNLP and transformers' native classes differ in a few inputs by design (../shared/design/ernie-3.0.md, section 9).
Here stands, once, what is given to the native class so that the same thing is computed; the tests also show that
without it the results differ.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from tests.conftest import GOLDEN

SMALL = GOLDEN / "ernie_small"
SHARED = Path(__file__).parents[3] / "shared" / "goldens" / "ernie"
AUTO_CLASSES: dict[str, Any] = {
    "ErnieModel": AutoModel,
    "ErnieForMaskedLM": AutoModelForMaskedLM,
    "ErnieForPretraining": AutoModelForPreTraining,
    "ErnieForSequenceClassification": AutoModelForSequenceClassification,
    "ErnieForTokenClassification": AutoModelForTokenClassification,
    "ErnieForQuestionAnswering": AutoModelForQuestionAnswering,
    "ErnieForMultipleChoice": AutoModelForMultipleChoice,
    "UIE": AutoModel,
    "UTC": AutoModel,
}
FIELDS = {
    "ErnieModel": ("last_hidden_state", "pooler_output"),
    "ErnieForMaskedLM": ("logits",),
    "ErnieForPretraining": ("prediction_logits", "seq_relationship_logits"),
    "ErnieForSequenceClassification": ("logits",),
    "ErnieForTokenClassification": ("logits",),
    "ErnieForQuestionAnswering": ("start_logits", "end_logits"),
    "ErnieForMultipleChoice": ("logits",),
    "UIE": ("start_prob", "end_prob"),
    "UTC": ("logits",),
}
"""What the original returns, in its order, under the names of transformers."""

OWN = ("UIE", "UTC")
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits", "start_prob", "end_prob", "prediction_logits")


@dataclass(frozen=True)
class Golden:
    """One golden file of one checkpoint."""

    folder: Path
    name: str

    @property
    def id(self) -> str:
        return f"{self.folder.name}-{self.name}"

    @cached_property
    def original_class(self) -> str:
        return json.loads((self.folder / "case.json").read_text())["class"]

    @cached_property
    def arrays(self) -> dict[str, torch.Tensor]:
        with np.load(self.folder / f"golden_{self.name}.npz") as arrays:
            return {key: torch.tensor(arrays[key]) for key in arrays.files}

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {key.removeprefix("in."): value for key, value in self.arrays.items() if key.startswith("in.")}

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """By field name; a tuple's members get the names of transformers."""
        outputs = {key.removeprefix("out."): value for key, value in self.arrays.items() if key.startswith("out.")}
        return {self._field(key): value for key, value in outputs.items()}

    def _field(self, key: str) -> str:
        if key == "output":
            return FIELDS[self.original_class][0]
        if key.startswith("output."):
            return FIELDS[self.original_class][int(key.removeprefix("output."))]
        return key


def goldens(root: Path) -> Iterator[Golden]:
    """Every golden under a folder of checkpoints."""
    for folder in sorted(path.parent for path in root.glob("*/case.json")):
        for path in sorted(folder.glob("golden_*.npz")):
            yield Golden(folder, path.stem.removeprefix("golden_"))


def native_inputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PaddleNLP's inputs as the native class needs them to compute the same.

    - the mask PaddleNLP makes of the padding by itself, given explicitly;
    - padding looked up as zeros, through `inputs_embeds`;
    - an int mask of four dimensions as the numbers PaddleNLP adds;
    - a mask that hides a row whole as the -1e4 PaddleNLP adds, which leaves the row's scores in place;
    - a task type 0 that the conversion moved, because transformers' default is 0 and the original's is not.
    """
    config = model.config
    given = dict(inputs)
    ids = given.get("input_ids")
    task_id = getattr(config, "task_id", 0)
    if "task_type_ids" in given and task_id:
        moved = config.task_type_vocab_size - 1
        given["task_type_ids"] = torch.where(given["task_type_ids"] == 0, moved, given["task_type_ids"])
    if ids is not None:
        padding = ids == config.pad_token_id
        if given.get("attention_mask") is None:
            given["attention_mask"] = (~padding).long()
        words = model.get_input_embeddings()(given.pop("input_ids"))
        given["inputs_embeds"] = words.masked_fill(padding[..., None], 0)
    mask = given["attention_mask"]
    if mask.ndim == 4 and not mask.is_floating_point():
        given["attention_mask"] = (1 - mask) * -1e9
    elif mask.ndim == 2 and (mask == 0).all(-1).any():
        given["attention_mask"] = ((1 - mask) * -1e4)[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return given


def run(model: PreTrainedModel, arguments: dict[str, torch.Tensor], **flags: Any) -> Any:
    """A forward pass without gradients."""
    with torch.no_grad():
        return model(**arguments, **flags)


def difference(found: torch.Tensor, expected: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Largest absolute difference, over the positions of `where` (batch, length) if it is given."""
    apart = (found.float() - expected.float()).abs()
    if where is not None:
        apart = apart[where]
    return apart.max().item() if apart.numel() else 0.0
