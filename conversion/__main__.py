"""Command line of the converters: `python -m conversion glm130b ...`, or `glm-ernie-convert` once installed."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import bert, ernie, ernie3, glm130b
from .bert_pooling import POOLINGS, Pooling
from .classes import expected_shapes
from .command_values import (
    parse_count,
    parse_eps,
    parse_index,
    parse_output,
    parse_output_or_url,
    parse_size,
    parse_source,
)
from .consume_command import convert_and_consume
from .consume_open import refuse_begun
from .ernie3_settings import LAYER_NORM_EPS as LAYER_NORM_EPS_10B
from .ernie3_settings import Choices
from .ernie_names import TASK_NAMES
from .ernie_released import GRAM_LAYER_NORM_EPS, LAYER_NORM_EPS
from .inspect_command import add_options, run_inspect
from .interruption import interruptible
from .job import ExpectedShapes, ForwardOptions, Job, run
from .operations import SettingsError, shortened
from .output_path import check_output, incomplete_of
from .publish_command import add_publish
from .reference_outputs import SMALL_BYTES, write_reference
from .shipping import Shipping, for_target, parse_target, work_folder
from .state_map import ConversionError
from .store_copy import fetched
from .thread_option import add_threads
from .verify import verify_file

CONSUME_HELP = (
    "delete the source as what is made of it is verified, so that both fit the disk of one; asks first; for glm130b"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0 done, 1 refused (the reason is on stderr), 128 and the signal's number if it was interrupted
        (130 by Ctrl-C). `inspect`: 0 complete, 1 something is missing or damaged.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may have no spelling in the terminal's encoding
    options = build_parser().parse_args(arguments)
    try:
        with interruptible():
            return _status_of(options)
    except KeyboardInterrupt as stopped:
        print(f"interrupted: {_what_is_kept(getattr(options, 'output', None))}", file=sys.stderr)
        return getattr(stopped, "status", 128 + signal.SIGINT)


def _what_is_kept(output: Path | None) -> str:
    if output is not None and os.path.lexists(kept := incomplete_of(output)):
        return f"{kept} is kept; the same command goes on from here"
    return f"{output} is complete" if output is not None and os.path.lexists(output) else "nothing was written"


def _status_of(options: argparse.Namespace) -> int:
    try:
        _choose_target(options)
        return options.run(options) or 0
    except (ConversionError, OSError) as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: there is not enough memory", file=sys.stderr)
        return 1


def _choose_target(options: argparse.Namespace) -> None:
    """Of a URL as --output: what it names, and the local name under which files are made on their way there."""
    options.target = None
    if not hasattr(options, "work"):
        return
    if isinstance(options.output, str):
        url, options.output = options.output, None
        options.target = parse_target(url, options.private)
        if options.no_verify or options.reference:
            raise SettingsError("--no-verify and --reference are for outputs that stay here; leave them out.")
        options.output = work_folder(options.target, options.work or Path())
        options.target.check()
        if not os.path.lexists(incomplete_of(options.output)):
            options.target.refuse_others(())
    elif options.work or options.private:
        raise SettingsError("--work and --private go with a URL as --output")


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="glm-ernie-convert", description="Converts original checkpoints for Hugging Face transformers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_glm130b(commands)
    _add_ernie(commands)
    _add_ernie3(commands)
    add_publish(commands)
    parser_of_inspect = commands.add_parser("inspect", help="what a source is, whether it is complete, what to run")
    add_options(parser_of_inspect)
    parser_of_inspect.set_defaults(run=_run_inspect)
    return parser


def _add_glm130b(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    glm = commands.add_parser("glm130b", help="GLM-130B in the released tensor-parallel format, and back")
    _add_common(glm, source="folder with `latest` (with --reverse: a converted folder)")
    glm.add_argument(
        "--tokenizer", type=Path, help="sentencepiece model (default: ice_text.model in the source folder, if there)"
    )
    glm.add_argument(
        "--config",
        type=Path,
        help="JSON with what tensors cannot tell: num_attention_heads, max_sequence_length, ... "
        "(default: config.json in the source folder, if there)",
    )
    glm.add_argument("--bits", type=int, choices=(4, 8), help="quantize the linears' weights (default: as stored)")
    glm.add_argument("--reverse", action="store_true", help="write the released format from a converted folder")
    glm.add_argument("--tensor-parallel", type=int, metavar="N", help="with --reverse: number of ranks to write")
    glm.add_argument(
        "--replicated-from-rank-0", action="store_true", help="accept ranks whose layer norms and biases differ"
    )
    glm.set_defaults(run=partial(_run_glm130b, glm))


def _add_ernie(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "ernie", help="ERNIE's released encoders (ernie-*, uie-*, utc-*, rocketqa-*), and back"
    )
    _add_common(
        parser, source="PaddleNLP's file or folder, or a static-graph folder (with --reverse: a converted one)"
    )
    _add_of_paddle(
        parser,
        vocab="vocab.txt",
        settings="config.json, model_config.json or ernie_config.json there",
        eps=f"{LAYER_NORM_EPS:g}, as PaddleNLP computes; {GRAM_LAYER_NORM_EPS:g} of ERNIE-Gram",
    )
    parser.add_argument("--task", choices=TASK_NAMES, help="head to convert (default: the checkpoint's)")
    parser.add_argument(
        "--prefix",
        metavar="NAME.",
        help="convert only what stands behind it in the file, e.g. query_ernie. (default: the prefix that makes all "
        "names known is taken off)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="the checkpoint that --source, a LoRA folder of PaddleNLP's, was trained on: the two are merged",
    )
    parser.add_argument("--reverse", action="store_true", help="write PaddleNLP's format from a converted folder")
    parser.add_argument(
        "--as-bert",
        action="store_true",
        help="write a folder for plain BERT classes, from PaddleNLP's files or a converted folder; with --reverse, an "
        "ERNIE folder from such a one",
    )
    parser.add_argument(
        "--task-type",
        type=parse_index,
        metavar="N",
        help="with --as-bert: the task type to keep (default: the checkpoint's, 0 in every released one)",
    )
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="with --as-bert: write what makes one vector of a text for sentence-transformers, vLLM and others",
    )
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="with --pooling: scale vectors to length 1 (default: yes)",
    )
    parser.set_defaults(run=partial(_with_local_source, partial(_run_ernie, parser)))


def _add_ernie3(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("ernie3", help="ERNIE 3.0's unified model (10B) as a static graph's files, and back")
    _add_common(
        parser, source="folder of one file for each variable, or combined file (with --reverse: a converted folder)"
    )
    _add_of_paddle(
        parser,
        vocab="the model's vocab.txt, or the released encoders'",
        settings="ernie_config.json beside the weights, if there",
        eps=f"the settings', or {LAYER_NORM_EPS_10B:g}",
    )
    for stack in ("", "branch-"):
        parser.add_argument(
            f"--{stack}num-attention-heads",
            type=parse_count,
            metavar="N",
            help="default: the settings', or of size 64",
        )
    parser.add_argument("--reverse", action="store_true", help="write a static graph's files from a converted folder")
    parser.set_defaults(run=partial(_with_local_source, partial(_run_ernie3, parser)))


def _add_of_paddle(parser: argparse.ArgumentParser, vocab: str, settings: str, eps: str) -> None:
    parser.add_argument("--vocab", type=Path, help=f"{vocab} (default: the one beside the weights, if there)")
    parser.add_argument("--config", type=Path, help=f"JSON settings (default: {settings})")
    parser.add_argument("--layer-norm-eps", type=parse_eps, metavar="EPS", help=f"of every LayerNorm (default: {eps})")


def _add_common(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("--source", type=parse_source, required=True, help=f"{source}; or a URL of one (s3://, ...)")
    parser.add_argument(
        "--output",
        type=parse_output_or_url,
        required=True,
        help="folder to be made, which must not exist; or hf://OWNER/NAME, s3://BUCKET/PREFIX, ...: each file is sent "
        "there once it is verified",
    )
    parser.add_argument(
        "--work", type=parse_output, metavar="DIR", help="with a URL as --output: where files are made (default: here)"
    )
    parser.add_argument("--private", action="store_true", help="with --output hf://: make a new repository private")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="default: as stored")
    parser.add_argument(
        "--max-shard-size",
        type=parse_size,
        default=parse_size("5GB"),
        metavar="SIZE",
        help="e.g. 5GB, 500MiB (default: 5GB)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan from the headers and stop")
    parser.add_argument("--no-verify", action="store_true", help="do not re-read the result")
    parser.add_argument("--consume", action="store_true", help=CONSUME_HELP)
    parser.add_argument("--yes", action="store_true", help="with --consume: do not ask")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        help="compute with the result and keep a few outputs, for publish to compare with; takes the memory of the "
        f"model (default: for weights of up to {SMALL_BYTES // 10**6} MB)",
    )
    add_threads(parser)


def _run_inspect(options: argparse.Namespace) -> int:
    text, status = run_inspect(options)
    print(text)
    return status


def _run_glm130b(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.reverse != (options.tensor_parallel is not None):
        parser.error("--reverse and --tensor-parallel N go together")
    if options.reverse and (options.tokenizer or options.config or options.bits or options.replicated_from_rank_0):
        parser.error(
            "--tokenizer, --config, --bits and --replicated-from-rank-0 are for the conversion from the released "
            "format"
        )
    _check_consume(parser, options)
    forward = partial(
        glm130b.ForwardOptions,
        tokenizer_model=options.tokenizer,
        bits=options.bits,
        replicated_from_rank_0=options.replicated_from_rank_0,
    )
    _run(options, glm130b.plan_forward, forward, partial(glm130b.plan_reverse, ranks=options.tensor_parallel))


def _check_consume(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.yes and not options.consume:
        parser.error("--yes goes with --consume")
    if options.consume and (options.target is not None or not isinstance(options.source, Path)):
        parser.error("--consume deletes local files for a local output; neither --source nor --output may be a URL")
    if options.consume and options.no_verify:
        parser.error("--consume deletes what was verified, so it does not go with --no-verify")
    if options.consume and options.reverse:
        parser.error(
            "--consume is for the conversion from the released format: --reverse writes all ranks together, so "
            "nothing of its source becomes free before the end"
        )


def _refuse_consume(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.consume or options.yes:
        parser.error(
            "--consume is for glm130b, whose source takes 257 GB; this family's takes 40 GB at most: keep it until "
            "you have looked at the result"
        )


def _run_ernie(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    _refuse_consume(parser, options)
    forward_only = ("vocab", "config", "task", "layer_norm_eps", "prefix", "base")
    if options.reverse and any(getattr(options, name) is not None for name in forward_only):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in forward_only)
        parser.error(f"{names} are for the conversion from PaddleNLP's format")
    if options.task_type is not None and (options.reverse or not options.as_bert):
        parser.error("--task-type goes with --as-bert, and without --reverse")
    if options.pooling and (options.reverse or not options.as_bert):
        parser.error("--pooling goes with --as-bert, and without --reverse")
    if options.normalize is not None and not options.pooling:
        parser.error("--normalize and --no-normalize go with --pooling")
    if options.as_bert and options.reference:
        parser.error("--reference is for publish, which takes no BERT folders")
    if options.base is not None:
        check_output(options.output, options.base)
    choices = {
        "vocab": options.vocab,
        "task": options.task,
        "layer_norm_eps": options.layer_norm_eps,
        "prefix": options.prefix,
        "base": options.base,
    }
    if not options.as_bert:
        _run(options, ernie.plan_forward, partial(ernie.ForwardOptions, **choices), ernie.plan_reverse)
        return
    if options.layer_norm_eps is not None and bert.is_folder(options.source):
        parser.error("--layer-norm-eps is for PaddleNLP's files; a converted folder has its own")
    options.reference = False
    pooling = Pooling(options.pooling, options.normalize is not False) if options.pooling else None
    forward = partial(bert.BertOptions, **choices, task_type=options.task_type, pooling=pooling)
    _run(options, bert.plan_as_bert, forward, bert.plan_back)


def _with_local_source(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Runs a command whose readers take local files alone."""
    check_output(options.output)
    with fetched(options.source, options.output) as options.source:
        run(options)


