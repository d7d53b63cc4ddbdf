"""Settings of vLLM under which GLM-130B would answer wrongly, hang, or end the server: set right or refused at start.

The context of a prompt is bidirectional, so a prompt is computed whole or it is wrong. vLLM turns chunked prefill and
prefix caching off by itself where a layer says that it is not causal, but only after it has checked the other settings
against them: a prompt longer than `max_num_batched_tokens` then waits forever, without a message.
"""

from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from .positions import CHANNELS, LONGEST_CONTEXT

logger = init_logger("vllm.hf_glm_ernie")  # below vLLM's own logger, whose settings it takes

TOKENIZER_MODE = "glm130b"
BACKENDS = ("CPU_ATTN", "TRITON_ATTN")
"""Kernels that take rows of one query over a request's earlier blocks. FlashAttention 3 and FlashInfer size buffers by
requests, which are fewer than these rows; FlexAttention builds a mask of its own.
"""


class Glm130bGuards(VerifyAndUpdateConfig):
    """What vLLM calls with its settings, before anything is loaded."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Says that positions come from the model and prompts from our renderer.

        Raises:
            ValueError: a task other than generating, prompts as embeddings, a context too long for `positions.py`, or
                another tokenizer mode.
        """
        if model_config.runner_type != "generate":
            raise ValueError(
                f"runner={model_config.runner_type!r}: GLM-130B generates. For embeddings serve an ERNIE encoder, "
                "converted with --as-bert."
            )
        if model_config.enable_prompt_embeds:
            raise ValueError(
                "--enable-prompt-embeds: where the context of a prompt ends and what its answer's position is follow "
                "from its ids. Send ids or text."
            )
        if model_config.max_model_len > LONGEST_CONTEXT:
            raise ValueError(
                f"max_model_len={model_config.max_model_len} is more than {LONGEST_CONTEXT}, to which the position "
                "of a mask can be handed on to its answer in vLLM. Pass a smaller --max-model-len."
            )
        config: Any = model_config.hf_config
        # The length of the section is what vLLM reads: the number of position channels.
        section = [config.head_dim // 2] + [0] * (CHANNELS - 1)
        config.rope_parameters = {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": section,
        }
        if model_config.tokenizer_mode in ("auto", "hf"):
            model_config.tokenizer_mode = TOKENIZER_MODE
        elif model_config.tokenizer_mode != TOKENIZER_MODE:
            raise ValueError(
                f"tokenizer_mode={model_config.tokenizer_mode!r} would go round the checks of GLM-130B's prompts. "
                "Leave it out."
            )
        _keep_greedy(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Makes every prompt be computed whole.

        Raises:
            ValueError: a setting that cuts prompts, or that takes a prompt for causal.
        """
        _refuse(vllm_config)
        scheduler, cache = vllm_config.scheduler_config, vllm_config.cache_config
        scheduler.enable_chunked_prefill = False
        cache.enable_prefix_caching = False
        longest = vllm_config.model_config.max_model_len
        if scheduler.max_num_batched_tokens < longest:
            logger.warning(
                "max_num_batched_tokens=%d raised to %d, the longest prompt: GLM-130B's prompts are computed whole.",
                *(scheduler.max_num_batched_tokens, longest),
            )
            scheduler.max_num_batched_tokens = longest
        attention = vllm_config.attention_config
        if attention.backend is None and not current_platform.is_cpu():
            attention.backend = AttentionBackendEnum.TRITON_ATTN
            logger.warning("GLM-130B on %s is experimental: it was tested on CPUs.", current_platform.device_name)


def _keep_greedy(model_config: ModelConfig) -> None:
    """Where the folder says `do_sample: false`, a request that names no temperature is answered greedily.

    vLLM reads temperatures from generation_config.json, but not this; it would sample at 1.
    """
    own = {} if model_config.generation_config == "vllm" else model_config.try_get_generation_config()
    if own.get("do_sample") is False and "temperature" not in own:
        model_config.override_generation_config.setdefault("temperature", 0.0)


def _refuse(vllm_config: VllmConfig) -> None:
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    backend = vllm_config.attention_config.backend
    threshold = scheduler.long_prefill_token_threshold
    if threshold > 0 or getattr(scheduler, "long_prefill_token_threshold_adaptive", False):
        raise ValueError(
            f"long_prefill_token_threshold={threshold} cuts prompts, and GLM-130B's are computed whole. Leave it at 0."
        )
    most = getattr(scheduler, "max_num_scheduled_tokens", None)
    if most is not None and most < vllm_config.model_config.max_model_len:
        raise ValueError(
            f"max_num_scheduled_tokens={most} is less than max_model_len={vllm_config.model_config.max_model_len}: a "
            "longer prompt would wait forever, for GLM-130B's are computed whole. Leave it unset."
        )
    if backend is not None and backend.name not in BACKENDS:
        raise ValueError(
            f"attention backend {backend.name} cannot run GLM-130B's context. Use {' or '.join(BACKENDS)}."
        )
    causal = {
        "speculative decoding (speculative_config)": vllm_config.speculative_config is not None,
        "a KV connector (kv_transfer_config)": vllm_config.kv_transfer_config is not None,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "dual batch overlap (enable_dbo)": parallel.enable_dbo,
    }
    for setting, is_on in causal.items():
        if is_on:
            raise ValueError(f"{setting} takes a prompt for causal, which GLM-130B's is not. Turn it off.")
