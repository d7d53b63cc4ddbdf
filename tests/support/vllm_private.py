"""Every name of vLLM that the plugin uses. vLLM promises none of them to plugins but the entry point and
`ModelRegistry`, and moves them between minor versions: a new version is tried against this table first
(`tests/test_vllm_private.py`).
"""

from tests.support.host_private import HostName

_COMMON = "vllm.v1.attention.backend:CommonAttentionMetadata."
_BUILDER = "vllm.v1.attention.backend:AttentionMetadataBuilder."
_READ_OR_SET = ("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "max_query_len", "causal")

_LINEAR = "vllm.model_executor.layers.linear:"
_KERNELS = "vllm.model_executor.kernels.linear:"
_QUANTIZATION = "vllm.model_executor.layers.quantization"
_PARAMETER = "vllm.model_executor.parameter:"
_OF_INTEGERS = (
    HostName(_QUANTIZATION + ":register_quantization_config", "our method by its name", ("quantization",)),
    HostName(_QUANTIZATION + ":QUANTIZATION_METHODS", "whether it is registered already"),
    HostName(_QUANTIZATION + ".base_config:QuantizationConfig.from_config", "config.json", ("config",)),
    HostName(_QUANTIZATION + ".base_config:QuantizationConfig.get_quant_method", "each layer", ("layer", "prefix")),
    HostName("vllm.config:get_current_vllm_config", "whether weights are made up (load_format dummy)"),
    HostName("vllm.config:LoadConfig.load_format", "likewise"),
    HostName("vllm.scalar_type:scalar_types.uint4b8", "the integers that kernels know"),
    HostName("vllm.scalar_type:scalar_types.uint8b128", "likewise"),
    HostName(
        _KERNELS + "choose_mp_linear_kernel", "the kernel for a shape, or a ValueError that says why", ("config",)
    ),
    HostName(
        _KERNELS + "MPLinearLayerConfig",
        "what it is asked for",
        ("full_weight_shape", "partition_weight_shape", "weight_type", "act_type", "group_size", "zero_points"),
    ),
    HostName(_KERNELS + "CPUWNA16LinearKernel", "takes layers also on CPUs without its operator"),
    HostName(
        "vllm._custom_ops:torch.ops._C.silu_and_mul", "where vLLM's operators are; a CPU's library may lack others"
    ),
    HostName(_KERNELS + "MPLinearKernel", "packs", ("c", "w_q_param_name", "w_s_param_name", "w_zp_param_name")),
    HostName(_KERNELS + "MPLinearKernel.process_weights_after_loading", "and packs once more", ("layer",)),
    HostName(_KERNELS + "MPLinearKernel.apply_weights", "multiplies", ("layer", "x", "bias")),
    HostName(_LINEAR + "LinearBase", "which layers are linears"),
    HostName(_LINEAR + "LinearMethodBase.create_weights", "a layer's parameters", ("input_size_per_partition",)),
    HostName(_LINEAR + "LinearMethodBase.apply", "the product", ("layer", "x", "bias")),
    HostName(_LINEAR + "UnquantizedLinearMethod", "for what is no integer, or not any longer"),
    HostName(_LINEAR + "register_weight_loader_v2_supported_method", "loaders that know parameters with two axes"),
    HostName(_PARAMETER + "GroupQuantScaleParameter", "scales, cut as weights", ("output_dim",)),
    HostName(_PARAMETER + "ModelWeightParameter", "stored integers, cut as weights", ("output_dim",)),
    HostName(_PARAMETER + "PackedvLLMParameter", "what kernels take", ("packed_factor", "packed_dim")),
)

_PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
_OF_ADAPTERS = (
    HostName("vllm.platforms:current_platform.get_punica_wrapper", "the name of the class that adds adapters"),
    HostName(_PUNICA, "the one for CPUs, which we extend"),
    HostName(_PUNICA + ".add_shrink", "the first product", ("y", "x", "lora_a_stacked", "scale")),
    HostName(_PUNICA + ".token_lora_indices", "-1 for tokens without an adapter"),
)

VLLM_PRIVATE: tuple[HostName, ...] = (
    *_OF_INTEGERS,
    *_OF_ADAPTERS,
    # what the engine is told
    HostName("vllm:ModelRegistry.register_model", "the model's class", ("model_arch", "model_cls")),
    HostName("vllm.model_executor.models.config:MODELS_CONFIG_MAP", "the only hook on an architecture's settings"),
    HostName(
        "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config", "guards", ("vllm_config",)
    ),
    HostName(
        "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_model_config",
        "positions and tokenizer",
        ("model_config",),
    ),
    HostName("vllm.config:ModelConfig", "the model's settings"),
    HostName("vllm.config:ModelConfig.uses_mrope", "read from `rope_parameters` of the config, which we set"),
    HostName("vllm.config:VllmConfig", "all settings"),
    HostName("vllm.config:CacheConfig", "the cache's settings"),
    HostName("vllm.platforms:current_platform", "whether the device is a CPU"),
    HostName("vllm.v1.attention.backends.registry:AttentionBackendEnum", "kernels by name"),
    HostName("vllm.logger:init_logger", "warnings among vLLM's"),
    # requests
    HostName("vllm.renderers.registry:RENDERER_REGISTRY.register", "who makes prompts", ("renderer_mode", "module")),
    HostName("vllm.renderers.hf:HfRenderer", "the class that we extend"),
    HostName("vllm.renderers.hf:HfRenderer._process_tokens", "where all ids pass", ("prompt", "skip_mm_cache")),
    HostName("vllm.renderers.hf:HfRenderer._process_tokens_async", "likewise", ("prompt", "skip_mm_cache")),
    HostName("vllm:__version_tuple__", "the version as numbers"),
    HostName("vllm.renderers.hf:HfRenderer._tokenize_singleton_prompt", "before ids are cut", ("prompt", "params")),
    HostName("vllm.renderers.hf:HfRenderer._tokenize_singleton_prompt_async", "likewise", ("prompt", "params")),
    HostName("vllm.renderers.params:TokenizeParams", "what a request asks of ids", ("truncate_prompt_tokens",)),
    HostName("vllm.renderers.hf:HfRenderer.render_messages", "chats as ids", ("messages", "params")),
    HostName("vllm.renderers.hf:HfRenderer.render_messages_async", "likewise", ("messages", "params")),
    HostName("vllm.config:ModelConfig.try_get_generation_config", "whether the folder is greedy"),
    HostName("vllm.renderers.hf:HfRenderer._tokenize_prompt", "the tokenizer's errors", ("prompt", "params")),
    HostName("vllm.exceptions:VLLMValidationError", "what becomes a 400", ("parameter",)),
    HostName("vllm.tokenizers.registry:TokenizerRegistry.register", "our tokenizer", ("tokenizer_mode", "module")),
    HostName("vllm.tokenizers.hf:get_cached_tokenizer", "vLLM's wrapper of tokenizers", ("tokenizer",)),
    # attention
    HostName("vllm.forward_context:get_forward_context", "the metadata of this step"),
    HostName("vllm.forward_context:ForwardContext.attn_metadata", "where we put the split rows"),
    HostName("vllm.model_executor.layers.attention:Attention", "the layer that we extend", ("attn_backend",)),
    HostName("vllm.model_executor.layers.attention:Attention.get_kv_cache_spec", "says not causal", ("vllm_config",)),
    HostName("vllm.v1.kv_cache_interface:FullAttentionSpec.non_causal", "turns chunked prefill off"),
    HostName("vllm.v1.kv_cache_interface:KVCacheSpec", "its base"),
    HostName("vllm.v1.attention.selector:get_attn_backend", "vLLM's choice of kernel", ("head_size", "attn_type")),
    HostName("vllm.v1.attention.backend:AttentionBackend", "the class whose builder we extend"),
    HostName("vllm.v1.attention.backend:AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE", "what graphs may replay"),
    HostName("vllm.v1.attention.backend:AttentionType.DECODER", "a layer with a cache"),
    HostName("vllm.v1.attention.backend:CommonAttentionMetadata", "what metadata is made from"),
    *(HostName(_COMMON + name, "rewritten for the rows") for name in (*_READ_OR_SET, "block_table_tensor")),
    HostName(_BUILDER + "build", "metadata is made", ("common_prefix_len", "common_attn_metadata", "fast_build")),
    HostName(_BUILDER + "get_cudagraph_support", "likewise", ("vllm_config", "kv_cache_spec")),
    HostName("vllm.v1.attention.backend:subclass_attention_backend", "the backend with our builder", ("builder_cls",)),
    # the model
    HostName("vllm.compilation.decorators:support_torch_compile", "what is compiled"),
    HostName("vllm.distributed:get_pp_group", "which stage of a pipeline this is"),
    HostName("vllm.distributed:get_tensor_model_parallel_world_size", "how many share a head"),
    HostName("vllm.model_executor.layers.linear:MergedColumnParallelLinear", "gate and up", ("output_sizes",)),
    HostName("vllm.model_executor.layers.linear:QKVParallelLinear", "query, key, value", ("total_num_heads",)),
    HostName("vllm.model_executor.layers.linear:RowParallelLinear", "down and output", ("input_size",)),
    HostName("vllm.model_executor.layers.logits_processor:LogitsProcessor", "gathers the vocabulary"),
    HostName("vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead.tie_weights", "tied", ()),
    HostName("vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding", "the embedding"),
    HostName("vllm.model_executor.model_loader.weight_utils:default_weight_loader", "weights that are not cut"),
    HostName("vllm.model_executor.models.interfaces:SupportsLoRA", "adapters"),
    HostName(
        "vllm.model_executor.models.interfaces:SupportsMRoPE.get_mrope_input_positions",
        "positions of our own",
        ("input_tokens", "mm_features"),
    ),
    HostName("vllm.model_executor.models.interfaces:SupportsPP", "pipelines"),
    HostName("vllm.model_executor.models.interfaces:SupportsQuant", "finds quantized folders' names"),
    HostName("vllm.model_executor.models.utils:is_pp_missing_parameter", "another stage's", ("name", "model")),
    HostName("vllm.model_executor.models.utils:make_empty_intermediate_tensors_factory", "between stages"),
    HostName("vllm.model_executor.models.utils:make_layers", "the layers of this stage", ("num_hidden_layers",)),
    HostName("vllm.model_executor.models.utils:maybe_prefix", "names of layers"),
    HostName("vllm.sequence:IntermediateTensors", "between stages"),
)
