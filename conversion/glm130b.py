"""GLM-130B: the table of names, and its two conversions planned.

The released layout is SwissArmyTransformer's: `latest` holds the iteration, `<iteration>/mp_rank_XX_model_states.pt`
one pickle {"module": {name: tensor}} per tensor-parallel rank. Sources: GLM-130B `tools/convert_tp.py` (how ranks
join), SwissArmyTransformer 0.2.12 `model/official/glm130B_model.py` (order of the rows inside query_key_value and
dense_h_to_4h).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer
from hf_glm_ernie.weight_only import METHOD

from .folder_files import count, main_dtype
from .glm130b_files import DEFAULT_ITERATION, Record, read_record, write_first, write_last
from .glm130b_quantized import (
    check_scales_of,
    notices_on_copies,
    notices_on_quantization,
    plan_merging,
    plan_splitting,
    without_quantized,
)
from .glm130b_settings import Sizes, build_config, read_settings
from .job import Job
from .operations import Concat, Drop, Replicated, SettingsError, Shape, Split, SplitGlu, SplitQkv, Tied
from .rank_files import RankCheckpoint
from .readers import CheckpointError, SafetensorsFolder
from .state_map import Plan, Row, StateMap
from .writer import OutputFile, TorchArchive, plan_shards

ExpectedShapes = Callable[[Glm130bConfig], Mapping[str, Shape]]
"""Names and shapes the model of a configuration has."""

_RECOMPUTED = "a rotary table of the original's buffers; the model computes it"


# The rows stand in the order of the original's files.
TABLE = StateMap(
    "GLM-130B",
    (
        Row("transformer.word_embeddings.weight", ("model.embed_tokens.weight",), Concat(0)),
        Row(
            "transformer.layers.{i}.input_layernorm.weight", ("model.layers.{i}.input_layernorm.weight",), Replicated()
        ),
        Row("transformer.layers.{i}.input_layernorm.bias", ("model.layers.{i}.input_layernorm.bias",), Replicated()),
        Row(
            "transformer.layers.{i}.attention.query_key_value.weight",
            (
                "model.layers.{i}.self_attn.q_proj.weight",
                "model.layers.{i}.self_attn.k_proj.weight",
                "model.layers.{i}.self_attn.v_proj.weight",
            ),
            SplitQkv(),
        ),
        Row(
            "transformer.layers.{i}.attention.query_key_value.bias",
            (
                "model.layers.{i}.self_attn.q_proj.bias",
                "model.layers.{i}.self_attn.k_proj.bias",
                "model.layers.{i}.self_attn.v_proj.bias",
            ),
            SplitQkv(),
        ),
        Row("transformer.layers.{i}.attention.dense.weight", ("model.layers.{i}.self_attn.o_proj.weight",), Concat(1)),
        Row("transformer.layers.{i}.attention.dense.bias", ("model.layers.{i}.self_attn.o_proj.bias",), Replicated()),
        Row(
            "transformer.layers.{i}.post_attention_layernorm.weight",
            ("model.layers.{i}.post_attention_layernorm.weight",),
            Replicated(),
        ),
        Row(
            "transformer.layers.{i}.post_attention_layernorm.bias",
            ("model.layers.{i}.post_attention_layernorm.bias",),
            Replicated(),
        ),
        Row("transformer.layers.{i}.mlp.dense_4h_to_h.weight", ("model.layers.{i}.mlp.down_proj.weight",), Concat(1)),
        Row("transformer.layers.{i}.mlp.dense_4h_to_h.bias", ("model.layers.{i}.mlp.down_proj.bias",), Replicated()),
        # The original computes x1 * gelu(x2) from [x1; x2]: x1 is `up`, x2, under the gelu, is `gate`.
        Row(
            "transformer.layers.{i}.mlp.dense_h_to_4h.weight",
            (
                "model.layers.{i}.mlp.up_proj.weight",
                "model.layers.{i}.mlp.gate_proj.weight",
            ),
            SplitGlu(),
        ),
        Row(
            "transformer.layers.{i}.mlp.dense_h_to_4h.bias",
            (
                "model.layers.{i}.mlp.up_proj.bias",
                "model.layers.{i}.mlp.gate_proj.bias",
            ),
            SplitGlu(),
        ),
        Row("transformer.final_layernorm.weight", ("model.norm.weight",), Replicated()),
        Row("transformer.final_layernorm.bias", ("model.norm.bias",), Replicated()),
        Row(None, ("lm_head.weight",), Tied("model.embed_tokens.weight")),
        Row("transformer.layers.{i}.attention.rotary_emb.inv_freq", (), Drop(_RECOMPUTED)),
        Row("mixins.rotary-embedding.rotary_emb.inv_freq", (), Drop(_RECOMPUTED)),
    ),
)


@dataclass(frozen=True)
class ForwardOptions:
    """Choices of a conversion from the released format.

    Attributes:
        settings: JSON file with what the tensors cannot tell; default: `config.json` in the source folder, if there.
        tokenizer_model: sentencepiece file; default: `ice_text.model` in the source folder, if there.
        dtype: What the weights become; `None` keeps theirs.
        bits: Quantize the linears' weights to 4 or 8 bits, one scale a row; `None` keeps them as they are.
        max_shard_bytes: Upper limit of a shard's data.
        replicated_from_rank_0: Accept ranks whose replicated tensors differ, and take rank 0's.
        headers_only: Plan without reading any tensor, for a dry run.
    """

    settings: Path | None = None
    tokenizer_model: Path | None = None
    dtype: torch.dtype | None = None
    bits: int | None = None
    max_shard_bytes: int = 5 * 10**9
    replicated_from_rank_0: bool = False
    headers_only: bool = False


def plan_forward(source: Path, options: ForwardOptions, expected: ExpectedShapes) -> Job:
    """Plans a conversion of the released format into a folder for `from_pretrained`. Writes nothing.

    Args:
        source: Folder with `latest`, or an iteration's folder.
        options: The user's choices.
        expected: Gives the names and shapes the target model has.

    Raises:
        ConversionError: anything about the checkpoint, the settings or the tokenizer that does not fit.
    """
    checkpoint = RankCheckpoint(source)
    sizes = read_sizes(checkpoint)
    ranks = len(checkpoint.files)
    config, tokenizer, notices = _configure(source, sizes, ranks, options)
    split = Split(ranks, config.num_attention_heads)
    plan, quantization = plan_merging(
        TABLE, checkpoint.specs, split, expected(config), options.dtype, options.bits, checkpoint.folder
    )
    if quantization is not None:
        config.quantization_config = quantization.config
    if not options.headers_only:
        notices += _compare_replicated(checkpoint, options.replicated_from_rank_0)
        check_scales_of(checkpoint, checkpoint.specs, [file.path for file in checkpoint.files])
    files = plan_shards(plan.tensors, options.max_shard_bytes, {"format": "pt"}, quantized=quantization is not None)
    dtype, dtype_notices = main_dtype(*without_quantized(plan, checkpoint.specs))
    record = Record(checkpoint.iteration, ranks, dropped=[name for name, _ in plan.dropped], bits=options.bits)
    is_released_size = sizes == read_released_sizes()

    def first(folder: Path) -> None:
        write_first(folder, config, dtype, tokenizer)

    def last(folder: Path, digests: Mapping[str, str]) -> None:
        write_last(folder, config, files, replace(record, sha256=digests), is_released_size, tokenizer is not None)

    def reopen(folder: Path) -> None:
        if SafetensorsFolder(folder).specs != {tensor.name: tensor.spec for tensor in plan.tensors}:
            raise CheckpointError(f"{folder}: the index and the shards do not hold the planned tensors")

    return Job(
        title=f"GLM-130B {checkpoint.folder} (iteration {checkpoint.iteration}, {count(ranks, 'rank')}) "
        f"-> safetensors for transformers",
        source=checkpoint,
        plan=plan,
        files=files,
        order=_in_order_of_the_plan(plan, files),
        options={"split": str(split), "dtype": str(options.dtype), "bits": str(options.bits)},
        write_first=first,
        write_last=last,
        reopen=reopen,
        notices=[
            *notices,
            *dtype_notices,
            *notices_on_quantization(quantization, options.bits),
            *_notices_on_dropped(plan),
        ],
    )


def _configure(
    source: Path, sizes: Sizes, ranks: int, options: ForwardOptions
) -> tuple[Glm130bConfig, Glm130bTokenizer | None, list[str]]:
    """The model's configuration, its tokenizer if there is one, and notices on both."""
    settings = read_settings(options.settings or _beside(source, "config.json"))
    tokenizer_model = _find_tokenizer_model(source, options.tokenizer_model)
    tokenizer = None if tokenizer_model is None else _load_tokenizer(tokenizer_model, settings.num_image_tokens)
    config, notices = build_config(sizes, ranks, settings, tokenizer)
    if tokenizer is not None:
        tokenizer.model_max_length = config.max_position_embeddings
    return config, tokenizer, [*settings.notices, *notices]


