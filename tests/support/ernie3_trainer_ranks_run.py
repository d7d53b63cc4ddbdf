"""One rank of `test_parallel_ernie3_trainer.py` (started by torchrun): trains, then goes on from the middle.

Arguments: a folder, what shares the model out (`ddp`, `fsdp2`, `zero3`, `tp2`), batches per step. `rank<n>.pt` in the
folder gets the batches that this rank read, the logs, the parameters of the whole run and of the resumed one, and an
evaluation of the whole one.
"""

import copy
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.distributed import DistributedConfig

from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.schedule import ProgressiveSchedule
from hf_glm_ernie.ernie3_training.trainer import Ernie3PretrainingTrainer
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.support.ernie3_pretraining_tiny import documents, every_task, tiny_model
from tests.support.ernie3_rows import small_tokenizer
from tests.support.rank_processes import end

try:
    import deepspeed
except ImportError:  # `zero3` alone needs it
    deepspeed = None

STEPS = 4
LEARNING_RATE = 0.05
# Rows per step that two ranks cannot share evenly; four slots have fillers.
SCHEDULE = ProgressiveSchedule(STEPS, (24, 40), (9, 13), (0.0, LEARNING_RATE))
FSDP = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT", "activation_checkpointing": True}
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 100,  # numbers; smaller tensors are kept whole
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "zero_force_ds_cpu_optimizer": False,  # torch's own, which needs no operator to be built
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": FSDP},
    "zero3": {"deepspeed": ZERO3},
    "tp2": {},
}
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPErnie3ForPreTraining",
    "zero3": "DeepSpeedEngine",
    "tp2": "Ernie3ForPreTraining",
}


class Watching(Ernie3PretrainingTrainer):
    """Notes the batches of this rank."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(copy.deepcopy(inputs["batches"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


seen: list[dict[str, dict[str, Any]]] = []


def mixture(tokenizer: Any, accumulated: int, **options: Any) -> Ernie3PretrainingMixture:
    """All tasks, by the schedule."""
    return Ernie3PretrainingMixture(
        tokenizer,
        every_task(tokenizer),
        documents(),
        schedule=SCHEDULE,
        ratios={"document_lm": 2},
        gradient_accumulation_steps=accumulated,
        **options,
    )


def train(tokenizer: Any, folder: Path, wrapper: str, accumulated: int, resume: str | None = None) -> Any:
    """A run of four steps, or the rest of one."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        gradient_accumulation_steps=accumulated,
        # what neither scales gradients nor cuts them shows their size
        optim="sgd",
        max_grad_norm=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no" if wrapper == "tp2" else "steps",  # the host resumes no model that was loaded in parts
        save_steps=STEPS // 2,
        **copy.deepcopy(OPTIONS[wrapper]),
    )
    if wrapper in ("fsdp2", "tp2"):
        # Accelerate takes FSDP and tensor parallelism beside accelerators only; its code works on the CPU, too
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    model = tiny_model(tokenizer)
    if wrapper == "tp2":
        model.save_pretrained(folder / "start")  # rank 0 does
        dist.barrier()
        mesh = DistributedConfig(tp_size=2, tp_plan="auto")
        model = Ernie3ForPreTraining.from_pretrained(folder / "start", distributed_config=mesh, dtype=torch.float32)
    trainer = Watching(model, arguments, train_dataset=mixture(tokenizer, accumulated))
    trainer.train(resume_from_checkpoint=resume)
    assert type(trainer.model_wrapped).__name__ == WRAPPERS[wrapper]
    return trainer


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights, whole, under the names of the bare model."""
    found = {}
    for name, one in trainer.model.named_parameters():
        with gathered(one):
            value = one.full_tensor() if isinstance(one, DTensor) else one
            found[name.replace("_checkpoint_wrapped_module.", "")] = value.detach().clone()
    return found


def gathered(parameter: Any) -> AbstractContextManager[Any]:
    """ZeRO's parameters lie in parts but for inside of this; of others nothing changes."""
    return deepspeed.zero.GatheredParameters([parameter]) if hasattr(parameter, "ds_id") else nullcontext()


def main() -> None:
    """Trains, goes on from the middle, writes."""
    torch.set_num_threads(1)
    if deepspeed is not None:
        # an operator for the CPU that it would compile first, for minutes; without it gloo takes its place
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    folder, wrapper, accumulated = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rank = os.environ["RANK"]
    (folder / f"vocabulary{rank}").mkdir()
    tokenizer = small_tokenizer(folder / f"vocabulary{rank}")
    run = train(tokenizer, folder / "whole", wrapper, accumulated)
    batches, whole = list(seen), parameters(run)
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    found = {"batches": batches, "logs": logs, "whole": whole}
    seen.clear()
    found["metrics"] = run.evaluate(mixture(tokenizer, accumulated, num_batches=2 * accumulated, seed=5))
    found["evaluated"] = list(seen)
    if wrapper != "tp2":
        checkpoint = folder / "whole" / f"checkpoint-{STEPS // 2}"
        found["resumed"] = parameters(train(tokenizer, folder / "resumed", wrapper, accumulated, str(checkpoint)))
    torch.save(found, folder / f"rank{rank}.pt")
    end()


if __name__ == "__main__":
    main()
