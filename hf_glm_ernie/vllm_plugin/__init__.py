"""GLM-130B in vLLM, out of its tree: the entry point `vllm.general_plugins` calls `register` in every process.

vLLM is imported here and nowhere else in the package, and only when vLLM itself asks.
"""

try:
    from .register import register
except ModuleNotFoundError as error:  # without vLLM the functions on tensors can still be had
    if error.name != "vllm":
        raise

__all__ = ["register"]
