"""GPLinker: all answers to one fixed schema in a single forward, on an ERNIE encoder.

UIE reads a text once for every name of a schema. Where the schema is fixed its names can be outputs: a score for every
label and every pair of tokens. `entity_logits[label, m, n]` is above zero where an entity of this type goes from token
m to token n. A relation is a pair of entities whose first tokens and whose last tokens are both linked:
`head_logits[relation, m, n]` links subject and object at their first tokens, `tail_logits` at their last. PaddleNLP
trains such students on UIE's answers ("UIE Slim", `data_distill`). The input is the text alone, `[CLS] text [SEP]`.

Three differences from PaddleNLP's training, each where that goes wrong: the loss is the mean over the heads that exist
(there the sum is divided by three, even of one); it is exact (there, where the right places outweigh all others by
nine to one, it is bounded in a way that pushes them down again); and every place counts ([CLS] with itself is padding
there).

Source: PaddleNLP 2.8.1, `paddlenlp/layers/globalpointer.py`; PaddleNLP,
`applications/information_extraction/text/data_distill/criterion.py`. Su Jianlin: Efficient GlobalPointer
(kexue.fm/archives/8877), GPLinker (8888), sparse multi-label cross entropy (7359).
Letters in shape comments: B batch, T tokens, C labels, K things marked in a row, D width of a pointer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_ernie_gplinker import ErnieGPLinkerConfig
from .host_inputs import IGNORED, traced
from .inputs_ernie import ErnieTaskModel
from .quantization_weight_only import WeightOnlyQuantizer  # noqa: F401  # so that a Hub repository carries it

ABSENT = -1e12  # logit of a pair that is none: of padding, or that ends before it begins
ROTARY_BASE = 10000.0

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {
    "AutoConfig": "configuration_ernie_gplinker.ErnieGPLinkerConfig",
    "AutoModel": "modeling_ernie_gplinker.ErnieForGPLinker",
}


def rotated(vectors: torch.Tensor) -> torch.Tensor:
    """Turns each pair of neighbouring numbers by the token's place times the pair's frequency.

    The product of two such vectors depends on how far apart their tokens are.

    Args:
        vectors: (B, T, D), D even.

    Returns:
        The same shape and dtype; angles are fp32.
    """
    tokens, width = vectors.shape[-2:]
    pairs = torch.arange(0, width, 2, device=vectors.device, dtype=torch.float32)
    places = torch.arange(tokens, device=vectors.device, dtype=torch.float32)
    angles = places[:, None] * ROTARY_BASE ** (-pairs / width)  # (T, D/2)
    sin, cos = angles.sin().to(vectors.dtype), angles.cos().to(vectors.dtype)
    even, odd = vectors[..., ::2], vectors[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def pointer_scores(pointers: torch.Tensor, biases: torch.Tensor, mask: torch.Tensor, ordered: bool) -> torch.Tensor:
    """Scores every label for every pair of tokens: one product for all labels, and a bias of each at both ends.

    Args:
        pointers: (B, T, 2 D); queries at the even places, keys at the odd ones.
        biases: (B, T, 2 C): label c has 2 c at the second token of a pair and 2 c + 1 at the first.
        mask: (B, T), true where there is a token.
        ordered: Whether pairs are spans: positions turn the vectors, and a pair that ends before it begins is none.

    Returns:
        (B, C, T, T), first token of the pair before the second; [`ABSENT`], or the dtype's smallest number, where
        there is no pair.
    """
    queries, keys = pointers[..., ::2], pointers[..., 1::2]  # (B, T, D)
    if ordered:
        queries, keys = rotated(queries), rotated(keys)
    products = torch.matmul(queries, keys.transpose(1, 2)) / queries.shape[-1] ** 0.5  # (B, T, T)
    halves = biases.transpose(1, 2) / 2  # (B, 2 C, T)
    pairs = mask[:, :, None] & mask[:, None, :]  # (B, T, T)
    if ordered:
        places = torch.arange(mask.shape[1], device=mask.device)
        pairs = pairs & (places[:, None] <= places)
    logits = products[:, None] + halves[:, ::2, None, :] + halves[:, 1::2, :, None]  # (B, C, T, T)
    return logits.masked_fill_(~pairs[:, None], max(ABSENT, torch.finfo(logits.dtype).min))


def pair_loss(logits: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """Multi-label categorical cross entropy with sparse labels: marked pairs above zero, all others below.

    For every label `log(1 + sum of exp(logit) of the others) + log(1 + sum of exp(-logit) of the marked)`.

    Args:
        logits: (B, C, T, T).
        marked: (B, K, 3) int64: label, first and second token of each marked pair; [`IGNORED`] where a row has fewer
            than K.

    Returns:
        The sum over labels, mean over the batch; a scalar, fp32.
    """
    rows, labels, tokens = logits.shape[:3]
    flat = logits.float().reshape(rows, -1)  # (B, C T T)
    lowest = torch.finfo(flat.dtype).min
    is_there = marked[..., 0] >= 0  # (B, K)
    kinds, first, second = marked.clamp(min=0).unbind(-1)
    # What is not there goes to a place of its own behind the others.
    places = ((kinds * tokens + first) * tokens + second).masked_fill(~is_there, flat.shape[1])
    extended = F.pad(flat, (0, 1))
    others = extended.scatter(1, places, lowest)[:, :-1].reshape(rows, labels, -1)  # (B, C, T T)
    own = torch.arange(labels, device=marked.device)[:, None] == kinds[:, None]  # (B, C, K)
    chosen = (-extended.gather(1, places))[:, None].masked_fill(~(own & is_there[:, None]), lowest)  # (B, C, K)
    below = F.softplus(others.logsumexp(-1))
    above = F.softplus(F.pad(chosen, (0, 1), value=lowest).logsumexp(-1))  # of an empty sum, too
    return (below + above).sum(-1).mean()


@dataclass
class ErnieGPLinkerOutput(ModelOutput):
    """What [`ErnieForGPLinker`] returns.

    Args:
        loss: Scalar, where labels were given.
        entity_logits: (B, entity labels, T, T): above 0 where an entity goes from the first token to the second.
        head_logits: (B, relation labels, T, T): above 0 where subject and object begin; `None` without relations.
        tail_logits: (B, relation labels, T, T): above 0 where subject and object end; `None` without relations.
        hidden_states: The embedding's output and every layer's, each (B, T, hidden), where asked for.
        attentions: Every layer's attention weights, each (B, heads, T, T), where asked for (eager attention).
    """

    loss: torch.Tensor | None = None
    entity_logits: torch.Tensor | None = None
    head_logits: torch.Tensor | None = None
    tail_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class GlobalPointer(nn.Module):
    """A score for every label and pair of tokens. Names are PaddleNLP's.

    Args:
        config: Its `hidden_size` and `pointer_size` count.
        num_labels: C.
        ordered: Whether pairs are spans, see [`pointer_scores`].
    """

    def __init__(self, config: ErnieGPLinkerConfig, num_labels: int, ordered: bool):
        super().__init__()
        self.ordered = ordered
        self.dense1 = nn.Linear(config.hidden_size, config.pointer_size * 2)
        self.dense2 = nn.Linear(config.pointer_size * 2, num_labels * 2)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, T, hidden) and (B, T) -> (B, C, T, T)."""
        pointers = self.dense1(hidden)
        return pointer_scores(pointers, self.dense2(pointers), mask, self.ordered)


