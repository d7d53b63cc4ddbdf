"""Configuration of ERNIE 3.0 and ERNIE 3.0 Titan, the unified framework.

The model is two stacks in a row: a wide *universal* stack that every task shares, and behind it a small *branch*, one
for understanding (`"nlu"`, bidirectional) and one for generation (`"nlg"`, causal). Fields without a prefix describe
the universal stack, `branch_*` each branch. The defaults are the 10B model; [`Ernie3Config.titan`] is the 260B one.

Neither paper's weights are public, so values that only the papers' text could settle are choices, stated where they
are made.

Sources: P10 = ERNIE 3.0, arXiv 2107.02137; PT = ERNIE 3.0 Titan, arXiv 2112.12731; the never released `ernie3-10b`
model on a side branch of PaddleNLP.
"""

import copy
from dataclasses import field
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_arguments import (
    DEVIATION,
    EPSILON,
    MAX_LAYERS,
    MAX_SIZE,
    PROBABILITY,
    SIZE,
    Range,
    check_activations,
    check_arguments,
    check_ranges,
)

# What a saved folder says about its code: every Auto class that opens it.
HUB_CLASSES = {
    "AutoConfig": "configuration_ernie3.Ernie3Config",
    "AutoModel": "modeling_ernie3.Ernie3Model",
    "AutoModelForPreTraining": "modeling_ernie3_pretraining.Ernie3ForPreTraining",
} | {
    f"AutoModelFor{task}": f"modeling_ernie3_heads.Ernie3For{task}"
    for task in (
        "CausalLM",
        "MaskedLM",
        "SequenceClassification",
        "TokenClassification",
        "QuestionAnswering",
        "MultipleChoice",
    )
}

BRANCHES = ("nlu", "nlg")

# The pre-training tasks, each named here alone.
KNOWLEDGE_MASKED_LM = "knowledge_masked_lm"
DOCUMENT_LM = "document_lm"
SENTENCE_REORDERING = "sentence_reordering"
SENTENCE_DISTANCE = "sentence_distance"
KNOWLEDGE_TEXT_PREDICTION = "knowledge_text_prediction"
CREDIBLE = "credible"
CONTROLLABLE_LM = "controllable_lm"
# Every task, and the branch that it trains.
TASK_BRANCHES = {
    KNOWLEDGE_MASKED_LM: "nlu",
    DOCUMENT_LM: "nlg",
    SENTENCE_REORDERING: "nlu",
    SENTENCE_DISTANCE: "nlu",
    KNOWLEDGE_TEXT_PREDICTION: "nlu",
    CREDIBLE: "nlu",
    CONTROLLABLE_LM: "nlg",
}
POSITION_EMBEDDING_TYPES = ("absolute", "relative")
POSITION_OVERFLOWS = ("wrap", "refuse", "last")
RECURRENCES = ("same_layer", "shift_down")
# What the numbers may be; of what may be left out, 0 says so.
_COUNT = Range(0, MAX_SIZE)
_STACK = {
    "hidden_size": SIZE,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": Range(0, MAX_LAYERS),
    "hidden_dropout_prob": PROBABILITY,
    "attention_probs_dropout_prob": PROBABILITY,
}
RANGES = (
    _STACK
    | {f"branch_{name}": allowed for name, allowed in _STACK.items()}
    | {"vocab_size": SIZE, "max_position_embeddings": SIZE, "soft_prompt_length": _COUNT}
    | {"classifier_dropout": PROBABILITY, "initializer_range": DEVIATION, "layer_norm_eps": EPSILON}
)
LEFT_OUT_BY_0 = (
    "memory_length",
    "type_vocab_size",
    "task_type_vocab_size",
    "num_reorder_labels",
    "num_distance_labels",
    "num_credible_labels",
    "num_soft_prompt_genres",
)

_LAYERS = ("encoder.layers.*", "branches.nlu.layers.*", "branches.nlg.layers.*")
_SPLIT = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.out_proj": "rowwise",
    "linear1": "colwise",
    "linear2": "rowwise",
}


class StackSizes(NamedTuple):
    """The sizes of one stack: the universal one, or a branch."""

    width: int
    num_layers: int
    num_heads: int
    inner_width: int
    activation: str


