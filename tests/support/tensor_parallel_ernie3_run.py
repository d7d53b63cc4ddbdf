"""One rank of the tensor-parallel test in `test_devices_ernie3.py` (started by torchrun).

Arguments: pairs of a saved tiny model's folder and the file of its single-process results.
"""

import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import hf_glm_ernie  # noqa: F401  (registers the classes)
from tests.support.rank_processes import end


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all ranks."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(folder: str, expected_file: str) -> None:
    """Both segments' logits, the memories between them, and greedy ids from them, against those of one process."""
    expected = torch.load(expected_file, weights_only=True)
    plan = DistributedConfig(tp_size=2, tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=plan, dtype=torch.float32).eval()
    for name, stack in (("universal", model.ernie3.encoder), ("branch", model.ernie3.branches["nlg"])):
        inner = stack.layers[0].linear1.weight
        part = getattr(inner, "_local_tensor", inner)
        assert part.shape[-2] * 2 == expected["inner"][name], (folder, part.shape)
    ids, mask = expected["input_ids"], expected["attention_mask"]
    with torch.no_grad():
        first = model(ids, attention_mask=mask, return_memories=True)
        second = model(ids, memories=first.memories)
        generated = model.generate(ids, memories=second.memories, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    # Two partial sums in place of one, over five layers: 3.6e-6 seen.
    real = mask.bool()
    assert (whole(first.logits) - expected["first"])[real].abs().max() < 1e-5
    assert (whole(second.logits) - expected["second"]).abs().max() < 1e-5
    for found, state in zip(second.memories.states, expected["states"], strict=True):
        assert (whole(found) - state).abs().max() < 1e-5
    assert torch.equal(generated, expected["generated"])


def main() -> None:
    """Compares every folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for folder, expected_file in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        compare(folder, expected_file)
    end()


if __name__ == "__main__":
    main()
