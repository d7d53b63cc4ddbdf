"""What vLLM has to know before it opens a folder: the model's class and the quantization's."""

from vllm import ModelRegistry

MODEL = "hf_glm_ernie.vllm_plugin.model:Glm130bForCausalLM"


def register() -> None:
    """Registers GLM-130B; vLLM calls it in every one of its processes, perhaps more than once."""
    if "Glm130bForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("Glm130bForCausalLM", MODEL)
