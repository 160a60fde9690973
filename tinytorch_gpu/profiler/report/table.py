"""A report as tables in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from .data import Report, lines, total_line
from .text import cells, number, size


def show(report: Report, console: Console | None = None) -> None:
    """Print a report (to standard output)."""
    console = console or Console()
    console.print(_headline(report))
    console.print(_parameters(report))
    console.print(_memory(report))
    for phase in report.rooflines:
        console.print(_phase(report, phase))
    for study in report.studies:
        console.print(f"[bold]{study.field}[/]  {study.finding}", highlight=False)
    if report.deployment:
        console.print(_deployment(report))


def _headline(report: Report) -> str:
    device, asked = report.device, report.asked
    parts = f"batch {asked.batch}, {asked.context} tokens"
    return (
        f"[bold]{report.model}[/] in {report.setting.dtype} on [bold]{device.name}[/] ({device.source}, "
        f"{device.date}); {parts}\n"
        f"peak {number(device.peak(next(iter(report.rooflines.values())).dtype))}FLOP/s in products, "
        f"{number(device.bandwidth)}B/s of memory, {size(device.memory)}"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _parameters(report: Report) -> Table:
    table = _table("Parameters", "component", "count", "a layer", "bytes")
    for part in report.parameters:
        each = f"{part.per_layer:,}" if part.per_layer else ""
        table.add_row(part.name.replace("_", " "), f"{part.count:,}", each, size(part.nbytes))
    table.add_section()
    count, stored = (sum(getattr(p, n) for p in report.parameters) for n in ("count", "nbytes"))
    table.add_row("all", f"{count:,}", "", size(stored))
    return table


def _memory(report: Report) -> Table:
    table = _table("Memory", "", *report.memory)
    found = {name: one.to_dict() for name, one in report.memory.items()}
    for row in dict.fromkeys(key for values in found.values() for key in values):
        cells = [size(values[row]) if row in values else "" for values in found.values()]
        table.add_row(row.replace("_", " "), *cells)
    if any(run.timeline for run in report.runs.values()):
        cells = [size(report.runs[n].peak) if n in report.runs else "" for n in report.memory]
        table.add_row("measured peak", *cells, style="bold")
    return table


def _phase(report: Report, phase: str) -> Table:
    ran = any(phase in run.rows for run in report.runs.values())
    columns = ["operation", "calls", "FLOP", "bytes", "FLOP/B", "least", "bound"]
    columns += ["measured", "FLOP/s", "of least"] if ran else []
    table = _table(_title(report, phase), *columns)
    before = ""
    for line in lines(report, phase):
        if before and line["direction"] != before:
            table.add_section()
        before = line["direction"]
        table.add_row(*cells(line, ran))
    table.add_section()
    table.add_row(*cells(total_line(report, phase), ran))
    return table


def _title(report: Report, phase: str) -> str:
    one = report.rooflines[phase]
    title = f"{phase}: at most {one.tokens_per_second:,.1f} tokens/s"
    for run in report.runs.values():
        if phase in run.tokens_per_second:
            title += f"; measured {run.tokens_per_second[phase]:,.1f}"
    return title


def _deployment(report: Report) -> Table:
    table = _table("Deployment: tokens a second are upper bounds", "device", "weights", "batch", "context", "needs", "fits",
                   "written/s", "read/s", "most rows")  # fmt: skip
    for fit in report.deployment:
        table.add_row(
            fit.device, fit.dtype, str(fit.batch), str(fit.context), size(fit.needed), "yes" if fit.fits else "no",
            f"{fit.decode_tokens_per_second:,.0f}", f"{fit.prefill_tokens_per_second:,.0f}", str(fit.largest_batch),
        )  # fmt: skip
    return table
