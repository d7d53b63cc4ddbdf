"""Command line of the converters: `python -m conversion glm130b ...`, or `glm-ernie-convert` once installed."""

import argparse
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_glm_ernie.configuration_arguments import EPSILON
from hf_glm_ernie.planner.devices import parse_size as parse_amount

from . import bert, ernie, ernie3, glm130b
from .bert_pooling import POOLINGS, Pooling
from .classes import expected_shapes
from .ernie3_settings import LAYER_NORM_EPS as LAYER_NORM_EPS_10B
from .ernie3_settings import Choices
from .ernie_names import TASK_NAMES
from .ernie_released import GRAM_LAYER_NORM_EPS, LAYER_NORM_EPS
from .inspect_command import add_options, run_inspect
from .interruption import interruptible
from .job import ExpectedShapes, ForwardOptions, Job, run
from .operations import shortened
from .output_path import check_output, incomplete_of
from .publish import CHECKS, default_output, plan_publication, publish, read_parity
from .publish_card import CardTexts
from .publish_classes import license_of
from .publish_hub import check_repo_name, push, require_token
from .publish_source import PublishError, read_source
from .publish_space import ROLES, SDK, default_space_output, plan_space, publish_space
from .reference_outputs import SMALL_BYTES, write_reference
from .state_map import ConversionError
from .verify import verify_file

MAX_SHARD_BYTES = 10**15


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
        return options.run(options) or 0
    except (ConversionError, OSError) as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: there is not enough memory", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="glm-ernie-convert", description="Converts original checkpoints for Hugging Face transformers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_glm130b(commands)
    _add_ernie(commands)
    _add_ernie3(commands)
    _add_publish(commands)
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
    parser.set_defaults(run=partial(_run_ernie, parser))


def _add_publish(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("publish", help="a Hub repository from a converted or saved folder, or a Space")
    parser.add_argument("folder", type=Path, nargs="?", help="what a converter or save_pretrained wrote")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument(
        "--output",
        type=parse_output,
        help="folder to be made; must not exist (default: FOLDER_hub, of a Space NAME_space)",
    )
    parser.add_argument("--push", action="store_true", help="send it to the Hub; without this nothing is sent")
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    parser.add_argument("--license", help="of the weights, as the Hub spells it (default: the released weights')")
    parser.add_argument("--license-name", help="name of a licence the Hub does not list; needs --license-link")
    parser.add_argument("--license-link", help="address of that licence")
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="repository these weights were made from")
    parser.add_argument("--base-model-relation", choices=("quantized", "finetune", "adapter", "merge"))
    parser.add_argument("--about", type=Path, metavar="FILE.md", help="text for the model card, below its title")
    parser.add_argument("--parity", type=Path, metavar="FILE.json", help="measurements for the model card")
    parser.add_argument("--check", choices=CHECKS, default="auto", help="auto: full where memory allows")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    space = parser.add_argument_group("a Space", "the page of examples/space, on models that are on the Hub")
    space.add_argument("--space", action="store_true", help="make a Space, without FOLDER")
    for role in ROLES:
        space.add_argument(f"--{role}", metavar="OWNER/NAME", help=f"repository of the page's {role} model")
    space.add_argument("--wheel", type=Path, metavar="FILE.whl", help="this package, for a Space to carry")
    parser.set_defaults(run=partial(_run_publish, parser))


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
    parser.set_defaults(run=partial(_run_ernie3, parser))


def _add_of_paddle(parser: argparse.ArgumentParser, vocab: str, settings: str, eps: str) -> None:
    parser.add_argument("--vocab", type=Path, help=f"{vocab} (default: the one beside the weights, if there)")
    parser.add_argument("--config", type=Path, help=f"JSON settings (default: {settings})")
    parser.add_argument("--layer-norm-eps", type=parse_eps, metavar="EPS", help=f"of every LayerNorm (default: {eps})")


def _add_common(parser: argparse.ArgumentParser, source: str) -> None:
    parser.add_argument("--source", type=Path, required=True, help=source)
    parser.add_argument("--output", type=parse_output, required=True, help="folder to be made; must not exist")
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
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        help="compute with the result and keep a few outputs, for publish to compare with; takes the memory of the "
        f"model (default: for weights of up to {SMALL_BYTES // 10**6} MB)",
    )


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
    forward = partial(
        glm130b.ForwardOptions,
        tokenizer_model=options.tokenizer,
        bits=options.bits,
        replicated_from_rank_0=options.replicated_from_rank_0,
    )
    _run(options, glm130b.plan_forward, forward, partial(glm130b.plan_reverse, ranks=options.tensor_parallel))


