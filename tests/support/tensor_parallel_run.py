"""One rank of `test_tensor_parallel_glm130b.py` (started by torchrun): loads a folder in two ranks and compares.

Arguments: folder of a saved tiny model, file of the single-process results.
"""

import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import hf_glm_ernie  # noqa: F401  (registers the classes)
from hf_glm_ernie.rotary_glm130b import Glm130bRotaryEmbedding
from tests.support.rank_processes import end


def main() -> None:
    """Compares logits and greedy ids of the sharded model with those of the whole one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, expected_file = sys.argv[1:]
    expected = torch.load(expected_file, weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_size=2, tp_plan="auto"), dtype=torch.float32
    ).eval()
    local = model.model.layers[0].mlp.up_proj.weight
    local = local.to_local() if hasattr(local, "to_local") else local
    assert local.shape[0] * 2 == model.config.intermediate_size, local.shape
    table = Glm130bRotaryEmbedding(model.config).cos_sin_bits
    assert torch.equal(model.model.rotary_emb.cos_sin_bits, table)  # whole on every rank
    with torch.no_grad():
        logits = model(expected["input_ids"], attention_mask=expected["attention_mask"]).logits
        logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        difference = (logits - expected["logits"])[expected["attention_mask"].bool()].abs().max().item()
        generated = model.generate(
            expected["input_ids"], attention_mask=expected["attention_mask"], max_new_tokens=6, do_sample=False
        )
    # Two partial sums in place of one: 1e-6 seen.
    assert difference < 2e-5, difference
    assert torch.equal(generated, expected["generated"])
    end()


if __name__ == "__main__":
    main()
