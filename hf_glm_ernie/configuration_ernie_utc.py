"""Configuration of UTC, unified tag classification on an ERNIE encoder."""

from huggingface_hub.dataclasses import strict

from .configuration_ernie_task import ErnieTaskConfig


@strict
class ErnieUTCConfig(ErnieTaskConfig):
    r"""Settings of an [`ErnieForUTC`]: those of [`ErnieCompactConfig`], and `task_id`.

    Args:
        task_id: Task type of every token where `task_type_ids` are not given; read where `use_task_id` is set.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range, or a `task_id` without a
            row in the task type embedding.

    ```python
    >>> from hf_glm_ernie import ErnieUTCConfig

    >>> ErnieUTCConfig(vocab_size=39981, use_task_id=True, task_type_vocab_size=16).task_id
    0
    ```
    """

    model_type = "ernie_utc"


__all__ = ["ErnieUTCConfig"]
