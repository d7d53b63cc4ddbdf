"""The small files of a converted GLM-130B folder that only this model has: generation defaults, model card."""

from pathlib import Path

import transformers
from transformers import GenerationConfig

from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.tokenization_glm130b import PLAIN_TOKENIZER_NOTE

from .converted_folder import Record
from .folder_files import checksum_table, dtype_name

DEFAULT_ITERATION = "49300"
"""The iteration of the released weights; written by `--reverse` where no record says otherwise."""

OUT_SEQ_LENGTH = 256
"""`--out-seq-length` of the original's scripts/generate.sh."""

LICENSE_LINK = "https://github.com/THUDM/GLM-130B/blob/main/MODEL_LICENSE"


def generation_defaults(config: Glm130bConfig) -> GenerationConfig:
    """What `generate` does by default; a context shorter than the released one keeps half for the prompt."""
    return GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=min(OUT_SEQ_LENGTH, max(1, config.max_position_embeddings // 2)),
        do_sample=False,
    )


def write_latest(folder: Path, iteration: str) -> None:
    """Writes the file that names the iteration."""
    (folder / "latest").write_text(iteration, encoding="utf-8")


def model_card(config: Glm130bConfig, is_released_size: bool, has_tokenizer: bool, record: Record) -> str:
    """The README.md of a converted folder.

    Args:
        config: The model's configuration.
        is_released_size: Whether the shapes are the released GLM-130B's, to which its model licence applies.
        has_tokenizer: Whether the folder holds a tokenizer.
        record: Where it comes from.
    """
    licence = (
        f"license: other\nlicense_name: glm-130b-model-license\nlicense_link: {LICENSE_LINK}"
        if is_released_size
        else "license: other\nlicense_name: as-the-source-checkpoint"
    )
    rights = (
        f"The weights are under the [GLM-130B model licence]({LICENSE_LINK}), not under the licence of the "
        "converter's code."
        if is_released_size
        else "These are not the released 130B weights; whoever made the source checkpoint sets their licence."
    )
    tokenizer = (
        "The tokenizer gives the original's ids, and `tokenizer(text)` makes the model's input as the original's "
        f"generation does. {PLAIN_TOKENIZER_NOTE}"
        if has_tokenizer
        else "This folder has no tokenizer: convert again with `--tokenizer ice_text.model` to add it."
    )
    origin = ORIGIN.format(record=record, host=transformers.__version__, change=_change(config, record))
    return CARD.format(
        licence=licence,
        rights=rights,
        config=config,
        numbers=_numbers(config),
        origin=origin,
        checksums=checksum_table(record.sha256),
        tokenizer=tokenizer,
    )


def _numbers(config: Glm130bConfig) -> str:
    """What the weights are, for the first paragraph."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return dtype_name(config.dtype)
    return f"{quantization['bits']}-bit integers with float16 scales in the linears, {dtype_name(config.dtype)} else"


def _change(config: Glm130bConfig, record: Record) -> str:
    """What the conversion did to the weights, and the way back."""
    back = f"`glm-ernie-convert glm130b --reverse --tensor-parallel {record.source['tensor_parallel']}`"
    bits = record.source["bits"]
    if bits is not None:
        return (
            f"The linears' weights were quantized, symmetrically and with one scale a row (`--bits {bits}`). {back} "
            "writes a quantized checkpoint; the floating-point weights do not come back from it."
        )
    if getattr(config, "quantization_config", None) is not None:
        return (
            "The source was quantized: its integers and scales are rearranged, not changed; where each rank held some "
            f"columns of a weight, they are a group with scales of its own. {back} writes the source format back."
        )
    return (
        "Weights are rearranged, not changed, unless `--dtype` asked for another type; "
        f"{back} writes the source format back."
    )


ORIGIN = (
    "Iteration {record.source[iteration]} of a {record.source[tensor_parallel]}-way tensor-parallel checkpoint in the "
    "released format, converted with hf-glm-ernie {record.converter} (torch {record.torch}, transformers {host}). "
    "{change}"
)
CARD = """---
language:
- en
- zh
library_name: transformers
pipeline_tag: text-generation
tags:
- glm
- glm130b
- prefix-lm
{licence}
---

# GLM-130B for transformers

A GLM-130B checkpoint in Hugging Face form: {config.num_hidden_layers} layers, hidden size {config.hidden_size},
{config.num_attention_heads} heads, inner size {config.intermediate_size}, vocabulary {config.vocab_size},
context {config.max_position_embeddings} tokens, {numbers}. A bilingual (English, Chinese) model that fills blanks:
`[MASK]` a short span, `[sMASK]` a sentence, `[gMASK]` text that goes on to the right.

```python
import hf_glm_ernie  # `pip install .` in a checkout of it; registers the classes
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
inputs = tokenizer("Ng is an adjunct professor at [MASK].", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs)[0]))
print(hf_glm_ernie.fill_blanks(model, tokenizer, ["Ng is an adjunct professor at [MASK]."])[0].text)
```

{tokenizer}

## Origin

{origin}

{checksums}

## Licence

{rights}
"""


__all__ = ["DEFAULT_ITERATION", "generation_defaults", "model_card", "write_latest"]
