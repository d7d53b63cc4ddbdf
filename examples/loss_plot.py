"""The plot of a training run's losses that the fine-tuning and pre-training scripts draw."""

from pathlib import Path


def plot_losses(history: list[dict[str, float]], path: Path, label: str = "loss") -> None:
    """Draws the losses that a trainer logged, where matplotlib is installed.

    Args:
        history: `trainer.state.log_history`.
        path: The picture.
        label: Of the vertical axis.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"No {path.name}: pip install matplotlib. The numbers are in trainer_state.json.")
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, kind in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, marker="." if len(points) < 3 else "")
    axes.set(xlabel="step", ylabel=label)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
