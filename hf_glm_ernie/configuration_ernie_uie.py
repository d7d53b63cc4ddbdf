"""Configuration of UIE, universal information extraction on an ERNIE encoder."""

from huggingface_hub.dataclasses import strict

from .configuration_ernie_task import ErnieTaskConfig


@strict
class ErnieUIEConfig(ErnieTaskConfig):
    r"""Settings of an [`ErnieForUIE`]: those of [`ErnieCompactConfig`], and `task_id`.

    Args:
        task_id: Task type of every token where `task_type_ids` are not given; read where `use_task_id` is set.

    Raises:
        ValueError: an argument that is no setting.
        StrictDataclassClassValidationError: (huggingface_hub) a number out of its range, or a `task_id` without a
            row in the task type embedding.

    ```python
    >>> from hf_glm_ernie import ErnieUIEConfig

    >>> ErnieUIEConfig(vocab_size=40000, use_task_id=True, task_type_vocab_size=16).task_id
    0
    ```
    """

    model_type = "ernie_uie"


__all__ = ["ErnieUIEConfig"]
