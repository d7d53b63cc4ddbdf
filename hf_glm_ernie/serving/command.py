"""`python -m hf_glm_ernie serve`: the host's `transformers serve`, which finds our classes and answers bad requests.

Three things are done before the arguments go to the host's command as they are:

1. The classes that generate become attributes of `transformers`: for a folder the host looks its model up there, by
   the name in `config.json` ("module transformers has no attribute Glm130bForCausalLM").
2. What cannot work is refused with the reason, before a weight is read: continuous batching (the host's hands a
   prompt to the model as a causal text), a folder that holds an encoder, a machine without the host's extra.
3. The function that makes the host's app is wrapped while the command runs, so that requests are checked
   ([`CheckedHandler`]) and generation knows the model's context ([`CheckedGeneration`]).
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from transformers.utils.import_utils import is_serve_available

from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM
from hf_glm_ernie.modeling_glm130b import Glm130bForCausalLM

from .generation import CONTINUOUS_BATCHING, Generations
from .requests import CheckedHandler

SERVED = (Glm130bForCausalLM, Ernie3ForCausalLM)
# The parameters of the host's `build_server` that answer with generated text -> where their requests ask.
HANDLERS = {"chat_handler": "messages", "completion_handler": "prompt", "response_handler": "input"}

REFUSED = 1  # 2 is argparse's


def main(arguments: Sequence[str]) -> int:
    """Runs the command, see [`serve`]. Returns the exit status: 1 if it was refused (the reason is on stderr)."""
    try:
        serve(arguments)
    except (ImportError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    return 0


def serve(arguments: Sequence[str]) -> None:
    """Serves until it is told to stop.

    Args:
        arguments: FOLDER and the options of `transformers serve`, as the host takes them.

    Raises:
        ImportError: the host's extra for serving is missing.
        ValueError: continuous batching; a first argument that is a folder with no model that generates.
        SystemExit: the command ends, or the host refuses an argument.
    """
    if "--help" not in arguments and not is_serve_available():
        raise ImportError(
            "`transformers serve` needs FastAPI, uvicorn, pydantic and openai, and not all of them are here: "
            "pip install 'hf-glm-ernie[serve-transformers]'"
        )
    if "--continuous-batching" in arguments:
        raise ValueError(f"--continuous-batching: {CONTINUOUS_BATCHING}")
    if arguments and not arguments[0].startswith("-") and Path(arguments[0]).exists():
        check_folder(Path(arguments[0]))
    for cls in SERVED:
        setattr(transformers, cls.__name__, cls)
    from transformers.cli.transformers import app  # brings the host's whole command line

    with checked_server():
        app(["serve", *arguments], prog_name="python -m hf_glm_ernie")


def check_folder(folder: Path) -> None:
    """Refuses a folder that `transformers serve` cannot answer for.

    Args:
        folder: What is to be served; a name on the Hub is none and is not looked at.

    Raises:
        ValueError: no folder with a config.json; a model that does not generate.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (name, *_) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(folder)!r} holds no config.json that names its model ({type(error).__name__}: {error}). Give a "
            "folder that a converter wrote, or one saved by save_pretrained; a released checkpoint is converted first "
            "(python -m conversion)."
        ) from error
    cls = {one.__name__: one for one in SERVED}.get(name) or getattr(transformers, str(name), None)
    if cls is None or not cls.can_generate():
        raise ValueError(
            f"{str(folder)!r} holds a {name}, which does not generate: `transformers serve` answers with generated "
            "text only. Embeddings and classes of ERNIE's encoders are served as BERT by other engines: docs/serve.md."
        )


@contextmanager
def checked_server() -> Iterator[None]:
    """The host makes its app with our checks, for as long as this lasts."""
    from transformers.cli.serving import server

    build_server = server.build_server
    server.build_server = with_checks(build_server)
    try:
        yield
    finally:
        server.build_server = build_server


def with_checks(build_server: Callable[..., Any]) -> Callable[..., Any]:
    """The host's `build_server` with its handlers checked and its generation ours.

    Args:
        build_server: Takes handlers and the state of generation, and makes the app.

    Returns:
        A function with the same parameters.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        given = signature(build_server).bind(*args, **kwargs)
        for name, field in HANDLERS.items():
            given.arguments[name] = CheckedHandler(given.arguments[name], field)
        given.arguments["generation_state"].get_manager = Generations()
        return build_server(*given.args, **given.kwargs)

    return build


__all__ = ["check_folder", "checked_server", "main", "serve", "with_checks"]
