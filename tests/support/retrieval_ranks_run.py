"""A rank of two: the loss of a dual encoder over the passages of both, against the loop.

    retrieval_ranks_run.py MODEL DATA OUTPUT

Each rank has half of the rows. RocketQA's cross-batch negatives: a rank's queries against all ranks' passages.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hf_glm_ernie.ernie_retrieval.judged_files import read_queries
from tests.reference.retrieval_naive import in_batch_loss
from tests.support.rank_processes import ROOT, end

sys.path.insert(0, str(ROOT / "examples"))  # as pytest has it
import train_retrieval

BOUND = 2e-6  # softmax of products up to 9 in fp32, where a step is 1e-6; measured 4.2e-7


def main(model: str, data: str, output: str) -> None:
    arguments = [
        f"--model={model}",
        f"--data={data}",
        f"--output_dir={output}",
        "--kind=dual",
        "--use_cpu=true",
        "--scale=0.1",
    ]
    arguments += ["--per_device_train_batch_size=2", "--batch_sampler=batch_sampler", "--save_strategy=no"]
    options, training = train_retrieval.read_arguments(arguments)
    trainer = train_retrieval.dual_trainer(options, training, read_queries(Path(data)), None)
    assert trainer.loss.gather_across_devices
    trainer.model.eval()
    (batch,) = list(trainer.get_train_dataloader())
    columns, _ = trainer.collect_features(batch)
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dict(batch)))
        own = [trainer.model(dict(column))["sentence_embedding"] for column in columns]
    # of both ranks, as the reference has them: the passages of this rank's queries first
    others = [torch.zeros_like(table) for table in own]
    for table, other in zip(own, others, strict=True):
        gathered = [torch.zeros_like(table) for _ in range(2)]
        dist.all_gather(gathered, table)
        other.copy_(gathered[1 - dist.get_rank()])
    queries, *passages = own
    expected = in_batch_loss(queries, passages[0], [*passages[1:], *others[1:]], 0.1)
    alone = in_batch_loss(queries, passages[0], passages[1:], 0.1)
    assert abs(loss - expected) < BOUND, f"{loss}, not {expected}"
    assert expected - alone > 100 * BOUND, "the other rank's passages change nothing"
    end()


if __name__ == "__main__":
    main(*sys.argv[1:])
