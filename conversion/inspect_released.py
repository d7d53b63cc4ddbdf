"""The public facts of the released models, held against what is there: the doctor's section.

Sources: GLM-130B's paper and repository for its sizes, its archive and the two tokenizations its tokenizer was
published with; SwissArmyTransformer 0.2.12 for names and shapes; PaddleNLP 2.8.1's tables for ERNIE's encoders.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.tokenization_glm130b import Glm130bTokenizer
from hf_glm_ernie.tokenization_icetext import parse_ice_text, read_ice_text

from .ernie_released import RELEASED
from .ernie_settings import Sizes as ErnieSizes
from .glm130b import ARCHITECTURE, TABLE
from .glm130b_files import DEFAULT_ITERATION
from .glm130b_quantized import SCALE
from .glm130b_settings import Sizes, released_sizes
from .inspect_report import Check, Released
from .job import ExpectedShapes
from .operations import Split, TensorSpec

RANKS = 8
PARTS, PART_BYTES = 60, 4 * 2**30
PIECES = 130_000
TOKENIZATIONS = (
    ("Hello World! I am icetk.", (39316, 20932, 20035, 20115, 20344, 22881, 35955, 20007)),
    ("你好世界！这里是 icetk。", (20005, 94874, 84097, 20035, 94947, 22881, 35955, 83823)),
)
"""A text and its ids, as the tokenizer's authors published them."""
SPECIAL_IDS = {"[MASK]": 150000, "[gMASK]": 150001, "[sMASK]": 150002, "<sop>": 150004, "<eop>": 150005, "</s>": 20002}

TENSORS_10B, PARAMETERS_10B = 1179, 10_022_903_684
"""Of ERNIE 3.0's unified model in both branches."""

VOCABULARY_3_0, UNKNOWN = 39_980, "[UNK]"
"""Pieces of the ERNIE 3.0 encoders' vocab.txt, the last of which is `[UNK]`; the embeddings have 40,000 rows."""
MAX_VOCABULARY_BYTES = 10_000_000

SHOWN = 3


def released_glm130b(
    sizes: Sizes,
    ranks: int,
    iteration: str,
    specs: Mapping[str, TensorSpec],
    expected: ExpectedShapes,
    tokenizer: Path | None,
    parts: Sequence[int],
) -> Released | None:
    """GLM-130B's facts; None for other sizes.

    Args:
        sizes: What the tensors tell.
        ranks: How many rank files there are.
        iteration: Of the checkpoint.
        specs: What a rank holds.
        expected: Gives the shapes the model has.
        tokenizer: `ice_text.model`, if it is there.
        parts: Sizes of the archive's parts, in order; empty without an archive.
    """
    released = released_sizes()
    if (sizes.hidden_size, sizes.num_hidden_layers) != (released.hidden_size, released.num_hidden_layers):
        return None
    checks = [
        Check(in_words(name), f"{value:,}", f"{getattr(sizes, name):,}") for name, value in asdict(released).items()
    ]
    checks += [
        Check("iteration", DEFAULT_ITERATION, iteration),
        Check("rank files", str(RANKS), str(ranks)),
        *_names(specs, expected),
    ]
    if parts:
        others = sorted({f"{size:,}" for size in parts[:-1]}) or [f"{PART_BYTES:,}"]
        checks += [
            Check("parts of the archive", str(PARTS), str(len(parts))),
            Check("bytes of every part but the last", f"{PART_BYTES:,}", ", ".join(others[:SHOWN])),
        ]
    if tokenizer is not None:
        checks += tokenizer_checks(tokenizer)
    return Released("GLM-130B", tuple(checks))


def in_words(name: str) -> str:
    """A size's name, as it is written in a report."""
    return name.removeprefix("num_").replace("_", " ").replace("vocab size", "words")


def _names(specs: Mapping[str, TensorSpec], expected: ExpectedShapes) -> Iterable[Check]:
    """Names, shapes and dtypes of a rank, the leftover rotary tables aside."""
    config = Glm130bConfig()
    shapes = TABLE.source_shapes(expected(ARCHITECTURE, config), Split(RANKS, config.num_attention_heads))
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith("inv_freq")}
    plain = {name: spec for name, spec in specs.items() if not name.endswith(("inv_freq", SCALE))}
    scales = [name for name in specs if name.endswith(SCALE)]
    yield Check("tensors of a rank", f"{len(shapes)}", f"{len(plain)}")
    same = sum(name in plain for name in shapes)
    yield Check("names as released", f"{len(shapes)}", f"{same}")
    floats = {name: spec for name, spec in plain.items() if spec.dtype.is_floating_point}
    cut = [name for name, spec in floats.items() if shapes.get(name, spec.shape) != spec.shape]
    yield Check("tensors of another shape", "0", str(len(cut)))
    dtypes = sorted(
        {str(spec.dtype).removeprefix("torch.") for spec in specs.values() if spec.dtype.is_floating_point}
    )
    yield Check("floats are", "float16", ", ".join(dtypes))
    if scales:
        yield Check("integers with scales", str(4 * config.num_hidden_layers), str(len(scales)))


