"""One rank of `test_parallel_ernie3.py` (started by torchrun): ERNIE 3.0's mixed batch in several processes.

Every rank takes its rows of a mixed batch of all seven tasks for three steps, memories carried, and holds losses,
gradients and memories against a copy of the model that sees all rows alone.

Arguments: a folder for the model, and cases `WRAPPER:OPTION,..`.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from hf_glm_ernie.configuration_ernie3 import TASK_BRANCHES, Ernie3Config
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support.rank_processes import end

STEPS = 3
ROWS = 4  # of each task, over all ranks
LENGTH = 9
VOCABULARY = 60
SOFT = 58
ROW_LABELS = {"sentence_reordering": "reorder", "sentence_distance": "distance", "credible": "credible"}
TIED = {"tie_word_embeddings": True, "branch_hidden_size": 32, "branch_num_attention_heads": 4}


class Wrapped(NamedTuple):
    """A model in parts, the model inside, and which rows this rank sees: `share` of `shares`."""

    model: Any
    inner: Any
    share: int
    shares: int


def tiny(**settings: Any) -> Ernie3ForPreTraining:
    """All parts of Titan, no dropout."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "branch_hidden_size": 24,
        "branch_num_hidden_layers": 2,
        "branch_num_attention_heads": 2,
        "branch_intermediate_size": 32,
        "max_position_embeddings": 64,
        "memory_length": 6,
        "num_credible_labels": 2,
        "num_soft_prompt_genres": 3,
        "soft_prompt_length": 2,
        "soft_prompt_token_id": SOFT,
        "eos_token_id": VOCABULARY - 1,
        "sentence_token_id": VOCABULARY - 3,
        "initializer_range": 0.1,
    }
    return Ernie3ForPreTraining(Ernie3Config(**(sizes | settings)))


def mixed(step: int) -> dict[str, dict[str, Any]]:
    """Rows of every task, of two lengths; each half of the rows has as many labels as the other."""
    generator = torch.Generator().manual_seed(step)
    batches: dict[str, dict[str, Any]] = {}
    for task, branch in TASK_BRANCHES.items():
        ids = torch.randint(4, SOFT - 1, (ROWS, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[::3, LENGTH - 3 :] = 0  # one row of each half
        batch: dict[str, Any] = {"branch": branch, "input_ids": ids, "attention_mask": mask}
        if task in ROW_LABELS:
            batch[f"{ROW_LABELS[task]}_labels"] = torch.randint(0, 2, (ROWS,), generator=generator)
        else:
            batch["labels"] = torch.where(mask.bool() & (torch.arange(LENGTH) % 3 > 0), ids, -100)
        if task == "controllable_lm":
            ids[:, 1:3] = SOFT
            batch["genre_ids"] = torch.randint(0, 3, (ROWS,), generator=generator)
        batches[task] = batch
    return batches


def step_of(model: nn.Module, step: int, memories: Any, share: int = 0, shares: int = 1) -> Any:
    """Forward and backward of a share of the rows; in the last step half of the documents begin anew."""
    batches = {
        task: {name: value[share::shares] if torch.is_tensor(value) else value for name, value in batch.items()}
        for task, batch in mixed(step).items()
    }
    if memories is not None and step == STEPS - 1:
        memories = memories.reset((torch.arange(ROWS) < ROWS // 2)[share::shares])
    batches["document_lm"] |= {"memories": memories, "return_memories": True}
    output = model(batches=batches, task_weights={"credible": 0.5})
    output.loss.backward()
    return output


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def data_parallel(model: Any, options: set[str], folder: Path) -> Wrapped:
    """DDP."""
    wrapped = DistributedDataParallel(model, static_graph="static" in options)
    return Wrapped(wrapped, model, dist.get_rank(), dist.get_world_size())


def fully_sharded(model: Any, options: set[str], folder: Path) -> Wrapped:
    """FSDP2: a unit for each class that the model says must not be split, one for the rest."""
    units = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    if (
        "wrapped" in options
    ):  # FSDP's activation_checkpointing: Accelerate puts torch's wrapper around the same modules
        apply_activation_checkpointing(model, check_fn=lambda module: module in units)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward="root" in options)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return Wrapped(model, model, dist.get_rank(), dist.get_world_size())


def by_the_host(model: Any, options: set[str], folder: Path) -> Wrapped:
    """The host's own mesh: `tp2`, `fsdp2` or both, the plans the model's."""
    sizes = {name[:-1]: int(name[-1]) for name in options if name[-1].isdigit()}
    plan = {f"{name}_size": size for name, size in sizes.items()} | ({"tp_plan": "auto"} if "tp" in sizes else {})
    cut = Ernie3ForPreTraining.from_pretrained(
        folder, distributed_config=DistributedConfig(**plan), dtype=torch.float32
    ).train()
    inner = cut.ernie3.encoder.layers[0].linear1.weight
    assert isinstance(inner, DTensor)
    assert inner.to_local().numel() * dist.get_world_size() == inner.numel()
    tp = sizes.get("tp", 1)
    return Wrapped(cut, cut, dist.get_rank() // tp, dist.get_world_size() // tp)


WRAPPERS: dict[str, Callable[[Any, set[str], Path], Wrapped]] = {
    "ddp": data_parallel,
    "fsdp2": fully_sharded,
    "host": by_the_host,
}


def check(case: str, folder: Path) -> None:
    """Trains a model in parts beside a whole one."""
    wrapper, _, listed = case.partition(":")
    options = set(listed.split(",")) - {""}
    alone = tiny(**(TIED if "tied" in options else {})).train()
    if dist.get_rank() == 0:
        alone.save_pretrained(folder)
    dist.barrier()
    model = copy.deepcopy(alone)
    wrapped = WRAPPERS[wrapper](model, options, folder)
    for kind in {"reentrant", "nonreentrant"} & options:
        wrapped.inner.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9) for one in (alone, wrapped.model)]
    memories: list[Any] = [None, None]
    worst = {"loss": 0.0, "gradient": 0.0, "memory": 0.0}
    for step in range(STEPS):
        expected = step_of(alone, step, memories[0])
        found = step_of(wrapped.model, step, memories[1], wrapped.share, wrapped.shares)
        for task, loss in found.losses.items():
            mean = whole(loss.detach()).clone()
            dist.all_reduce(mean)
            difference = abs(mean / dist.get_world_size() - expected.losses[task].detach())
            worst["loss"] = max(worst["loss"], float(difference))
        memories = [expected.memories, found.memories]
        assert torch.equal(found.memories.mask, expected.memories.mask[wrapped.share :: wrapped.shares])
        for state, other in zip(found.memories.states, expected.memories.states, strict=True):
            difference = (whole(state) - other[wrapped.share :: wrapped.shares]).abs().max()
            worst["memory"] = max(worst["memory"], float(difference))
        parts = {
            name.replace("_checkpoint_wrapped_module.", ""): one for name, one in wrapped.inner.named_parameters()
        }
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None, (case, name)
            difference = (whole(parts[name].grad) - parameter.grad).abs().max()
            worst["gradient"] = max(worst["gradient"], float(difference))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    # Sums in another order, of losses up to 6, gradients up to 2 and states up to 5: 1e-6 seen.
    assert max(worst.values()) < 5e-6, (case, worst)


def main() -> None:
    """Runs every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for number, case in enumerate(sys.argv[2:]):
        check(case, Path(sys.argv[1]) / str(number))
    end()


if __name__ == "__main__":
    main()
