"""Online distillation: a teacher trains itself and, in the same pass, an assistant and several students.

Every step feeds one batch to the teacher, once. Its own loss trains it. The relations of its last attention, as
published softmax(Q K^T / sqrt(d)), teach the others on the same batch, and no gradient of that reaches the teacher.
Nothing else is handed down: no hidden states, no logits. Each learner carries one layer more than it will keep
(auxiliary layer distillation): the relations are taken from that layer's queries and keys, so the feed-forward block
of the last layer that is kept learns too. The layer is not counted in the config and is dropped when a learner is
saved. A learner's own objective reads the layers that are kept, not the auxiliary one.

Choices the paper leaves open: the divergence is KL(teacher || student), the mean over real queries and heads; the
last layer is that of the understanding branch, the auxiliary layer's on a learner; queries and keys of models with
unequal numbers of heads are cut into one number of relation heads, as in MiniLMv2; with an assistant, students learn
from its relations of the same pass, as they are before the step (`students_learn_from` says otherwise). What pays was
measured: docs/pretrain.md, "Online distillation".

A learner may be an ERNIE 3.0 model with the branch "nlu" or an encoder of the host library such as
`ErnieForMaskedLM`, of which kind the released students are.

Source: ERNIE 3.0 Titan, arXiv 2112.12731 (online distillation framework, auxiliary layer distillation);
MiniLM, arXiv 2002.10957; MiniLMv2, arXiv 2012.15828. Letters in shape comments: B batch, T tokens.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .relations import (
    RELATIONS,
    Relations,
    common_relation_heads,
    last_projections,
    recorded_relations,
    relation_divergence,
    understanding_layers,
)

AUXILIARY_FILE = "auxiliary_layers.safetensors"
LOSSES = ("distillation", "own")  # of every learner, as `<name>/own`
# What a learner is given of a batch; the rest belongs to the teacher's tasks.
LEARNER_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "task_type_ids", "position_ids")


def has_auxiliary_layer(model: PreTrainedModel) -> bool:
    """Whether the model carries a layer that its config does not count."""
    layers, counted, _ = understanding_layers(model)
    return len(layers) > counted


def add_auxiliary_layer(model: PreTrainedModel) -> nn.Module:
    """Stacks one more layer, freshly initialised, on the layers that are kept.

    The config goes on counting the layers that are kept, so a folder saved with the layer opens without it, as
    Baidu's `ernie-3.0-micro-zh` and `-nano-zh` do.

    Args:
        model: As in [`understanding_layers`].

    Returns:
        The layer.

    Raises:
        ValueError: the model has an auxiliary layer already, or no branch "nlu".
        TypeError: a model of another layout.
    """
    layers, counted, _ = understanding_layers(model)
    if len(layers) > counted:
        raise ValueError(
            f"{type(model).__name__} has an auxiliary layer already: {len(layers)} layers, {counted} kept."
        )
    layer = copy.deepcopy(layers[-1], {id(model.config): model.config})  # it reads the model's config, not a copy
    for module in layer.modules():
        model._init_weights(module)
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            module.layer_idx = index + 1  # type: ignore[assignment]  # a plain number
    layers.append(layer)
    return layer


def drop_auxiliary_layer(model: PreTrainedModel) -> None:
    """Takes off the layer that [`add_auxiliary_layer`] stacked.

    Raises:
        ValueError: the model has none, or no branch "nlu".
        TypeError: a model of another layout.
    """
    layers, counted, _ = understanding_layers(model)
    if len(layers) <= counted:
        raise ValueError(f"{type(model).__name__} has no auxiliary layer: its config counts all {len(layers)} layers.")
    del layers[counted:]


@contextmanager
def skipped_auxiliary_layer(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the auxiliary layer hands on what it was given: what is behind it reads the layers that stay.

    The layer still runs, so its queries and keys can be recorded. Nothing happens where there is none.
    """
    layers, counted, _ = understanding_layers(model)
    handles = [layer.register_forward_hook(lambda module, args, output: args[0]) for layer in layers[counted:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class OnlineDistillationOutput(ModelOutput):
    """What one pass gives.

    Attributes:
        loss: Scalar: the teacher's own loss and, for every learner, its weighted divergence and its weighted own loss.
        losses: The teacher's losses as it gives them, of a mixed batch by task.
        model_losses: Every model's part of the loss, detached: `teacher`, `assistant/distillation`,
            `<student>/distillation`, and `<name>/own` for learners with an objective of their own, before weighting.
        memories: The teacher's memories, where it returns some.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    model_losses: dict[str, torch.Tensor] | None = None
    memories: Any = None


class OnlineDistillation(nn.Module):
    """Teacher, assistant and students as one module with one forward, as data-parallel wrappers want it.

    Args:
        teacher: The model that teaches, with a loss of its own (`Ernie3ForPreTraining`, or any model that
            [`understanding_layers`] knows). With every parameter frozen it only teaches, without dropout.
        students: Name -> model. A name becomes part of a folder's name.
        assistant: A model in between, taught by the teacher; it learns as the students do.
        students_learn_from: `"assistant"` or `"teacher"`; `None`: the assistant where there is one.
        relations: What is compared: `"query-key"` as published, or MiniLMv2's `"query-query"`, `"key-key"` and
            `"value-value"`; the divergence is the mean over them.
        relation_heads: Relation heads of all comparisons; `None`: for each the number that
            [`common_relation_heads`] picks.
        distillation_weight: Weight of a learner's divergence.
        student_loss_weight: Weight of a learner's own loss on the batch's `labels` (the assistant's too); 0 as
            published. Learners then need a head that gives a loss.
        auxiliary_layer: Whether learners that have no auxiliary layer are given one.

    Attributes:
        teaching: Set it to `False`, and in training learners have their own objective alone, at its weight; a frozen
            teacher is then run on mixed batches only. In evaluation relations are compared all the same.

    Raises:
        ValueError: no students, a name that cannot be used, vocabularies of different sizes, an unknown relation, no
            common relation heads, a negative weight, a model without the branch "nlu", an assistant asked for that is
            not there.
        TypeError: a model whose attention cannot be found.
    """

    accepts_loss_kwargs = False  # the host's Trainer is to scale the loss over accumulated batches itself

    def __init__(
        self,
        teacher: PreTrainedModel,
        students: Mapping[str, PreTrainedModel],
        assistant: PreTrainedModel | None = None,
        *,
        students_learn_from: str | None = None,
        relations: Sequence[str] = ("query-key",),
        relation_heads: int | None = None,
        distillation_weight: float = 1.0,
        student_loss_weight: float = 0.0,
        auxiliary_layer: bool = True,
    ):
        super().__init__()
        _check_names(students)
        if students_learn_from is None:
            students_learn_from = "teacher" if assistant is None else "assistant"
        if students_learn_from not in ("assistant", "teacher"):
            raise ValueError(f'students_learn_from={students_learn_from!r} must be "assistant", "teacher" or None.')
        if students_learn_from == "assistant" and assistant is None:
            raise ValueError('students_learn_from="assistant", but no assistant was passed.')
        _check_relations(relations)
        for name, weight in (
            ("distillation_weight", distillation_weight),
            ("student_loss_weight", student_loss_weight),
        ):
            if weight < 0:
                raise ValueError(f"{name}={weight} must not be negative.")
        self.teacher, self.assistant, self.students = teacher, assistant, nn.ModuleDict(students)
        self.students_learn_from = students_learn_from
        self.relations = tuple(relations)
        self.distillation_weight, self.student_loss_weight = distillation_weight, student_loss_weight
        self.teaching = True
        self.relation_heads: dict[str, int] = {}
        for name, learner in self.learners().items():
            _check_vocabulary(teacher, name, learner)
            sizes = [_heads_and_width(model) for model in (self.teacher_of(name), learner)]
            self.relation_heads[name] = common_relation_heads(*sizes[0], *sizes[1], relation_heads)
            if auxiliary_layer and not has_auxiliary_layer(learner):
                add_auxiliary_layer(learner)

    def learners(self) -> dict[str, PreTrainedModel]:
        """The models that are taught, the assistant (under this name) first."""
        learners: dict[str, Any] = {} if self.assistant is None else {"assistant": self.assistant}
        return learners | dict(self.students.items())

    def models(self) -> dict[str, PreTrainedModel]:
        """All models: `teacher`, `assistant` where there is one, and the students by their names."""
        return {"teacher": self.teacher} | self.learners()

    def teacher_of(self, name: str) -> PreTrainedModel:
        """The model a learner learns from."""
        if name == "assistant" or self.students_learn_from == "teacher":
            return self.teacher
        assert self.assistant is not None
        return self.assistant

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reorder_labels: torch.Tensor | None = None,
        distance_labels: torch.Tensor | None = None,
        credible_labels: torch.Tensor | None = None,
        batches: dict[str, dict[str, Any]] | None = None,
        task_weights: dict[str, float] | None = None,
    ) -> OnlineDistillationOutput:
        """One pass of all models.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 = token, 0 = padding; `None`: what is not the teacher's padding.
            token_type_ids: (B, T) int64.
            task_type_ids: (B, T) int64.
            position_ids: (B, T) int64.
            labels: Targets of the teacher's masked language model, (B, T), -100 = none; also the learners' where
                they have an objective of their own.
            reorder_labels: (B,), for the teacher.
            distance_labels: (B,), for the teacher.
            credible_labels: (B,), for the teacher.
            batches: In place of all of these, a mixed batch as `Ernie3ForPreTraining` takes it: task -> inputs.
                The learners are taught on every part of the understanding branch; their loss is the mean over those.
            task_weights: The teacher's weights of the tasks of a mixed batch.

        Returns:
            An [`OnlineDistillationOutput`].

        Raises:
            ValueError: no input, a mask of another shape, rows of several documents to learn from, a mixed batch
                without a part of the understanding branch, or a learner that gives no loss where
                `student_loss_weight` asks for one.
        """
        if (input_ids is None) == (batches is None):
            raise ValueError("Pass either input_ids or batches.")
        if batches is not None:
            parts = {
                task: self._with_mask(part) if part.get("branch", "nlu") == "nlu" else part
                for task, part in batches.items()
            }
            inputs: dict[str, Any] = {"batches": parts} | (
                {} if task_weights is None else {"task_weights": task_weights}
            )
            understood = [part for part in parts.values() if part.get("branch", "nlu") == "nlu"]
        else:
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "task_type_ids": task_type_ids,
                "position_ids": position_ids,
                "labels": labels,
                "reorder_labels": reorder_labels,
                "distance_labels": distance_labels,
                "credible_labels": credible_labels,
            }
            inputs = self._with_mask({name: value for name, value in given.items() if value is not None})
            understood = [inputs]
        if not understood:
            raise ValueError(
                f"The mixed batch has only the tasks {sorted(batches or {})}, none of the understanding branch: there "
                "are no relations to learn from. Mix such a task into every batch."
            )
        return self._pass(inputs, understood)

    def _pass(self, inputs: dict[str, Any], understood: list[dict[str, Any]]) -> OnlineDistillationOutput:
        """The teacher's forward, then every learner's on the parts of the understanding branch."""
        teaching = self.teaching or not self.training
        if not teaching and self.student_loss_weight == 0:
            raise ValueError("teaching is off and student_loss_weight=0: learners have nothing to learn. Set one.")
        output: Any = None
        relations: dict[str, list[Relations]] = {"teacher": [], "assistant": []}
        # A mixed batch has the teacher's own tasks, whose losses are logged and whose memories go on.
        if teaching or not self._teacher_is_frozen() or "batches" in inputs:
            output, relations["teacher"] = self._run_teacher(inputs, len(understood))
        total, losses = understood[0]["input_ids"].new_zeros((), dtype=torch.float32), {}
        own = getattr(output, "loss", None)
        if own is not None:
            total, losses["teacher"] = total + own, own.detach()
        by_task = {task: value.detach() for task, value in (getattr(output, "losses", None) or {}).items()}
        for name, learner in self.learners().items():
            source = (
                relations["teacher" if self.teacher_of(name) is self.teacher else "assistant"] if teaching else None
            )
            loss, parts, learnt = self._teach(name, learner, source, understood)
            relations[name] = [one.detach() for one in learnt]
            total, losses = total + loss, losses | parts
        memories = getattr(output, "memories", None)
        return OnlineDistillationOutput(loss=total, losses=by_task, model_losses=losses, memories=memories)

    def _run_teacher(self, inputs: dict[str, Any], parts: int) -> tuple[Any, list[Relations]]:
        """The teacher's output, and its relations on every part of the understanding branch."""
        with_gradient = torch.is_grad_enabled() and not self._teacher_is_frozen()
        with torch.set_grad_enabled(with_gradient), recorded_relations(self.teacher) as taught:
            output = self.teacher(**inputs)
        if len(taught) != parts:
            raise ValueError(
                f"The teacher's understanding branch ran {len(taught)} times on {parts} parts of the batch; it must "
                "run once on each, in their order."
            )
        return output, [one.detach() for one in taught]

    def _teach(
        self, name: str, learner: PreTrainedModel, source: list[Relations] | None, understood: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[Relations]]:
        """One learner's loss, its parts for the log, and its own relations; without a source its own loss alone."""
        own, learnt = [], []
        for part in understood:
            inputs = {key: part[key] for key in LEARNER_INPUTS if part.get(key) is not None}
            labelled = self.student_loss_weight > 0 and part.get("labels") is not None
            if source is None and not labelled:
                continue
            with recorded_relations(learner) as recorded, skipped_auxiliary_layer(learner):
                output = learner(**inputs, **({"labels": part["labels"]} if labelled else {}))
            learnt += recorded
            if labelled:
                if getattr(output, "loss", None) is None:
                    raise ValueError(
                        f"student_loss_weight={self.student_loss_weight} asks {name!r} for a loss of its own, but "
                        f"{type(learner).__name__} gives none. Use a class with a masked language model's head."
                    )
                own.append(output.loss)
        loss, parts = understood[0]["input_ids"].new_zeros((), dtype=torch.float32), {}
        if source is not None:
            divergence = self._divergence(name, source, learnt, [part["attention_mask"] for part in understood])
            loss, parts[f"{name}/distillation"] = self.distillation_weight * divergence, divergence.detach()
        if own:
            own_loss = torch.stack(own).mean()
            loss, parts[f"{name}/own"] = loss + self.student_loss_weight * own_loss, own_loss.detach()
        return loss, parts, learnt

    def _divergence(
        self, name: str, source: list[Relations], learnt: list[Relations], masks: list[torch.Tensor]
    ) -> torch.Tensor:
        """The mean over the parts of a batch."""
        if torch.is_grad_enabled() and not all(one.queries.requires_grad for one in learnt):
            raise ValueError(
                f"The relations of {name!r} carry no gradient: its parameters are frozen, or its layers are "
                "checkpointed with use_reentrant=True. Unfreeze them, or pass use_reentrant=False."
            )
        heads = self.relation_heads[name]
        return torch.stack(
            [
                relation_divergence(taught, own, mask, heads, self.relations)
                for taught, own, mask in zip(source, learnt, masks, strict=True)
            ]
        ).mean()

    def _with_mask(self, part: dict[str, Any]) -> dict[str, Any]:
        """The part with an attention mask that every model takes alike."""
        if part.get("document_ids") is not None:
            raise ValueError(
                "document_ids came to a part of the understanding branch: learners read a row as one text, so their "
                "relations would cross documents. Give each text a row (the mixture's packing=False)."
            )
        mask = part.get("attention_mask")
        if mask is None:
            mask = (part["input_ids"] != self.teacher.config.pad_token_id).long()
        if mask.shape != part["input_ids"].shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(mask.shape)}; distillation needs (batch, tokens), here "
                f"{tuple(part['input_ids'].shape)}."
            )
        return part | {"attention_mask": mask}

    def _teacher_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.teacher.parameters())

    def train(self, mode: bool = True) -> "OnlineDistillation":
        """As any module's; a teacher that only teaches stays in evaluation mode, without dropout."""
        super().train(mode)
        if self._teacher_is_frozen():
            self.teacher.eval()
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """As the host's models have it: for every model here."""
        for model in self.models().values():
            model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under the name it had before transformers 5.23."""
        for model in self.models().values():
            model.gradient_checkpointing_enable(**kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], state_dict: dict[str, torch.Tensor] | None = None
    ) -> list[Path]:
        """Writes every model into a folder of its own, without its auxiliary layer.

        Folders are `teacher`, `assistant` and `student-<name>`; `AutoModel` opens each. The auxiliary layers go into
        one file beside them, from which [`OnlineDistillation.load_pretrained`] continues.

        Args:
            save_directory: Where to write.
            state_dict: This module's state, where it is not to be taken from the parameters (as with sharded ones).

        Returns:
            The models' folders, in the order of [`OnlineDistillation.models`].
        """
        state = self.state_dict() if state_dict is None else state_dict
        auxiliary = self._auxiliary_prefixes()
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        beside = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith(auxiliary)}
        save_file(beside, directory / AUXILIARY_FILE, metadata={"format": "pt"})
        folders = []
        for name, model in self.models().items():
            prefix = f"students.{name}." if name in self.students else f"{name}."
            own = {key: tensor for key, tensor in state.items() if key.startswith(prefix) and key not in beside}
            folders.append(directory / _folder_name(name))
            model.save_pretrained(folders[-1], state_dict={key.removeprefix(prefix): own[key] for key in own})
            _config_of_what_is_built(model).save_pretrained(folders[-1])
        return folders

    def load_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Takes the weights over that [`OnlineDistillation.save_pretrained`] wrote, auxiliary layers included.

        Raises:
            FileNotFoundError: a folder or the file of the auxiliary layers is missing.
            ValueError: the saved models are not of this module's kind.
        """
        directory = Path(save_directory)
        expected = [_folder_name(name) for name in self.models()] + [AUXILIARY_FILE]
        missing = [name for name in expected if not (directory / name).exists()]
        if missing:
            raise FileNotFoundError(f"{directory} has no {missing}; a saved distillation has {expected}.")
        kept_aside = load_file(directory / AUXILIARY_FILE)
        for name, model in self.models().items():
            saved = type(model).from_pretrained(directory / _folder_name(name)).state_dict()
            prefix = f"students.{name}." if name in self.students else f"{name}."
            saved |= {k.removeprefix(prefix): tensor for k, tensor in kept_aside.items() if k.startswith(prefix)}
            model.load_state_dict(saved)

    def _auxiliary_prefixes(self) -> tuple[str, ...]:
        """What the names of the auxiliary layers' weights begin with."""
        carried = [model for model in self.learners().values() if has_auxiliary_layer(model)]
        layers = {id(understanding_layers(model)[0][-1]) for model in carried}
        return tuple(f"{name}." for name, module in self.named_modules() if id(module) in layers)


