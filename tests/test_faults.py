"""Faults and hostile inputs, the short form; `make test-faults` is the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.flows import FLOWS, Flow
from tests.faults.harness import Server, can_build
from tests.faults.hostile import campaign
from tests.faults.interruptions import KINDS, Subject, spread
from tests.faults.themes import SHORT

pytestmark = pytest.mark.skipif(not can_build(), reason="needs Linux and a C compiler, to make calls fail")

SHORT_FLOWS = ("glm130b", "ernie-reverse", "ernie3")
PLACES = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("theme", SHORT)
def test_hostile_inputs_are_refused_with_a_message(theme: str, server: Server, tmp_path: Path) -> None:
    number, wrong = campaign(SHORT[theme](), server, tmp_path)
    assert number >= 8
    assert not wrong


@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow.name in SHORT_FLOWS], ids=lambda flow: flow.name)
def test_a_disturbed_run_loses_and_mixes_nothing(flow: Flow, server: Server) -> None:
    with Subject(flow, server) as subject:
        for kind in KINDS:
            for nth in spread(subject.calls(kind), PLACES + 2)[1:-1]:  # the ends are the easy ones
                assert not subject.strike(kind, nth), (kind.name, nth)
