"""Writes an ERNIE encoder of a released size with random weights, in the layout PaddleNLP saves.

    python benchmarks/make_checkpoint_ernie.py --size base --output CHECKPOINT

A masked-LM checkpoint as PaddleNLP 2.8.1 writes it: a pickle of numpy arrays, Linear weights [in, out], the tied
decoder a second time, the table of static names; `config.json` beside it. base is 118 million parameters, 593 MB with
the second copy; pico is 6 million, nano 18, micro 23, mini 27, medium 75, xbase 296.
"""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np

SIZES = {
    # layers, hidden, heads, inner, task types
    "pico": (3, 128, 2, 512, 16),
    "nano": (4, 312, 12, 1248, 16),
    "micro": (4, 384, 12, 1536, 16),
    "mini": (6, 384, 12, 1536, 16),
    "medium": (6, 768, 12, 3072, 16),
    "base": (12, 768, 12, 3072, 3),
    "xbase": (20, 1024, 16, 4096, 16),
}
VOCABULARY, POSITIONS, TYPES = 40000, 2048, 4


def shapes(layers: int, hidden: int, inner: int, task_types: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of PaddleNLP's ErnieForMaskedLM, without its second copies."""
    found: dict[str, tuple[int, ...]] = {
        "ernie.embeddings.word_embeddings.weight": (VOCABULARY, hidden),
        "ernie.embeddings.position_embeddings.weight": (POSITIONS, hidden),
        "ernie.embeddings.token_type_embeddings.weight": (TYPES, hidden),
        "ernie.embeddings.task_type_embeddings.weight": (task_types, hidden),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)})

    def norm(name: str) -> None:
        found.update({f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)})

    norm("ernie.embeddings.layer_norm")
    for layer in range(layers):
        start = f"ernie.encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{start}self_attn.{part}", hidden, hidden)
        linear(f"{start}linear1", hidden, inner)
        linear(f"{start}linear2", inner, hidden)
        norm(f"{start}norm1")
        norm(f"{start}norm2")
    linear("ernie.pooler.dense", hidden, hidden)
    found["cls.predictions.decoder_bias"] = (VOCABULARY,)
    linear("cls.predictions.transform", hidden, hidden)
    norm("cls.predictions.layer_norm")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--output", type=Path, required=True, help="folder to be made")
    options = parser.parse_args()
    layers, hidden, heads, inner, task_types = SIZES[options.size]
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes(layers, hidden, inner, task_types).items():
        middle = np.float32(name.endswith("weight") and "norm" in name)
        arrays[name] = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02) + middle
    arrays["cls.predictions.decoder.weight"] = np.copy(arrays["ernie.embeddings.word_embeddings.weight"])
    arrays["cls.predictions.decoder.bias"] = np.copy(arrays["cls.predictions.decoder_bias"])
    table = {name: f"parameter_{number}" for number, name in enumerate(arrays)}
    options.output.mkdir(parents=True)
    with (options.output / "model_state.pdparams").open("wb") as file:
        pickle.dump({**arrays, "StructuredToParameterName@@": table}, file, protocol=4)
    settings = {
        "architectures": ["ErnieForMaskedLM"],
        "model_type": "ernie",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TYPES,
        "task_type_vocab_size": task_types,
        "use_task_id": True,
        "pad_token_id": 0,
    }
    (options.output / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    print(f"{options.output}: {(options.output / 'model_state.pdparams').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
