"""The small files of an ERNIE encoder that became a BERT: a tokenizer for every engine, and the model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import BertConfig

from .bert_names import KEPT_FILE, BertTask
from .bert_pooling import Pooling
from .converted_folder import ConvertedFolder, Record
from .folder_files import PIPELINES, checksum_table, dtype_name, write_json
from .json_files import read_json

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""Takes tokenizer.json as it is, in every version of transformers. `BertTokenizer` builds BERT's own cutting into
words anew from the vocabulary, which does not split symbols off."""


@dataclass(frozen=True)
class BertFolder(ConvertedFolder):
    """The small files of a folder for BERT's classes.

    Attributes:
        pooling: What makes one vector of a text, if engines are to be told.
    """

    pooling: Pooling | None = None

    def write_first(self, folder: Path) -> None:
        """As for every folder, but the tokenizer's class is one that everybody has."""
        super().write_first(folder)
        path = folder / "tokenizer_config.json"
        if self.tokenizer is not None:
            write_json(path, read_json(path) | {"tokenizer_class": TOKENIZER_CLASS})
        if self.pooling is not None:
            longest = self.config.max_position_embeddings
            if self.tokenizer is not None:
                longest = min(longest, self.tokenizer.model_max_length)
            self.pooling.write(folder, self.config.hidden_size, longest)


def bert_card(config: BertConfig, task: BertTask, folded: int | None, has_tokenizer: bool, record: Record) -> str:
    """The README.md of the folder.

    Args:
        config: The model's.
        task: The head.
        folded: The task type that was folded; None where there are no task types.
        has_tokenizer: Whether the folder holds a tokenizer.
        record: Where it comes from.
    """
    dropped = record.dropped
    assert isinstance(dropped, Mapping)  # it was not read back
    return CARD.format(
        pipeline=PIPELINES[task.ernie.auto_class],
        auto=task.ernie.auto_class,
        config=config,
        dtype=dtype_name(config.dtype),
        original=record.source["original_class"],
        kind=record.source["kind"],
        folded=FOLDED.format(folded=folded, kept=KEPT_FILE) if folded is not None else NOT_FOLDED,
        tokenizer=TOKENIZER if has_tokenizer else "This folder has no tokenizer: convert again with one.",
        converter=record.converter,
        left_out="\n".join(f"- `{name}`: {reason}" for name, reason in dropped.items()) or "- nothing",
        checksums=checksum_table(record.sha256),
    )


FOLDED = (
    "Task type {folded} was added into the position embeddings; the others cannot be asked for any more. `{kept}` "
    "keeps both tables as they were: `glm-ernie-convert ernie --as-bert --reverse` writes the ERNIE folder again."
)
NOT_FOLDED = "The encoder has no task types, so that nothing but names was changed."
TOKENIZER = (
    "The tokenizer gives PaddleNLP's ids through `AutoTokenizer` or whatever else reads `tokenizer.json`. "
    "`BertTokenizer` does not: it leaves symbols on words (`25℃`)."
)
CARD = """---
language:
- zh
- en
library_name: transformers
pipeline_tag: {pipeline}
tags:
- ernie
- bert
license: other
license_name: as-the-source-checkpoint
---

# An ERNIE encoder as BERT

{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads, vocabulary
{config.vocab_size}, {dtype}.

```python
from transformers import {auto}, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
outputs = model(**tokenizer("巴黎是法国的首都。", return_tensors="pt"))
```

{tokenizer}
Always pass the tokenizer's `attention_mask`.

## Origin

{original} ({kind}), converted with hf-glm-ernie {converter}.
{folded} Left out:

{left_out}

{checksums}

## Licence

Whoever published the source checkpoint sets the licence of these weights.
"""


__all__ = ["TOKENIZER_CLASS", "BertFolder", "bert_card"]
