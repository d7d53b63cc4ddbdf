"""What stands before the names of an ERNIE checkpoint, and how every name becomes PaddleNLP's 2.5 one.

A head of PaddleNLP's holds its encoder as `ernie.`; the bare encoder says nothing, UIE of 2.3 and 2.4 said `encoder.`,
ERNIE-Gram says `ernie_gram.`. What wraps a model puts one more prefix before all of its names: `plm.`
(PromptModelForSequenceClassification), `ptm.` (the semantic search examples), `_layers.` (paddle.DataParallel),
`model.`, `ernie.` (ErnieCrossEncoder), `query_ernie.` (one half of an ErnieDualEncoder). The one that makes every name
a known one is taken off; names that it does not explain are never passed over, unless the user says with `--prefix`
that only what stands behind a prefix is meant.

A `paddle.jit` export holds a tied tensor once, under the last name that the class gave it: the words' embeddings as
the decoder's weight, the bias of the words' logits as the decoder's.

Sources: PaddleNLP 2.8.1 `prompt/prompt_model.py`, `transformers/semantic_search/modeling.py`,
`transformers/ernie_gram/modeling.py`; Paddle 2.6 `jit/api.py` (`save`: `extra_var_info` by parameter name).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .ernie_names import (
    BACKBONE,
    DECODER,
    DECODER_BIAS,
    EARLIER_NAMES,
    GRAM,
    PREFIX,
    TASK_EMBEDDINGS,
    TASKS,
    WORD_EMBEDDINGS,
    static_name,
)
from .layer_numbers import NUMBER
from .lazy_files import CheckpointError

ENCODERS = ("ernie", "encoder", GRAM)
"""What PaddleNLP's classes call their encoder."""

OTHER_MODELS = (
    *("albert", "bert", "bigbird", "chinesebert", "distilbert", "electra", "ernie_ctm", "ernie_doc", "ernie_layout"),
    *("ernie_m", "layoutlm", "mpnet", "nezha", "ppminilm", "roberta", "roformer", "rembert", "skep", "tinybert"),
)
"""What PaddleNLP's classes of other encoders call theirs; the names inside are the same in some of them."""

POSITION_EMBEDDINGS = "embeddings.position_embeddings.weight"
ANCHORS = (WORD_EMBEDDINGS, POSITION_EMBEDDINGS)
"""Every checkpoint has one of them at least, and nothing else is called so."""

TIED = {PREFIX + WORD_EMBEDDINGS: f"{DECODER}.weight", DECODER_BIAS: f"{DECODER}.bias"}
"""Tensor -> the name of its second copy."""

BACKBONE_PARTS = ("embeddings.", "encoder.layers.", "pooler.")
GENERATED = re.compile(r"(linear|embedding|layer_norm)_[0-9]+\.[wb]_[0-9]+")
"""What Paddle calls a parameter that nobody named."""

DEEPEST = 8
"""Prefixes that are tried, one in the other; a name may have hundreds of dots."""
SHOWN = 6


@dataclass(frozen=True)
class Names:
    """The names of a checkpoint.

    Attributes:
        canonical: PaddleNLP's 2.5 name, the backbone's with `ernie.` in front -> the name in the file.
        outside: Name in the file -> why it is left out: it does not stand behind `--prefix`.
        encoder: What the file calls the encoder: one of `ENCODERS`, or nothing.
        notices: What the user should know.
    """

    canonical: Mapping[str, str]
    outside: Mapping[str, str]
    encoder: str
    notices: tuple[str, ...]


def canonical_names(names: Sequence[str], where: object, prefix: str | None = None) -> Names:
    """Brings names to one form.

    Args:
        names: All names of the files.
        where: The checkpoint, for messages.
        prefix: `--prefix`: only names behind it are meant. Default: whatever makes all names known.

    Raises:
        CheckpointError: no encoder, several, two names of one tensor, or names that a prefix does not explain.
    """
    if prefix and not prefix.endswith("."):
        prefix += "."
    meant = [name for name in names if name.startswith(prefix or "")]
    outside = {name: f"not behind --prefix {prefix}" for name in names if not name.startswith(prefix or "")}
    if "word_embedding" in meant and prefix is None:
        return Names(_once(meant, map(static_name, meant), where), {}, "", ())
    before = _encoder_of(meant, where, prefix)
    outer = min(_outer(before), key=lambda one: (len(_unknown(meant, before, one)), len(one)))
    wrapper, encoder = _without_encoder(before)
    unexplained = [name for name in _unknown(meant, before, outer) if not name.startswith(wrapper)]
    if unexplained:
        raise CheckpointError(
            f"{where}: the names stand behind {wrapper!r}, but {_listed(unexplained)} do not, and are no part of an "
            f"ERNIE encoder or its heads. --prefix {wrapper} takes what stands behind it and leaves the others out."
        )
    canonical = _once(meant, (_canonical(name, before, outer) for name in meant), where)
    notices = [f"the names stand behind {wrapper!r}, which was taken off"] if wrapper else []
    for tensor, copy in TIED.items():
        if tensor not in canonical and copy in canonical:
            notices.append(f"{tensor} is in the file as {canonical[copy]}, to which it is tied")
            canonical[tensor] = canonical.pop(copy)
    if PREFIX + WORD_EMBEDDINGS not in canonical:
        raise _no_encoder(meant, where, prefix)
    return Names(canonical, outside, encoder, tuple(notices))


