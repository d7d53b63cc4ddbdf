"""Quantizes a saved model, saves it, and compares what was saved with the original.

    python examples/quantize.py --model glm-130b --output glm-130b-int4 --method weight-only-int4

Any folder that `from_pretrained` opens: GLM-130B, an ERNIE encoder, UIE. Only the linears inside the layers are
quantized; output projections, poolers and task heads stay as they are, whatever the method. The bitsandbytes and
torchao methods need those packages. When to take which: docs/quantization.md.
"""

import argparse
import gc
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

import hf_glm_ernie
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig

METHODS = ("weight-only-int4", "weight-only-int8", "bnb-nf4", "bnb-int8", "torchao-int8")
TEXTS = [
    "The heart pumps [MASK] through the whole body.",
    "Thunder is the sound that follows a flash of [MASK].",
    "纸是[MASK]在两千年前发明的。",
    "金刚石是自然界里最硬的[MASK]。",
]


def main(arguments: list[str] | None = None) -> None:
    """Runs the example.

    Args:
        arguments: The command line; `None` reads that of the process.

    Raises:
        SystemExit: the output exists, or the method cannot run this model here.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of an unquantized model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--dtype", default="auto", help="of what stays: auto (as stored), float32, bfloat16")
    parser.add_argument("--text", action="append", help="text to compare the outputs on; may be repeated")
    options = parser.parse_args(arguments)
    if options.output.exists():
        raise SystemExit(f"{options.output} exists. Pass --output with the name of a new folder.")

    model_class, outside = model_class_and_linears_outside_layers(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    inputs = tokenizer(options.text or TEXTS, padding=True, return_tensors="pt")
    model = model_class.from_pretrained(options.model, dtype=options.dtype)
    expected, dtype = outputs_of(model, inputs), model.dtype
    del model
    gc.collect()  # one model at a time

    config = quantization_config(options.method, outside, dtype)
    model = model_class.from_pretrained(options.model, quantization_config=config, dtype=dtype)
    refuse_what_the_fused_kernel_cannot(model)
    # Before any forward: on some CPUs bitsandbytes changes its weights in the first one.
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    del model
    gc.collect()

    got = outputs_of(model_class.from_pretrained(options.output, dtype=dtype), inputs)
    difference = ((got - expected).norm() / expected.norm()).item()
    before, after = size_of(options.model), size_of(options.output)
    print(f"{options.method}: {options.output}")
    print(f"weights on disk    {before:,} -> {after:,} bytes ({after / before:.0%})")
    print(f"outputs            {difference:.2%} away from the original's, over {expected.shape[0]} tokens")
    if expected.ndim == 2:
        same = (got.argmax(-1) == expected.argmax(-1)).float().mean().item()
        print(f"largest entry      the same for {same:.0%} of the tokens")


def model_class_and_linears_outside_layers(folder: Path) -> tuple[type[PreTrainedModel], list[str]]:
    """Finds what a folder holds.

    Returns:
        The class that wrote it, and the names of its linears that are not inside a list of layers: the output
        projection, poolers, task heads.

    Raises:
        SystemExit: a quantized model, or a class that neither transformers nor this package has.
    """
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise SystemExit(f"{folder} is quantized already. Pass --model with the folder it was made from.")
    name = (config.architectures or ["none"])[0]
    model_class = getattr(hf_glm_ernie, name, None) or getattr(transformers, name, None)
    if model_class is None:
        raise SystemExit(f"config.json of {folder} names the class {name}, which neither transformers nor this has.")
    with torch.device("meta"):
        model = model_class(config)
    layers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return model_class, [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.startswith(layers)
    ]


def quantization_config(method: str, keep: list[str] | None, dtype: torch.dtype) -> Any:
    """The host's config of a method for a model of this dtype; the linears named in `keep` stay as they are."""
    if method.startswith("weight-only"):
        return WeightOnlyConfig(bits=int(method[-1]), modules_to_not_convert=keep)
    if method == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    if method == "bnb-nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,  # another one would round the biases to it
            llm_int8_skip_modules=keep,
        )
    from torchao.quantization import Int8WeightOnlyConfig  # optional

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=keep)


def refuse_what_the_fused_kernel_cannot(model: PreTrainedModel) -> None:
    """Stops where bitsandbytes would fail in the first forward: its 4-bit CPU kernel takes certain widths only."""
    for name, module in model.named_modules():
        fused = getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu"
        if fused and (module.in_features % 64 or module.out_features % 32):  # type: ignore[operator]  # both are numbers
            raise SystemExit(
                f"{name} has {module.in_features} columns and {module.out_features} rows. On this CPU bitsandbytes "
                "takes columns in multiples of 64 and rows in multiples of 32 only. Take --method weight-only-int4."
            )


@torch.no_grad()
def outputs_of(model: PreTrainedModel, inputs: Any) -> torch.Tensor:
    """The model's first output in fp32, (tokens, ...) without padding."""
    outputs = model.eval()(**inputs.to(model.device))[0].float().cpu()
    return outputs[inputs["attention_mask"].cpu().bool()]


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
