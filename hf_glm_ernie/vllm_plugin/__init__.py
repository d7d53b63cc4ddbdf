"""GLM-130B in vLLM, out of its tree: the entry point `vllm.general_plugins` calls `register` in every process.

vLLM is imported here and nowhere else in the package, and only when vLLM itself asks.
"""

from .register import register

__all__ = ["register"]
