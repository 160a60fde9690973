"""A picture of a recorded session: ranges over time, what is inside below, the GPU's work last."""

from typing import Any

from recorded import Range, Session, SessionError

COLORS = {
    "phase": "#4c78a8",
    "layer": "#54a24b",
    "part": "#e8943a",
    "op": "#9d7ab8",
    "io": "#d65f5f",
}
GPU = "#3a3a3a"
LETTER = 0.0075  # of the picture's width: a range has its name inside if there is room for it


def draw(session: Session, file: str, nth: int | None = None) -> None:
    """Write a PNG of a session, or of its ``nth`` outermost range only."""
    try:
        import matplotlib
    except ImportError:
        raise SessionError("a picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = session.ranges
    if nth is not None:
        if not 0 <= nth < len(shown):
            raise SessionError(f"there are {len(shown)} such ranges, so no number {nth} from 0")
        shown = [shown[nth]]
    start, end = min(r.start for r in shown), max(r.end for r in shown)
    unit, name = (1e6, "ms") if end - start > 1e6 else (1e3, "us")
    bars = [(depth, found) for outermost in shown for depth, found in _levels(outermost)]
    work = sorted({w for outermost in shown for w in outermost.gpu})
    rows = max(depth for depth, _ in bars) + 1
    last = max([end, *(w[1] for w in work)])
    figure, axes = pyplot.subplots(figsize=(11, 0.9 + 0.36 * (rows + bool(work))), dpi=110)
    scale = (last - start) / unit
    for depth, found in bars:
        left, width = (found.start - start) / unit, (found.end - found.start) / unit
        _bar(axes, depth, left, width, COLORS.get(found.category or "", GPU))
        if width / scale > LETTER * len(found.name):
            axes.text(left + width / 2, depth, found.name, ha="center", va="center", fontsize=7,
                      color="white", clip_on=True)  # fmt: skip
    for first, stop in work:
        _bar(axes, rows, (first - start) / unit, (stop - first) / unit, GPU)
    axes.set(xlim=(0, scale), ylim=(rows + bool(work) - 0.4, -0.6), xlabel=name)
    axes.set_yticks([rows] if work else [], ["GPU"] if work else [])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    kinds = {found.category for _, found in bars}
    legend = {kind: color for kind, color in COLORS.items() if kind in kinds}
    legend |= {"GPU work": GPU} if work else {}
    patches = [Patch(color=color, label=kind) for kind, color in legend.items()]
    axes.legend(handles=patches, ncols=len(patches), loc="lower right", bbox_to_anchor=(1, 1),
                frameon=False, fontsize=7, handlelength=1)  # fmt: skip
    figure.tight_layout()
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)


def _levels(outermost: Range) -> list[tuple[int, Range]]:
    """Each range with how deep it lies."""
    levels, stack = [], [(0, outermost)]
    while stack:
        depth, found = stack.pop()
        levels.append((depth, found))
        stack += [(depth + 1, inner) for inner in found.inner]
    return levels


def _bar(axes: Any, row: int, left: float, width: float, color: str) -> None:
    axes.barh(row, width, left=left, height=0.86, color=color, edgecolor="white", linewidth=0.3)
