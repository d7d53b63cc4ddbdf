"""The plot of a training run's losses that the fine-tuning and pre-training scripts draw, once all else is saved."""

from pathlib import Path
from typing import Any


def figure_for(path: Path, numbers: str, size: tuple[float, float]) -> Any:
    """An empty `matplotlib.figure.Figure`; `None` where matplotlib is missing, which is said.

    Args:
        path: The picture that will be.
        numbers: Where what would be drawn can be read.
        size: In inches.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"No {path.name}: pip install matplotlib. The numbers are in {numbers}.")
        return None
    return Figure(figsize=size, layout="constrained")


def plot_losses(history: list[dict[str, float]], path: Path, label: str = "loss") -> None:
    """Draws the losses that a trainer logged, where matplotlib is installed.

    Args:
        history: `trainer.state.log_history`.
        path: The picture.
        label: Of the vertical axis.
    """
    figure = figure_for(path, "trainer_state.json", (6, 4))
    if figure is None:
        return
    axes = figure.subplots()
    for name, kind in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, marker="." if len(points) < 3 else "")
    axes.set(xlabel="step", ylabel=label)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