def tokenizer_checks(path: Path) -> list[Check]:
    """What was published of GLM-130B's tokenizer, held against a sentencepiece model.

    Without sentencepiece and protobuf nothing of it can be tried, and the list is empty.

    Args:
        path: `ice_text.model`.
    """
    try:
        pieces = len(parse_ice_text(read_ice_text(path)).pieces)
        tokenizer = Glm130bTokenizer.from_ice_text_model(path)
    except ImportError:
        return []
    except (ValueError, RuntimeError, OSError):
        return [Check("ice_text.model", "a sentencepiece model of icetk's kind", "none")]
    checks = [Check("pieces of ice_text.model", f"{PIECES:,}", f"{pieces:,}")]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_IDS}
    checks.append(Check("ids of special tokens", _listed(SPECIAL_IDS.values()), _listed(ids.values())))
    for text, published in TOKENIZATIONS:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        checks.append(Check(f"ids of {text!r}", _listed(published), _listed(found)))
    return checks


def _listed(numbers: Iterable[object]) -> str:
    return " ".join(map(str, numbers))


def released_ernie(
    sizes: ErnieSizes, task: str, settings: Mapping[str, object], dtypes: Iterable[object], vocabulary: Sequence[str]
) -> Released | None:
    """The released encoders that have these layers, width and words; None if none has.

    Args:
        sizes: What the tensors tell.
        task: Of the checkpoint, as `--task` spells it.
        settings: Under transformers' names, as far as there are any.
        dtypes: Of the tensors.
        vocabulary: Pieces of `vocab.txt`; empty where there is none.
    """
    layers = sizes.num_hidden_layers
    alike = {
        name: one
        for name, one in RELEASED.items()
        if (one.stack.hidden, one.stack.inner, one.words)
        == (sizes.hidden_size, sizes.intermediate_size, sizes.vocab_size)
        and one.stack.layers in (layers, layers - 1)
        and _is_of(name, task)
    }
    if not alike:
        return None
    nearest = min(
        alike.values(),
        key=lambda one: (
            abs(one.positions - sizes.max_position_embeddings)
            + abs(one.types - sizes.type_vocab_size)
            + abs(one.tasks - sizes.task_type_vocab_size)
        ),
    )
    names = [name for name, one in alike.items() if one == nearest]
    checks = [
        Check("positions", f"{nearest.positions:,}", f"{sizes.max_position_embeddings:,}"),
        Check("token types", str(nearest.types), str(sizes.type_vocab_size)),
        Check("task types", str(nearest.tasks), str(sizes.task_type_vocab_size)),
        Check("weights are", "float32", ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))),
    ]
    for key, value in (("num_attention_heads", nearest.stack.heads), ("hidden_act", nearest.activation)):
        if settings.get(key) is not None:
            checks.append(Check(in_words(key), str(value), str(settings[key])))
    if vocabulary and nearest.words == 40_000:
        checks.append(Check("pieces of vocab.txt", f"{VOCABULARY_3_0:,}", f"{len(vocabulary):,}"))
        checks.append(Check("its last piece", UNKNOWN, vocabulary[-1] if vocabulary[-1].isprintable() else "another"))
    more = f" (or {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return Released(", ".join(names[:SHOWN]) + more, tuple(checks))


def pieces_of(path: Path) -> list[str]:
    """The pieces of a vocab.txt, without the ids that ERNIE-kit's has; none where there is no such file."""
    if not path.is_file() or path.stat().st_size > MAX_VOCABULARY_BYTES:
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    return [line.partition("\t")[0] for line in text.split("\n") if line.strip()]


def _is_of(name: str, task: str) -> bool:
    heads = {"uie": ("uie",), "utc": ("utc",)}
    own = tuple(prefix for prefixes in heads.values() for prefix in prefixes)
    return name.startswith(heads[task]) if task in heads else not name.startswith(own)


def released_ernie3(sizes: Mapping[str, int], specs: Mapping[str, TensorSpec]) -> Released | None:
    """The facts of ERNIE 3.0's 10B, whose files were never released; None for other sizes.

    Args:
        sizes: Under the names of `Ernie3Config`.
        specs: What the converted model holds.
    """
    config = Ernie3Config()
    if any(sizes.get(name) != getattr(config, name) for name in ("hidden_size", "num_hidden_layers")):
        return None
    checks = [Check(in_words(name), f"{getattr(config, name):,}", f"{value:,}") for name, value in sizes.items()]
    checks += [
        Check("tensors of both branches", f"{TENSORS_10B:,}", f"{len(specs):,}"),
        Check("parameters", f"{PARAMETERS_10B:,}", f"{sum(s.nbytes // s.dtype.itemsize for s in specs.values()):,}"),
    ]
    return Released("ERNIE 3.0's unified model (10B), never released", tuple(checks))


__all__ = ["in_words", "pieces_of", "released_ernie", "released_ernie3", "released_glm130b", "tokenizer_checks"]
