"""The folder a training script writes to: what an earlier run left there, and whether to go on with it or anew."""

import shutil
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

# What a run leaves behind. A file of an earlier one beside those of a new one would be taken for its own: an old
# adapter for part of a new model, an old checkpoint for the last one.
WRITTEN = (
    *("checkpoint-*", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json"),
    *("generation_config.json", "trainer_state.json", "training_args.bin", "loss.png"),
    # of sentence-transformers: modules, in folders with their numbers, and of each side where there are two encoders
    *("modules.json", "router_config.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("[0-9]_*", "query_[0-9]_*", "document_[0-9]_*"),
)


def prepare_folder(training: TrainingArguments, resume: bool, overwrite: bool) -> str | None:
    """Looks at the output folder before anything is loaded, and empties it of an earlier run where that is asked for.

    Args:
        training: Its `output_dir`, and its `resume_from_checkpoint`, which the host leaves to scripts.
        resume: Whether to go on from the last checkpoint in the folder.
        overwrite: Whether to begin anew in a folder that holds a run.

    Returns:
        The checkpoint to go on from, for `Trainer.train`; `None`: from the beginning.

    Raises:
        ValueError: the folder holds a run and nothing was said about it; there is nothing to go on from; or options
            that contradict each other.
    """
    folder = Path(str(training.output_dir))
    chosen = training.resume_from_checkpoint
    asked = [("--resume", resume), ("--resume_from_checkpoint", chosen), ("--overwrite_output_dir", overwrite)]
    if len(given := [name for name, value in asked if value]) > 1:
        raise ValueError(f"{' and '.join(given)} say different things about {folder}: give one of them.")
    if chosen and not Path(chosen, "trainer_state.json").is_file():
        raise ValueError(
            f"--resume_from_checkpoint {chosen} is no checkpoint of a Trainer: no trainer_state.json there."
        )
    if resume:
        chosen = get_last_checkpoint(folder) if folder.is_dir() else None
        if chosen is None:
            raise ValueError(f"{folder} holds no checkpoint to go on from: leave --resume out to begin.")
    found = sorted({path for pattern in WRITTEN for path in folder.glob(pattern)})
    if not found or chosen:
        return chosen
    if not overwrite:
        names = ", ".join(path.name for path in found[:4]) + (" and more" if len(found) > 4 else "")
        raise ValueError(
            f"{folder} holds a run already ({names}). Go on with it: --resume true. Begin anew there: "
            "--overwrite_output_dir true, which removes what it wrote. Or name another --output_dir."
        )
    if training.process_index == 0:
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None
