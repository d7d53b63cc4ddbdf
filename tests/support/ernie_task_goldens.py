"""The models and cases of the original's extraction and classification, and answers laid flat to be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.conftest import GOLDEN

UIE = json.loads((GOLDEN / "ernie_uie_cases.json").read_text(encoding="utf-8"))
UTC = json.loads((GOLDEN / "ernie_utc_cases.json").read_text(encoding="utf-8"))
UTC_VOCAB = [*UIE["vocab"], "[O-MASK]"]
UTC_TEXTS = [text if isinstance(text, str) else tuple(text) for text in UTC["texts"]]
# The original's names of settings -> ours.
UIE_SETTINGS = {
    "position_prob": "threshold",
    "max_seq_len": "max_length",
    "split_sentence": "split_sentences",
    "batch_size": "batch_size",
    "schema_lang": "language",
}
UTC_SETTINGS = {
    "pred_threshold": "threshold",
    "max_seq_len": "max_length",
    "batch_size": "batch_size",
    "single_label": "single_label",
}


def uie_model() -> ErnieForUIE:
    model = ErnieForUIE(ErnieUIEConfig(**UIE["config"])).eval()
    with np.load(GOLDEN / "ernie_uie_weights.npz") as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]).float() for name in weights})
    return model


def utc_model() -> ErnieForUTC:
    """The encoder of the UIE goldens with the random heads of the script that made these."""
    with np.load(GOLDEN / "ernie_uie_weights.npz") as weights:
        arrays = {name: weights[name] for name in weights if name.startswith("ernie.")}
    random = np.random.RandomState(7)
    words = "ernie.embeddings.word_embeddings.weight"
    arrays[words] = np.concatenate((arrays[words], random.standard_normal((1, 32)).astype("float16")))
    for name in ("linear_q", "linear_k"):
        arrays[f"{name}.weight"] = random.standard_normal((64, 32)).astype("float16") / 2
        arrays[f"{name}.bias"] = random.standard_normal(64).astype("float16")
    model = ErnieForUTC(ErnieUTCConfig(**(UIE["config"] | {"vocab_size": len(UTC_VOCAB)}))).eval()
    model.load_state_dict({name: torch.from_numpy(array).float() for name, array in arrays.items()})
    return model


def tokenizer_of(vocab: list[str], folder: Path) -> ErnieTokenizer:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    return ErnieTokenizer(str(path))


def flat(answers: Any, path: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    """Every answer with the path to it: (path, text, start, end, probability)."""
    rows = []
    for name, found in answers.items():
        for i, one in enumerate(found):
            here = (*path, name, str(i))
            rows.append((here, one["text"], one.get("start"), one.get("end"), one.get("probability")))
            rows += flat(one.get("relations", {}), here)
    return rows
