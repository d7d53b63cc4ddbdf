"""What vLLM has to know before it opens a folder.

vLLM's registries take names and import what stands behind them when it is needed, so that this runs fast in every
process of a server.
"""

from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from .guards import Glm130bGuards
from .quantization import register_quantization

ARCHITECTURE = "Glm130bForCausalLM"
MODE = "glm130b"
"""Of the tokenizer and of the renderer, which is what makes prompts of requests."""


def register() -> None:
    """Registers GLM-130B. vLLM calls it in each of its processes, perhaps more than once."""
    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is Glm130bGuards:
        return
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Glm130bGuards
    TokenizerRegistry.register(MODE, f"{__package__}.tokenizer", "ServingTokenizer")
    RENDERER_REGISTRY.register(MODE, f"{__package__}.requests", "Glm130bRenderer")
    register_quantization()
