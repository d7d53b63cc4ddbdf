"""The tasks of ERNIE 3.0, each a head on one branch: generation on `"nlg"`, understanding on `"nlu"`.

A class builds only the branch it uses; what a checkpoint holds beyond that is left unread. The language-model heads
are those of the never released `ernie3-10b` model; the classification heads are BERT's (dropout and a linear on the
pooled first token, or on every token), which is all the papers say.

Sources: P10 = ERNIE 3.0, arXiv 2107.02137; `ernie3-10b` on a side branch of PaddleNLP. Letters in shape comments: B
batch, L tokens, V vocabulary, W branch width, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .attention_ernie3 import document_borders
from .configuration_ernie3 import Ernie3Config
from .generation_ernie3 import Ernie3GenerationMixin
from .host_inputs import IGNORED, check_labels_of, kept_positions, shape_scored
from .host_interface import check_arguments, given_cache, named_cache, returned_cache
from .memory_ernie3 import Ernie3Memories
from .modeling_ernie3 import Ernie3Model, Ernie3PreTrainedModel

# What a checkpoint of all tasks holds beside one branch and its heads.
_PRETRAINING_HEADS = [r"^(reorder|distance|credible)_head\."]
_NLU = [r"^ernie3\.branches\.nlu\.", r"^nlu_lm_head\.", r"^pooler\."]
_NLG = [r"^ernie3\.branches\.nlg\.", r"^nlg_lm_head\."]


@dataclass
class Ernie3CausalLMOutput(CausalLMOutputWithPast):
    """What [`Ernie3ForCausalLM`] returns.

    Args:
        loss: Scalar, where labels were given.
        logits: (B, kept, V).
        cache: The cache; before transformers 5.24 `past_key_values`.
        hidden_states: As in [`Ernie3ModelOutput`].
        attentions: Likewise.
        memories: What this segment hands to the next one.
    """

    memories: Ernie3Memories | None = None


class Ernie3LMHead(nn.Module):
    """`decoder(layer_norm(gelu(transform(x))))`, with a bias per word."""

    def __init__(self, config: Ernie3Config):
        super().__init__()
        width = config.branch_hidden_size
        self.transform = nn.Linear(width, width)
        self.activation = ACT2FN[config.branch_hidden_act]
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, W) -> (B, L, V)."""
        return self.decoder(self.layer_norm(self.activation(self.transform(hidden_states))))


