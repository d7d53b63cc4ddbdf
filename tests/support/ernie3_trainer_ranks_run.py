"""One rank of `test_parallel_ernie3_trainer.py` (started by torchrun): trains, then goes on from the middle.

Arguments: a folder, what wraps the model (`ddp` or `fsdp2`), batches per step. `rank<n>.pt` in the folder gets the
batches that this rank read, the logs, and the parameters of the whole run and of the resumed one.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.schedule import ProgressiveSchedule
from hf_glm_ernie.ernie3_training.trainer import Ernie3PretrainingTrainer
from tests.support.ernie3_pretraining_tiny import documents, every_task, tiny_model
from tests.support.ernie3_rows import small_tokenizer
from tests.support.rank_processes import end

STEPS = 4
LEARNING_RATE = 0.05
# Rows per step that two ranks cannot share evenly; four slots have fillers.
SCHEDULE = ProgressiveSchedule(STEPS, (24, 40), (9, 13), (0.0, LEARNING_RATE))
FSDP = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT", "activation_checkpointing": True}


class Watching(Ernie3PretrainingTrainer):
    """Notes the batches of this rank."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(copy.deepcopy(inputs["batches"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


seen: list[dict[str, dict[str, Any]]] = []


def train(tokenizer: Any, folder: Path, wrapper: str, accumulated: int, resume: str | None = None) -> Any:
    """A run of four steps, or the rest of one."""
    mixture = Ernie3PretrainingMixture(
        tokenizer,
        every_task(tokenizer),
        documents(),
        schedule=SCHEDULE,
        ratios={"document_lm": 2},
        gradient_accumulation_steps=accumulated,
    )
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
        save_strategy="steps",
        save_steps=STEPS // 2,
        **({"fsdp": True, "fsdp_config": dict(FSDP)} if wrapper == "fsdp2" else {}),
    )
    if wrapper == "fsdp2":
        # Accelerate takes FSDP beside accelerators only; its code for them works on the CPU, too
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU
    trainer = Watching(tiny_model(tokenizer), arguments, train_dataset=mixture)
    trainer.train(resume_from_checkpoint=resume)
    assert isinstance(trainer.model_wrapped, FSDPModule if wrapper == "fsdp2" else DistributedDataParallel)
    return trainer


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """All weights, whole."""
    return {
        name: (one.full_tensor() if isinstance(one, DTensor) else one).detach().clone()
        for name, one in trainer.model.named_parameters()
    }


def main() -> None:
    """Trains, goes on from the middle, writes."""
    torch.set_num_threads(1)
    folder, wrapper, accumulated = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rank = os.environ["RANK"]
    (folder / f"vocabulary{rank}").mkdir()
    tokenizer = small_tokenizer(folder / f"vocabulary{rank}")
    run = train(tokenizer, folder / "whole", wrapper, accumulated)
    batches, whole = list(seen), parameters(run)
    checkpoint = folder / "whole" / f"checkpoint-{STEPS // 2}"
    resumed = train(tokenizer, folder / "resumed", wrapper, accumulated, str(checkpoint))
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    found = {"batches": batches, "logs": logs, "whole": whole, "resumed": parameters(resumed)}
    torch.save(found, folder / f"rank{rank}.pt")
    end()


if __name__ == "__main__":
    main()
