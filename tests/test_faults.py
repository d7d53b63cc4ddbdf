"""Faults and hostile inputs, the short form; `make test-faults` is the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import reader_cases
from tests.faults.case import Case
from tests.faults.flows import FLOWS, Flow
from tests.faults.harness import Server, can_build, run_case
from tests.faults.interruptions import KINDS, Subject, spread

pytestmark = pytest.mark.skipif(not can_build(), reason="needs Linux and a C compiler, to make calls fail")

SHORT = ("glm130b", "ernie-reverse", "ernie3")
PLACES = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


SHORT_CASES = [case for case in reader_cases.cases(12) if case.name in reader_cases.SHORT or "mutant" in case.name]


@pytest.mark.parametrize("case", SHORT_CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_refused_with_a_message(case: Case, server: Server, tmp_path: Path) -> None:
    assert not run_case(server, case, tmp_path / "case")


@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow.name in SHORT], ids=lambda flow: flow.name)
def test_a_disturbed_run_loses_and_mixes_nothing(flow: Flow, server: Server) -> None:
    with Subject(flow, server) as subject:
        for kind in KINDS:
            for nth in spread(subject.calls(kind), PLACES + 2)[1:-1]:  # the ends are the easy ones
                assert not subject.strike(kind, nth), (kind.name, nth)
