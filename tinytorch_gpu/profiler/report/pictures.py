"""A report as pictures: matplotlib figures, for the page and, as PNG, for a paper."""

from collections.abc import Iterator
from typing import Any

import numpy
from matplotlib.figure import Figure

from ..roofline import CALL, COMPUTE, MEMORY
from ..studies import Study
from .attention import AttentionMaps
from .data import Report, lines
from .text import name_of, number, size

COLORS = {COMPUTE: "#2563a8", MEMORY: "#c2452d", CALL: "#8a8a8a"}
PARTS = ("#2563a8", "#c2452d", "#3f8f4f", "#b8862b", "#7a4fa3", "#4f8f96", "#8a8a8a")
WIDE, TALL = 4.8, 3.3  # inches: a phone shows them as large as they are
LABELLED = 8  # points of a roofline that get a name: those that take most of the time
GROWTH = {
    "parameters": "parameters", "prefill_flops": "arithmetic of a prompt", "decode_seconds": "least time of a step",
    "cache_bytes": "cache", "inference_bytes": "memory to generate", "train_bytes": "memory to train",
}  # fmt: skip


def pictures(
    report: Report, attention: AttentionMaps | None = None
) -> Iterator[tuple[str, str, Figure]]:
    """(file name, caption, figure) of everything that the report has."""
    for phase in report.rooflines:
        name = phase.replace(".", "-")
        yield f"roofline-{name}", f"Roofline of {phase}", roofline_picture(report, phase)
        yield f"time-{name}", f"Time of {phase} by operation", time_picture(report, phase)
    yield "parameters", "Parameters by component", parameters_picture(report)
    yield "memory", "Memory by component, predicted", memory_picture(report)
    for work, run in report.runs.items():
        if run.timeline:
            yield (
                f"memory-over-time-{work}",
                f"Memory over time, measured: {work}",
                timeline_picture(report, work),
            )
    for study in report.studies:
        if study.field != "phase":
            yield f"scaling-{study.field}", study.finding, study_picture(study)
    if attention is not None:
        yield (
            "attention",
            "Attention: who looks (rows) at whom (columns)",
            attention_picture(attention),
        )