def given_padding(
    pad_token_id: int | None, input_ids: torch.Tensor | None, attention_mask: Any
) -> torch.Tensor | None:
    """Which tokens are real, (B, L) with 0 = padding: as a mask of two dimensions says, else those that are not the
    pad id; `None` where neither is known.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask
    return None if input_ids is None or pad_token_id is None else input_ids != pad_token_id


def borders_of(
    config: Ernie3Config,
    document_ids: torch.Tensor | None,
    tokens: tuple[int, ...],
    input_ids: torch.Tensor | None,
    attention_mask: Any,
) -> torch.Tensor | None:
    """Which tokens begin another document in their row.

    Args:
        config: The settings.
        document_ids: As in [`Ernie3Model.forward`].
        tokens: (B, L), the shape of the result.
        input_ids: As in the forward.
        attention_mask: Likewise.

    Returns:
        (B, L) bool; `None` without documents.
    """
    if document_ids is None:
        return None
    mask = given_padding(config.pad_token_id, input_ids, attention_mask)
    return document_borders(document_ids.expand(tokens), None if mask is None else mask[:, : tokens[1]])


class Ernie3Pooler(nn.Module):
    """`tanh(dense(x))` of a row's first token."""

    def __init__(self, config: Ernie3Config):
        super().__init__()
        self.pad_token_id = config.pad_token_id
        self.dense = nn.Linear(config.branch_hidden_size, config.branch_hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Pools.

        Args:
            hidden_states: (B, L, W).
            input_ids: (B, L) or `None`.
            attention_mask: (B, L) or another, which says nothing about padding.

        Returns:
            (B, W) of the first token that is not padding, `[CLS]`.
        """
        mask = given_padding(self.pad_token_id, input_ids, attention_mask)
        if mask is None:
            first = hidden_states[:, 0]
        else:
            column = mask.bool().to(torch.uint8).argmax(-1)  # (B,)
            first = hidden_states[torch.arange(len(column), device=column.device), column]
        return torch.tanh(self.dense(first))


def check_labels(name: str, labels: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuses labels, where some were passed as the argument `name`, of another shape.

    Raises:
        ValueError: another shape.
    """
    if labels is not None and tuple(labels.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(labels.shape)}, not {shape}.")


class Ernie3ForCausalLM(Ernie3PreTrainedModel, Ernie3GenerationMixin):
    """The generation branch with its language-model head: loss, logits and `generate`."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"nlg_lm_head.decoder.weight": "ernie3.embeddings.word_embeddings.weight"}
    _tp_plan = {"nlg_lm_head.decoder": "colwise_gather_output"}
    _keys_to_ignore_on_load_unexpected = _NLU + _PRETRAINING_HEADS

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.ernie3 = Ernie3Model(config, ["nlg"])
        self.nlg_lm_head = Ernie3LMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head's projection to the vocabulary."""
        return self.nlg_lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the head's projection to the vocabulary."""
        self.nlg_lm_head.decoder = new_embeddings  # type: ignore[assignment]  # whatever the host puts there

    @can_return_tuple
    def forward(  # type: ignore[misc]  # the host's TransformersKwargs names position_ids too
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        genre_ids: torch.Tensor | None = None,
        memories: Ernie3Memories | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_memories: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        document_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Ernie3CausalLMOutput:
        """Runs the model and projects to the vocabulary; arguments as in [`Ernie3Model.forward`], and:

        - `labels`: (B, L) int64 ids, -100 where nothing is scored. They are shifted here: `labels[:, i]` is predicted
          at `i - 1`. `shift_labels`, likewise, in their place and shifted already: predicted at `i`. With
          `document_ids` no document is asked for the first token of the next one.
        - `logits_to_keep`: Number of last positions to project (0 = all), or a 1-D tensor of their indices.
        - `num_items_in_batch` for the loss.

        Returns:
            An [`Ernie3CausalLMOutput`].

        Raises:
            ValueError: labels of another shape, and what the model raises.
        """
        targets = {"labels": labels, "shift_labels": kwargs.pop("shift_labels", None)}  # type: ignore[typeddict-item]  # ours
        outputs = self.ernie3(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            task_type_ids=task_type_ids,
            genre_ids=genre_ids,
            branch=kwargs.pop("branch", "nlg"),  # type: ignore[typeddict-item]  # refused where it is another
            memories=memories,
            cache=given_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_memories=return_memories,
            document_ids=document_ids,
            **kwargs,
        )
        states = outputs.last_hidden_state
        borders = borders_of(self.config, document_ids, tuple(states.shape[:2]), input_ids, attention_mask)
        targets = self._targets(targets, tuple(states.shape[:2]), borders, logits_to_keep)
        logits, loss = self.nlg_lm_head(states[:, kept_positions(logits_to_keep)]), None
        if any(given is not None for given in targets.values()):
            loss = self.loss_function(logits=logits, vocab_size=self.config.vocab_size, **targets, **kwargs)
        return Ernie3CausalLMOutput(
            loss=loss,
            logits=logits,
            memories=outputs.memories,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **named_cache(returned_cache(outputs)),
        )

    def _targets(
        self,
        targets: Mapping[str, torch.Tensor | None],
        shape: tuple[int, ...],
        borders: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
    ) -> dict[str, torch.Tensor | None]:
        """The labels, checked, and -100 where the answer is the first token of another document.

        Args:
            targets: `labels` and `shift_labels` of the forward.
            shape: (B, L) of the tokens.
            borders: (B, L) bool of [`borders_of`].
            logits_to_keep: As in the forward.

        Raises:
            ValueError: labels of another shape or outside the vocabulary.
        """
        checked: dict[str, torch.Tensor | None] = {}
        for name, labels in targets.items():
            check_labels_of(name, labels, shape_scored(labels, shape, logits_to_keep), self.config.vocab_size)
            if labels is not None and borders is not None:
                begins = F.pad(borders[:, 1:], (0, 1)) if name == "shift_labels" else borders
                begins = begins if labels.shape == shape else begins[:, kept_positions(logits_to_keep)]
                labels = labels.masked_fill(begins, IGNORED)
            checked[name] = labels
        return checked


class _Understanding(Ernie3PreTrainedModel):
    """What the heads of the understanding branch share: one forward, which hands the branch's states to `score`."""

    _keys_to_ignore_on_load_unexpected = [*_NLG, r"^nlu_lm_head\.", r"^pooler\.", *_PRETRAINING_HEADS]
    has_pooler = False
    takes_documents = False  # whether it scores tokens, so that a row may hold several texts
    output_class: type[ModelOutput]

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.ernie3 = Ernie3Model(config, ["nlu"])
        if self.has_pooler:
            self.pooler = Ernie3Pooler(config)
        rate = config.classifier_dropout
        self.dropout = nn.Dropout(config.branch_hidden_dropout_prob if rate is None else rate)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # as above
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        genre_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: Any = None,
        document_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """Runs the branch and scores; arguments as in [`Ernie3Model.forward`], labels and result as in the class.

        Raises:
            ValueError: `document_ids` for a head that judges a row as a whole.
        """
        if document_ids is not None and not self.takes_documents:
            raise ValueError(
                f"{type(self).__name__} judges a row as a whole, so document_ids cannot put several texts into one. "
                "Give each text a row."
            )
        rows = self._rows(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "token_type_ids": token_type_ids,
                "task_type_ids": task_type_ids,
                "genre_ids": genre_ids,
                "inputs_embeds": inputs_embeds,
            }
        )
        branch = kwargs.pop("branch", "nlu")  # type: ignore[typeddict-item]  # refused where it is another
        outputs = self.ernie3(branch=branch, document_ids=document_ids, **rows, **kwargs)
        states = outputs.last_hidden_state
        if self.has_pooler:
            states = self.pooler(states, rows.get("input_ids"), rows.get("attention_mask"))
        given = input_ids if inputs_embeds is None else inputs_embeds
        scores = self.score(states, labels, given, **kwargs)
        return self.output_class(**scores, hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def _rows(self, inputs: Mapping[str, torch.Tensor | None]) -> Mapping[str, torch.Tensor | None]:
        """The model's inputs; where one of the caller's rows is several of them, as many."""
        return inputs

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """The head's part of the output.

        Args:
            states: (B, L, W), or with a pooler (B, W).
            labels: As in the forward.
            given: The ids or embeddings as the caller passed them.
            **kwargs: For the loss.

        Raises:
            ValueError: labels of another shape.
        """
        raise NotImplementedError


class Ernie3ForMaskedLM(_Understanding):
    """The understanding branch with its language-model head: scores every word at every token.

    The forward takes `labels`, (B, L) int64 ids, -100 where nothing is scored, and returns `logits` (B, L, V) and
    `loss`.
    """

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"nlu_lm_head.decoder.weight": "ernie3.embeddings.word_embeddings.weight"}
    _tp_plan = {"nlu_lm_head.decoder": "colwise_gather_output"}
    _keys_to_ignore_on_load_unexpected = [*_NLG, r"^pooler\.", *_PRETRAINING_HEADS]
    takes_documents = True
    output_class = MaskedLMOutput

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.nlu_lm_head = Ernie3LMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head's projection to the vocabulary."""
        return self.nlu_lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the head's projection to the vocabulary."""
        self.nlu_lm_head.decoder = new_embeddings  # type: ignore[assignment]  # whatever the host puts there

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """Logits and loss of every token."""
        logits = self.nlu_lm_head(states)
        check_labels_of("labels", labels, tuple(logits.shape[:2]), self.config.vocab_size)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return {"loss": loss, "logits": logits}


class Ernie3ForSequenceClassification(_Understanding):
    """A class, several classes or a number for a row, from its pooled first token.

    The forward takes `labels`: (B,) int64 classes, (B,) numbers where `config.num_labels` is 1, or (B, C) of 0 and 1
    for several classes at once (`config.problem_type`). It returns `logits` (B, C) and `loss`.
    """

    _auto_class = "AutoModelForSequenceClassification"
    _keys_to_ignore_on_load_unexpected = [*_NLG, r"^nlu_lm_head\.", *_PRETRAINING_HEADS]
    has_pooler = True
    output_class = SequenceClassifierOutput

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.classifier = nn.Linear(config.branch_hidden_size, self.num_labels)
        self.post_init()

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """Logits and loss of every row."""
        logits = self.classifier(self.dropout(states))
        loss = None
        if labels is not None:
            several = self.config.problem_type == "multi_label_classification" or labels.ndim > 1
            check_labels("labels", labels, tuple(logits.shape) if several else tuple(logits.shape[:1]))
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return {"loss": loss, "logits": logits}


class Ernie3ForTokenClassification(_Understanding):
    """A class for every token.

    The forward takes `labels`, (B, L) int64 classes, -100 where nothing is scored, and returns `logits` (B, L, C) and
    `loss`.
    """

    _auto_class = "AutoModelForTokenClassification"
    takes_documents = True
    output_class = TokenClassifierOutput

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.classifier = nn.Linear(config.branch_hidden_size, self.num_labels)
        self.post_init()

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """Logits and loss of every token."""
        logits = self.classifier(self.dropout(states))
        check_labels_of("labels", labels, tuple(logits.shape[:2]), self.num_labels)
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, config=self.config)
        return {"loss": loss, "logits": logits}


