"""What a training step is: precision, optimizer, shards, mesh; and the model as it is trained, on the meta device."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_glm_ernie.finetuning.methods import AdapterArguments, adapt

from .sizes import Job, model_on_meta

MIXED, HALF, SINGLE = "bf16-mixed", "bf16", "fp32"
PRECISIONS = (MIXED, HALF, SINGLE)
ADAMW, ADAMW_8BIT, SGD, ADAFACTOR = "adamw", "adamw-8bit", "sgd", "adafactor"
OPTIMIZERS = (ADAMW, ADAMW_8BIT, SGD, ADAFACTOR)
WHOLE, ZERO_1, ZERO_2, ZERO_3 = "none", "zero-1", "zero-2", "zero-3"
SHARDINGS = (WHOLE, ZERO_1, ZERO_2, ZERO_3)

# What is trained where the config names no class.
TRAINED_CLASSES = {"ernie": "ErnieForSequenceClassification", "ernie3": "Ernie3ForPreTraining"}


@dataclass(frozen=True)
class Formats:
    """The dtypes of a step.

    Args:
        stored: Of the weights that are trained, between steps.
        frozen: Of those that are not.
        computed: Of trained weights in forward and backward.
        autocast: Of products, where autocast casts for them.
        gradients: Of the gradients that the optimizer reads.
        states: Of the optimizer's moments.
        master: Whether the optimizer holds the weights once more, in fp32.
    """

    stored: torch.dtype
    frozen: torch.dtype
    computed: torch.dtype
    autocast: torch.dtype | None
    gradients: torch.dtype
    states: torch.dtype
    master: bool = False


FP32, BF16 = torch.float32, torch.bfloat16
FORMATS = {
    SINGLE: Formats(FP32, FP32, FP32, None, FP32, FP32),
    HALF: Formats(BF16, BF16, BF16, None, BF16, BF16),
}
# `Trainer(bf16=True)` by itself; DeepSpeed (ZeRO, arXiv 1910.02054, section 3.1); FSDP2 as Accelerate sets it up.
MIXED_FORMATS = {
    WHOLE: Formats(FP32, BF16, FP32, BF16, FP32, FP32),
    ZERO_1: Formats(BF16, BF16, BF16, None, BF16, FP32, master=True),
    ZERO_2: Formats(BF16, BF16, BF16, None, BF16, FP32, master=True),
    ZERO_3: Formats(FP32, BF16, BF16, BF16, FP32, FP32),
}


@dataclass(frozen=True)
class TrainingJob:
    """A step of training.

    Args:
        config: The model's config, not quantized.
        context: Tokens of a row.
        batch: Rows of a card in one forward.
        precision: One of `PRECISIONS`.
        optimizer: One of `OPTIMIZERS`.
        sharding: One of `SHARDINGS`, among the cards of data parallelism.
        tensor_parallel: Cards among which each weight is cut.
        data_parallel: Groups of so many cards, each with rows of its own.
        accumulation: Forwards before the optimizer steps.
        lora: Rank of the adapters that are trained in place of the weights; `None`: all weights are.
        branch: Of ERNIE 3.0's unified models: whose rows are counted.
        device_type: Whose kernels, one of `training_kernels.DEVICES`.
    """

    config: PreTrainedConfig
    context: int
    batch: int
    precision: str = MIXED
    optimizer: str = ADAMW
    sharding: str = WHOLE
    tensor_parallel: int = 1
    data_parallel: int = 1
    accumulation: int = 1
    lora: int | None = None
    branch: str = "nlg"
    device_type: str = "cuda"

    @property
    def formats(self) -> Formats:
        """The dtypes of precision and sharding."""
        return MIXED_FORMATS[self.sharding] if self.precision == MIXED else FORMATS[self.precision]

    @property
    def cards(self) -> int:
        """All of them."""
        return self.tensor_parallel * self.data_parallel


def trained_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the class that is trained."""
    config = copy.deepcopy(config)
    usual = TRAINED_CLASSES.get(config.model_type)
    if usual is not None and not getattr(config, "architectures", None):
        config.architectures = [usual]
    return config


def model_to_train(job: TrainingJob) -> tuple[nn.Module, PreTrainedModel]:
    """One card's part of the model on the meta device, not yet shared out among data parallelism: adapted where LoRA
    is asked for, in training mode, weights in the dtype in which they are computed.

    Returns:
        The model, and the host's model in it (the same without LoRA).

    Raises:
        ValueError: heads that cannot be shared out, or a model without a tensor-parallel plan.
    """
    dtype = job.formats.computed if job.lora is None else job.formats.frozen
    base = model_on_meta(Job(job.config, dtype, job.context, job.batch, job.tensor_parallel))
    if job.lora is None:
        for parameter in base.parameters():
            parameter.requires_grad_(True)
        return base.train(), base
    with torch.device("meta"):
        adapted = adapt(base, AdapterArguments(method="lora", rank=job.lora), task_type=None)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # PEFT makes adapters in fp32
            parameter.data = parameter.data.to(job.formats.computed)
    return adapted.train(), base


__all__ = [
    "ADAFACTOR",
    "ADAMW",
    "ADAMW_8BIT",
    "FP32",
    "HALF",
    "MIXED",
    "OPTIMIZERS",
    "PRECISIONS",
    "SGD",
    "SHARDINGS",
    "SINGLE",
    "WHOLE",
    "ZERO_1",
    "ZERO_2",
    "ZERO_3",
    "Formats",
    "TrainingJob",
    "model_to_train",
    "trained_config",
]
