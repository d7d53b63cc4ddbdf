"""What the configurations of UIE and UTC share: the host's ERNIE settings and one more.

`task_id` is the task type that PaddleNLP gives to every token where none is named.

Source: PaddleNLP 2.8.1, `paddlenlp/transformers/ernie/configuration.py`.
"""

from huggingface_hub.dataclasses import strict

from .configuration_ernie_compact import ErnieCompactConfig


@strict
class ErnieTaskConfig(ErnieCompactConfig):
    """The settings of [`ErnieCompactConfig`], and `task_id`.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range, or a `task_id` without a
            row in the task type embedding.
    """

    task_id: int = 0

    def validate_task_id(self) -> None:
        """Checks `task_id` against the task types there are (called by the host's `@strict` validation)."""
        if self.use_task_id and not 0 <= self.task_id < self.task_type_vocab_size:
            raise ValueError(
                f"task_id={self.task_id} has no row in the task type embedding of {self.task_type_vocab_size} "
                "(task_type_vocab_size). Released checkpoints have task_id 0."
            )


# A base; what is offered are the configurations of the two models.
__all__: list[str] = []
