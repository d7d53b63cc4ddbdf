"""Every name of the host libraries that we use and they do not promise, with the reason.

Private names (with an underscore), and public ones whose place or signature has moved between minor versions. A new
version of the host is tried against this table first (`tests/test_host_private.py`): what is gone or takes other
arguments is named there, before a number is wrong anywhere else. That test also finds a name that we use and that is
missing here.

A row says where the name is (`module:object`), why we need it, and which of its parameters we fill in or rely on. For
a method that we override, the parameters need no row: the test holds our signature against the host's.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from hf_glm_ernie.host_interface import CACHE_NAME


@dataclass(frozen=True)
class HostName:
    """One name of a host library.

    Attributes:
        place: `module:object`, dotted behind the colon. A module alone where what we import from it is public.
        why: What we use it for.
        parameters: Names that its signature must have.
        since: The version of transformers that brought it; before, nothing asks for it.
    """

    place: str
    why: str
    parameters: tuple[str, ...] = ()
    since: str = "0"


def resolve(place: str) -> Any:
    """What `module:object` names; of a field without a default, the field or its annotation.

    Raises:
        AttributeError, ImportError: there is none such.
    """
    module, _, dotted = place.partition(":")
    value = importlib.import_module(module)
    for name in dotted.split("."):
        if hasattr(value, name):  # asked first: `torch.ops` has an attribute of any name
            value = getattr(value, name)
        else:
            fields = getattr(value, "__dataclass_fields__", {}) | getattr(value, "__annotations__", {})
            value = fields[name] if name in fields else getattr(value, name)
    return value


_MODEL = "transformers.modeling_utils:PreTrainedModel."
_GENERATION = "transformers.generation.utils:GenerationMixin."
_TOKENIZER = "transformers.tokenization_utils_tokenizers:TokenizersBackend."
_QUANTIZER = "transformers.quantizers.base:HfQuantizer."
_TRAINER = "transformers.trainer:Trainer."
_CACHE = "transformers.cache_utils:Cache."

_DECLARED = (
    ("_auto_class", "which Auto class a saved folder's `auto_map` names"),
    ("_no_split_modules", "device maps and sharding keep these modules whole"),
    ("_skip_keys_device_placement", "caches and memories stay where their layers are"),
    ("_supports_sdpa", "which attention implementations are right"),
    ("_supports_flex_attn", "likewise"),
    ("_supports_flash_attn", "likewise: flash attention would drop the prefix"),
    ("_supports_attention_backend", "likewise: engines would bring causal masks"),
    ("_can_compile_fullgraph", "generate compiles static caches"),
    ("_can_record_outputs", "which modules give hidden states and attentions"),
    ("_tied_weights_keys", "the output projection is the embedding"),
    ("_tp_plan", "tensor parallelism of the output projection"),
    ("_pp_plan", "pipeline parallelism of it"),
    ("_fsdp_plan", "FSDP keeps it whole"),
    ("_keys_to_ignore_on_load_unexpected", "branches and heads that a class does not build"),
)

HOST_PRIVATE: tuple[HostName, ...] = (
    # models
    *(HostName(_MODEL + name, why) for name, why in _DECLARED),
    HostName(_MODEL + "_init_weights", "DeepNorm, tables kept as bits", ("module",)),
    HostName(_MODEL + "_from_config", "the planner builds models on the meta device", ("config",)),
    HostName(_MODEL + "_get_resized_lm_head", "the second branch's head follows the embedding", ("new_num_tokens",)),
    HostName("transformers:PreTrainedConfig.__post_init__", "gets the arguments that are no field", ("kwargs",)),
    HostName("transformers:PreTrainedConfig._attn_implementation", "which masks the layers take"),
    HostName("transformers.initialization:copy_", "leaves loaded weights alone", ("tensor", "other")),
    HostName("transformers.modeling_layers:GradientCheckpointingLayer", "recomputes layers; takes the cache out"),
    HostName("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface", "attention", ("default",)),
    HostName("transformers.modeling_outputs:BaseModelOutputWithPast", "its cache's name is the host's"),
    HostName("transformers.utils.generic:merge_with_config_defaults", "`use_cache` from the config"),
    HostName("transformers.utils.output_capturing:capture_outputs", "hidden states and attentions"),
    HostName("transformers.utils.output_capturing:OutputRecorder", "both stacks count as layers", ("target_class",)),
    HostName("transformers.utils:TransformersKwargs", "types of what a forward hands on"),
    HostName("transformers.processing_utils:Unpack", "likewise"),
    HostName("transformers.utils:can_return_tuple", "`return_dict=False`"),
    HostName("transformers.activations:ACT2FN", "activations by name"),
    HostName("transformers.dynamic_module_utils:custom_object_save", "code into a saved folder", ("obj", "folder")),
    HostName("transformers.dynamic_module_utils:get_relative_import_files", "code of other classes beside it"),
    HostName("huggingface_hub.dataclasses:strict", "configurations check their types"),
    HostName("huggingface_hub.errors:StrictDataclassError", "what those checks raise"),
    # masks and caches
    HostName(
        "transformers.masking_utils:create_causal_mask",
        "prefix masks; positions must be withheld, for repeated ones would be taken for packed texts",
        (
            *("config", "inputs_embeds", "attention_mask", CACHE_NAME, "position_ids", "block_sequence_ids"),
            "and_mask_function",
        ),
    ),
    HostName(
        "transformers.masking_utils:create_bidirectional_mask",
        "masks of the understanding branch",
        ("config", "inputs_embeds", "attention_mask", "and_mask_function"),
    ),
    HostName("transformers.masking_utils:packed_sequence_mask_function", "documents that share a row stay apart"),
    HostName("transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS", "which implementations take masks"),
    HostName(_CACHE + "get_seq_length", "how many tokens a cache holds"),
    HostName(_CACHE + "get_mask_sizes", "columns of a mask", ("query_length", "layer_idx")),
    HostName(_CACHE + "get_query_offset", "where a call's tokens begin, behind the memory", ("layer_idx",)),
    HostName(_CACHE + "get_max_length", "columns of a static cache"),
    HostName(_CACHE + "update", "puts keys and values in", ("key_states", "value_states", "layer_idx")),
    HostName(_CACHE + "reorder_cache", "beams of the authors' search", ("beam_idx",)),
    HostName(_CACHE + "is_compileable", "asked of what stands in for a cache with memory"),
    # generation
    HostName(_GENERATION + "_validate_model_kwargs", "the prompt's layout travels beside them", ("model_kwargs",)),
    HostName(_GENERATION + "_prepare_position_ids_for_generation", "positions go on from memories"),
    HostName(_GENERATION + "_expand_inputs_for_generation", "memories of each beam"),
    HostName(_GENERATION + "_prepare_static_cache", "room for the memory in front"),
    HostName(_GENERATION + "_get_static_cache_init_shape", "the two stacks have different heads"),
    HostName(
        _GENERATION + "_update_model_kwargs_for_generation",
        "the authors' beam search steps as the host does",
        ("outputs", "model_kwargs", "is_encoder_decoder"),
    ),
    HostName(
        _GENERATION + "prepare_inputs_for_generation",
        "types and positions of every step",
        ("input_ids", "next_sequence_length", CACHE_NAME, "attention_mask", "inputs_embeds", "is_first_iteration"),
    ),
    HostName(_GENERATION + "init_continuous_batching", "refused: it would read contexts causally"),
    HostName(_GENERATION + "continuous_batching_context_manager", "likewise"),
    HostName(_GENERATION + "generate_batch", "likewise"),
    HostName("transformers.pipelines:PIPELINE_REGISTRY.supported_tasks", "the pipeline whose full text is one text"),
    HostName("transformers.pipelines:TextGenerationPipeline.postprocess", "joined prompt and answer as two texts"),
    HostName("transformers.pipelines.text_generation:ReturnType", "what was asked of it"),
    # tokenizers
    HostName(_TOKENIZER + "_encode_plus", "rows are cut by the original's rules"),
    HostName("tokenizers:Encoding.__setstate__", "makes a row's record, whose constructor takes nothing, from JSON"),
    HostName("tokenizers:Encoding.__getstate__", "copies a row's record with other token types"),
    HostName(_TOKENIZER + "_add_tokens", "added tokens get the original's ids"),
    HostName(_TOKENIZER + "_decode", "blanks, tabs and newlines come back"),
    HostName(_TOKENIZER + "_encode_without_added_tokens", "control tokens in what users say", ("text",), since="5.20"),
    HostName(_TOKENIZER + "_save_pretrained", "the vocabulary file is saved too"),
    HostName(_TOKENIZER + "backend_tokenizer", "remade with other flags of added tokens: it has no setter"),
    HostName(_TOKENIZER + "convert_to_native_format", "builds the tokenizer from a vocabulary file"),
    HostName(
        _TOKENIZER + "_convert_encoding",
        "what the host returns for an encoding",
        ("encoding", "return_token_type_ids", "return_attention_mask", "return_offsets_mapping", "return_length"),
    ),
    HostName(_TOKENIZER + "_eventual_warn_about_too_long_sequence", "its warning", ("ids", "max_length", "verbose")),
    HostName("transformers.tokenization_utils_base:TruncationStrategy", "how a row is cut"),
    HostName("transformers.tokenization_utils_base:BatchEncoding", "what a tokenizer returns"),
    HostName("transformers.utils:PaddingStrategy", "how rows are padded"),
    # quantization
    HostName(_QUANTIZER + "_process_model_before_weight_loading", "puts our linears in", ("model",)),
    HostName(_QUANTIZER + "_process_model_after_weight_loading", "says what was loaded", ("model",)),
    HostName(_QUANTIZER + "_dequantize", "plain linears again", ("model",)),
    HostName(_QUANTIZER + "preprocess_model", "the planner does it without loading", ("model", "dtype")),
    HostName(_QUANTIZER + "param_needs_quantization", "which weights become integers", ("model", "param_name")),
    HostName(_QUANTIZER + "get_quantize_ops", "how"),
    HostName(_QUANTIZER + "get_state_dict_and_metadata", "saving"),
    HostName("transformers.core_model_loading:ConversionOps.convert", "quantizing while loading", ("input_dict",)),
    HostName("transformers.quantizers.auto:AUTO_QUANTIZER_MAPPING", "whether ours is registered already"),
    HostName("transformers.quantizers.auto:AUTO_QUANTIZATION_CONFIG_MAPPING", "likewise"),
    HostName("transformers.quantizers.auto:AutoHfQuantizer", "how a published folder is tried"),
    HostName("transformers.quantizers.auto:register_quantization_config", "registers it", ("method",)),
    HostName("transformers.quantizers.auto:register_quantizer", "likewise", ("name",)),
    HostName("transformers.quantizers.quantizers_utils:get_module_from_name", "the layer of a weight"),
    HostName("transformers.quantizers.quantizers_utils:should_convert_module", "layers left alone", ("patterns",)),
    HostName("transformers.utils.quantization_config:QuantizationConfigMixin", "the configuration's base"),
    HostName("torch:_weight_int8pack_mm", "INT8 products on CPUs"),
    HostName("torch:_weight_int4pack_mm_for_cpu", "INT4 products on CPUs"),
    HostName("torch:_convert_weight_to_int4pack_for_cpu", "their byte order"),
    HostName("torch:_assert_async", "a check of labels in a compiled graph"),
    HostName("torch.nn:Module._apply", "integer weights stay integers under `.to(dtype)`", ("fn", "recurse")),
    HostName("torch.nn:Module._save_to_state_dict", "a weight and its scale", ("destination", "prefix", "keep_vars")),
    HostName("torch.nn:Module._load_from_state_dict", "likewise", ("state_dict", "prefix")),
    HostName("transformers.integrations.accelerate:compute_module_sizes", "the planner's bytes", ("model",)),
    HostName(
        "transformers.integrations.accelerate:infer_auto_device_map",
        "the planner's device map is the one that loading makes",
        ("model", "max_memory", "no_split_module_classes", "hf_quantizer"),
    ),
    HostName("accelerate.utils:convert_file_size_to_int", "sizes with units"),
    # offload
    HostName(
        "accelerate.hooks:AlignDevicesHook",
        "whose layers lie in memory: it keeps `offload`, `execution_device`, `weights_map` and `original_devices`",
        ("execution_device", "offload", "weights_map"),
    ),
    HostName("accelerate.hooks:SequentialHook", "several hooks of one module: it keeps `hooks`"),
    HostName("accelerate.hooks:remove_hook_from_module", "puts the weights back", ("module", "recurse")),
    HostName("accelerate.utils:OffloadedWeightsLoader", "the weights' table lets go of them", ("state_dict", "index")),
    HostName("accelerate.utils:PrefixedDataset", "a module's part of it", ("dataset", "prefix")),
    HostName("transformers.cache_utils:DynamicLayer", "its keys and values can be moved"),
    HostName("transformers.cache_utils:StaticLayer", "likewise, with the tensor that counts its tokens"),
    HostName("torch.nn:Module._parameters", "copies take the place of weights while a layer is computed"),
    HostName("torch.nn:Module._buffers", "likewise"),
    HostName("torch:Tensor._version", "whether a mask that was copied has changed"),
    # training
    HostName(_TRAINER + "_prepare_inputs", "batches that hold memories", ("inputs",)),
    HostName(_TRAINER + "_clip_grad_norm", "each student by itself", ("model",)),
    HostName(_TRAINER + "_save", "students are saved apart", ("output_dir", "state_dict")),
    HostName(_TRAINER + "_load_from_checkpoint", "and loaded apart", ("resume_from_checkpoint", "model")),
    HostName(_TRAINER + "_load_best_model", "likewise"),
    HostName("transformers.trainer_utils:PREFIX_CHECKPOINT_DIR", "where memories are saved"),
    HostName("transformers.trainer_utils:get_last_checkpoint", "resuming", ("folder",)),
    # adapters
    HostName("peft.tuners.lora:LoraConfig._register_custom_module", "LoRA on our linears", ("mapping",)),
    HostName("peft.tuners.lora:Linear.merge", "merging into integers", ("safe_merge", "adapter_names")),
    HostName("peft.tuners.lora:Linear.update_layer", "refuses what reads the weight", ("adapter_name", "config")),
    HostName("peft.tuners.lora:Linear.resolve_lora_variant", "likewise"),
    HostName("peft.tuners.tuners_utils:check_adapters_to_merge", "which adapters to merge", ("adapter_names",)),
    # transformers serve
    HostName("transformers.utils.import_utils:is_serve_available", "whether its extra is there"),
    HostName("transformers.cli.transformers:app", "its command line, which gets our arguments as they are"),
    HostName("transformers.cli.serving:server", "its module is looked up there by the command that makes the app"),
    HostName(
        "transformers.cli.serving.server:build_server",
        "wrapped while the command runs: requests are checked, generation knows the context",
        ("chat_handler", "completion_handler", "response_handler", "generation_state"),
    ),
    HostName(
        "transformers.cli.serving.utils:GenerationState.get_manager",
        "gives our generation in place of the host's",
        ("model_id", "use_cb"),
    ),
    HostName(
        "transformers.cli.serving.utils:GenerateManager.generate_streaming",
        "the room a prompt leaves is known before the stream begins",
        ("model", "processor", "inputs", "gen_config"),
    ),
    HostName(
        "transformers.cli.serving.utils:GenerateManager.generate_non_streaming",
        "likewise",
        ("model", "processor", "inputs", "gen_config"),
    ),
    # the Hub
    HostName("huggingface_hub.errors:HFValidationError", "a name that the Hub refuses"),
    HostName("huggingface_hub.errors:HTTPError", "what it answers"),
    HostName("huggingface_hub.errors:OfflineModeIsEnabled", "it is not asked"),
    HostName("huggingface_hub.hf_api:RepoFile", "what is there already"),
    HostName("huggingface_hub.utils:validate_repo_id", "a name before anything is written", ("repo_id",)),
)

__all__ = ["HOST_PRIVATE", "HostName"]
