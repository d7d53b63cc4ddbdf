"""GLM-130B for Hugging Face transformers.

Importing this package registers its classes with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoTokenizer`, and does nothing else. Registering again is harmless.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .configuration_glm130b import Glm130bConfig
from .generation_glm130b import FilledText, fill_blanks
from .modeling_glm130b import Glm130bForCausalLM, Glm130bModel, Glm130bPreTrainedModel
from .tokenization_glm130b import Glm130bTokenizer

__version__ = "0.1.0"

AutoConfig.register(Glm130bConfig.model_type, Glm130bConfig, exist_ok=True)
AutoModel.register(Glm130bConfig, Glm130bModel, exist_ok=True)
AutoModelForCausalLM.register(Glm130bConfig, Glm130bForCausalLM, exist_ok=True)
AutoTokenizer.register(Glm130bConfig, tokenizer_class=Glm130bTokenizer, exist_ok=True)

__all__ = [
    "FilledText",
    "Glm130bConfig",
    "Glm130bForCausalLM",
    "Glm130bModel",
    "Glm130bPreTrainedModel",
    "Glm130bTokenizer",
    "fill_blanks",
]
