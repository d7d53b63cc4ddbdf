"""How the states of a text become its vector, said in the files that engines look for beside a BERT.

The format is that of sentence-transformers; vLLM and text-embeddings-inference read it as well. Without these files
each takes a pooling of its own: sentence-transformers the mean, vLLM the state of `[CLS]`, scaled to length 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder_files import write_json

POOLINGS = ("mean", "cls")
"""As `hf_glm_ernie.sentence_embeddings` calls them; `pooler` has no word in that format."""

MODULES = ("Transformer", "Pooling", "Normalize")
FILES = {"Pooling": "1_Pooling", "Normalize": "2_Normalize"}


@dataclass(frozen=True)
class Pooling:
    """What makes one vector of a text's states.

    Attributes:
        name: One of `POOLINGS`.
        normalize: Whether vectors are scaled to length 1.
    """

    name: str
    normalize: bool

    def write(self, folder: Path, hidden_size: int, max_length: int) -> None:
        """Writes `modules.json` and what it names.

        Args:
            folder: Of the model.
            hidden_size: Of the vectors.
            max_length: Tokens of a text, special ones included; longer texts are cut.
        """
        modules = MODULES if self.normalize else MODULES[:-1]
        # The names of before version 6: all versions, and other engines, know them.
        rows: list[dict[str, Any]] = [
            {
                "idx": number,
                "name": str(number),
                "path": FILES.get(name, ""),
                "type": f"sentence_transformers.models.{name}",
            }
            for number, name in enumerate(modules)
        ]
        write_json(folder / "modules.json", rows)
        # Small letters are the tokenizer's affair.
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
        (folder / FILES["Pooling"]).mkdir()
        kinds = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
        modes = {kinds[name]: name == self.name for name in POOLINGS}
        write_json(folder / FILES["Pooling"] / "config.json", {"word_embedding_dimension": hidden_size, **modes})


__all__ = ["POOLINGS", "Pooling"]
