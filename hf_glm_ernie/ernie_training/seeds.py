"""Scores of several runs: mean and spread over seeds, the best of a grid; as JSON and as tables."""

import statistics
from collections.abc import Mapping
from typing import Any


def summarise(scores: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, least and greatest of every metric over the seeds.

    Args:
        scores: Seed -> metric -> score; metrics that not every seed has are left out.

    Returns:
        Metric -> `mean`, `std` (of a sample; 0 of one seed), `min`, `max`.
    """
    runs = list(scores.values())
    shared = [name for name in runs[0] if all(name in run for run in runs)] if runs else []
    summary = {}
    for name in shared:
        values = [float(run[name]) for run in runs]
        summary[name] = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "min": min(values),
            "max": max(values),
        }
    return summary


def seeds_report(scores: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """What `seeds.json` holds: the scores by seed, and [`summarise`]."""
    return {"seeds": {str(seed): dict(of_seed) for seed, of_seed in scores.items()}, "summary": summarise(scores)}


def seeds_table(scores: Mapping[int, Mapping[str, float]], leave_out: tuple[str, ...] = ()) -> str:
    """A table to print: a line a metric.

    Args:
        scores: As for [`summarise`].
        leave_out: Ends of names of metrics that are no scores, such as times.
    """
    summary = {name: one for name, one in summarise(scores).items() if not name.endswith(leave_out)}
    columns = [*(f"seed {seed}" for seed in scores), "mean", "std", "min", "max"]
    width = max(map(len, [*summary, "metric"]))
    lines = [f"{'metric':<{width}}" + "".join(f"{name:>10}" for name in columns)]
    for name, one in summary.items():
        numbers = [*(of_seed[name] for of_seed in scores.values()), *one.values()]
        lines.append(f"{name:<{width}}" + "".join(f"{number:>10.4f}" for number in numbers))
    return "\n".join(lines)


def grid_report(scores: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, Any]:
    """What `grid.json` holds: the scores by run, the run that is best by a metric, and the metric."""
    best = max(scores, key=lambda name: scores[name][metric])
    return {"runs": {name: dict(one) for name, one in scores.items()}, "metric": metric, "best": best}


def grid_table(scores: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """A table to print: a line a run, the best first."""
    width = max(map(len, scores))
    ordered = sorted(scores, key=lambda name: -scores[name][metric])
    return "\n".join(
        [f"{'':<{width}}  {metric}", *(f"{name:<{width}}  {scores[name][metric]:.4f}" for name in ordered)]
    )


__all__ = ["grid_report", "grid_table", "seeds_report", "seeds_table", "summarise"]