def _folder_name(name: str) -> str:
    return name if name in ("teacher", "assistant") else f"student-{name}"


def _config_of_what_is_built(model: PreTrainedModel) -> Any:
    """The config, without branches that the class did not build: `AutoModel` would make them up."""
    branches = getattr(model.base_model, "branches", None)
    if branches is None:
        return model.config
    config = copy.deepcopy(model.config)
    config.branches = [name for name in config.branches if name in branches]
    return config


def _check_names(students: Mapping[str, PreTrainedModel]) -> None:
    if not students:
        raise ValueError("students is empty; pass at least one model by a name, e.g. {'tiny': model}.")
    for name in students:
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"The student's name {name!r} must consist of letters, digits, '-' and '_'.")
        if name in ("teacher", "assistant"):
            raise ValueError(f"A student cannot be named {name!r}; the name is taken. Choose another.")


def _check_relations(relations: Sequence[str]) -> None:
    unknown = [relations] if isinstance(relations, str) else [name for name in relations if name not in RELATIONS]
    if unknown or not relations:
        raise ValueError(f"relations={relations!r} must be a sequence of {list(RELATIONS)}, at least one.")


def _check_vocabulary(teacher: PreTrainedModel, name: str, learner: PreTrainedModel) -> None:
    sizes = teacher.config.vocab_size, learner.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The teacher's vocabulary has {sizes[0]} tokens, that of {name!r} {sizes[1]}; both read the same ids, so "
            "they must be one. Build the student with the teacher's vocab_size."
        )


def _heads_and_width(model: PreTrainedModel) -> tuple[int, int]:
    (query, *_), heads = last_projections(model)
    return heads, query.out_features  # type: ignore[return-value]  # torch types attributes loosely


__all__ = [
    "OnlineDistillation",
    "OnlineDistillationOutput",
    "add_auxiliary_layer",
    "drop_auxiliary_layer",
    "has_auxiliary_layer",
    "skipped_auxiliary_layer",
]
