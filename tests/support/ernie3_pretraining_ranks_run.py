"""One rank of `test_pretraining_ernie3_ranks.py` (started by torchrun): trains a few steps and writes what it saw.

Argument: a folder; `rank<n>.pt` there gets the parameters, the logs and the document tokens that this rank read.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.trainer import Ernie3PretrainingTrainer
from tests.support.ernie3_pretraining_tiny import every_task, tiny_model
from tests.support.ernie3_rows import small_tokenizer
from tests.support.rank_processes import end

STEPS = 4


class Watching(Ernie3PretrainingTrainer):
    """Notes the losses and the document rows of this rank."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        rows = inputs["batches"]["document_lm"]
        seen.append(rows["input_ids"][rows["attention_mask"].bool()])
        loss = super().compute_loss(model, inputs, **kwargs)
        losses.append({name: values[-1][0].item() for name, values in self.mean_losses["train"].seen.items()})
        return loss


seen: list[torch.Tensor] = []
losses: list[dict[str, float]] = []


def main() -> None:
    """Trains two ranks on shards of numbered documents."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    own = folder / f"vocabulary{rank}"
    own.mkdir()
    tokenizer = small_tokenizer(own)
    # No two documents hold the same token, so that a token tells its document.
    documents = [{"input_ids": list(range(4 + 14 * at, 18 + 14 * at))} for at in range(8)]
    mixture = Ernie3PretrainingMixture(
        tokenizer, every_task(tokenizer), documents, batch_size=8, length=8, ratios={"document_lm": 2}
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=STEPS,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=STEPS,
    )
    trainer = Watching(tiny_model(tokenizer), arguments, train_dataset=mixture)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    torch.save({"state": state, "logs": logs, "losses": losses, "seen": seen}, folder / f"rank{rank}.pt")
    end()


if __name__ == "__main__":
    main()