def _run_ernie(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
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


def _run_publish(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.private and not options.push:
        parser.error("--private goes with --push")
    if bool(options.license_name) != bool(options.license_link) or (options.license and options.license_name):
        parser.error("give --license, or --license-name and --license-link together")
    if options.space:
        _run_space(parser, options)
        return
    if options.folder is None:
        parser.error("give the FOLDER to publish, or --space")
    if of_space := [f"--{name}" for name in (*ROLES, "wheel") if getattr(options, name) is not None]:
        parser.error(f"{of_space[0]} goes with --space")
    options.output = (options.output or default_output(options.folder)).absolute()
    check_repo_name(options.repo)
    if options.push:
        require_token()  # before an hour of hashing
    plan = plan_publication(options.folder, options.repo, options.output, _card_texts(options), options.check)
    print(plan.describe(), flush=True)
    if options.dry_run:
        print("dry run: nothing was written")
        return
    sha256 = publish(plan)
    print(f"done: {options.output}")
    if options.push:
        print(f"pushed: {push(options.output, options.repo, options.private, sha256)}")


def _run_space(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    of_model = ("folder", "license", "license_name", "base_model", "base_model_relation", "about", "parity")
    if given := [name for name in of_model if getattr(options, name) is not None]:
        parser.error(f"{given[0].replace('_', '-')} is for a model's repository; a Space takes its models by --glm ..")
    if options.wheel and options.private:
        parser.error("--wheel needs a public Space: a private one cannot install what lies in itself")
    check_repo_name(options.repo)
    options.output = options.output or default_space_output(options.repo)
    if options.push:
        require_token()
    models = {role: getattr(options, role) for role in ROLES}
    plan = plan_space(options.repo, models, options.output, options.wheel, options.check)
    print(plan.describe(), flush=True)
    if options.dry_run:
        print("dry run: nothing was written")
        return
    sha256 = publish_space(plan)
    print(f"done: {options.output}")
    if options.push:
        print(f"pushed: {push(options.output, options.repo, options.private, sha256, space_sdk=SDK)}")


def _card_texts(options: argparse.Namespace) -> CardTexts:
    source = read_source(options.folder)
    licence = license_of(source.row, source.config)
    if options.license_name:
        licence = ("other", options.license_name, options.license_link)
    elif options.license:
        licence = (options.license, None, None)
    relation = options.base_model_relation
    if relation and not options.base_model:
        raise PublishError("--base-model-relation needs --base-model OWNER/NAME")
    if options.base_model:
        check_repo_name(options.base_model)
        relation = relation or ("quantized" if source.quant_method else None)
    about = _about(options.about) if options.about else ""
    parity = read_parity(options.parity) if options.parity else ()
    return CardTexts(licence, options.base_model, relation, about, parity)


def _about(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PublishError(f"--about {path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def _run_ernie3(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
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
    plan_forward: Callable[[Path, Any, ExpectedShapes], Job],
    forward_options: Callable[..., ForwardOptions],
    plan_reverse: Callable[..., Job],
) -> None:
    """Plans a family's conversion in the direction asked for, and runs it."""
    check_output(options.output, options.source)
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
        job = plan_forward(options.source, choices, expected_shapes)
    print(job.describe(), flush=True)
    if options.dry_run:
        print("dry run: nothing was written")
        return
    reference = None if options.reverse or options.reference is False else partial(_keep_reference, options.reference)
    run(job, options.output, None if options.no_verify else verify_file, reference=reference)
    print(f"done: {options.output}")


def _keep_reference(is_asked: bool | None, folder: Path, into: Path, show_progress: bool) -> None:
    reason = write_reference(folder, into, show_progress, any_size=bool(is_asked))
    if reason is not None:
        print(f"note: no outputs were kept for publish to compare with: {reason}", file=sys.stderr)


def parse_size(text: str) -> int:
    """Bytes from "5GB" (10^9 each), "500MiB" (2^20 each) or a plain number. Raises `argparse.ArgumentTypeError`."""
    number, unit = re.fullmatch(r"([\d.]*)\s*(.*)", text.strip(), flags=re.DOTALL).groups()  # type: ignore[union-attr]  # it matches any text
    try:
        size = parse_amount(number + (unit.upper().replace("IB", "iB") or "B"), "size")
    except (ValueError, OverflowError):
        size = 0
    if not 1 <= size <= MAX_SHARD_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write e.g. 5GB, 500MiB or a number of bytes, at most {MAX_SHARD_BYTES:.0e}"
        )
    return size


def parse_output(text: str) -> Path:
    """A folder whose name every library can write to. Raises `argparse.ArgumentTypeError`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no text in UTF-8, which the tokenizers library asks of a path; choose another"
        ) from error
    return Path(text)


def parse_count(text: str) -> int:
    """A whole number above 0. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_index(text: str) -> int:
    """A whole number, 0 or more. Raises `argparse.ArgumentTypeError`."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def parse_eps(text: str) -> float:
    """The epsilon of a LayerNorm. Raises `argparse.ArgumentTypeError`."""
    try:
        eps = float(text)
    except ValueError:
        eps = math.nan
    if not EPSILON.holds(eps):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {EPSILON}, such as 1e-12")
    return eps


if __name__ == "__main__":
    sys.exit(main())
