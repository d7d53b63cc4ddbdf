"""A page to try the models on: fill blanks, extract, classify. In English, and in Chinese at /zh.

    python examples/space/app.py
    python examples/space/app.py --glm glm-130b-int4 --uie me/ernie-uie --classifier none

Runs as it stands here, and as a Space of the Hub (`python -m conversion publish --space`). Nothing is fetched from
elsewhere but models that are named by a repository; Gradio's own reports are turned off.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import page_layout
from page_models import NONE, ROLES, chosen_names, open_models, unopened

HERE = Path(__file__).resolve().parent


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; `None` reads that of the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for role in ROLES:
        kinds = " or ".join(role.model_types)
        parser.add_argument(
            f"--{role.name}",
            metavar="FOLDER_OR_REPO",
            help=f"a model of type {kinds}; {NONE!r}: without (default: {role.variable}, models.json, the sample)",
        )
    parser.add_argument("--host", help="address to listen at (default: GRADIO_SERVER_NAME, or this machine alone)")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860 on")
    parser.add_argument(
        "--samples",
        type=Path,
        default=HERE.parent.parent / "demo-output" / "page",
        help="folder where the converted samples are kept (default: %(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="lay the page out without models, and stop")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Opens the models and serves the page until it is stopped.

    Returns:
        The exit status: 0, or 1 where a model cannot be opened (the reason is on stderr).
    """
    options = parse_arguments(arguments)
    try:
        names = chosen_names({role.name: getattr(options, role.name) for role in ROLES}, os.environ)
        models = unopened(names) if options.check else open_models(names, options.samples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    app = page_layout.build(models)
    if options.check:
        print(f"laid out: {', '.join(models)}")
        return 0
    app.launch(server_name=options.host, server_port=options.port, **page_layout.launch_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(main())
