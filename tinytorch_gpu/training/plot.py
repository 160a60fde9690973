"""The loss of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_losses(metrics: Sequence[dict[str, Any]], to: Path) -> None:
    """Draw loss and validation loss by step into a PNG. Without matplotlib this is an ImportError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "a picture of the losses needs matplotlib: pip install 'tinytorch-gpu[plot]'"
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    # Validation is seldom: a point for each, so that the first one shows.
    for name, label, marker in (("loss", "training", ""), ("val_loss", "validation", "o")):
        points = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, linewidth=1.2, marker=marker, markersize=4
            )
    axes.set(xlabel="step", ylabel="loss per token (nats)")
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(to, dpi=120)
