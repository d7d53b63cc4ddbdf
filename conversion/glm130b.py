"""GLM-130B: the table of names, and its two conversions planned.

The released layout is SwissArmyTransformer's: `latest` holds the iteration, `<iteration>/mp_rank_XX_model_states.pt`
one pickle {"module": {name: tensor}} per tensor-parallel rank. Sources: GLM-130B `tools/convert_tp.py` (how ranks
join), SwissArmyTransformer 0.2.12 `model/official/glm130B_model.py` (order of the rows inside query_key_value and
dense_h_to_4h).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.modeling_glm130b import HUB_CLASSES
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer
from hf_glm_ernie.weight_only import METHOD

from .converted_folder import ConvertedFolder, Record, read_config, read_record
from .folder_files import RECORD, count, main_dtype, notices_on_left_out
from .glm130b_files import DEFAULT_ITERATION, generation_defaults, model_card, write_latest
from .glm130b_quantized import (
    check_scales_of,
    notices_on_copies,
    notices_on_quantization,
    plan_merging,
    plan_splitting,
    without_quantized,
)
from .glm130b_settings import CONFIG_KINDS, Sizes, build_config, held_sizes, read_settings, released_sizes
from .job import ExpectedShapes, Job
from .job import ForwardOptions as CommonOptions
from .layer_numbers import NUMBER, numbers_in, without_gaps
from .lazy_files import CheckpointError
from .operations import (
    Concat,
    Drop,
    Operation,
    Replicated,
    SettingsError,
    Shape,
    Split,
    SplitGlu,
    SplitQkv,
    TensorSpec,
    Tied,
)
from .places import Place
from .rank_files import LATEST, MARKS, RankCheckpoint
from .safetensors_files import SafetensorsFolder
from .setting_kinds import TEXT
from .source_file import SideFiles
from .sources import explained, open_source
from .state_map import Row, StateMap, pair
from .writer import TorchArchive, plan_shards

ARCHITECTURE = "Glm130bForCausalLM"
TOKENIZER_MODEL = "ice_text.model"
_LAYER = re.compile(rf"transformer\.layers\.({NUMBER})\.")
_RECOMPUTED = "a rotary table of the original's buffers; the model computes it"


def _layer(source: str, targets: tuple[str, ...], weight: Operation, bias: Operation) -> tuple[Row, Row]:
    """A part of every layer."""
    return pair(
        f"transformer.layers.{{i}}.{source}", tuple(f"model.layers.{{i}}.{name}" for name in targets), weight, bias
    )


# The rows stand in the order of the original's files.
TABLE = StateMap(
    "GLM-130B",
    (
        Row("transformer.word_embeddings.weight", ("model.embed_tokens.weight",), Concat(0)),
        *_layer("input_layernorm", ("input_layernorm",), Replicated(), Replicated()),
        *_layer(
            "attention.query_key_value",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            SplitQkv(),
            SplitQkv(),
        ),
        *_layer("attention.dense", ("self_attn.o_proj",), Concat(1), Replicated()),
        *_layer("post_attention_layernorm", ("post_attention_layernorm",), Replicated(), Replicated()),
        *_layer("mlp.dense_4h_to_h", ("mlp.down_proj",), Concat(1), Replicated()),
        # The original computes x1 * gelu(x2) from [x1; x2]: x1 is `up`, x2, under the gelu, is `gate`.
        *_layer("mlp.dense_h_to_4h", ("mlp.up_proj", "mlp.gate_proj"), SplitGlu(), SplitGlu()),
        *pair("transformer.final_layernorm", ("model.norm",), Replicated(), Replicated()),
        Row(None, ("lm_head.weight",), Tied("model.embed_tokens.weight")),
        Row("transformer.layers.{i}.attention.rotary_emb.inv_freq", (), Drop(_RECOMPUTED)),
        Row("mixins.rotary-embedding.rotary_emb.inv_freq", (), Drop(_RECOMPUTED)),
    ),
)


@dataclass(frozen=True)
class ForwardOptions(CommonOptions):
    """Choices of a conversion from the released format.

    Attributes:
        tokenizer_model: sentencepiece file; default: `ice_text.model` in the source folder, if there.
        bits: Quantize the linears' weights to 4 or 8 bits, one scale a row; `None` keeps them as they are.
        replicated_from_rank_0: Accept ranks whose replicated tensors differ, and take rank 0's.
    """

    tokenizer_model: Path | None = None
    bits: int | None = None
    replicated_from_rank_0: bool = False


def plan_forward(source: Place, options: ForwardOptions, expected: ExpectedShapes) -> Job:
    """Plans a conversion of the released format into a folder for `from_pretrained`. Writes nothing.

    Args:
        source: Folder with `latest`, or an iteration's folder; or the parts of their archive, see `open_source`.
        options: The user's choices.
        expected: Gives the names and shapes the model has.

    Raises:
        ConversionError: anything about the checkpoint, the settings or the tokenizer that does not fit.
    """
    opened = open_source(source, MARKS, ("config.json", TOKENIZER_MODEL))
    beside = _side_files(source, opened.home, options)
    checkpoint = _read_checkpoint(source, opened.place, options)
    sizes = read_sizes(checkpoint)
    ranks = len(checkpoint.files)
    config, tokenizer, notices = _configure(opened.home, sizes, ranks, options)
    split = Split(ranks, config.num_attention_heads)
    plan, quantization = plan_merging(
        TABLE, checkpoint.specs, split, expected(ARCHITECTURE, config), options.dtype, options.bits, checkpoint.folder
    )
    if quantization is not None:
        config.quantization_config = quantization.config
    if not options.headers_only:
        notices += _compare_replicated(checkpoint, options.replicated_from_rank_0)
        check_scales_of(checkpoint, checkpoint.specs, [file.path for file in checkpoint.files])
    files = plan_shards(plan.tensors, options.max_shard_bytes, {"format": "pt"}, quantized=quantization is not None)
    dtype, dtype_notices = main_dtype(*without_quantized(plan, checkpoint.specs))
    config.architectures = [ARCHITECTURE]
    small = ConvertedFolder(
        config,
        dtype,
        files,
        Record(
            {"iteration": checkpoint.iteration, "tensor_parallel": ranks, "bits": options.bits},
            dropped=list(plan.dropped),
        ),
        partial(model_card, config, sizes == released_sizes(), tokenizer is not None),
        tokenizer,
        HUB_CLASSES,
        generation_defaults(config),
    )
    return Job(
        title=f"GLM-130B {checkpoint.folder} (iteration {checkpoint.iteration}, {count(ranks, 'rank')}) "
        f"-> safetensors for transformers",
        source=checkpoint,
        plan=plan,
        files=files,
        options=options.decisions | {"split": str(split), "config": config.to_json_string()},
        beside=beside,
        write_first=small.write_first,
        reopen=lambda folder: SafetensorsFolder(folder).specs,
        write_last=small.write_last,
        notices=[
            *notices,
            *dtype_notices,
            *notices_on_quantization(quantization, options.bits),
            *notices_on_left_out(plan.dropped),
        ],
    )


def _read_checkpoint(source: Place, place: Place, options: ForwardOptions) -> RankCheckpoint:
    with explained(source):
        return RankCheckpoint(place, sampled=not options.headers_only)


def _side_files(source: Place, home: Path, options: ForwardOptions) -> SideFiles:
    settings, tokenizer = options.settings or home / "config.json", options.tokenizer_model or home / TOKENIZER_MODEL
    return SideFiles.of(source / LATEST, settings, tokenizer)


def _configure(
    source: Path, sizes: Sizes, ranks: int, options: ForwardOptions
) -> tuple[Glm130bConfig, Glm130bTokenizer | None, list[str]]:
    """The model's configuration, its tokenizer if there is one, and notices on both."""
    settings = read_settings(options.settings or _beside(source, "config.json"))
    if (images := settings.num_image_tokens or 0) > sizes.vocab_size:
        raise SettingsError(
            f"num_image_tokens is {images}, and the weights have {sizes.vocab_size} words in all. Correct it in "
            "--config."
        )
    tokenizer_model = _find_tokenizer_model(source, options.tokenizer_model)
    tokenizer = None if tokenizer_model is None else _load_tokenizer(tokenizer_model, settings.num_image_tokens)
    config, notices = build_config(sizes, ranks, settings, tokenizer)
    if tokenizer is not None:
        tokenizer.model_max_length = config.max_position_embeddings
    return config, tokenizer, [*settings.notices, *notices]


