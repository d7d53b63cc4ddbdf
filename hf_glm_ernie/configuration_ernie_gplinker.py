"""Configuration of GPLinker, extraction for one schema on an ERNIE encoder."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_arguments import MAX_LABELS, Range, check_ranges
from .configuration_ernie_task import ErnieTaskConfig


@strict
class ErnieGPLinkerConfig(ErnieTaskConfig):
    r"""Settings of an [`ErnieForGPLinker`]: those of `transformers.ErnieConfig`, `task_id`, and what is extracted.

    Args:
        entity_labels: Types of entities, in the order of the model's outputs (PaddleNLP's `entity2id`).
        relation_labels: What may hold between two entities, in the order of the outputs: predicates, or classes of an
            opinion (`relation2id`, `sentiment2id`); empty where only entities are extracted.
        schema: What answers look like: the schema that [`uie`] takes. `None`: the entity types by themselves.
        pointer_size: Width of the vectors that are compared with each other; even.
        task_id: Task type of every token where `task_type_ids` are not given; read where `use_task_id` is set.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range, no entity type, a label that
            is empty or stands twice.

    ```python
    >>> from hf_glm_ernie import ErnieGPLinkerConfig

    >>> ErnieGPLinkerConfig(entity_labels=["公司", "object"], relation_labels=["创始人"]).relation_labels
    ['创始人']
    ```
    """

    model_type = "ernie_gplinker"

    entity_labels: list[str] | tuple[str, ...] = ("object",)
    relation_labels: list[str] | tuple[str, ...] = ()
    schema: Any = None
    pointer_size: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        self.entity_labels, self.relation_labels = list(self.entity_labels), list(self.relation_labels)
        super().__post_init__(**kwargs)

    def validate_labels(self) -> None:
        """Checks the labels and the width (called by the host's `@strict` validation)."""
        check_ranges(self, {"pointer_size": Range(2, 4096)})
        if self.pointer_size % 2:
            raise ValueError(f"pointer_size={self.pointer_size} must be even: positions rotate pairs of its numbers.")
        if not self.entity_labels:
            raise ValueError("entity_labels=[] must name at least one type of entity.")
        for name in ("entity_labels", "relation_labels"):
            labels = getattr(self, name)
            if not all(labels) or len(set(labels)) < len(labels) or len(labels) > MAX_LABELS:
                raise ValueError(
                    f"{name}={labels[:20]!r} must be names, none of them empty and each once, at most {MAX_LABELS:,}."
                )


__all__ = ["ErnieGPLinkerConfig"]