def known_tail(name: str) -> str | None:
    """The canonical name of a tensor of the encoder or a head, whatever stands before; None if it is neither."""
    parts = name.split(".")
    for tail in (".".join(parts[start:]) for start in range(len(parts))):
        for candidate in (PREFIX + tail if tail.startswith(BACKBONE_PARTS) else tail, EARLIER_NAMES.get(tail, tail)):
            if is_known(candidate):
                return candidate
    return None


def is_known(name: str) -> bool:
    """Whether a canonical name is one of an encoder's or a head's."""
    return _KNOWN.fullmatch(name) is not None


def _encoder_of(names: Sequence[str], where: object, prefix: str | None) -> str:
    """What stands before the encoder's own names; of `--prefix`, too.

    Raises:
        CheckpointError: there is no encoder among them, or several.
    """
    found = sorted({before for name in names if (before := _before_anchor(name)) is not None})
    if len(found) > 1:
        choices = " or ".join(f"--prefix {before}" for before in found if before) or "a file of one"
        raise CheckpointError(
            f"{where}: several encoders, behind {', '.join(map(repr, found))}. Choose one with {choices}; the names "
            "of the others are then left out."
        )
    if found:
        _refuse_other_models(found[0], where)
        return found[0]
    raise _no_encoder(names, where, prefix)


def _no_encoder(names: Sequence[str], where: object, prefix: str | None) -> CheckpointError:
    """What is wrong with names among which there are no word embeddings."""
    some = ", ".join(sorted(names)[:4]) or "none"
    if prefix is not None:
        return CheckpointError(f"--prefix {prefix}: {where} has no word embeddings behind it. Names there: {some} ...")
    if any(GENERATED.fullmatch(name) for name in names):
        return CheckpointError(
            f"{where}: parameters under the names that Paddle makes up ({some} ...). paddle.jit.save keeps the true "
            "ones in the .pdiparams.info beside the .pdiparams: copy that file, too, or save the state dict with "
            "paddle.save."
        )
    return CheckpointError(
        f"{where}: no word embeddings, neither `ernie.{WORD_EMBEDDINGS}` as PaddleNLP calls them nor `word_embedding` "
        f"as the static graph does. Names found: {some} ... This is not an ERNIE encoder's checkpoint."
    )


def _refuse_other_models(before: str, where: object) -> None:
    others = [part for part in before.split(".") if part in OTHER_MODELS]
    if others:
        raise CheckpointError(
            f"{where}: the names stand behind {before!r}, as those of PaddleNLP's {others[-1]} do. That is another "
            "network, even where the names inside are ERNIE's, and is not converted."
        )


def _before_anchor(name: str) -> str | None:
    for anchor in ANCHORS:
        if name == anchor or name.endswith(f".{anchor}"):
            return name.removesuffix(anchor)
    return None


def _without_encoder(before: str) -> tuple[str, str]:
    """(what wraps a model, what the model calls its encoder), of what stands before the encoder's own names."""
    *wrapper, encoder = ["", *before.split(".")[:-1]]
    if encoder not in ENCODERS:
        return before, ""
    return "".join(f"{part}." for part in wrapper if part), encoder


def _outer(before: str) -> Iterator[str]:
    """What may stand before the heads' names: nothing, or a part of what stands before the encoder's."""
    yield ""
    parts = before.split(".")[:-1][:DEEPEST]
    yield from ("".join(f"{part}." for part in parts[: stop + 1]) for stop in range(len(parts)))


def _canonical(name: str, before: str, outer: str) -> str:
    """The canonical name; of one that is not known, the name itself."""
    if name.startswith(tuple(before + part for part in BACKBONE_PARTS)):
        return PREFIX + name.removeprefix(before)
    head = name.removeprefix(outer)
    head = EARLIER_NAMES.get(head, head)
    return head if is_known(head) else name


def _unknown(names: Iterable[str], before: str, outer: str) -> list[str]:
    return [
        name
        for name in names
        if not is_known(_canonical(name, before, outer)) or (outer and not name.startswith((before, outer)))
    ]


def _once(names: Sequence[str], canonical: Iterable[str], where: object) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, known_as in zip(names, canonical, strict=True):
        if known_as in made:
            raise CheckpointError(
                f"{where}: {made[known_as]} and {name} are two names of one tensor, {known_as}. Remove one."
            )
        made[known_as] = name
    return made


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _known_names() -> Iterator[str]:
    for row in BACKBONE:
        yield f"{PREFIX}{row.source}"
    yield PREFIX + TASK_EMBEDDINGS
    yield from (row.source for task in TASKS for row in task.rows if row.source is not None)


_KNOWN = re.compile(
    "|".join(re.escape(name).replace(re.escape("{i}"), NUMBER) for name in sorted(set(_known_names())))
)


__all__ = ["ENCODERS", "Names", "canonical_names", "is_known", "known_tail"]
