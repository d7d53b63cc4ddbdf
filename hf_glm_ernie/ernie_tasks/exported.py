"""What an exported folder holds: names of files, and of inputs and outputs with their axes.

`examples/export_ernie.py` writes such folders and [`OnnxEncoder`] opens them. Axes of one name have one size, which
may change from call to call; `None` is an axis of size 1.
"""

from collections.abc import Mapping

Axes = Mapping[str, tuple[str | None, ...]]
"""Input -> its axes."""

ONNX_FILE, INT8_FILE, TORCH_FILE = "model.onnx", "model_int8.onnx", "model.pt2"
STATIC_FILE = "model_int8_static.onnx"

AXES: Axes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("batch", "tokens"))
CHOICE_AXES: Axes = dict.fromkeys(AXES, ("batch", "choices", "tokens"))
UTC_AXES: Axes = {
    "input_ids": ("batch", "tokens"),
    "token_type_ids": ("batch", "tokens"),
    "position_ids": ("batch", "tokens"),
    "attention_mask": ("batch", None, "tokens", "tokens"),
    "omask_positions": ("batch", "choices"),
    "cls_positions": ("batch",),
}

OUTPUTS = {
    "ErnieModel": ("last_hidden_state",),  # and pooler_output, where there is a pooler
    "ErnieForMaskedLM": ("logits",),
    "ErnieForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "ErnieForSequenceClassification": ("logits",),
    "ErnieForTokenClassification": ("logits",),
    "ErnieForQuestionAnswering": ("start_logits", "end_logits"),
    "ErnieForMultipleChoice": ("logits",),
    "ErnieCompactModel": ("last_hidden_state",),
    "ErnieCompactForSequenceClassification": ("logits",),
    "ErnieCompactForTokenClassification": ("logits",),
    "ErnieCompactForQuestionAnswering": ("start_logits", "end_logits"),
    "ErnieCompactForMultipleChoice": ("logits",),
    "ErnieForGPLinker": ("entity_logits",),  # and head_logits, tail_logits, where there are relations
    "ErnieForUIE": ("start_prob", "end_prob"),
    "ErnieForUTC": ("logits",),
}
"""Class -> the outputs that its file must have."""


def axes_of_class(name: str) -> Axes:
    """The inputs of a class by its name, and their axes."""
    if name == "ErnieForUTC":
        return UTC_AXES
    return CHOICE_AXES if name.endswith("ForMultipleChoice") else AXES


__all__ = [
    "AXES",
    "CHOICE_AXES",
    "INT8_FILE",
    "ONNX_FILE",
    "OUTPUTS",
    "STATIC_FILE",
    "TORCH_FILE",
    "UTC_AXES",
    "Axes",
    "axes_of_class",
]