def plan_reverse(source: Place, ranks: int, dtype: torch.dtype | None, expected: ExpectedShapes) -> Job:
    """Plans writing the released format from a folder for `from_pretrained`. Writes nothing.

    Args:
        source: A converted (and perhaps fine-tuned) folder.
        ranks: Tensor-parallel degree to write.
        dtype: What the weights become; `None` keeps theirs.
        expected: Gives the names and shapes the model has.

    Raises:
        ConversionError: anything about the folder that does not fit, or a degree that does not divide.
    """
    beside = SideFiles.of(source / "config.json", source / RECORD)
    config, _, checkpoint = read_config(
        source, [Glm130bConfig], "a converted GLM-130B folder", _check_config, CONFIG_KINDS, held_sizes
    )
    _check_degree(ranks, config)
    split = Split(ranks, config.num_attention_heads)
    bits = (getattr(config, "quantization_config", None) or {}).get("bits")
    plan, quantization = plan_splitting(
        TABLE, checkpoint.specs, split, expected(ARCHITECTURE, config), dtype, bits, source
    )
    check_scales_of(checkpoint, checkpoint.specs, [source])
    iteration, record_notices = _read_iteration(source)
    files = [
        TorchArchive(
            f"{iteration}/mp_rank_{rank:02d}_model_states.pt",
            [tensor for tensor in plan.tensors if tensor.part == rank],
            "module",
        )
        for rank in range(ranks)
    ]
    return Job(
        title=f"GLM-130B {source} -> released format, iteration {iteration}, {count(ranks, 'rank')}",
        source=checkpoint,
        plan=plan,
        files=files,
        options={"ranks": str(ranks), "dtype": str(dtype), "iteration": iteration},
        beside=beside,
        write_first=lambda folder: write_latest(folder, iteration),
        reopen=lambda folder: RankCheckpoint(folder).specs,
        by_tensor=True,  # a tensor cut by columns is read from disk once
        notices=[
            *notices_on_left_out(plan.dropped),
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


def _read_iteration(source: Place) -> tuple[str, list[str]]:
    """The iteration a folder was converted from, or the released one, and notices on its record."""
    record = read_record(source, {"iteration": TEXT})
    if record is None:
        return DEFAULT_ITERATION, [f"no conversion.json: written as iteration {DEFAULT_ITERATION}, the released one"]
    iteration: str = record.source["iteration"]
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", iteration) or iteration == "latest":
        raise CheckpointError(
            f"{source / 'conversion.json'}: names the iteration {iteration!r}, which is not a folder name. Correct it."
        )
    if not record.dropped:
        return iteration, []
    left = f"{count(len(record.dropped), 'leftover rotary table')} of the original, not written back"
    return iteration, [f"{left}: {', '.join(list(record.dropped)[:2])}"]


def read_sizes(checkpoint: RankCheckpoint) -> Sizes:
    """Reads the model's sizes off the shapes of one rank, and checks that as many ranks are there as they were cut
    for.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has the wrong number of dimensions; ranks too few or
            too many.
    """
    ranks = len(checkpoint.files)
    sizes, cut_for = sizes_of_rank(checkpoint.specs, checkpoint.folder)
    if cut_for != ranks:
        rows, whole = 3 * sizes.hidden_size // cut_for, 3 * sizes.hidden_size
        names = [file.path.name for file in checkpoint.files]
        there = f"{ranks} rank files are there ({names[0]} .. {names[-1]})"
        mend = (
            f"Missing: {', '.join(f'mp_rank_{rank:02d}_model_states.pt' for rank in range(ranks, cut_for))}"
            if cut_for > ranks
            else f"Too many: {', '.join(names[cut_for:])}; move them elsewhere"
        )
        raise CheckpointError(
            f"{checkpoint.folder}: each rank holds 1/{cut_for} of the model (query_key_value {rows} of "
            f"{whole} rows), but {there}. {mend}."
        )
    return sizes


def sizes_of_rank(specs: Mapping[str, TensorSpec], where: object) -> tuple[Sizes, int]:
    """The sizes of the model that one rank is a part of, and how many ranks it was cut for.

    Args:
        specs: What the rank holds.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: a tensor that tells a size is missing or has the wrong number of dimensions.
    """
    layers = numbers_in(specs, _LAYER)
    embedding = _matrix(specs, "transformer.word_embeddings.weight", where)
    attention = _matrix(specs, "transformer.layers.{i}.attention.query_key_value.weight", where)
    mlp = _matrix(specs, "transformer.layers.{i}.mlp.dense_h_to_4h.weight", where)
    hidden = embedding[1]
    if attention[0] == 0 or 3 * hidden % attention[0]:
        raise CheckpointError(
            f"{where}: query_key_value has {attention[0]} rows on a rank, which is no equal part of 3 x "
            f"{hidden}. Not a GLM-130B checkpoint, or a damaged one."
        )
    ranks = 3 * hidden // attention[0]
    num_hidden_layers = without_gaps(layers, "transformer.layers.*", where)
    return Sizes(embedding[0] * ranks, hidden, mlp[0] * ranks // 2, num_hidden_layers), ranks


def _matrix(specs: Mapping[str, TensorSpec], template: str, where: object) -> Shape:
    """Shape of the first tensor of that name; `{i}` stands for any layer."""
    pattern = re.compile(re.escape(template).replace(r"\{i\}", NUMBER))
    for name, spec in specs.items():
        if pattern.fullmatch(name):
            if len(spec.shape) != 2 or 0 in spec.shape:
                raise CheckpointError(f"{where}: {name} should be a matrix, its shape is {list(spec.shape)}.")
            return spec.shape
    some = ", ".join(sorted(specs)[:3]) or "none"
    raise CheckpointError(
        f"{where}: no tensor {template}, so this is not a complete GLM-130B checkpoint. Names found: {some} ..."
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
    return _beside(source, TOKENIZER_MODEL)


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


def _check_config(raw: Mapping[str, Any]) -> None:
    quantization = raw.get("quantization_config")
    if quantization and quantization.get("quant_method") != METHOD:
        raise ValueError(
            f"the weights are quantized by {quantization.get('quant_method')!r}; the released format holds "
            f"floating-point weights and those of {METHOD!r}"
        )
    if quantization:
        WeightOnlyConfig.from_dict(quantization)
    if not raw.get("tie_word_embeddings", True):
        raise ValueError(
            "tie_word_embeddings is false, and the released format has no place for a separate output projection"
        )


__all__ = ["TABLE", "TOKENIZER_MODEL", "ForwardOptions", "plan_forward", "plan_reverse", "read_sizes", "sizes_of_rank"]