class ErnieForGPLinker(ErnieTaskModel):
    """ERNIE with a score for every entity type and every relation of one schema, for all pairs of tokens.

    The pooler belongs to the checkpoints; its output is not used.
    """

    config: ErnieGPLinkerConfig
    config_class = ErnieGPLinkerConfig
    hub_classes = HUB_CLASSES

    def __init__(self, config: ErnieGPLinkerConfig):
        super().__init__(config)
        self.entity_output = GlobalPointer(config, len(config.entity_labels), ordered=True)
        if config.relation_labels:
            self.head_output = GlobalPointer(config, len(config.relation_labels), ordered=False)
            self.tail_output = GlobalPointer(config, len(config.relation_labels), ordered=False)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]  # the host types keyword arguments so, and mypy wants them total
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        entity_labels: torch.Tensor | None = None,
        relation_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ErnieGPLinkerOutput:
        """Scores every pair of tokens as an entity of each type, and as the ends of each relation.

        Args:
            input_ids: (B, T) int64; pad ids embed to zero.
            attention_mask: (B, T) with 1 = a token. Left out, pad ids are none (given embeddings, all are tokens).
            token_type_ids: (B, T) int64. Left out, 0.
            task_type_ids: (B, T) int64. Left out, `config.task_id`.
            position_ids: (B, T) int64. Left out, 0 .. T - 1.
            inputs_embeds: (B, T, hidden) in place of `input_ids`.
            entity_labels: (B, K, 3) int64: type, first and last token of every entity; -100 where a row has fewer.
                Training with the host's `Trainer` takes `label_names=["entity_labels", "relation_labels"]`.
            relation_labels: (B, K, 5) int64: relation, first and last token of the subject, first and last token of
                the object; -100 where a row has fewer. Not read by a model without relations.
            **kwargs: For the encoder: `output_hidden_states`, `output_attentions`; and `return_dict`.

        Returns:
            An [`ErnieGPLinkerOutput`]. `loss` is the mean of [`pair_loss`] over the heads that exist: one, or three.

        Raises:
            TypeError: an argument that nothing reads.
            ValueError: labels of another shape, or outside the row; a model with relations that is given only one
                kind of labels; a mask of more dimensions; not exactly one of ids and embeddings.
        """
        outputs = self._encode(
            input_ids, attention_mask, token_type_ids, task_type_ids, position_ids, inputs_embeds, kwargs
        )
        hidden = outputs.last_hidden_state  # (B, T, hidden)
        mask = _tokens_of(hidden, input_ids, attention_mask, self.config.pad_token_id)
        logits = [self.entity_output(hidden, mask)]
        if self.config.relation_labels:
            logits += [self.head_output(hidden, mask), self.tail_output(hidden, mask)]
        marked = _marked_pairs(logits, entity_labels, relation_labels)
        losses = [pair_loss(scores, pairs) for scores, pairs in zip(logits, marked, strict=False)]
        entity, head, tail = [*logits, None, None][:3]
        return ErnieGPLinkerOutput(
            loss=torch.stack(losses).mean() if losses else None,
            entity_logits=entity,
            head_logits=head,
            tail_logits=tail,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _tokens_of(
    hidden: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, pad: int | None
) -> torch.Tensor:
    """(B, T) bool: where there is a token."""
    if attention_mask is not None:
        if attention_mask.ndim != 2:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; the pairs of tokens that are scored need "
                "one of (batch, tokens), 1 = token, 0 = padding."
            )
        return attention_mask.to(torch.bool).expand(hidden.shape[:2])
    if input_ids is None or pad is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return input_ids != pad


