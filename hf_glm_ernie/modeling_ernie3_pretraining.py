"""ERNIE 3.0 with the heads of every pre-training task.

A forward takes one kind of rows, or a *mixed batch*: a dictionary from task to the rows of that task. A mixed batch is
one forward with one loss, so that wrappers which synchronise gradients once per forward (DDP, FSDP) see every task. It
returns no logits, so its language-model heads run at labelled tokens only: 15% of them under masks.

Losses: each is the mean over its valid labels, and they are summed with weight 1 (P10 states no weights; ERNIE-Doc's
configuration has 1.0 for each).

Sources: P10 = ERNIE 3.0, arXiv 2107.02137, section 3.2; PT = ERNIE 3.0 Titan, arXiv 2112.12731, sections 2.1 and 2.2.
Letters in shape comments: B batch, L tokens, V vocabulary, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_ernie3 import DOCUMENT_LM, TASK_BRANCHES, Ernie3Config
from .host_inputs import IGNORED
from .host_interface import given_cache, named_cache, returned_cache
from .memory_ernie3 import Ernie3Memories
from .modeling_ernie3 import Ernie3Model, Ernie3PreTrainedModel
from .modeling_ernie3_heads import Ernie3LMHead, Ernie3Pooler, borders_of, check_labels


def row_heads(config: Ernie3Config) -> dict[str, int]:
    """The heads that judge a whole row, and their classes; 0 where the model has no such head."""
    return {
        "reorder": config.num_reorder_labels,
        "distance": config.num_distance_labels,
        "credible": config.num_credible_labels,
    }


@dataclass
class Ernie3ForPreTrainingOutput(CausalLMOutputWithPast):
    """What [`Ernie3ForPreTraining`] returns.

    Args:
        loss: Scalar, the sum of `losses`, in a mixed batch weighted.
        logits: (B, L, V) of the branch's language-model head; `None` in a mixed batch, or where not asked for.
        cache: The cache; before transformers 5.24 `past_key_values`.
        hidden_states: As in [`Ernie3ModelOutput`].
        attentions: Likewise.
        losses: The scalar of each head that had labels, by the head: `"nlu_lm"`, `"nlg_lm"`, `"reorder"`,
            `"distance"`, `"credible"`; in a mixed batch the scalar of each task, by the task.
        reorder_logits: (B, C) of sentence reordering.
        distance_logits: (B, C) of sentence distance.
        credible_logits: (B, C) of the credible head.
        memories: What the segment hands to the next one; in a mixed batch those of `"document_lm"`.
    """

    losses: dict[str, torch.Tensor] | None = None
    reorder_logits: torch.Tensor | None = None
    distance_logits: torch.Tensor | None = None
    credible_logits: torch.Tensor | None = None
    memories: Ernie3Memories | None = None


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the valid labels; 0, with a gradient of 0, where there is none.

    Args:
        logits: (..., C).
        labels: (...) int64, -100 = not valid.

    Returns:
        Scalar fp32.
    """
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)