class Ernie3ForQuestionAnswering(_Understanding):
    """The start and the end of an answer in the text."""

    _auto_class = "AutoModelForQuestionAnswering"
    output_class = QuestionAnsweringModelOutput

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.branch_hidden_size, 2)
        self.post_init()

    def forward(  # type: ignore[misc, override]  # as above; a span has two labels
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        genre_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        """Scores every token as start and as end; arguments as in [`Ernie3Model.forward`], and `start_positions` and
        `end_positions`: (B,) int64 token numbers; one outside the text is not scored. Returns `start_logits` and
        `end_logits`, (B, L), and `loss`.
        """
        check_arguments(type(self).__name__, {"labels": kwargs.pop("labels", None)})  # a span's are these two
        inputs = (input_ids, attention_mask, position_ids, token_type_ids, task_type_ids, genre_ids, inputs_embeds)
        return super().forward(*inputs, labels=(start_positions, end_positions), **kwargs)

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """Logits of every token, and the loss of the two positions."""
        logits = self.qa_outputs(self.dropout(states))
        start_logits, end_logits = logits[..., 0].contiguous(), logits[..., 1].contiguous()
        start_positions, end_positions = labels
        if (start_positions is None) != (end_positions is None):
            only = "start_positions" if end_positions is None else "end_positions"
            raise ValueError(f"Only {only} was given: the loss takes start_positions and end_positions, or neither.")
        check_labels("start_positions", start_positions, tuple(logits.shape[:1]))
        check_labels("end_positions", end_positions, tuple(logits.shape[:1]))
        loss = None
        if start_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return {"loss": loss, "start_logits": start_logits, "end_logits": end_logits}


class Ernie3ForMultipleChoice(_Understanding):
    """One of several texts, from the pooled first token of each.

    The forward's inputs have one more dimension, (B, choices, L), except `genre_ids` (B,). It takes `labels`, (B,)
    int64, the right choice, and returns `logits` (B, choices) and `loss`.
    """

    _auto_class = "AutoModelForMultipleChoice"
    _keys_to_ignore_on_load_unexpected = [*_NLG, r"^nlu_lm_head\.", *_PRETRAINING_HEADS]
    has_pooler = True
    output_class = MultipleChoiceModelOutput

    def __init__(self, config: Ernie3Config):
        super().__init__(config)
        self.classifier = nn.Linear(config.branch_hidden_size, 1)
        self.post_init()

    def _rows(self, inputs: Mapping[str, torch.Tensor | None]) -> Mapping[str, torch.Tensor | None]:
        """Every choice is a row of its own, of its question's genre."""
        given = inputs["inputs_embeds"] if inputs["input_ids"] is None else inputs["input_ids"]
        if given is None or given.ndim < 3:
            raise ValueError("Multiple choice takes input_ids of shape (batch, choices, tokens), or such embeddings.")
        return {
            name: value.repeat_interleave(given.shape[1]) if name == "genre_ids" else value.flatten(0, 1)
            for name, value in inputs.items()
            if value is not None
        }

    def score(self, states: torch.Tensor, labels: Any, given: Any, **kwargs: Any) -> dict[str, Any]:
        """Logits of every choice, and a question's loss."""
        logits = self.classifier(self.dropout(states)).view(given.shape[:2])
        check_labels_of("labels", labels, tuple(given.shape[:1]), given.shape[1])
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "logits": logits}


__all__ = [
    "Ernie3CausalLMOutput",
    "Ernie3ForCausalLM",
    "Ernie3ForMaskedLM",
    "Ernie3ForMultipleChoice",
    "Ernie3ForQuestionAnswering",
    "Ernie3ForSequenceClassification",
    "Ernie3ForTokenClassification",
]
