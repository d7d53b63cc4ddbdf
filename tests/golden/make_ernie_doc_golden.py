"""Writes tests/golden/ernie_doc_small: one layer of one golden case, small enough for the repository.

Reads ../shared/goldens/ernie/ernie_doc, which the original program wrote. The first layer of a case is a case of its
own: what comes out of it stands in the memory, whole where the memory is longer than a segment.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from conversion.paddle_pickle import open_pdparams

CASE = "doc_model_mem_longer_than_seg"
GOLDEN = Path(__file__).parent
SHARED = GOLDEN.parents[2] / "shared" / "goldens" / "ernie" / "ernie_doc"


def main() -> None:
    source, target = SHARED / CASE, GOLDEN / "ernie_doc_small" / CASE
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    case = json.loads((source / "case.json").read_text())
    case["config_args"]["num_hidden_layers"] = 1
    kept = {key: case[key] for key in ("class", "config_args", "versions")}
    (target / "case.json").write_text(json.dumps(kept, indent=1) + "\n")

    highest = {"word": 0, "pos": 0}
    for path in sorted(source.glob("golden_*.npz")):
        arrays = dict(np.load(path))
        for name, array in arrays.items():
            if name.endswith(("input_ids", "position_ids")):
                table = "word" if name.endswith("input_ids") else "pos"
                highest[table] = max(highest[table], int(array.max()))
        one_layer = {
            name: array[:1] if name.endswith(("memory", "memories", "new_mem")) else array
            for name, array in arrays.items()
            if name.startswith("in.") or name.endswith("new_mem")
        }
        np.savez_compressed(target / path.name, **one_layer)  # type: ignore[arg-type]  # numpy types the last flag

    weights = open_pdparams(source / "model_state.pdparams")
    first_layer = {}
    for name in weights.tensors:
        if name.startswith(("embeddings.", "encoder.layers.0.")):
            array = weights.tensor(name).numpy()
            table = name.removeprefix("embeddings.").partition("_")[0]
            used = table in highest and name == f"embeddings.{table}_emb.weight"
            first_layer[name] = array[: highest[table] + 1] if used else array
    np.savez_compressed(target / "weights.npz", **first_layer)  # type: ignore[arg-type]  # as above


if __name__ == "__main__":
    main()
