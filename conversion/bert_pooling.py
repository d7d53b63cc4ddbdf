"""How the states of a text become its vector, said in the files that engines look for beside a BERT.

The format is that of sentence-transformers; vLLM and text-embeddings-inference read it as well. Without these files
each takes a pooling of its own: sentence-transformers the mean, vLLM the state of `[CLS]`, scaled to length 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder_files import write_json

MODES = {
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "cls": "pooling_mode_cls_token",
}
"""How the format calls them; the names of before version 6, which all versions and other engines know."""

POOLINGS = tuple(MODES)
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

    def notices(self) -> list[str]:
        """What has to be said about engines that read the files otherwise."""
        # vLLM 0.32, `transformers_utils/config.py`, `parse_pooling_type`: what stands before the first "_" of a mode.
        if self.name == "max":
            return ["vLLM (0.32) has no max pooling: it warns and takes the state of [CLS]"]
        if self.name == "mean_sqrt" and not self.normalize:
            return ["vLLM (0.32) takes mean_sqrt for mean; only vectors that are scaled to length 1 are the same"]
        return []

    def write(self, folder: Path, hidden_size: int, max_length: int) -> None:
        """Writes `modules.json` and what it names.

        Args:
            folder: Of the model.
            hidden_size: Of the vectors.
            max_length: Tokens of a text, special ones included; longer texts are cut.
        """
        modules = MODULES if self.normalize else MODULES[:-1]
        # Of before version 6, as the modes.
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
        modes = {mode: name == self.name for name, mode in MODES.items()}
        write_json(folder / FILES["Pooling"] / "config.json", {"word_embedding_dimension": hidden_size, **modes})


__all__ = ["POOLINGS", "Pooling"]
