"""One flag for each way to fine-tune a model, as the training scripts offer them.

| method | trained | weights |
|---|---|---|
| `full` | everything | as stored |
| `lora` | two thin matrices beside each chosen linear | as stored, frozen |
| `qlora` | the same | integers: our INT4 and INT8, or bitsandbytes' NF4 and INT8 |
| `ia3` | a factor for each channel of keys, values and feed-forward | as stored, frozen |
| `prefix` | keys and values in front of every layer's (P-tuning v2) | as stored or integers, frozen |
| `prompt` | embeddings in front of the text (prompt tuning) | the same |
| `p-tuning` | an encoder that makes these embeddings (P-tuning v1) | the same |

The last three are for GLM-130B and for ERNIE's classifiers; of tags of tokens for `prefix` alone
(`finetuning/virtual_tokens.py`). PEFT and bitsandbytes are optional and imported where they are used.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from hf_glm_ernie.weight_only import METHOD

from .targets import register_default_targets
from .virtual_tokens import IN_FRONT, check_virtual_tokens, name_the_cache

METHODS = ("full", "lora", "qlora", "ia3", "prefix", "prompt", "p-tuning")
WEIGHTS = ("stored", "int4", "int8", "nf4", "bnb-int8")


@dataclass
class AdapterArguments:
    """What is trained, and how the frozen weights are held; made for the host's `HfArgumentParser`.

    Raises:
        ValueError: an unknown method or kind of weights, or the two do not go together.
    """

    method: str = field(default="lora", metadata={"help": "one of " + ", ".join(METHODS)})
    weights: str = field(
        default="stored", metadata={"help": "one of " + ", ".join(WEIGHTS) + "; qlora takes int4 where none is given"}
    )
    rank: int = field(default=8, metadata={"help": "of LoRA's matrices"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's sum is scaled by this over the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "on LoRA's input, in training"})
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "ends of names of linears, or all-linear; default: queries and values"}
    )
    virtual_tokens: int = field(default=16, metadata={"help": "of prefix, prompt and p-tuning"})

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("weights", WEIGHTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if self.method == "qlora" and self.weights == "stored":
            self.weights = "int4"
        if self.target_modules is not None and self.method in ("full", *IN_FRONT):
            raise ValueError(
                f"target_modules={self.target_modules!r} says where adapters go, and method={self.method!r} has none: "
                "leave it out, or take lora, qlora or ia3."
            )
        if self.weights != "stored" and self.method in ("full", "ia3"):
            raise ValueError(
                f"method={self.method!r} changes the weights, or is merged into them, and weights={self.weights!r} "
                "holds them as frozen integers. Take method='qlora', or weights='stored'."
            )

    def quantization_config(self, dtype: torch.dtype, keep: list[str] | None = None) -> Any:
        """The argument of that name for `from_pretrained`, or `None`.

        Args:
            dtype: In which the model computes.
            keep: Names of linears that stay as they are. bitsandbytes otherwise quantizes task heads too.
        """
        if self.weights == "stored":
            return None
        if self.weights in ("int4", "int8"):
            return WeightOnlyConfig(bits=int(self.weights[-1]), modules_to_not_convert=keep)
        if self.weights == "bnb-int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=keep,
        )


def adapt(
    model: PreTrainedModel, arguments: AdapterArguments, task_type: str | None, heads: list[str] | None = None
) -> nn.Module:
    """Puts what is trained onto a model.

    Args:
        model: Loaded with `arguments.quantization_config(...)`.
        arguments: The choice.
        task_type: PEFT's: `"CAUSAL_LM"`, `"SEQ_CLS"`, `"TOKEN_CLS"`; `None` for others.
        heads: Modules beside the adapters that are trained and saved whole, as new task heads are. Virtual tokens
            leave this to PEFT, which trains a classifier's head.

    Returns:
        The model itself for `full`, else a `peft.PeftModel`.

    Raises:
        ImportError: no PEFT.
        ValueError: all weights of a quantized model are to be trained, or virtual tokens put in front where there is
            no place for them.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if arguments.method == "full":
        if quantizer is not None:
            raise ValueError(
                "The folder holds quantized weights, which cannot be trained: take an adapter (method='qlora'), or "
                "the unquantized folder."
            )
        return model
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"method={arguments.method!r} needs PEFT: pip install 'hf-glm-ernie[peft]'") from error
    register_default_targets()
    if quantizer is not None and quantizer.quantization_config.quant_method != METHOD:
        # bitsandbytes wants the rest in fp32. Our integers need nothing, and 130B's embedding is large.
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if arguments.method in IN_FRONT:
        check_virtual_tokens(arguments.method, task_type)
        name_the_cache(model)
    return peft.get_peft_model(model, _adapter_config(peft, arguments, task_type, heads))


def _adapter_config(peft: Any, arguments: AdapterArguments, task_type: str | None, heads: list[str] | None) -> Any:
    """PEFT's settings for a method."""
    if arguments.method in IN_FRONT:
        kinds = {
            "prefix": peft.PrefixTuningConfig,
            "prompt": peft.PromptTuningConfig,
            "p-tuning": peft.PromptEncoderConfig,
        }
        return kinds[arguments.method](task_type=task_type, num_virtual_tokens=arguments.virtual_tokens)
    targets: Any = arguments.target_modules
    targets = targets[0] if targets == ["all-linear"] else targets
    common = {"task_type": task_type, "target_modules": targets, "modules_to_save": heads}
    if arguments.method == "ia3":
        forward = [name for name in targets if name in ("down_proj", "output.dense")] if targets else None
        return peft.IA3Config(feedforward_modules=forward, **common)
    return peft.LoraConfig(
        r=arguments.rank, lora_alpha=arguments.lora_alpha, lora_dropout=arguments.lora_dropout, **common
    )


__all__ = ["IN_FRONT", "METHODS", "WEIGHTS", "AdapterArguments", "adapt"]
