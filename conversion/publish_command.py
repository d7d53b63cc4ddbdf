"""The command line's side of `publish`: a Hub repository from a converted or saved folder, or a Space."""

import argparse
from functools import partial
from pathlib import Path

from .command_values import parse_output
from .publish import CHECKS, default_output, plan_publication, publish, read_parity
from .publish_card import CardTexts
from .publish_classes import license_of
from .publish_hub import check_repo_name, push, require_token
from .publish_source import PublishError, read_source
from .publish_space import ROLES, SDK, default_space_output, plan_space, publish_space


def add_publish(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command and its options."""
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


__all__ = ["add_publish"]