def _run_ernie3(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    _refuse_consume(parser, options)
    choices = Choices(options.num_attention_heads, options.branch_num_attention_heads, options.layer_norm_eps)
    if options.reverse and (options.vocab or options.config or choices != Choices()):
        parser.error(
            "--vocab, --config, --num-attention-heads, --branch-num-attention-heads and --layer-norm-eps are for the "
            "conversion from static files"
        )
    forward = partial(ernie3.ForwardOptions, vocab=options.vocab, choices=choices)
    _run(options, ernie3.plan_forward, forward, ernie3.plan_reverse)


def _run(
    options: argparse.Namespace,
    plan_forward: Callable[[Any, Any, ExpectedShapes], Job],
    forward_options: Callable[..., ForwardOptions],
    plan_reverse: Callable[..., Job],
) -> None:
    """Plans a family's conversion in the direction asked for, and runs it."""
    check_output(options.output, options.source if isinstance(options.source, Path) else None)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    if options.reverse:
        job = plan_reverse(options.source, dtype=dtype, expected=expected_shapes)
    else:
        choices = forward_options(
            settings=options.config,
            dtype=dtype,
            max_shard_bytes=options.max_shard_size,
            headers_only=options.dry_run,
        )
        if options.consume:
            convert_and_consume(
                options.source,
                options.output,
                lambda place: plan_forward(place, choices, expected_shapes),
                is_sure=options.yes,
                is_dry_run=options.dry_run,
                reference=_reference(options),
                threads=options.threads,
                say=partial(print, flush=True),
            )
            return
        refuse_begun(options.output)
        job = plan_forward(options.source, choices, expected_shapes)
    hooks = None
    if options.target is not None:
        job = for_target(job, options.target)
        hooks = Shipping(options.target, job)
        options.reference = False
        disk = hooks.disk_needed({file.name: file.size for file in job.files})
        print(job.describe(options.threads, disk, options.target.url), flush=True)
    else:
        print(job.describe(options.threads), flush=True)
    if options.dry_run:
        print("dry run: nothing was written")
        return
    verify = None if options.no_verify else verify_file
    run(job, options.output, verify, reference=_reference(options), threads=options.threads, hooks=hooks)
    print(f"done: {options.output if options.target is None else options.target.url}")


def _reference(options: argparse.Namespace) -> Callable[[Path, Path, bool], object] | None:
    if options.reverse or options.reference is False:
        return None
    return partial(_keep_reference, options.reference)


def _keep_reference(is_asked: bool | None, folder: Path, into: Path, show_progress: bool) -> None:
    reason = write_reference(folder, into, show_progress, any_size=bool(is_asked))
    if reason is not None:
        print(f"note: no outputs were kept for publish to compare with: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