def labelled_cross_entropy(head: nn.Module, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[`mean_cross_entropy`] of a head that runs at labelled tokens only; without any its gradient is 0, not absent.

    Args:
        head: (N, W) -> (N, V).
        states: (B, L, W).
        labels: (B, L) int64, -100 = not valid.

    Returns:
        Scalar fp32.
    """
    labels = labels.flatten()
    places = (labels != IGNORED).nonzero().squeeze(1)
    chosen = states.flatten(0, 1).index_select(0, places.to(states.device))  # beside the labels' device with a map
    return mean_cross_entropy(head(chosen), labels[places])


class Ernie3ForPreTraining(Ernie3PreTrainedModel):
    """Both branches and the heads of all pre-training tasks.

    On `"nlu"`: masked language model, sentence reordering, sentence distance, and with `config.num_credible_labels`
    the credible head. On `"nlg"`: the language model.
    """

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {
        "nlu_lm_head.decoder.weight": "ernie3.embeddings.word_embeddings.weight",
        "nlg_lm_head.decoder.weight": "ernie3.embeddings.word_embeddings.weight",
    }
    _tp_plan = {f"{name}_lm_head.decoder": "colwise_gather_output" for name in ("nlu", "nlg")}
    accepts_loss_kwargs = False  # the losses are means over labels of different kinds

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.ernie3 = Ernie3Model(config)
        if "nlg" in config.branches:
            self.nlg_lm_head = Ernie3LMHead(config)
        if "nlu" in config.branches:
            self.nlu_lm_head = Ernie3LMHead(config)
            self.pooler = Ernie3Pooler(config)
            for name, classes in row_heads(config).items():
                if classes:
                    setattr(self, f"{name}_head", nn.Linear(config.branch_hidden_size, classes))
        self.post_init()

    def _lm_heads(self) -> list[Ernie3LMHead]:
        return [getattr(self, f"{name}_lm_head") for name in self.ernie3.branches]

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary of the first branch's head."""
        return self._lm_heads()[0].decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces it."""
        self._lm_heads()[0].decoder = new_embeddings  # type: ignore[assignment]  # whatever the host puts there

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in the host, for the heads of both branches."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        for head in self._lm_heads()[1:]:
            if not self.config.tie_word_embeddings:
                head.decoder = self._get_resized_lm_head(head.decoder, embeddings.weight.shape[0])
        return embeddings

    @can_return_tuple
    def forward(  # type: ignore[misc]  # the host's TransformersKwargs names position_ids too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        genre_ids: torch.Tensor | None = None,
        branch: str | None = None,
        memories: Ernie3Memories | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reorder_labels: torch.Tensor | None = None,
        distance_labels: torch.Tensor | None = None,
        credible_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_memories: bool | None = None,
        batches: Mapping[str, Mapping[str, Any]] | None = None,
        task_weights: Mapping[str, float] | None = None,
        past_key_values: Cache | None = None,
        document_ids: torch.Tensor | None = None,
        return_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Ernie3ForPreTrainingOutput:
        """Runs one branch and its heads, or with `batches` several; arguments as in [`Ernie3Model.forward`], and:

        - `labels`: (B, L) int64, -100 = not scored. On `"nlu"` the words under the masks, on `"nlg"` the row's own
          tokens: they are shifted here, and with `document_ids` no document is asked for the next one's first token.
        - `reorder_labels`: (B,) int64 classes of sentence reordering, -100 for a row that has none. Likewise
          `distance_labels` of sentence distance and `credible_labels`, 1 = original text.
        - `batches`: Task name -> these arguments for the rows of that task. The names are those of `TASK_BRANCHES`.
        - `return_logits`: Whether to return the language model's `logits`; left out, yes, but not in a mixed batch.
          Without them the head runs at labelled tokens only.
        - `task_weights`: Task name -> weight of its loss in a mixed batch; 1 where left out.

        Returns:
            An [`Ernie3ForPreTrainingOutput`]. The logits are those of the heads that have labels; without any labels,
            of all heads of the branch. A mixed batch returns losses and memories, no logits.

        Raises:
            ValueError: labels of another shape or for a head that is not there; an unknown task, or one without
                labels; a mixed batch together with rows outside it; `document_ids` together with labels of rows.
        """
        rows = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "task_type_ids": task_type_ids,
            "genre_ids": genre_ids,
            "branch": branch,
            "memories": memories,
            "cache": given_cache(cache, past_key_values),
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "return_memories": return_memories,
            "document_ids": document_ids,
        }
        of_rows = zip(row_heads(self.config), (reorder_labels, distance_labels, credible_labels), strict=True)
        labels_of = {"labels": labels} | {f"{head}_labels": given for head, given in of_rows}
        if batches is None:
            if task_weights is not None:
                raise ValueError("task_weights weigh the tasks of a mixed batch (batches=); there is none.")
            return self._one_kind(rows, labels_of, return_logits is not False, dict(kwargs))
        outside = rows | labels_of | {"return_logits": return_logits}
        if given := [name for name, value in outside.items() if value is not None]:
            raise ValueError(f"batches= came together with {given}: put every row into the batch of its task.")
        return self._mixed(batches, task_weights or {}, dict(kwargs))

    def _mixed(
        self, batches: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float], kwargs: dict[str, Any]
    ) -> Ernie3ForPreTrainingOutput:
        unknown = sorted((set(batches) | set(weights)) - set(TASK_BRANCHES))
        if unknown or not batches:
            raise ValueError(
                f"batches and task_weights take tasks of {tuple(TASK_BRANCHES)}, at least one batch; not {unknown}."
            )
        losses: dict[str, torch.Tensor] = {}
        memories = None
        # No cache: checkpointing from outside (FSDP's) would fill it once more where it computes a layer again.
        settings = {"use_cache": False, "return_logits": False} | kwargs
        for task, batch in batches.items():
            # Not self(...): FSDP and ZeRO gather and free the root's weights around every call of the module.
            output = self.forward(**(settings | dict(batch)), return_dict=True)
            if output.loss is None:
                raise ValueError(f"The batch of task {task!r} has no labels, so it has no loss.")
            losses[task] = output.loss
            if task == DOCUMENT_LM:
                memories = output.memories
        loss = torch.stack([losses[task] * weights.get(task, 1.0) for task in losses]).sum()
        return Ernie3ForPreTrainingOutput(loss=loss, losses=losses, memories=memories)

    def _one_kind(
        self,
        rows: dict[str, Any],
        labels: dict[str, torch.Tensor | None],
        return_logits: bool,
        kwargs: dict[str, Any],
    ) -> Ernie3ForPreTrainingOutput:
        branch = self.ernie3.default_branch if rows["branch"] is None else rows["branch"]
        outputs = self.ernie3(**(rows | {"branch": branch}), **kwargs)
        states = outputs.last_hidden_state
        wanted = {name for name, value in labels.items() if value is not None}
        logits: dict[str, Any] = {}
        losses: dict[str, torch.Tensor] = {}
        if "labels" in wanted or not wanted:
            head, lm_labels = (
                getattr(self, f"{branch}_lm_head"),
                self._lm_labels(branch, rows, labels["labels"], states),
            )
            if return_logits:
                logits["logits"] = head(states)
            if lm_labels is not None and return_logits:
                losses[f"{branch}_lm"] = mean_cross_entropy(logits["logits"], lm_labels)
            elif lm_labels is not None:
                losses[f"{branch}_lm"] = labelled_cross_entropy(head, states, lm_labels)
        heads = self._wanted_row_heads(branch, wanted, several=rows["document_ids"] is not None)
        pooled = self.pooler(states, rows["input_ids"], rows["attention_mask"]) if heads else None
        for name, head in heads.items():
            logits[f"{name}_logits"] = head(pooled)
            row_labels = labels[f"{name}_labels"]
            check_labels(f"{name}_labels", row_labels, tuple(states.shape[:1]))
            if row_labels is not None:
                losses[name] = mean_cross_entropy(logits[f"{name}_logits"], row_labels)
        return Ernie3ForPreTrainingOutput(
            loss=torch.stack(list(losses.values())).sum() if losses else None,
            losses=losses or None,
            memories=outputs.memories,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **named_cache(returned_cache(outputs)),
            **logits,
        )

    def _lm_labels(
        self, branch: str, rows: dict[str, Any], labels: torch.Tensor | None, states: torch.Tensor
    ) -> torch.Tensor | None:
        """(B, L) labels, each at the token whose state predicts it."""
        shape = tuple(states.shape[:2])
        check_labels("labels", labels, shape)
        if labels is None or branch == "nlu":
            return labels
        borders = borders_of(self.config, rows["document_ids"], shape, rows["input_ids"], rows["attention_mask"])
        labels = labels if borders is None else labels.masked_fill(borders, IGNORED)
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def _wanted_row_heads(self, branch: str, wanted: set[str], several: bool) -> dict[str, nn.Module]:
        """The heads of whole rows that have labels; without any labels all of the branch's, unless a row holds
        `several` texts.

        Raises:
            ValueError: labels for a head that is not there, or on the other branch, or of rows of several texts.
        """
        heads = {}
        if several and (given := sorted(wanted - {"labels"})):
            raise ValueError(
                f"{given[0]} came together with document_ids: it judges a row by its first token, and these rows hold "
                "several texts. Give each text a row."
            )
        for name in row_heads(self.config):
            head, key = getattr(self, f"{name}_head", None), f"{name}_labels"
            if head is not None and branch == "nlu":
                if key in wanted or not (wanted or several):
                    heads[name] = head
            elif key in wanted:
                absent = f"is not there (config.num_{name}_labels=0, or no 'nlu')."
                why = absent if head is None else "reads the branch 'nlu'."
                raise ValueError(f"{key} came with branch={branch!r}, but {name}_head {why}")
        return heads


__all__ = ["Ernie3ForPreTraining", "Ernie3ForPreTrainingOutput", "mean_cross_entropy"]
