"""The student's training: an encoder, possibly with fewer layers, and new heads for the schema.

Defaults are PaddleNLP's: learning rate 3e-5 falling to 0, batch 16, 50 epochs, length 256, no weight decay, no warmup;
the epoch that is best on dev stays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_glm_ernie.ernie_training.data_files import read_data
from hf_glm_ernie.ernie_training.gplinker_task import Linking

from .data import ROW_FILES


def keep_layers(model: Any, layers: int) -> None:
    """Keeps so many layers of an encoder, spread evenly from the first to the last.

    Raises:
        ValueError: more than there are.
    """
    own = model.ernie.encoder.layer
    if not 1 <= layers <= len(own):
        raise ValueError(f"layers={layers} must be from 1 to the {len(own)} layers of the encoder.")
    kept = [round(i * (len(own) - 1) / max(layers - 1, 1)) for i in range(layers)]
    model.ernie.encoder.layer = nn.ModuleList(own[i] for i in kept)
    model.config.num_hidden_layers = layers


def train_student(
    encoder: str, tokenizer: Any, data: Path, output: Path, settings: Mapping[str, Any], resume: bool = False
) -> Any:
    """Trains a student on a folder of rows.

    Args:
        encoder: Folder of an ERNIE encoder, or of a UIE model, whose encoder is taken.
        tokenizer: Its tokenizer.
        data: Folder of [`write_rows`].
        output: Folder for checkpoints.
        settings: `layers` (`None`: all), `max_length`, `epochs`, `learning_rate`, `batch_size`, `seed`, `progress`.
        resume: Whether to go on from the last checkpoint in `output`, where there is one.

    Returns:
        The student that was best on dev.

    Raises:
        ValueError: rows that are not what they should be, layers that are not there.
    """
    length = min(settings["max_length"], AutoConfig.from_pretrained(encoder).max_position_embeddings)
    task = Linking(tokenizer, length, {"data": str(data)})
    files = {split: data / ROW_FILES[split] for split in ("train", "dev")}
    rows = {split: read_data(file, task.columns) for split, file in files.items() if file.stat().st_size}
    task.learn(rows["train"])
    encoded = {
        split: own.map(task.encode, batched=True, with_indices=True, remove_columns=own.column_names)
        for split, own in rows.items()
    }
    model = task.open_model(encoder)
    if settings["layers"] is not None:
        keep_layers(model, settings["layers"])
    measured = "dev" in encoded
    arguments = TrainingArguments(
        str(output),
        learning_rate=settings["learning_rate"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["batch_size"],
        num_train_epochs=settings["epochs"],
        weight_decay=0.0,
        seed=settings["seed"],
        eval_strategy="epoch" if measured else "no",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=measured,
        metric_for_best_model="f1" if measured else None,
        logging_steps=50,
        report_to=[],
        disable_tqdm=not settings["progress"],
        label_names=list(task.label_names),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded.get("dev"),
        processing_class=tokenizer,
        data_collator=task.collator(),
        compute_metrics=task.metrics,
        preprocess_logits_for_metrics=task.keep,  # type: ignore[arg-type]  # several outputs, as the host takes them
    )
    last = get_last_checkpoint(str(output)) if resume and output.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model.eval()


__all__ = ["keep_layers", "train_student"]