def _in_order_of_the_plan(plan: Plan, files: Sequence[OutputFile]) -> list[tuple[str, int]]:
    """File by file, a file's tensors in the order of the plan: what shares a source is written one after the other."""
    number = {tensor.name: index for index, tensor in enumerate(plan.tensors)}
    order = []
    for file in files:
        numbered = sorted((number[tensor.name], position) for position, tensor in enumerate(file.tensors))
        order += [(file.name, position) for _, position in numbered]
    return order


def plan_reverse(source: Path, ranks: int, dtype: torch.dtype | None, expected: ExpectedShapes) -> Job:
    """Plans writing the released format from a folder for `from_pretrained`. Writes nothing.

    Args:
        source: A converted (and perhaps fine-tuned) folder.
        ranks: Tensor-parallel degree to write.
        dtype: What the weights become; `None` keeps theirs.
        expected: Gives the names and shapes the source model has.

    Raises:
        ConversionError: anything about the folder that does not fit, or a degree that does not divide.
    """
    config = _read_config(source)
    checkpoint = SafetensorsFolder(source)
    _check_degree(ranks, config)
    split = Split(ranks, config.num_attention_heads)
    bits = (getattr(config, "quantization_config", None) or {}).get("bits")
    plan, quantization = plan_splitting(TABLE, checkpoint.specs, split, expected(config), dtype, bits, source)
    check_scales_of(checkpoint, checkpoint.specs, [source])
    iteration, record_notices = _read_iteration(source)
    by_rank = [[tensor for tensor in plan.tensors if tensor.part == rank] for rank in range(ranks)]
    files = [
        TorchArchive(f"{iteration}/mp_rank_{rank:02d}_model_states.pt", tensors, "module")
        for rank, tensors in enumerate(by_rank)
    ]

    def first(folder: Path) -> None:
        (folder / "latest").write_text(iteration, encoding="utf-8")

    def reopen(folder: Path) -> None:
        if RankCheckpoint(folder).specs != {tensor.name: tensor.spec for tensor in by_rank[0]}:
            raise CheckpointError(f"{folder}: the ranks do not hold the planned tensors")

    return Job(
        title=f"GLM-130B {source} -> released format, iteration {iteration}, {count(ranks, 'rank')}",
        source=checkpoint,
        plan=plan,
        files=files,
        # Tensor by tensor across the ranks, so that a tensor cut by columns is read from disk once.
        order=[(files[rank].name, position) for position in range(len(by_rank[0])) for rank in range(ranks)],
        options={"heads": str(config.num_attention_heads), "ranks": str(ranks), "dtype": str(dtype)},
        write_first=first,
        write_last=lambda folder, digests: None,
        reopen=reopen,
        notices=[
            *_notices_on_dropped(plan),
            *main_dtype(*without_quantized(plan, checkpoint.specs))[1],
            *notices_on_copies(TABLE, quantization, ranks),
            *record_notices,
        ],
    )


