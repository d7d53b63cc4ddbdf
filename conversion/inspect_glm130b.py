"""Looks at GLM-130B as it was released: folders of rank files in floats or integers, of any degree."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from . import glm130b
from .classes import expected_shapes
from .folder_files import count
from .glm130b import TABLE, TOKENIZER_MODEL
from .glm130b_quantized import linear_rows, quantized_plan
from .inspect_downloads import findings_on, unfinished_in
from .inspect_files import dtype_of
from .inspect_look import Look, Question, needs_of, noted
from .inspect_ranks import Ranks, look_at_ranks
from .inspect_released import released_glm130b
from .inspect_report import ERROR, LIBRARIES_BYTES, NOTE, FileFacts, Finding, Needs, Report, has_errors, worst_first
from .job import Job
from .operations import TensorSpec
from .output_folder import SMALL_FILES_BYTES
from .rank_files import RANK_FILE
from .state_map import Plan
from .writer import BLOCK_BYTES, plan_shards

FAMILY = "GLM-130B"
DESCRIPTION = "released rank files"


def look_at_glm130b(question: Question) -> Look | None:
    """Looks at a folder of ranks, or the folder of a rank's file."""
    source = question.source
    folder = source.parent if source.is_file() and RANK_FILE.fullmatch(source.name) else source
    if not folder.is_dir():
        return None
    ranks = look_at_ranks(folder)
    if ranks is None:
        return None
    beside = {name: by for name, by in unfinished_in(folder).items() if not RANK_FILE.fullmatch(name)}
    ranks.findings += findings_on(beside) if ranks.folder != folder else []
    question = replace(question, source=folder)
    return describe(question, ranks, folder, DESCRIPTION)


def describe(question: Question, ranks: Ranks, home: Path, form: str, parts: tuple[FileFacts, ...] = ()) -> Look:
    """What is known of ranks, wherever they lie.

    Args:
        question: What was asked; its source is what a conversion takes.
        ranks: The ranks.
        home: Where the tokenizer may lie.
        form: How they lie there, in words.
        parts: The parts of their archive, if they are in one.
    """
    findings, needs = list(ranks.findings), []
    if not has_errors(findings):
        with noted(findings, question.source):
            job = glm130b.plan_forward(question.source, _options(question), expected_shapes)
            needs = [needs_of(job)]
            if _bits(ranks.specs) is None:
                needs += [_quantized(job, bits) for bits in (4, 8)]
            findings += [Finding("information", notice, severity=NOTE) for notice in job.notices]
    elif ranks.sizes is not None and ranks.specs:
        needs = [_estimated(ranks)]
    tokenizer = question.tokenizer or (home / TOKENIZER_MODEL if (home / TOKENIZER_MODEL).is_file() else None)
    released = None
    if ranks.sizes is not None:
        released = released_glm130b(
            ranks.sizes,
            len(ranks.files),
            ranks.iteration,
            ranks.specs,
            expected_shapes,
            tokenizer,
            [part.nbytes or 0 for part in parts],
        )
    files = [looked.facts for _, looked in sorted(ranks.files.items())]
    report = Report(
        source=str(question.source),
        family=FAMILY,
        form=form,
        name=_name(ranks),
        sizes=asdict(ranks.sizes) | {"tensor_parallel": ranks.degree} if ranks.sizes is not None else {},
        dtype=dtype_of(ranks.specs.values()),
        files=(*files, *parts),
        findings=worst_first(findings),
        needs=needs,
        command="" if has_errors(findings) else question.command("glm130b"),
        advice=_advice(findings),
        released=released,
    )
    return Look(report, [looked for _, looked in sorted(ranks.files.items()) if looked.is_readable])


def _advice(findings: list[Finding]) -> str:
    kinds = {finding.kind for finding in findings if finding.severity == ERROR}
    if not kinds:
        return "convert it; --bits 4 or --bits 8 quantizes on the way"
    if kinds <= {"settings"}:
        return "pass what is missing, see above, and look again"
    return "mend what is named above, and look again"


def _options(question: Question) -> glm130b.ForwardOptions:
    return glm130b.ForwardOptions(settings=question.config, tokenizer_model=question.tokenizer, headers_only=True)


def _name(ranks: Ranks) -> str:
    bits = _bits(ranks.specs)
    kind = dtype_of(ranks.specs.values()) if bits is None else f"INT{bits}"
    of = f", iteration {ranks.iteration}" if ranks.iteration else ""
    return f"{FAMILY}{of}, {count(ranks.degree or len(ranks.files), 'rank')}{', ' + kind if kind else ''}"


def _bits(specs: Mapping[str, TensorSpec]) -> int | None:
    """4 or 8 for integers, by the columns of the linear whose input is the hidden size; None for floats."""
    for name, spec in specs.items():
        if name.endswith("query_key_value.weight") and not spec.dtype.is_floating_point and len(spec.shape) == 2:
            hidden = specs.get("transformer.final_layernorm.weight")
            return 4 if hidden is not None and 2 * spec.shape[1] == hidden.shape[0] else 8
    return None


def _quantized(job: Job, bits: int) -> Needs:
    """The same conversion with `--bits`."""
    rows = linear_rows(TABLE).rows
    ends = tuple(target.partition("{i}")[2] for row in rows for target in row.targets)
    linear = {tensor.name: tensor.spec.shape for tensor in job.plan.tensors if tensor.name.endswith(ends)}
    plan: Plan = quantized_plan(job.plan, linear, bits)
    files = plan_shards(plan.tensors, glm130b.ForwardOptions().max_shard_bytes, {"format": "pt"}, quantized=True)
    return needs_of(replace(job, plan=plan, files=files), f"--bits {bits}")


def _estimated(ranks: Ranks) -> Needs:
    """What the whole would take, from one rank: what all hold alike counts once."""
    alike = set(TABLE.replicated(sorted(ranks.specs)))
    part = sum(spec.nbytes for name, spec in ranks.specs.items() if name not in alike)
    same = sum(spec.nbytes for name, spec in ranks.specs.items() if name in alike)
    whole = ranks.degree * part + same
    return Needs("", ranks.degree * (part + same), whole + SMALL_FILES_BYTES, 3 * BLOCK_BYTES + LIBRARIES_BYTES)


__all__ = ["FAMILY", "describe", "look_at_glm130b"]
