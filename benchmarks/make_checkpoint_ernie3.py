"""Writes an ERNIE 3.0 model with random weights as a static graph's folder: one file for each variable.

    python benchmarks/make_checkpoint_ernie3.py --output STEP_FOLDER [--layers 6] [--dtype float16]

Both branches, widths of a quarter of the 10B's, fp32: 422 MB with 6 universal layers, whose largest variable is the
word embedding of 61 MB. Written a variable at a time, so that sizes beyond memory can be made, too.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

HIDDEN, HEADS, VOCABULARY, POSITIONS = 1024, 16, 15000, 3072
BRANCH_HIDDEN, BRANCH_HEADS, BRANCH_LAYERS = 256, 4, 2
LOD_CODES = {"float16": 4, "float32": 5}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Static names and shapes."""
    found: dict[str, tuple[int, ...]] = {"word_embedding": (VOCABULARY, HIDDEN), "pos_embedding": (POSITIONS, HIDDEN)}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.w_0": (inputs, outputs), f"{name}.b_0": (outputs,)})

    def norm(name: str, width: int) -> None:
        found.update({f"{name}_scale": (width,), f"{name}_bias": (width,)})

    def layer(name: str, width: int) -> None:
        for part in ("query", "key", "value", "output"):
            linear(f"{name}_multi_head_att_{part}_fc", width, width)
        linear(f"{name}_ffn_fc_0", width, 4 * width)
        linear(f"{name}_ffn_fc_1", 4 * width, width)
        norm(f"{name}_pre_att_layer_norm", width)
        norm(f"{name}_pre_ffn_layer_norm", width)

    for number in range(layers):
        layer(f"encoder_layer_{number}", HIDDEN)
    norm("server_post_encoder_layer_norm", HIDDEN)
    found["sharing_to_task_fc.w_0"] = (HIDDEN, BRANCH_HIDDEN)
    for branch in ("nlu", "nlg"):
        for number in range(layers, layers + BRANCH_LAYERS):
            layer(f"{branch}_encoder_layer_{number}", BRANCH_HIDDEN)
        norm(f"{branch}_post_encoder_layer_norm", BRANCH_HIDDEN)
        linear(f"{branch}_mask_lm_trans_fc", BRANCH_HIDDEN, BRANCH_HIDDEN)
        norm(f"{branch}_mask_lm_trans_layer_norm", BRANCH_HIDDEN)
        linear(f"{branch}_mask_lm_out_fc", BRANCH_HIDDEN, VOCABULARY)
    linear("nlu_pooled_fc", BRANCH_HIDDEN, BRANCH_HIDDEN)
    return found


def varint(number: int) -> bytes:
    """A protocol buffer's variable-length number."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to be made")
    parser.add_argument("--layers", type=int, default=6, help="of the universal stack (default: 6)")
    parser.add_argument("--dtype", choices=LOD_CODES, default="float32")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    options.output.mkdir(parents=True)
    for name, shape in shapes(options.layers).items():
        middle = np.float32(name.endswith("_scale"))
        array = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02) + middle
        description = b"\x08" + varint(LOD_CODES[options.dtype]) + b"".join(b"\x10" + varint(n) for n in shape)
        with (options.output / name).open("wb") as file:
            file.write(struct.pack("<IQIi", 0, 0, 0, len(description)) + description)
            file.write(array.astype(options.dtype).tobytes())
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": options.layers + BRANCH_LAYERS,
        "num_sharing_layers": options.layers,
        "branch_hidden_size": BRANCH_HIDDEN,
        "branch_num_attention_heads": BRANCH_HEADS,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "end_token_id": VOCABULARY - 21,
    }
    (options.output / "ernie_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    print(f"{options.output}: {sum(path.stat().st_size for path in options.output.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