def _check_degree(ranks: int, config: Glm130bConfig) -> None:
    for what, length in (
        ("attention heads", config.num_attention_heads),
        ("rows of the vocabulary", config.vocab_size),
        ("inner size", config.intermediate_size),
    ):
        if ranks < 1 or length % ranks:
            raise SettingsError(
                f"--tensor-parallel {ranks} does not divide the {length} {what}. Degrees 1, 2, 4 and 8 are usual."
            )


def _read_iteration(source: Path) -> tuple[str, list[str]]:
    """The iteration a folder was converted from, or the released one, and notices on its record."""
    record = read_record(source)
    if record is None:
        return DEFAULT_ITERATION, [f"no conversion.json: written as iteration {DEFAULT_ITERATION}, the released one"]
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", record.iteration) or record.iteration == "latest":
        raise CheckpointError(
            f"{source / 'conversion.json'}: names the iteration {record.iteration!r}, which is not a folder name. "
            "Correct it."
        )
    if not record.dropped:
        return record.iteration, []
    left = f"{count(len(record.dropped), 'leftover rotary table')} of the original, not written back"
    return record.iteration, [f"{left}: {', '.join(record.dropped[:2])}"]


def read_released_sizes() -> Sizes:
    """The released model's sizes: the defaults of the configuration."""
    config = Glm130bConfig()
    return Sizes(config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers)


