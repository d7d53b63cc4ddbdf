"""ERNIE 3.0's mixed batch in several processes (gloo on CPU): losses, gradients and memories are those of one."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from tests.support.rank_processes import run_ranks

SCRIPT = "ernie3_parallel_run.py"
# Checkpointing of layers in both of torch's forms and by FSDP's wrapper; what is gathered once more for backward
# ("root") or kept; two heads that are the word embedding.
OPTIONS = [
    "ddp:nonreentrant",
    "ddp:reentrant,static",
    "ddp:tied",
    "fsdp2:root",
    "fsdp2:nonreentrant",
    "fsdp2:root,reentrant",
    "fsdp2:wrapped",
    "host:tp2,nonreentrant",
    "host:fsdp2,tied",
]
BOTH_WAYS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"),
    reason="needs a mesh of two ways; transformers 5.17 makes one of the first ranks alone, the others fail",
)


def test_two_processes_are_one(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path, "ddp", "fsdp2", "host:tp2", "host:fsdp2")


@pytest.mark.slow
def test_two_processes_with_checkpointing_and_tied_heads(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path, *OPTIONS)


@pytest.mark.slow
@BOTH_WAYS
def test_tensor_parallel_and_data_parallel_at_once(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path, "host:tp2,fsdp2", "host:tp2,fsdp2,nonreentrant", ranks=4)
