"""The model class of each ERNIE task, and the names and shapes it has."""

import transformers
from transformers import ErnieConfig, PreTrainedModel

from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC

from .ernie_names import Task
from .operations import Shape
from .verify import expected_shapes

OWN_CLASSES: dict[str, type[PreTrainedModel]] = {"ErnieForUIE": ErnieForUIE, "ErnieForUTC": ErnieForUTC}


def expected_shapes_of_task(task: Task, config: ErnieConfig) -> dict[str, Shape]:
    """Names and shapes of the state of a task's class, tied names included."""
    model_class = OWN_CLASSES[task.architecture] if not task.is_native else getattr(transformers, task.architecture)
    return expected_shapes(model_class, config)


__all__ = ["expected_shapes_of_task"]
