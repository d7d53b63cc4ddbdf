"""Cuts the small quantized golden files beside this script out of the full sets (../shared/goldens/glm).

    python tests/golden/make_glm130b_quantized_golden.py

`glm130b_quantized/`: the original's 3-layer model quantized to 4 bits in two ranks and to 8 bits in eight, as
released, and the original's logits with either. Their input is `glm130b_small/gmask.npz`. Numbers are copied, never
computed here.
"""

import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "shared" / "goldens" / "glm" / "model" / "small"
CHECKPOINTS = ("tp2-int4", "tp8-int8")


def main() -> None:
    """Writes `glm130b_quantized/`; every file stays under 200 KB."""
    target = HERE / "glm130b_quantized"
    shutil.rmtree(target, ignore_errors=True)
    full = np.load(SOURCE / "forward.npz")
    for name in CHECKPOINTS:
        shutil.copytree(SOURCE / name, target / name)
        (target / name).chmod(0o755)
        np.savez_compressed(target / f"{name}.npz", logits=full[f"{name}.gmask.logits"])
    shutil.copy(SOURCE / "config.json", target / "config.json")
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
