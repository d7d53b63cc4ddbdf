"""LoRA adapters in vLLM: its own layers do everything, but on CPUs they forget that a request may have no adapter.

There a token without an adapter carries the index -1, and the weights of the adapter at -1 are those of the last one:
beside a request with an adapter, one without it is answered with it, and nothing says so (vLLM 0.28 to 0.32; its pull
request 48421). vLLM asks its platform for the class that adds adapters, so on CPUs this module names one that leaves
such tokens alone. vLLM's kernels for GPUs are right.
"""

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


class CpuAdapters(PunicaWrapperCPU):
    """Adds adapters to the tokens of requests that have one."""

    def add_shrink(
        self, y: Any, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...], scale: float, **kwargs: Any
    ) -> None:
        """The first product of adapters, put into `y`: zeros for tokens without one, so that the second adds nothing.

        Args:
            y: A tensor (tokens, rank) for each part of a fused linear.
            x: (tokens, K).
            lora_a_stacked: For each part (adapters, 1, rank, K).
            scale: A factor.
            **kwargs: As in vLLM.
        """
        super().add_shrink(y, x, lora_a_stacked, scale, **kwargs)
        if self.is_prefill and self.no_lora:
            return  # nothing was put there
        without = (self.token_lora_indices < 0)[:, None]
        for part in y:
            part.masked_fill_(without, 0)


def use_adapters(vllm_config: VllmConfig) -> None:
    """Puts [`CpuAdapters`] in place in this process, where it serves adapters on a CPU."""
    if vllm_config.lora_config is not None and current_platform.is_cpu():
        current_platform.get_punica_wrapper = lambda: f"{__name__}.{CpuAdapters.__name__}"


__all__ = ["CpuAdapters", "use_adapters"]
