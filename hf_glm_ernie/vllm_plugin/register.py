"""What vLLM has to know before it opens a folder.

vLLM's registries take names and import what stands behind them when it is needed, so that this runs fast in every
process of a server.
"""

import vllm
from vllm import ModelRegistry
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import TokenizerRegistry

from .guards import TOKENIZER_MODE, Glm130bGuards
from .quantization import register_quantization

logger = init_logger("vllm.hf_glm_ernie")

ARCHITECTURE = "Glm130bForCausalLM"
OLDEST_TESTED, NEWEST_TESTED = (0, 28), (0, 32)
"""vLLM promises plugins little: on another version its answers may be other ones without an error."""


def register() -> None:
    """Registers GLM-130B and our integers. vLLM calls it in each of its processes, perhaps more than once."""
    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is Glm130bGuards:
        return
    # as numbers: a source tree of vLLM calls its version "dev", and is (0, 0)
    if not OLDEST_TESTED <= vllm.__version_tuple__[:2] <= NEWEST_TESTED:
        logger.warning(
            "hf_glm_ernie was tested with vLLM %d.%d to %d.%d, and this is %s: compare answers with generate() before "
            "you rely on them.",
            *(*OLDEST_TESTED, *NEWEST_TESTED, vllm.__version__),
        )
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Glm130bGuards
    TokenizerRegistry.register(TOKENIZER_MODE, f"{__package__}.tokenizer", "ServingTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{__package__}.requests", "Glm130bRenderer")
    register_quantization()