def read_sizes(checkpoint: RankCheckpoint) -> Sizes:
    """Reads the model's sizes off the shapes of one rank, and checks that as many ranks are there as they were cut
    for.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has the wrong number of dimensions; ranks too few or
            too many.
    """
    layers = [
        int(match.group(1)) for name in checkpoint.specs if (match := re.match(r"transformer\.layers\.(\d+)\.", name))
    ]
    embedding = _matrix(checkpoint, "transformer.word_embeddings.weight")
    attention = _matrix(checkpoint, "transformer.layers.{i}.attention.query_key_value.weight")
    mlp = _matrix(checkpoint, "transformer.layers.{i}.mlp.dense_h_to_4h.weight")
    hidden, ranks = embedding[1], len(checkpoint.files)
    if attention[0] == 0 or 3 * hidden % attention[0]:
        raise CheckpointError(
            f"{checkpoint.folder}: query_key_value has {attention[0]} rows on a rank, which is no equal part of 3 x "
            f"{hidden}. Not a GLM-130B checkpoint, or a damaged one."
        )
    cut_for = 3 * hidden // attention[0]
    if cut_for != ranks:
        names = [file.path.name for file in checkpoint.files]
        there = f"{ranks} rank files are there ({names[0]} .. {names[-1]})"
        mend = (
            f"Missing: {', '.join(f'mp_rank_{rank:02d}_model_states.pt' for rank in range(ranks, cut_for))}"
            if cut_for > ranks
            else f"Too many: {', '.join(names[cut_for:])}; move them elsewhere"
        )
        raise CheckpointError(
            f"{checkpoint.folder}: each rank holds 1/{cut_for} of the model (query_key_value {attention[0]} of "
            f"{3 * hidden} rows), but {there}. {mend}."
        )
    return Sizes(embedding[0] * ranks, hidden, mlp[0] * ranks // 2, max(layers) + 1)


def _matrix(checkpoint: RankCheckpoint, template: str) -> Shape:
    """Shape of the first tensor of that name; `{i}` stands for any layer."""
    pattern = re.compile(re.escape(template).replace(r"\{i\}", r"\d+"))
    for name, spec in checkpoint.specs.items():
        if pattern.fullmatch(name):
            if len(spec.shape) != 2:
                raise CheckpointError(
                    f"{checkpoint.folder}: {name} should be a matrix, its shape is {list(spec.shape)}."
                )
            return spec.shape
    some = ", ".join(sorted(checkpoint.specs)[:3]) or "none"
    raise CheckpointError(
        f"{checkpoint.folder}: no tensor {template}, so this is not a complete GLM-130B checkpoint. Names found: "
        f"{some} ..."
    )


def _compare_replicated(checkpoint: RankCheckpoint, take_rank_0: bool) -> list[str]:
    """Copies that should be alike are the only sign, in files without an iteration inside, that ranks were mixed."""
    different = checkpoint.ranks_that_differ(TABLE.replicated(sorted(checkpoint.specs)))
    if not different:
        return []
    names = ", ".join(f"{rank:02d}" for rank in sorted({rank for rank, _ in different}))
    what = f"{count(len(different), 'tensor')} that every rank should hold alike differ from rank 00 on rank {names}"
    if take_rank_0:
        return [f"{what}; rank 00's were taken"]
    raise CheckpointError(
        f"{checkpoint.folder}: {what}, e.g. {different[0][1]}. The ranks come from different iterations: copy all "
        "ranks of one. If they are known to belong together, --replicated-from-rank-0 takes rank 00's, as the "
        "original's tools do."
    )


def _find_tokenizer_model(source: Path, given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_file():
            raise SettingsError(f"--tokenizer {given}: no such file. It is the sentencepiece model, ice_text.model.")
        return given
    return _beside(source, "ice_text.model")


def _beside(source: Path, name: str) -> Path | None:
    path = source / name
    return path if path.is_file() else None


def _load_tokenizer(path: Path, num_image_tokens: int | None) -> Glm130bTokenizer:
    try:
        if num_image_tokens is None:
            return Glm130bTokenizer.from_ice_text_model(path)
        return Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=num_image_tokens)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise SettingsError(f"--tokenizer {path}: {error}") from error


def _read_config(source: Path) -> Glm130bConfig:
    path = source / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("model_type") != Glm130bConfig.model_type:
            raise ValueError(f"model_type is {raw.get('model_type')!r}, not {Glm130bConfig.model_type!r}")
        quantization = raw.get("quantization_config")
        if quantization and quantization.get("quant_method") != METHOD:
            raise ValueError(
                f"the weights are quantized by {quantization.get('quant_method')!r}; the released format holds "
                f"floating-point weights and those of {METHOD!r}"
            )
        if not raw.get("tie_word_embeddings", True):
            raise ValueError(
                "tie_word_embeddings is false, and the released format has no place for a separate output projection"
            )
        return Glm130bConfig.from_dict(raw)
    except (OSError, ValueError, AttributeError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path}: not the configuration of a converted GLM-130B folder ({error})") from error


def _notices_on_dropped(plan: Plan) -> Sequence[str]:
    if not plan.dropped:
        return []
    return [f"left out: {len(plan.dropped)} tensors, e.g. {plan.dropped[0][0]} ({plan.dropped[0][1]})"]


__all__ = ["TABLE", "ForwardOptions", "plan_forward", "plan_reverse", "read_sizes"]
