"""Seeds, and where the golden files lie."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.products import mark_products
from tests.support.slow import mark_slow
from tests.support.sources import nodes_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_GLM_ERNIE_CPU_KERNEL"] = "0"  # tests of the kernel build it; the others compile nothing

GOLDEN = Path(__file__).parent / "golden"
SHARED_GOLDENS = Path(__file__).parents[2] / "shared" / "goldens" / "glm"
SHARED_ERNIE = SHARED_GOLDENS.with_name("ernie")
FIRST = ("test_host_private.py", "test_tokenization_glm130b.py", "test_weight_only_triton.py")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what a new version of the host may have taken away: it explains whatever fails behind it. Then two long
    files, which at the end would keep one of two processes waiting.
    """
    mark_slow(items)
    mark_products(items)
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """The garbage collector leaves alone what imports and collected tests hold: going through it again and again took
    a tenth of the whole run.
    """
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """And what a file's tests leave behind for good: the host collects garbage whenever a training ends."""
    if nextitem is not None and nextitem.path != item.path:
        nodes_of.cache_clear()  # 280 MB, once the whole repository was read
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """As `torch.manual_seed(0)`, which keeps the caller's stack for every kind of device that was not used yet."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def one_compiled_shape() -> Iterator[None]:
    """The compiler remembers no shape that came before, and what the test compiles is forgotten behind it.

    At a second shape of a function torch generates code for any; torch 2.13's of flex attention on CPUs, which the
    host compiles once for all models of a process, names variables that it does not declare (`cur_kvSplitSize0`).
    """
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def shared_goldens() -> Path:
    """The full sets of original outputs, present beside the repository where it is developed."""
    if not SHARED_GOLDENS.is_dir():
        pytest.skip(
            "needs the full golden sets beside the repository (../shared/goldens/glm); the small copies in "
            "tests/golden ran"
        )
    return SHARED_GOLDENS


@pytest.fixture(scope="session")
def shared_ernie() -> Path:
    """The full set of PaddleNLP's outputs for ERNIE's encoders, UIE and UTC."""
    if not SHARED_ERNIE.is_dir():
        pytest.skip("needs the full golden set beside the repository (../shared/goldens/ernie)")
    return SHARED_ERNIE
