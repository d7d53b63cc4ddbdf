"""Sums up the skipped tests of a conformance run by reason, and fails the run if a reason is not understood.

`run.py` puts this file into the host's test tree as its `conftest.py`. The suites skip what a class seems not to
support, so a skip can hide a defect: each has to be explained here.
"""

import re
from collections import defaultdict
from typing import Any

import pytest

# Why a test is skipped -> pattern of "test name: the host's reason".
EXPLANATIONS = {
    "needs a GPU or another accelerator": r"requires (accelerator|multiple accelerators|MPS)",
    "flash attention, which is refused: it would drop the mask of GLM-130B's prefix or of ERNIE 3.0's memory": (
        r"requires Flash Attention"
    ),
    "needs a package this project does not use": (
        r"requires (deepspeed|the kernels library|optimum-quanto|ExecuTorch|ONNXScript)"
    ),
    "slow; runs with RUN_SLOW=1": r"test is slow",
    "one text model without parts": (
        r"not (a )?composite|No subconfigs|"
        r"test_sdpa_can_dispatch_composite_models: (Glm130b|Ernie3)Model does not support SDPA"
    ),
    "decoder only": r"No sequence-to-sequence language modeling head",
    "heads of the understanding branch, and a model with labels of several kinds: neither is a decoder alone": (
        r"No decoder-only language modeling head to check"
    ),
    "no mixture of experts": r"does not support grouped_mm|no sparse experts|no `output_router_logits`",
    "full attention in every layer": r"does not support sliding window mask|declares no recurrent layer types",
    "no rotary positions, or those of the released table, which is not scaled": (
        r"does not support RoPE scaling|does not have RoPE|no axial RoPE|does not have position embeddings"
    ),
    "no module is kept in fp32": r"has no _keep_in_fp32_modules|No `_keep_in_fp32_modules_strict` defined",
    "relative positions: their biases over all heads are split by no tensor-parallel style of the host": (
        r"Model does not have a TP plan"
    ),
    "no checkpoint names are rewritten on loading (conversion is a command of its own)": r"No conversion found",
    "rows packed by restarting positions, which repeat for another reason here": (
        r"does not support new attention mask API"
    ),
    "generation from nothing: the model has no token that begins a text": r"bos_token_id is None",
    "no extra heads that predict several tokens": r"No MTP keys registered",
    "transformers 5.17 runs it only where the config file's head bears a year after 2022": (
        r"Not a prioritized model for now"
    ),
    "ids, tokens and decoded texts are held against the originals in tests/test_tokenization_*.py": (
        r"No integration expected tokens"
    ),
    "the tokenizer is made from its files, not from a bare vocabulary": r"from TokenizersExtractor not enabled",
    "chat templates of multimodal processors": r"tokenizer doesn't accept chat templates at input",
}

_skipped: dict[str, list[str]] = defaultdict(list)  # "test name: the host's reason" -> test ids


def pytest_runtest_logreport(report: Any) -> None:
    """Collects skipped tests and subtests."""
    if report.skipped and isinstance(report.longrepr, tuple):
        name = report.nodeid.rpartition("::")[2]
        _skipped[f"{name}: {report.longrepr[2].removeprefix('Skipped: ')}"].append(report.nodeid)


def unexplained() -> list[str]:
    """The skips that no pattern covers."""
    return [skip for skip in _skipped if not any(re.search(pattern, skip) for pattern in EXPLANATIONS.values())]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns an unexplained skip into a failed run."""
    if unexplained() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the number of skipped tests for each reason."""
    if _skipped:
        terminalreporter.section("skipped tests by reason")
    for explanation, pattern in EXPLANATIONS.items():
        count = sum(len(tests) for skip, tests in _skipped.items() if re.search(pattern, skip))
        if count:
            terminalreporter.write_line(f"{count:4}  {explanation}")
    for skip in unexplained():
        terminalreporter.write_line(
            f"{len(_skipped[skip]):4}  NOT EXPLAINED (add it to skip_report.py or mend the class): {skip}"
        )
