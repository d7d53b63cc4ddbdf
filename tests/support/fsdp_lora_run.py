"""One rank of `test_finetune_steps_glm130b.py` (started by torchrun): a LoRA step with FSDP2 and one with DDP, the
batch split in two.

Arguments: folder of a saved tiny model, file with the batch, the adapter's start and the single-process results.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

import hf_glm_ernie  # noqa: F401  (registers the classes)
from tests.support.rank_processes import end


def shard(model: nn.Module) -> nn.Module:
    """FSDP2 as Accelerate does it: a unit for each class that the model says must not be split, one for the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    names = tuple(model.get_base_model()._no_split_modules)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    assert len(layers) == model.config.num_hidden_layers
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def check_step(wrap: Callable[[nn.Module], nn.Module], folder: str, expected: dict[str, Any]) -> None:
    """Compares the adapter after one step with that of one process."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    adapted.load_state_dict(expected["start"], strict=False)
    model = wrap(adapted)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    half = slice(dist.get_rank(), None, dist.get_world_size())
    batch = {name: tensor[half] for name, tensor in expected["batch"].items()}
    # The gradients of ranks are averaged, so each divides by its share of all scored tokens.
    items = (expected["batch"]["labels"][:, 1:] != -100).sum() / dist.get_world_size()
    model.train()
    model(**batch, num_items_in_batch=items).loss.backward()
    optimizer.step()
    for name, parameter in trained.items():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        # The sum over rows is taken in another order: 1e-7 seen.
        assert (value - expected["after"][name]).abs().max() < 1e-5, name


def main() -> None:
    """Runs both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, file = sys.argv[1:]
    expected = torch.load(file, weights_only=True)
    check_step(shard, folder, expected)
    check_step(DistributedDataParallel, folder, expected)  # broadcasts buffers too: none may be of a type it has not
    end()


if __name__ == "__main__":
    main()
