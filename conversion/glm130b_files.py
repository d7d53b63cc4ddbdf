"""The small files of a converted GLM-130B folder: config, generation defaults, tokenizer, index, record of the
conversion, model card.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig

import hf_glm_ernie
from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.modeling_glm130b import HUB_CLASSES
from hf_glm_ernie.tokenization_glm130b import PLAIN_TOKENIZER_NOTE, Glm130bTokenizer

from .folder_files import RECORD, checksum_table, dtype_name, write_code, write_index, write_json
from .writer import OutputFile

DEFAULT_ITERATION = "49300"
"""The iteration of the released weights; written by `--reverse` where no record says otherwise."""

OUT_SEQ_LENGTH = 256
"""`--out-seq-length` of the original's scripts/generate.sh."""

LICENSE_LINK = "https://github.com/THUDM/GLM-130B/blob/main/MODEL_LICENSE"


@dataclass(frozen=True)
class Record:
    """Where a converted folder comes from; kept in it as `conversion.json`, read back by `--reverse`.

    Attributes:
        iteration: The source's iteration, as text.
        tensor_parallel: Number of ranks of the source.
        converter: Version of this package.
        torch: Version of torch.
        dropped: Source names that were left out.
        bits: What `--bits` quantized the weights to; None if it did not.
        sha256: Weight file -> SHA-256; empty if the result was not verified.
    """

    iteration: str
    tensor_parallel: int
    converter: str = hf_glm_ernie.__version__
    torch: str = torch.__version__
    dropped: Sequence[str] = ()
    bits: int | None = None
    sha256: Mapping[str, str] | None = None


def read_record(folder: Path) -> Record | None:
    """The record of a converted folder; None if it has none or it is not one."""
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        dropped = [str(name) for name in raw.get("dropped", ())]
        return Record(str(raw["iteration"]), int(raw["tensor_parallel"]), dropped=dropped)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_first(folder: Path, config: Glm130bConfig, dtype: torch.dtype, tokenizer: Glm130bTokenizer | None) -> None:
    """Writes config.json, generation_config.json, the tokenizer's files, `ice_text.model` among them, and the code of
    both, so that the folder opens with `trust_remote_code=True` alone.
    """
    config.architectures = ["Glm130bForCausalLM"]
    config.auto_map = dict(HUB_CLASSES)
    config.dtype = dtype
    config.save_pretrained(folder)
    write_code(folder, HUB_CLASSES.values())
    GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        # A model with a shorter context than the released one keeps half of it for the prompt.
        max_new_tokens=min(OUT_SEQ_LENGTH, max(1, config.max_position_embeddings // 2)),
        do_sample=False,
    ).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def write_last(
    folder: Path,
    config: Glm130bConfig,
    files: Sequence[OutputFile],
    record: Record,
    is_released_size: bool,
    has_tokenizer: bool,
) -> None:
    """Writes the index (where there are several shards), the record and the model card."""
    write_index(folder, files)
    write_json(folder / RECORD, asdict(record))
    (folder / "README.md").write_text(model_card(config, record, is_released_size, has_tokenizer), encoding="utf-8")


def model_card(config: Glm130bConfig, record: Record, is_released_size: bool, has_tokenizer: bool) -> str:
    """The README.md of a converted folder.

    Args:
        config: The model's configuration.
        record: Where it comes from.
        is_released_size: Whether the shapes are the released GLM-130B's, to which its model licence applies.
        has_tokenizer: Whether the folder holds a tokenizer.
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
    return CARD.format(
        licence=licence,
        rights=rights,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        numbers=_numbers(config),
        change=_change(config, record),
        iteration=record.iteration,
        ranks=record.tensor_parallel,
        converter=record.converter,
        torch=record.torch,
        transformers=transformers.__version__,
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
    back = f"`glm-ernie-convert glm130b --reverse --tensor-parallel {record.tensor_parallel}`"
    if record.bits is not None:
        return (
            f"The linears' weights\nwere quantized, symmetrically and with one scale a row (`--bits {record.bits}`). "
            f"{back} writes a\nquantized checkpoint; the floating-point weights do not come back from it."
        )
    if getattr(config, "quantization_config", None) is not None:
        return (
            "The source was\nquantized: its integers and scales are rearranged, not changed; where each rank held "
            f"some columns of a weight, they\nare a group with scales of its own. {back} writes the\nsource format "
            "back."
        )
    return (
        "Weights are rearranged, not changed, unless `--dtype` asked\nfor another type; "
        f"{back} writes the source format back."
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

A GLM-130B checkpoint in Hugging Face form: {layers} layers, hidden size {hidden}, {heads} heads, inner size {inner},
vocabulary {vocabulary}, context {context} tokens, {numbers}. A bilingual (English, Chinese) model that fills blanks:
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

Iteration {iteration} of a {ranks}-way tensor-parallel checkpoint in the released format, converted with hf-glm-ernie
{converter} (torch {torch}, transformers {transformers}). {change}

{checksums}

## Licence

{rights}
"""


__all__ = ["DEFAULT_ITERATION", "Record", "model_card", "read_record", "write_first", "write_last"]
