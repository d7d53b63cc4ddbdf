"""Cuts the small golden files beside this script out of the full sets (../shared/goldens/glm).

    python tests/golden/make_golden.py

`glm130b_small/`: the original's 3-layer model in eight ranks, as released, and its outputs; of the 200 rows of
`long_positions` the last 40 are kept. Numbers are copied, never computed here.
"""

import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "shared" / "goldens" / "glm" / "model" / "small"
CASES = ("blank", "gmask", "causal", "padded_batch", "long_positions", "packed_choices")
KEPT_LONG_ROWS = 40


def main() -> None:
    """Writes `glm130b_small/`; every file stays under 200 KB."""
    target = HERE / "glm130b_small"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(SOURCE / "tp8", target / "tp8")
    shutil.copy(SOURCE / "config.json", target / "config.json")
    full = np.load(SOURCE / "forward.npz")
    for case in CASES:
        names = [f"{case}.{name}" for name in ("input_ids", "position_ids", "masked", "logits", "hidden_0")]
        arrays = {name.split(".")[1]: full[name] for name in names}
        if case == "long_positions":
            for name in ("logits", "hidden_0"):
                arrays[name] = arrays[name][:, -KEPT_LONG_ROWS:]
        np.savez_compressed(target / f"{case}.npz", **arrays)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
