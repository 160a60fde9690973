"""A report as one page that needs nothing else: no network, no script, pictures as SVG inside."""

import html
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

from .attention import AttentionMaps
from .data import Report, lines, total_line
from .pictures import pictures
from .text import cells, number, size

DPI = 200  # of PNG, for print
BOUND = 6  # the place of what bounds an operation among its cells
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d5dbe3; }
p, figcaption { margin: .4rem 0; } figcaption, .note { color: #566173; font-size: .88rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid #edf0f4; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr.sum td { font-weight: 600; border-top: 1px solid #98a2b3; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.memory { color: #c2452d; } .compute { color: #2563a8; } .call { color: #6b6b6b; }
"""


def page(report: Report, attention: AttentionMaps | None = None) -> str:
    """The report as HTML."""
    figures = {
        name: _svg(figure, name, caption) for name, caption, figure in pictures(report, attention)
    }
    body = [_head(report), *(_phase(report, phase, figures) for phase in report.rooflines)]
    body.append(_memory(report, figures))
    scaling = [made for name, made in figures.items() if name.startswith("scaling-")]
    if scaling:
        body.append(_section("Scaling: what each size does", _pair(scaling), _sentences(report)))
    if report.deployment:
        body.append(_section("Deployment", _deployment(report)))
    if "attention" in figures:
        body.append(_section("Attention", figures["attention"]))
    title = html.escape(f"{report.model} on {report.device.name}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body) + "\n</body></html>\n"
    )  # fmt: skip


def write_html(report: Report, to: Path, attention: AttentionMaps | None = None) -> None:
    """Write the page into a file; its folder is made."""
    text = page(report, attention)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")


def write_png(report: Report, folder: Path, attention: AttentionMaps | None = None) -> list[Path]:
    """Write each picture as a PNG for print; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, _, figure in pictures(report, attention):
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
        made.append(folder / f"{name}.png")
    return made


def _svg(figure: Any, name: str, caption: str) -> str:
    """A figure as SVG, its text as text; ids are prefixed, since all are in one page."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'\b(id=")', rf"\1{name}-", drawn)
    drawn = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", drawn)
    label = html.escape(caption)
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>{drawn}<figcaption>{label}</figcaption></figure>"


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>" + "\n".join(parts) + "</section>"


def _pair(figures: Iterable[str]) -> str:
    return '<div class="pair">' + "\n".join(figures) + "</div>"


def _table(head: list[str], rows: list[list[str]], last: list[str] | None = None) -> str:
    """Cells are HTML already."""
    made = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    if last is not None:
        made += '<tr class="sum">' + "".join(f"<td>{c}</td>" for c in last) + "</tr>"
    top = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{made}</tbody></table></div>'
    )


def _head(report: Report) -> str:
    device, asked, about = report.device, report.asked, report.about
    count = sum(part.count for part in report.parameters)
    dtype = next(iter(report.rooflines.values())).dtype
    return (
        f"<h1>{html.escape(report.model)} on {html.escape(device.name)}</h1>"
        f"<p>{count:,} parameters in {report.setting.dtype}; batch {asked.batch}, {asked.context} tokens"
        f"{f', {asked.tokens} new ones' if asked.generates else ''}. {number(device.peak(dtype))}FLOP/s in products of "
        f"{dtype}, {number(device.bandwidth)}B/s, {size(device.memory)} ({html.escape(device.source)}, {device.date}).</p>"
        f'<p class="note">Made {about["date"]} by tinytorch_gpu {about["tinytorch_gpu"]}, NumPy {about["numpy"]}, Python '
        f'{about["python"]}. Least times are what the device\'s peak rates allow; '
        f'{"measured ones are of a run here." if report.runs else "nothing was run."}</p>'
    )  # fmt: skip


def _phase(report: Report, phase: str, figures: dict[str, str]) -> str:
    one, name = report.rooflines[phase], phase.replace(".", "-")
    ran = next((run for run in report.runs.values() if phase in run.rows), None)
    said = f"At most {one.tokens_per_second:,.1f} tokens a second; bound by {one.bound} for {100 * one.share(one.bound):.0f} % of it."
    if ran is not None and phase in ran.tokens_per_second:
        said += f" Measured: {ran.tokens_per_second[phase]:,.1f}."
    head = ["operation", "calls", "FLOP", "bytes", "FLOP/B", "least", "bound"]
    head += ["measured", "FLOP/s", "of least"] if ran else []
    rows = [_line(line, ran is not None) for line in lines(report, phase)]
    last = [html.escape(cell) for cell in cells(total_line(report, phase), ran is not None)]
    pair = _pair([figures[f"roofline-{name}"], figures[f"time-{name}"]])
    return _section(phase, f"<p>{said}</p>", pair, _table(head, rows, last))


def _line(line: dict[str, Any], ran: bool) -> list[str]:
    found = [html.escape(cell) for cell in cells(line, ran)]
    found[BOUND] = f'<span class="{line["bound"]}">{found[BOUND]}</span>'
    return found


def _memory(report: Report, figures: dict[str, str]) -> str:
    found = {name: one.to_dict() for name, one in report.memory.items()}
    rows = [
        [key.replace("_", " "), *(size(values[key]) if key in values else "" for values in found.values())]
        for key in dict.fromkeys(key for values in found.values() for key in values)
    ]  # fmt: skip
    last = None
    if any(run.timeline for run in report.runs.values()):
        peaks = (report.runs[n].peak if n in report.runs else 0 for n in report.memory)
        last = ["measured peak", *(size(peak) if peak else "" for peak in peaks)]
    parameters = [
        [p.name.replace("_", " "), f"{p.count:,}", f"{p.per_layer:,}" if p.per_layer else "", size(p.nbytes)]
        for p in report.parameters
    ]  # fmt: skip
    drawn = [
        figures[n] for n in figures if n in ("parameters", "memory") or n.startswith("memory-over")
    ]
    return _section(
        "Parameters and memory", _pair(drawn), _table(["component", "count", "a layer", "bytes"], parameters),
        "<p></p>", _table(["bytes", *report.memory], rows, last),
    )  # fmt: skip


def _sentences(report: Report) -> str:
    found = [study.finding for study in report.studies if study.field == "phase"]
    return "".join(f"<p>{html.escape(text)}</p>" for text in found)


def _deployment(report: Report) -> str:
    rows = [
        [html.escape(f.device), f.dtype, str(f.batch), f"{f.context:,}", size(f.needed), "yes" if f.fits else "no",
         f"{f.decode_tokens_per_second:,.0f}", f"{f.prefill_tokens_per_second:,.0f}", f"{f.largest_batch:,}"]
        for f in report.deployment
    ]  # fmt: skip
    head = [
        "device",
        "weights",
        "batch",
        "context",
        "needs",
        "fits",
        "written/s",
        "read/s",
        "most rows",
    ]
    note = '<p class="note">Tokens a second are upper bounds by the data sheets\' rates; nothing of this was run.</p>'
    return note + _table(head, rows)
