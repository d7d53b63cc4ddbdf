"""GLM-130B and ERNIE 3.0 for Hugging Face transformers.

Importing this package registers its classes with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoTokenizer`, and does nothing else. Registering again is harmless.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .classification_ernie_utc import utc
from .configuration_ernie_uie import ErnieUIEConfig
from .configuration_ernie_utc import ErnieUTCConfig
from .configuration_glm130b import Glm130bConfig
from .embedding_ernie import sentence_embeddings
from .extraction_ernie_uie import uie
from .generation_glm130b import FilledText, fill_blanks
from .modeling_ernie_uie import ErnieForUIE, ErnieUIEOutput
from .modeling_ernie_utc import ErnieForUTC, ErnieUTCOutput
from .modeling_glm130b import Glm130bForCausalLM, Glm130bModel, Glm130bPreTrainedModel
from .quantization_weight_only import WeightOnlyConfig
from .tokenization_ernie import ErnieTokenizer
from .tokenization_glm130b import Glm130bTokenizer

__version__ = "0.1.0"

AutoConfig.register(Glm130bConfig.model_type, Glm130bConfig, exist_ok=True)
AutoModel.register(Glm130bConfig, Glm130bModel, exist_ok=True)
AutoModelForCausalLM.register(Glm130bConfig, Glm130bForCausalLM, exist_ok=True)
AutoTokenizer.register(Glm130bConfig, tokenizer_class=Glm130bTokenizer, exist_ok=True)

AutoConfig.register(ErnieUIEConfig.model_type, ErnieUIEConfig, exist_ok=True)
AutoConfig.register(ErnieUTCConfig.model_type, ErnieUTCConfig, exist_ok=True)
AutoModel.register(ErnieUIEConfig, ErnieForUIE, exist_ok=True)
AutoModel.register(ErnieUTCConfig, ErnieForUTC, exist_ok=True)
# This also makes the class known by its name, which is how the Hub's `PaddlePaddle/*` folders ask for it; the host's
# own choice for its `ernie` configuration stays.
AutoTokenizer.register(ErnieUIEConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)
AutoTokenizer.register(ErnieUTCConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)

__all__ = [
    "ErnieForUIE",
    "ErnieForUTC",
    "ErnieTokenizer",
    "ErnieUIEConfig",
    "ErnieUIEOutput",
    "ErnieUTCConfig",
    "ErnieUTCOutput",
    "FilledText",
    "Glm130bConfig",
    "Glm130bForCausalLM",
    "Glm130bModel",
    "Glm130bPreTrainedModel",
    "Glm130bTokenizer",
    "WeightOnlyConfig",
    "fill_blanks",
    "sentence_embeddings",
    "uie",
    "utc",
]