@strict
class Ernie3Config(PreTrainedConfig):
    r"""Settings of an [`Ernie3Model`]; an instance without arguments describes ERNIE 3.0 10B.

    Args:
        vocab_size: Rows of the embedding and of the language-model heads.
        hidden_size: Width of the universal stack [P10].
        num_hidden_layers: Layers of the universal stack [P10].
        num_attention_heads: Heads of the universal stack [P10].
        intermediate_size: Inner width of its feed-forward; 4 * hidden, in Titan 16 * hidden [PT].
        hidden_act: Its activation; `"gelu"` is the exact (erf) one.
        branch_hidden_size: Width of each branch [P10: "base model size"].
        branch_num_hidden_layers: Layers of each branch.
        branch_num_attention_heads: Heads of each branch.
        branch_intermediate_size: Inner width of a branch's feed-forward.
        branch_hidden_act: Activation of the branches.
        branches: Which branches there are, of `"nlu"` and `"nlg"`. A class with one task builds only the branch it
            uses, whatever else is listed.
        max_position_embeddings: Rows of the absolute position table. With relative positions the longest segment in
            tokens.
        position_overflow: What a position behind the table is, as a document's may be that goes on from memories:
            `"wrap"`, counted on from 0 again, with a warning once; `"refuse"`, an error; `"last"`, the last row for
            all of them. Without absolute positions (`"relative"`) documents may be of any length.
        type_vocab_size: Rows of the token-type embedding; 0 = there is none, as in the 10B model.
        task_type_vocab_size: Rows of the task-type embedding; 0 = there is none.
        position_embedding_type: `"absolute"`, as the only public 10B code, or `"relative"`: Transformer-XL scores with
            a learned table, as in ERNIE-Doc. With relative positions token and task types enter the scores too, in
            place of the embedding, and tensor parallelism leaves the layers whole.
        memory_length: States per layer that a segment hands to the next one (128 in both papers); 0 = no memory.
        recurrence: `"same_layer"`: a layer's memory is its own output of the segment before (ERNIE-Doc's enhanced
            recurrence, P10). `"shift_down"`: its input, as in Transformer-XL.
        memory_pre_norm: Whether a layer normalises its memory as it does its input. `False` is what ERNIE-Doc's code
            does in its pre-norm configuration: the memory stands un-normalised beside normalised states.
        hidden_dropout_prob: Dropout probability after attention and feed-forward of the universal stack, in training.
            Read at every forward, as the other three are, so that a schedule may set it.
        attention_probs_dropout_prob: Dropout probability of its attention weights, in training.
        branch_hidden_dropout_prob: The same for the branches.
        branch_attention_probs_dropout_prob: The same for the branches.
        classifier_dropout: Dropout probability before a classification head; `None`: the branches' rate.
        initializer_range: Standard deviation of new weights.
        layer_norm_eps: Epsilon of every LayerNorm.
        use_cache: Whether the generation branch returns a key/value cache.
        tie_word_embeddings: Whether a language-model head is the word embedding; only where both widths agree.
        num_reorder_labels: Classes of sentence reordering; 33 = all permutations of up to 4 segments.
        num_distance_labels: Classes of sentence distance: adjacent, same document, different documents.
        num_credible_labels: Classes of the credible head [PT, 2.1], 1 = original text; 0 = no such head (10B).
        num_soft_prompt_genres: Genres with learned soft prompts [PT, 2.2]; 0 = none (10B).
        soft_prompt_length: Soft prompt vectors per genre.
        soft_prompt_token_id: Id that stands in `input_ids` for one soft prompt vector.
        pad_token_id: Id of `[PAD]`.
        bos_token_id: Id of `[CLS]`.
        sep_token_id: Id of `[SEP]`.
        mask_token_id: Id of `[MASK]`.
        eos_token_id: Id of `[END]`, which ends a generated text.
        sentence_token_id: Id of `<S>`, which follows every sentence.

    Raises:
        ValueError: a number out of its range, sizes that do not fit each other, an unknown word where a choice is
            listed, or an argument that is no setting.

    ```python
    >>> from hf_glm_ernie import Ernie3Config

    >>> Ernie3Config().hidden_size, Ernie3Config.titan().hidden_size
    (4096, 12288)
    ```
    """

    model_type = "ernie3"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "memories"]
    base_model_tp_plan = {f"{layers}.{name}": style for layers in _LAYERS for name, style in _SPLIT.items()} | {
        # along the vocabulary, as the heads' projections to it, which may be the same parameter
        "embeddings.word_embeddings": "embedding_rowwise"
    }
    # units of FSDP2: what is gathered together and let go of again
    base_model_fsdp_plan = dict.fromkeys(("embeddings", *_LAYERS), "free_full_weight")

    vocab_size: int = 30000
    hidden_size: int = 4096
    num_hidden_layers: int = 48
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    hidden_act: str = "gelu"
    branch_hidden_size: int = 768
    branch_num_hidden_layers: int = 12
    branch_num_attention_heads: int = 12
    branch_intermediate_size: int = 3072
    branch_hidden_act: str = "gelu"
    branches: list[str] = field(default_factory=lambda: ["nlu", "nlg"])
    max_position_embeddings: int = 3072
    type_vocab_size: int = 0
    task_type_vocab_size: int = 0
    position_overflow: str = "wrap"
    position_embedding_type: str = "absolute"
    memory_length: int = 128
    recurrence: str = "same_layer"
    memory_pre_norm: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    branch_hidden_dropout_prob: float | int = 0.0
    branch_attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout: float | int | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_cache: bool = True
    tie_word_embeddings: bool = False
    num_reorder_labels: int = 33
    num_distance_labels: int = 3
    num_credible_labels: int = 0
    num_soft_prompt_genres: int = 0
    soft_prompt_length: int = 64
    soft_prompt_token_id: int | None = 29984
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    sep_token_id: int | None = 2
    mask_token_id: int | None = 3
    eos_token_id: int | list[int] | None = 29979
    sentence_token_id: int | None = 29980

    @classmethod
    def ernie3_10b(cls, **overrides: Any) -> "Ernie3Config":
        """The 10B model [P10, section 3.1]: the defaults. `overrides` replace single fields."""
        return cls(**overrides)

    @classmethod
    def titan(cls, **overrides: Any) -> "Ernie3Config":
        """ERNIE 3.0 Titan, 260B [PT, section 3]; `overrides` replace single fields."""
        settings: dict[str, Any] = {
            "hidden_size": 12288,
            "num_attention_heads": 192,
            "intermediate_size": 196608,
            "num_credible_labels": 2,
            "num_soft_prompt_genres": 11,
        }
        return cls(**(settings | overrides))

    def __post_init__(self, **kwargs: Any) -> None:
        check_arguments(self, kwargs)
        if self.position_embedding_type == "relative":
            # the biases of the scores are vectors over all heads, which no style of the host splits
            self.base_model_tp_plan = None  # type: ignore[misc, assignment]  # the host reads it from the instance
        if self.tie_word_embeddings:
            # a shared weight must be in one unit with all that share it: that of the root
            self.base_model_fsdp_plan = dict.fromkeys(_LAYERS, "free_full_weight")  # type: ignore[misc]  # likewise
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Checks what the types cannot (called by the host's `@strict` validation)."""
        check_ranges(self, RANGES)
        check_activations(self, ("hidden_act", "branch_hidden_act"))
        for prefix, sizes in (("", self.universal_sizes), ("branch_", self.branch_sizes)):
            if sizes.width % sizes.num_heads:
                raise ValueError(
                    f"{prefix}num_attention_heads={sizes.num_heads} does not divide "
                    f"{prefix}hidden_size={sizes.width} into whole heads."
                )
        self._check_choices()
        for name in LEFT_OUT_BY_0:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative; 0 leaves the part out.")
        check_ranges(self, dict.fromkeys(LEFT_OUT_BY_0, _COUNT))
        placeholder = self.soft_prompt_token_id
        usable = placeholder is not None and placeholder < self.vocab_size and self.soft_prompt_length > 0
        if self.num_soft_prompt_genres and not usable:
            raise ValueError(
                f"num_soft_prompt_genres={self.num_soft_prompt_genres} needs a soft_prompt_token_id below "
                f"vocab_size={self.vocab_size} and a soft_prompt_length of at least 1, not {placeholder} and "
                f"{self.soft_prompt_length}."
            )
        if self.tie_word_embeddings and self.branch_hidden_size != self.hidden_size:
            raise ValueError(
                f"tie_word_embeddings needs branch_hidden_size={self.branch_hidden_size} to equal "
                f"hidden_size={self.hidden_size}: the head is behind the branch, the embedding before the universal "
                "stack. Set it to False."
            )

    def _check_choices(self) -> None:
        if not self.branches or len(set(self.branches)) < len(self.branches) or set(self.branches) - set(BRANCHES):
            raise ValueError(f"branches={self.branches} must name one or both of {list(BRANCHES)}, each once.")
        for name, choices in (
            ("position_overflow", POSITION_OVERFLOWS),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("recurrence", RECURRENCES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {choices}.")

    @property
    def universal_sizes(self) -> StackSizes:
        """The sizes of the universal stack."""
        return StackSizes(
            self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.intermediate_size, self.hidden_act
        )

    @property
    def branch_sizes(self) -> StackSizes:
        """The sizes of every branch."""
        return StackSizes(
            self.branch_hidden_size,
            self.branch_num_hidden_layers,
            self.branch_num_attention_heads,
            self.branch_intermediate_size,
            self.branch_hidden_act,
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the universal stack."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_generation_layers(self) -> int:
        """Layers that a generated token passes: the universal stack's, then the generation branch's."""
        return self.num_hidden_layers + self.branch_num_hidden_layers

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "Ernie3Config":
        """As in the host; asked for the decoder, a copy whose `num_hidden_layers` counts the generation branch too.

        The host builds every cache (dynamic, static, quantized, a user's own) from this, one layer of the cache for
        each layer of the decoder.
        """
        if not decoder or encoder or "nlg" not in self.branches:
            return self
        whole = copy.copy(self)
        whole.num_hidden_layers = self.num_generation_layers
        whole.branch_num_hidden_layers = 0  # counted: the host asks the copy once more
        return whole


__all__ = ["Ernie3Config"]
