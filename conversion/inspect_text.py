"""A report as text for a terminal, and as JSON."""

import json
from collections.abc import Iterator

from .inspect_report import ERROR, Finding, Needs, Report
from .regular_files import printable

MARKS = {True: "ok", False: "NO"}
SHOWN = 20
"""Findings of one kind; the rest is counted, and all are in the JSON."""


def as_text(report: Report) -> str:
    """What a person reads: what it is, what is wrong, what converting takes, what to run."""
    return "\n".join(map(printable, _lines(report)))  # names in it are somebody else's


def as_json(report: Report) -> str:
    """One JSON object."""
    return json.dumps(report.as_json(), indent=2, ensure_ascii=False)


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.name or report.source}"
    yield f"  source    {report.source}"
    yield f"  form      {report.form}" if report.form else "  form      unknown"
    if report.sizes:
        yield "  sizes     " + ", ".join(f"{name} {value:,}" for name, value in report.sizes.items())
    if report.files:
        yield "  files     {}, {:,} bytes".format(*report.nbytes)
    yield f"  status    {_status(report)}"
    if report.deep is not None:
        yield (
            f"  read      {report.deep.nbytes:,} bytes in {_time(report.deep.seconds)} "
            f"({report.deep.rate / 1e9:.2f} GB/s)"
        )
    yield from _findings(report)
    yield from _needs(report)
    if report.released is not None:
        yield ""
        yield f"released? {report.released.name}: {'as released' if report.released.holds else 'not as released'}"
        for check in report.released.checks:
            found = "" if check.holds else f"; here {check.found}"
            yield f"  {MARKS[check.holds]}  {check.what}: {check.expected}{found}"
    if report.command or report.advice:
        yield ""
        yield f"next: {report.advice}" if report.advice else "next:"
        yield from [f"  {report.command}"] if report.command else []


def _status(report: Report) -> str:
    numbers = {
        kind: sum(finding.kind == kind for finding in report.errors)
        for kind in dict.fromkeys(finding.kind for finding in report.errors)
    }
    return report.status + (
        f" ({', '.join(f'{number} {kind}' for kind, number in numbers.items())})" if numbers else ""
    )


def _findings(report: Report) -> Iterator[str]:
    shown: dict[tuple[str, str], int] = {}
    if report.findings:
        yield ""
    for finding in report.findings:
        key = finding.severity, finding.kind
        shown[key] = shown.get(key, 0) + 1
        if shown[key] <= SHOWN:
            yield from _finding(finding)
    for (_, kind), number in shown.items():
        if number > SHOWN:
            yield f"  ... and {number - SHOWN} more of the kind {kind}; --json lists all"


def _finding(finding: Finding) -> Iterator[str]:
    word = finding.kind if finding.severity == ERROR else finding.severity
    places = "; ".join(map(str, finding.places))
    yield f"  {word:<11} {places}: {finding.text}" if places else f"  {word:<11} {finding.text}"
    if finding.remedy:
        yield f"              {finding.remedy}"


def _needs(report: Report) -> Iterator[str]:
    if not report.needs:
        return
    rate = f"{report.rate / 1e9:.2g} GB/s" + (", as just measured" if report.is_measured else "")
    yield ""
    yield f"converting takes (time at {rate})"
    for need in report.needs:
        yield f"  {_need(need, report.rate)}"


def _need(need: Needs, rate: float) -> str:
    return (
        f"{need.options or 'as stored':<12}{_gigabytes(need.disk_bytes)} disk, "
        f"{_gigabytes(need.memory_bytes)} memory, about {_time(need.seconds(rate))}"
    )


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


__all__ = ["as_json", "as_text"]
