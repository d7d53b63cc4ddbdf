"""docs/publish.md runs as printed, on the samples and against the Hub's stand-in."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from conversion.publish_classes import PUBLISHED, remote_classes
from tests.support.fresh import fresh_python
from tests.support.hub_stand_in import TOKEN, Hub, serve
from tests.support.publishing import CODE, make_source
from tests.support.strangers import PREAMBLE, run_python

pytestmark = pytest.mark.slow  # three checks of repositories in processes of their own

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


def environment(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture(scope="module")
def outputs(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the page's commands print. Its first one does not push; the Python below wants it to be there."""
    folder = tmp_path_factory.mktemp("page")
    make_source("glm_int4", folder / "glm-130b-int4")
    make_source("encoder", folder / "ernie-base")
    printed = []
    for kind, body in BLOCKS:
        if kind == "bash":
            variables = os.environ | environment(hub) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = fresh_python(shlex.split(body)[1:], folder, variables)
            assert done.returncode == 0, done.stderr[-2000:]
            printed.append(done.stdout.replace(f"{folder.resolve()}/", ""))
    assert list(hub.repositories) == ["me/ernie-base"]  # nothing else was sent
    send = f"""
from huggingface_hub import HfApi
HfApi().create_repo("me/glm-130b-int4")
HfApi().upload_folder(repo_id="me/glm-130b-int4", folder_path={str(folder / "glm-130b-int4_hub")!r})
"""
    run_python(send, tmp_path_factory.mktemp("send"), environment(hub))
    return printed


def test_first_command_prints_what_stands_below_it(outputs: list[str]) -> None:
    shown = next(body for kind, body in BLOCKS if kind == "text")
    versions = re.compile(r"transformers \S+, torch \S+")
    assert versions.sub("", outputs[0]) == versions.sub("", shown)


def test_second_command_pushes(outputs: list[str], hub: Hub) -> None:
    assert f"pushed: {hub.url}/me/ernie-base/commit/" in outputs[1]
    assert {"config.json", "README.md", "model.safetensors"} <= hub.repositories["me/ernie-base"].files.keys()


def test_third_command_makes_a_space(outputs: list[str], hub: Hub) -> None:
    assert outputs[2] == next(body for kind, body in BLOCKS if kind == "text" and body.startswith("the page -> Space"))
    assert list(hub.repositories) == ["me/ernie-base", "me/glm-130b-int4"]


def test_python_block_prints_what_stands_below_it(outputs: list[str], hub: Hub, tmp_path: Path) -> None:
    index = next(index for index, (kind, _) in enumerate(BLOCKS) if kind == "python")
    done = run_python(PREAMBLE + BLOCKS[index][1], tmp_path, environment(hub))
    assert done.stdout == BLOCKS[index + 1][1]


def test_the_table_counts_right() -> None:
    counts = re.findall(r"^\| code files \| (\d+) \| (\d+) \| none \| (\d+) \|$", PAGE, flags=re.MULTILINE)[0]
    assert [len(CODE[name]) for name in ("glm", "uie", "encoder_int4")] == list(map(int, counts))
    assert len(CODE["utc"]) == len(CODE["uie"])
    assert list(remote_classes(PUBLISHED["glm130b"], None)) == ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]
