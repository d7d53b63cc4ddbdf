"""The page of `examples/space` for tests: its files can be imported, and its samples are converted once."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
GLM_SAMPLE = ROOT / "examples" / "sample-glm130b"
UIE_SAMPLE = ROOT / "examples" / "sample-ernie" / "uie"

if str(SPACE) not in sys.path:  # a Space runs its files from their own folder
    sys.path.insert(0, str(SPACE))
