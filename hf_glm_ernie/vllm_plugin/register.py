"""What vLLM has to know before it opens a folder.

vLLM's registries take names and import what stands behind them when it is needed, so that this runs fast in every
process of a server.
"""

from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from .guards import TOKENIZER_MODE, Glm130bGuards

ARCHITECTURE = "Glm130bForCausalLM"


def register() -> None:
    """Registers GLM-130B. vLLM calls it in each of its processes, perhaps more than once."""
    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is Glm130bGuards:
        return
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Glm130bGuards
    TokenizerRegistry.register(TOKENIZER_MODE, f"{__package__}.tokenizer", "ServingTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{__package__}.requests", "Glm130bRenderer")
