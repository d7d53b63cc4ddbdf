"""One rank of `test_planner.py` (started by torchrun): loads its part of a folder and writes down what it holds.

Arguments: folder of a saved tiny model, folder for `rank0.json` and `rank1.json`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import hf_glm_ernie  # noqa: F401  (registers the classes)
from tests.support.rank_processes import end


def main() -> None:
    """Counts the bytes of this rank's parameters and buffers, and of its cache of 64 tokens."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, results = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2, tp_plan="auto"), dtype=torch.float32
    ).eval()
    tensors = [getattr(tensor, "_local_tensor", tensor) for tensor in (*model.parameters(), *model.buffers())]
    weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    with torch.no_grad():
        layers = model(torch.full((1, 64), 9), use_cache=True).past_key_values.layers
    cache = sum(getattr(part, "_local_tensor", part).nbytes for layer in layers for part in (layer.keys, layer.values))
    Path(results, f"rank{dist.get_rank()}.json").write_text(json.dumps({"weights": weights, "cache": cache}))
    end()


if __name__ == "__main__":
    main()
