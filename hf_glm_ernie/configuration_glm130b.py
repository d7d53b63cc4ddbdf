"""Configuration of GLM-130B.

The defaults are the released 130B model. What is unusual about it and therefore stands here as a field: the rotary
tables are rounded to fp16 (`rotary_dtype`), the embedding gradient is scaled down in training
(`embedding_gradient_shrink`), and the ids that steer the prefix attention (`[MASK]`, `[gMASK]`, `[sMASK]`, `<sop>`)
are part of the model's behaviour, not only of its tokenizer.

Source: GLM-130B, arXiv 2210.02414; `configs/model_glm_130b.sh` of the public repository; SwissArmyTransformer 0.2.12,
`model/official/glm130B_model.py`.
"""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_arguments import (
    DEVIATION,
    EPSILON,
    LAYERS,
    MAX_POSITIONS,
    PROBABILITY,
    SIZE,
    Range,
    check_arguments,
    check_ranges,
)

ROTARY_DTYPES = ("float16", "float32")
# What the numbers may be.
RANGES = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "max_position_embeddings": Range(1, MAX_POSITIONS),
    "layer_norm_eps": EPSILON,
    "hidden_dropout": PROBABILITY,
    "attention_dropout": PROBABILITY,
    "initializer_range": DEVIATION,
    "rope_theta": Range(0, 1e12, is_open=True),
    "embedding_gradient_shrink": PROBABILITY,
}


@strict
class Glm130bConfig(PreTrainedConfig):
    r"""Settings of a [`Glm130bModel`]; an instance without arguments describes the released GLM-130B.

    Args:
        vocab_size: Rows of the embedding, padding included (the tokenizer knows 150,344 of the 150,528).
        hidden_size: Width of the residual stream.
        intermediate_size: Width of each GeGLU half (`inner_hidden_size` in the original).
        num_hidden_layers: Number of layers N; also sets DeepNorm's residual scale `(2 * N) ** 0.5`.
        num_attention_heads: Heads; must divide `hidden_size` into an even head size.
        max_position_embeddings: Context length in tokens the model was trained with (`max_sequence_length` in the
            original).
        layer_norm_eps: Epsilon of every LayerNorm.
        hidden_dropout: Dropout probability after the embedding and after each sublayer, in training.
        attention_dropout: Dropout probability of the attention weights, in training.
        initializer_range: Standard deviation of a new embedding. Linears take DeepNorm's Xavier initialisation.
        rope_theta: Base of the rotary frequencies.
        rotary_dtype: `"float16"`: frequencies, angles, cos and sin are rounded to fp16 whatever the compute dtype, as
            the weights were trained. `"float32"`: exact tables, a different model beyond position 1000 or so.
        embedding_gradient_shrink: Factor on the gradient that reaches the embedding through the input in training
            (paper, 3.1); 1.0 turns it off. The forward value is unchanged.
        allow_context_labels: Whether `forward` takes labels on bidirectional context. There a token sees the one it
            is to predict, so a model trained on them unlearns everything else within a few steps: an error by
            default.
        use_cache: Whether the model returns a key/value cache.
        tie_word_embeddings: Whether the output projection is the word embedding (released: yes).
        mask_token_id: Id of `[MASK]`, a short blank; `None` for a model without the token (so are the next three).
        gmask_token_id: Id of `[gMASK]`, a blank of open length at the end.
        smask_token_id: Id of `[sMASK]`, a sentence blank.
        sop_token_id: Id of `<sop>`: what stands before it in a row is bidirectional context. `None`: every row is
            causal.
        eop_token_id: Id of `<eop>`, the end of a generated piece.
        eos_token_id: Ids that end generation; `None` means `<eop>` and `</s>` as released (150005 and 20002).
        pad_token_id: Id of `<pad>`.
        bos_token_id: Not used by the released model.

    Raises:
        ValueError: a number out of its range, heads that do not divide the hidden size into an even head size, an
            unknown `rotary_dtype`, or an argument that is no setting.

    ```python
    >>> from hf_glm_ernie import Glm130bConfig

    >>> Glm130bConfig().num_hidden_layers
    70
    ```
    """

    model_type = "glm130b"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 150528
    hidden_size: int = 12288
    intermediate_size: int = 32768
    num_hidden_layers: int = 70
    num_attention_heads: int = 96
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    initializer_range: float = 0.02
    rope_theta: float | int = 10000.0
    rotary_dtype: str = "float16"
    embedding_gradient_shrink: float | int = 0.1
    allow_context_labels: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    mask_token_id: int | None = 150000
    gmask_token_id: int | None = 150001
    smask_token_id: int | None = 150002
    sop_token_id: int | None = 150004
    eop_token_id: int | None = 150005
    eos_token_id: int | list[int] | None = field(default_factory=lambda: [150005, 20002])
    pad_token_id: int | None = 20003
    bos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_arguments(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Checks what the types cannot (called by the host's `@strict` validation)."""
        check_ranges(self, RANGES)
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} into "
                "heads of even size (rotary positions turn pairs of dimensions). The released model has 96 heads "
                "of 128."
            )
        if self.rotary_dtype not in ROTARY_DTYPES:
            raise ValueError(
                f"rotary_dtype={self.rotary_dtype!r} is not one of {ROTARY_DTYPES}. 'float16' is the released "
                "behaviour."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


__all__ = ["Glm130bConfig"]
