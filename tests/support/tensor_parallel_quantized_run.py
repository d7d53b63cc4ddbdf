"""One rank of the tensor-parallel test of quantized folders (started by torchrun).

Arguments: folder of an unquantized tiny model; folder whose groups two ranks cannot share; then pairs of a quantized
folder and the file of its single-process results.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from tests.support.rank_processes import end


def load(folder: str, **arguments: object) -> torch.nn.Module:
    """The model over two ranks."""
    plan = DistributedConfig(tp_size=2, tp_plan="auto")
    return AutoModelForCausalLM.from_pretrained(folder, distributed_config=plan, dtype=torch.float32, **arguments)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def compare(folder: str, expected_file: str, saved: str) -> None:
    """Logits and gradients that came through quantized linears against those of one process; shapes of the parts."""
    expected = torch.load(expected_file, weights_only=True)
    model = load(folder).eval()
    mlp = model.model.layers[0].mlp
    for module, rows, columns in ((mlp.up_proj, 2, 1), (mlp.down_proj, 1, 2)):
        weight, scale = local(module.weight), local(module.weight_scale)
        assert weight.dtype == torch.int8
        stored = module.in_features // (2 if module.bits == 4 else 1)
        assert weight.shape[-2:] == (module.out_features // rows, stored // columns), weight.shape
        groups = module.num_groups // columns if module.num_groups > 1 else 1
        assert scale.shape == (module.out_features // rows, groups), scale.shape
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
    # Two partial sums in place of one: 1e-6 seen.
    assert (logits - expected["logits"]).abs().max() < 2e-5, (logits - expected["logits"]).abs().max()
    model(expected["input_ids"], labels=expected["labels"]).loss.backward()
    for name in ("layers.0.input_layernorm", "layers.1.post_attention_layernorm"):
        gradient = local(model.model.get_submodule(name).weight.grad)
        largest = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() < 1e-5 * largest, (name, gradient, expected[name])
    model.save_pretrained(saved)


def refused(folder: str, words: str, **arguments: object) -> None:
    """Loading must fail with these words."""
    with pytest.raises(ValueError, match=words):
        load(folder, **arguments)


def main() -> None:
    """Compares each folder, and tries what is refused."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    plain, odd, *cases = sys.argv[1:]
    for folder, expected_file in zip(cases[::2], cases[1::2], strict=True):
        compare(folder, expected_file, folder + "-saved")
    refused(plain, "does not go together with tensor parallelism", quantization_config=WeightOnlyConfig(bits=4))
    refused(odd, "which 2 ranks cannot share evenly")
    end()


if __name__ == "__main__":
    main()
