"""A recorded session as a table: calls, host time, GPU time, share and gaps of each range.

    python profiling/summarize.py build/generate-cpu.sqlite            # one session
    python profiling/summarize.py before.sqlite after.sqlite           # what has changed
    python profiling/summarize.py SESSION --by name                    # all op.linear together
    python profiling/summarize.py SESSION --of decode                  # ranges of this name only
    python profiling/summarize.py SESSION --of decode --nth 2 --picture decode.png

Ranges of one name at one place are one row, and so are the layers of a model unless --layers.
``gap`` is host time of a range in which none of those inside it was open. GPU time is that in which
any work launched inside was running, ``GPU gap`` the rest of the time from the first of it to the
last. The share is of GPU time if the session has any, else of host time. Nothing is shown but names of our
ranges and numbers: no path, no environment, no name of a machine or user.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from recorded import Range, Session, SessionError, load

LAYER = re.compile(r"layer\.\d+$")


@dataclass
class Row:
    """All ranges of one path, or of one name; times in nanoseconds, added up."""

    path: tuple[str, ...]
    calls: int = 0
    host: int = 0
    gap: int = 0
    gpu: int = 0
    gpu_gap: int = 0
    share: float = 0.0
    each: list[int] = field(default_factory=list, repr=False)

    @property
    def typical(self) -> float:
        """Median host time of one call."""
        return median(self.each)

    def add(self, found: Range) -> None:
        """Count one more range."""
        length = found.end - found.start
        busy, spread = occupied(found.gpu)
        self.calls += 1
        self.host += length
        if found.inner:
            self.gap += length - sum(inner.end - inner.start for inner in found.inner)
        self.gpu += busy
        self.gpu_gap += spread - busy
        self.each.append(length)

    def numbers(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        del plain["each"]
        return {**plain, "path": list(self.path), "median": self.typical}


def occupied(work: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(time in which any of these intervals runs, time from the first start to the last end)."""
    busy, first, last = 0, None, 0
    for start, end in sorted(work):
        first = start if first is None else first
        busy += max(0, end - max(start, last))
        last = max(last, end)
    return busy, 0 if first is None else last - first


def summary(session: Session, by: str = "path", layers: bool = False) -> list[Row]:
    """The rows of a session: in the order of a tree by path, the longest first by name."""
    rows: dict[tuple[str, ...], Row] = {}

    def visit(found: Range, above: tuple[str, ...]) -> None:
        name = found.name if layers else LAYER.sub("layer.NN", found.name)
        path = (name,) if by == "name" else (*above, name)
        rows.setdefault(path, Row(path)).add(found)
        for inner in found.inner:
            visit(inner, (*above, name))

    for outermost in session.ranges:
        visit(outermost, ())
    cost: Callable[[Any], int] = (lambda x: x.gpu) if session.on_gpu else (lambda x: x.host)
    whole = Row(())
    for outermost in session.ranges:
        whole.add(outermost)
    for row in rows.values():
        row.share = cost(row) / max(1, cost(whole))
    if by == "name":
        return sorted(rows.values(), key=lambda row: -cost(row))
    return [row for _, row in sorted(rows.items(), key=_tree_order(rows, cost))]


def _tree_order(
    rows: dict[tuple[str, ...], Row], cost: Callable[[Row], int]
) -> Callable[[Any], Any]:
    """A key that puts each row after the one around it, the costlier of two beside each other first."""
    return lambda item: [
        (-cost(rows[item[0][:n]]), item[0][:n]) for n in range(1, len(item[0]) + 1)
    ]


# --- tables ---


def table(rows: list[Row], on_gpu: bool) -> list[list[str]]:
    """Lines of cells, a header first."""
    lines = [["range", "calls", "host ms", "median us", "gap ms", "share"]]
    lines[0] += ["GPU ms", "GPU gap ms"] if on_gpu else []
    for row in rows:
        cells = [_indented(row.path), str(row.calls), _ms(row.host), f"{row.typical / 1e3:.1f}",
                 _ms(row.gap) if row.gap else "", f"{row.share:.1%}"]  # fmt: skip
        lines.append(cells + ([_ms(row.gpu), _ms(row.gpu_gap)] if on_gpu else []))
    return lines


def comparison(before: list[Row], after: list[Row], on_gpu: bool) -> list[list[str]]:
    """Lines of cells for two sessions, what has changed most first."""
    what = "GPU" if on_gpu else "host"
    lines = [["range", "calls", "before", f"{what} ms", "before", "difference ms", "ratio"]]
    old, new = ({row.path: row for row in rows} for rows in (before, after))

    def cost(rows: dict[tuple[str, ...], Row], path: tuple[str, ...]) -> int:
        row = rows.get(path)
        return 0 if row is None else row.gpu if on_gpu else row.host

    def change(path: tuple[str, ...]) -> int:
        return cost(new, path) - cost(old, path)

    for path in sorted({**old, **new}, key=lambda path: -abs(change(path))):
        a, b = cost(old, path), cost(new, path)
        calls = [str(rows[path].calls) if path in rows else "-" for rows in (new, old)]
        ratio = f"{b / a:.2f}" if a and b else "-"
        lines.append(
            [" > ".join(path), *calls, _ms(b), _ms(a), f"{change(path) / 1e6:+.3f}", ratio]
        )
    return lines


def _indented(path: tuple[str, ...]) -> str:
    return "  " * (len(path) - 1) + path[-1]


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def text(lines: list[list[str]]) -> str:
    """Cells in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "session",
        nargs="+",
        help="a file of `nsys export -t sqlite` or of the recorder; two compare",
    )
    add("--by", choices=("path", "name"), default="path", help="rows: places in the tree, or names")
    add("--layers", action="store_true", help="a row for each layer")
    add("--json", action="store_true", help="print JSON")
    add("--of", metavar="NAME", help="only ranges of this name and what is inside")
    add("--picture", metavar="FILE.png", help="also draw the session's timeline")
    add("--nth", type=int, default=0, help="which range --of a name to draw, from 0 (default)")
    add("--into", nargs=2, metavar=("FILE.md", "MARK"), help="write the table into a page")
    given = parser.parse_args(arguments)
    if len(given.session) > 2:
        parser.error("give one session, or two to compare")
    try:
        sessions = [load(path).captured() for path in given.session]
        if given.of:
            sessions = [_only(session, given.of) for session in sessions]
        if given.picture:
            from timeline import draw

            draw(sessions[0], given.picture, given.nth if given.of else None)
    except SessionError as error:
        print(f"summarize.py: {error}", file=sys.stderr)
        return 2
    rows = [summary(session, given.by, given.layers) for session in sessions]
    if given.json:
        print(json.dumps([[row.numbers() for row in each] for each in rows]))
        return 0
    on_gpu = all(session.on_gpu for session in sessions)
    page = text(comparison(*rows, on_gpu) if len(rows) == 2 else table(rows[0], on_gpu))
    print(page)
    if given.into:
        insert(*given.into, page)
    return 0


def _only(session: Session, name: str) -> Session:
    found = session.named(name)
    if not found:
        raise SessionError(f"the session has no range called {name}")
    return Session(found, session.on_gpu)


def insert(file: str, mark: str, page: str) -> None:
    """Put a table between the comments of a Markdown page that ``mark`` names, with its origin."""
    from bench_train import machine

    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before = Path(file).read_text("utf-8")
    head, tail = before.split(begin)[0], before.split(end)[1]
    origin = f"{machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    Path(file).write_text(f"{head}{begin}\n```\n{page}\n```\n{origin}.\n{end}{tail}", "utf-8")


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
