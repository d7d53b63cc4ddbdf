"""The model classes an ERNIE 3.0 folder may be of, and the names and shapes they have."""

from transformers import PreTrainedModel

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining

from .operations import Shape
from .verify import expected_shapes

CLASSES: dict[str, type[PreTrainedModel]] = {
    model_class.__name__: model_class for model_class in (Ernie3ForPreTraining, Ernie3ForCausalLM, Ernie3ForMaskedLM)
}


def expected_shapes_of_class(architecture: str, config: Ernie3Config) -> dict[str, Shape]:
    """Names and shapes of the state of a class."""
    return expected_shapes(CLASSES[architecture], config)


__all__ = ["expected_shapes_of_class"]