def _marked_pairs(
    logits: Sequence[torch.Tensor], entity_labels: torch.Tensor | None, relation_labels: torch.Tensor | None
) -> list[torch.Tensor]:
    """For every head (B, K, 3): label, first and second token of each pair. Nothing where no labels are given."""
    needs_both = len(logits) > 1
    if entity_labels is None and (relation_labels is None or not needs_both):
        return []
    if entity_labels is None or (relation_labels is None and needs_both):
        missing = "entity_labels" if entity_labels is None else "relation_labels"
        raise ValueError(
            f"{missing} are missing: this model scores entities and relations, and its loss takes labels of both."
        )
    _check_marked("entity_labels", entity_labels, logits[0], 3)
    if not needs_both or relation_labels is None:
        return [entity_labels]
    _check_marked("relation_labels", relation_labels, logits[1], 5)
    return [entity_labels, relation_labels[..., [0, 1, 3]], relation_labels[..., [0, 2, 4]]]


def _check_marked(name: str, marked: torch.Tensor, logits: torch.Tensor, size: int) -> None:
    """Refuses labels of another shape, and those that mark nothing there is."""
    if traced():
        return
    rows, labels, tokens = logits.shape[:3]
    if marked.ndim != 3 or marked.shape[0] != rows or marked.shape[2] != size or marked.is_floating_point():
        raise ValueError(
            f"{name} is {marked.dtype} of shape {tuple(marked.shape)}; it must be int64 of ({rows}, any, {size})."
        )
    if marked.device.type == "cpu":
        there = marked[marked[..., 0] != IGNORED]
        limits = torch.tensor([labels, *[tokens] * (size - 1)])
        if len(wrong := there[((there < 0) | (there >= limits)).any(-1)]):
            raise ValueError(
                f"{name} has {wrong[0].tolist()}: there are {labels} labels and rows of {tokens} tokens; a place "
                f"without one is {IGNORED} throughout."
            )


__all__ = ["ErnieForGPLinker", "ErnieGPLinkerOutput"]