def _figure(width: float = WIDE, height: float = TALL) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def roofline_picture(report: Report, phase: str) -> Figure:
    """Operations a second over operations a byte (Williams et al. 2009): the roof, and each operation under
    it - where it ran, as fast as it was; else on the roof."""
    one, device = report.rooflines[phase], report.device
    found = [x for x in lines(report, phase) if x["flops"] and x["bytes"]]
    peak, bandwidth = device.peak(one.dtype), device.bandwidth
    figure, axes = _figure()
    for line in found:
        rate = line["flops"] / (line["seconds"] or line["least_seconds"])
        axes.plot(
            line["intensity"], rate, "o", color=COLORS[line["bound"]], markersize=5, alpha=0.8
        )
    longest = sorted(found, key=lambda x: -(x["seconds"] or x["least_seconds"]))[:LABELLED]
    for line in longest:
        rate = line["flops"] / (line["seconds"] or line["least_seconds"])
        axes.annotate(
            name_of(line),
            (line["intensity"], rate),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
        )
    low = min([0.1, *(x["intensity"] for x in found)]) / 2
    high = max([4 * one.ridge, *(x["intensity"] for x in found)]) * 2
    x = numpy.geomspace(low, high, 100)
    axes.plot(x, numpy.minimum(peak, bandwidth * x), color="black", linewidth=1)
    axes.axvline(one.ridge, color="gray", linewidth=0.6, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(
        f"{number(peak)}FLOP/s, {number(bandwidth)}B/s: {device.name} ({device.source})", fontsize=9
    )
    for bound, color in COLORS.items():
        if any(line["bound"] == bound for line in found):
            axes.plot([], [], "o", color=color, label=f"bound by {bound}")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def time_picture(report: Report, phase: str) -> Figure:
    """The least time of each operation and, where it ran, what it took."""
    found = sorted(lines(report, phase), key=lambda x: x["seconds"] or x["least_seconds"])[-16:]
    figure, axes = _figure(height=0.9 + 0.26 * len(found))
    places = numpy.arange(len(found))
    measured = [line["seconds"] or 0.0 for line in found]
    if any(measured):
        axes.barh(places + 0.2, numpy.array(measured) * 1e3, 0.4, color="#b9c4d0", label="measured")
    axes.barh(places - (0.2 if any(measured) else 0), [x["least_seconds"] * 1e3 for x in found], 0.4,
              color=[COLORS[x["bound"]] for x in found], label="least (blue: by arithmetic, red: by memory)")  # fmt: skip
    axes.set_yticks(places, [name_of(line) for line in found], fontsize=8)
    axes.set_xlabel("ms")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def parameters_picture(report: Report) -> Figure:
    """How many parameters each component has."""
    parts = report.parameters[::-1]
    figure, axes = _figure(height=0.9 + 0.3 * len(parts))
    axes.barh(
        [p.name.replace("_", " ") for p in parts], [p.count / 1e6 for p in parts], color=PARTS[0]
    )
    axes.set_xlabel("millions")
    return figure


def memory_picture(report: Report) -> Figure:
    """Bytes of each work by what they are for, one bar upon the other."""
    figure, axes = _figure(height=1.4 + 0.5 * len(report.memory))
    parts = ("weights", "gradients", "optimizer", "tables", "activations", "cache", "workspace")
    for at, memory in enumerate(report.memory.values()):
        begin, values = 0.0, memory.to_dict()
        for color, part in zip(PARTS, parts, strict=True):
            count = values.get(part, 0) / 2**20
            axes.barh(
                at,
                count,
                left=begin,
                color=color,
                label=part if count and part not in _shown(axes) else None,
            )
            begin += count
        peak = values.get("peak", values.get("total", 0)) / 2**20
        axes.plot([peak, peak], [at - 0.4, at + 0.4], color="black", linewidth=1.2)
        axes.annotate(f"at most {size(peak * 2**20)}", (peak, at), xytext=(4, 0), textcoords="offset points",
                      fontsize=7, va="center")  # fmt: skip
    axes.set_yticks(range(len(report.memory)), list(report.memory))
    axes.margins(x=0.2)
    axes.set_xlabel("MiB")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.35))
    return figure


def _shown(axes: Any) -> list[str]:
    return list(axes.get_legend_handles_labels()[1])


def timeline_picture(report: Report, work: str) -> Figure:
    """Bytes alive over the time of a run."""
    run = report.runs[work]
    figure, axes = _figure()
    times = [t * 1e3 for t, _, _ in run.timeline]
    axes.plot(times, [(run.at_rest + n) / 2**20 for _, n, _ in run.timeline], drawstyle="steps-post", linewidth=1,
              color=PARTS[0])  # fmt: skip
    axes.axhline(
        run.at_rest / 2**20,
        color="gray",
        linewidth=0.8,
        linestyle=":",
        label="before it: weights and state",
    )
    axes.set(xlabel="ms (of a run that is slowed by being watched)", ylabel="MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def study_picture(study: Study) -> Figure:
    """How costs grow with one size, relative to its smallest value."""
    figure, axes = _figure()
    for color, (name, label) in zip(PARTS, GROWTH.items(), strict=False):
        column = [row.get(name) for row in study.rows]
        if all(column):
            values = numpy.array(column, dtype=float)
            axes.plot(
                study.values,
                values / values[0],
                "o-",
                color=color,
                markersize=3,
                linewidth=1.2,
                label=label,
            )
    axes.set(xscale="log", yscale="log", xlabel=study.field, ylabel="times the first")
    axes.set_xticks(study.values, [f"{v:,}" for v in study.values], fontsize=7)
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return figure


def attention_picture(maps: AttentionMaps) -> Figure:
    """Weights of some layers (rows) and heads (columns)."""
    layers, heads = len(maps.layers), maps.weights[0].shape[0]
    figure = Figure(figsize=(WIDE, 0.4 + WIDE / heads * layers), layout="constrained")
    grid: Any = figure.subplots(layers, heads, squeeze=False)
    for row, (layer, weights) in enumerate(zip(maps.layers, maps.weights, strict=True)):
        for head in range(heads):
            axes = grid[row][head]
            axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if head == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=7)
            if row == 0:
                axes.set_title(f"head {maps.heads[head]}", fontsize=7)
    return figure
