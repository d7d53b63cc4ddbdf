"""Folders to publish, made of the samples and of tiny models, and the command as the tests call it."""

from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from conversion.__main__ import main
from hf_glm_ernie import (
    Ernie3ForCausalLM,
    Ernie3Tokenizer,
    ErnieForGPLinker,
    ErnieForUTC,
    ErnieGPLinkerConfig,
    ErnieUTCConfig,
    WeightOnlyConfig,
)
from hf_glm_ernie.ernie_shrinking.pruning import compact_copy
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from tests.support.tiny_ernie3 import tiny_model

ROOT = Path(__file__).parents[2]
GLM = ROOT / "examples" / "sample-glm130b"
ERNIE = ROOT / "examples" / "sample-ernie"

HOST_CODE = {"host_inputs.py", "host_interface.py", "host_versions.py"}
GLM_CODE = {
    "configuration_arguments.py",
    "configuration_glm130b.py",
    "generation_glm130b.py",
    "host_arguments.py",
    "inputs_glm130b.py",
    "modeling_glm130b.py",
    "prefix_glm130b.py",
    "rotary_glm130b.py",
    "tokenization_calls.py",
    "tokenization_glm130b.py",
    "tokenization_glm130b_chat.py",
    "tokenization_glm130b_host.py",
    "tokenization_icetext.py",
    "tokenization_icetext_backend.py",
    "tokenization_icetext_checks.py",
    "tokenization_rows.py",
}
QUANTIZER_CODE = {
    "quantization_weight_only.py",
    "weight_only.py",
    "weight_only_cpu.py",
    "weight_only_adapters.py",
    "weight_only_kernels.py",
    "weight_only_tiles.py",
    "weight_only_triton.py",
    "weight_only_triton_kernels.py",
    "weight_only_linear.py",
    "weight_only_lora.py",
}
ERNIE_TOKENIZER_CODE = {
    "host_arguments.py",
    "tokenization_calls.py",
    "tokenization_ernie.py",
    "tokenization_ernie_added.py",
    "tokenization_ernie_offsets.py",
    "tokenization_ernie_unicode.py",
    "tokenization_ernie_vocabulary.py",
}
ERNIE3_CODE = {
    "attention_ernie3.py",
    "configuration_arguments.py",
    "configuration_ernie3.py",
    "generation_ernie3.py",
    "inputs_ernie3.py",
    "memory_ernie3.py",
    "modeling_ernie3.py",
    "modeling_ernie3_heads.py",
    "modeling_ernie3_pretraining.py",
}
COMPACT_CODE = {"compact_ernie.py", "configuration_arguments.py", "configuration_ernie_compact.py"}
ERNIE_TASK_CODE = COMPACT_CODE | {"configuration_ernie_task.py", "inputs_ernie.py"}
UIE_CODE = ERNIE_TASK_CODE | {"configuration_ernie_uie.py", "modeling_ernie_uie.py"}
GPLINKER_CODE = ERNIE_TASK_CODE | {"configuration_ernie_gplinker.py", "modeling_ernie_gplinker.py"}
UTC_CODE = ERNIE_TASK_CODE | {"configuration_ernie_utc.py", "modeling_ernie_utc.py"}
CODE = {
    "glm": GLM_CODE | HOST_CODE | QUANTIZER_CODE,
    "glm_int4": GLM_CODE | HOST_CODE | QUANTIZER_CODE,
    "glm_int8": GLM_CODE | HOST_CODE | QUANTIZER_CODE,
    "uie": UIE_CODE | HOST_CODE | ERNIE_TOKENIZER_CODE | QUANTIZER_CODE,
    "gplinker": GPLINKER_CODE | HOST_CODE | ERNIE_TOKENIZER_CODE | QUANTIZER_CODE,
    "utc": UTC_CODE | HOST_CODE | ERNIE_TOKENIZER_CODE | QUANTIZER_CODE,
    "ernie3_int4": ERNIE3_CODE | HOST_CODE | QUANTIZER_CODE,
    "encoder": set(),
    "encoder_int4": {"modeling_ernie_quantized.py", "host_versions.py"} | QUANTIZER_CODE,
    "compact": COMPACT_CODE
    | {"modeling_ernie_compact.py", "host_interface.py", "host_versions.py"}
    | ERNIE_TOKENIZER_CODE
    | QUANTIZER_CODE,
    "uie_int8": UIE_CODE | HOST_CODE | ERNIE_TOKENIZER_CODE | QUANTIZER_CODE,
}
"""Repository -> the exact set of code files it carries."""

TINY = {
    "vocab_size": 1909,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def make_source(name: str, folder: Path) -> Path:
    """A folder to publish: converted, or saved with `save_pretrained`."""
    converted = {
        "glm": ["glm130b", f"--source={GLM}"],
        "glm_int4": ["glm130b", f"--source={GLM}", "--bits=4"],
        "glm_int8": ["glm130b", f"--source={GLM}", "--bits=8"],
        "uie": ["ernie", f"--source={ERNIE / 'uie'}"],
        "encoder": ["ernie", f"--source={ERNIE / 'masked-lm'}"],
    }
    if name in converted:
        assert main([*converted[name], f"--output={folder}"]) == 0
        return folder
    parts = folder.with_name(f"{folder.name}-parts")
    if name == "ernie3_int4":
        return _make_ernie3(folder, parts)
    if name == "encoder_int4":
        make_source("encoder", parts)
        model = AutoModelForMaskedLM.from_pretrained(parts, quantization_config=WeightOnlyConfig(bits=4))
    elif name == "compact":
        make_source("encoder", parts)
        torch.manual_seed(1)  # of the head
        encoder = AutoModelForSequenceClassification.from_pretrained(parts)
        model = compact_copy(encoder, kept_attention_heads=1, embedding_bits=8)
    elif name == "uie_int8":
        make_source("uie", parts)
        model = ErnieForUIE.from_pretrained(parts, quantization_config=WeightOnlyConfig(bits=8))
    else:
        make_source("uie", parts)
        torch.manual_seed(1)
        made = {
            "utc": lambda: ErnieForUTC(ErnieUTCConfig(**TINY)),
            "gplinker": lambda: ErnieForGPLinker(
                ErnieGPLinkerConfig(**TINY, entity_labels=["公司", "object"], relation_labels=["创始人"])
            ),
        }
        model = made[name]()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(parts).save_pretrained(folder)
    return folder


def _make_ernie3(folder: Path, parts: Path) -> Path:
    """A tiny writer with integer weights and the tokenizer on the sample's vocabulary."""
    tokenizer = Ernie3Tokenizer.from_released_vocabulary(ERNIE / "masked-lm" / "vocab.txt", num_pieces=None)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "sentence_token_id", "soft_prompt_token_id")}
    tiny_model(Ernie3ForCausalLM, vocab_size=len(tokenizer), **ids).save_pretrained(parts)
    model = Ernie3ForCausalLM.from_pretrained(parts, quantization_config=WeightOnlyConfig(bits=4))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
