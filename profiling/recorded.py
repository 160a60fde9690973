"""Sessions that a profiler has recorded: their ranges as trees, and the GPU's work below each.

``load`` reads what Nsight Systems exports (``nsys export -t sqlite``, of 2022 or later) and what the
recorder beside this file writes. Of all that such a file tells about a machine and a process,
nothing but ranges of our domain and the times of GPU work is read.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOMAIN = "tinytorch_gpu"
FORMAT = {"format": "tinytorch_gpu ranges", "version": 1}
# Event types of Nsight Systems.
CATEGORY, PUSH_POP, DOMAIN_CREATED = 33, 59, 75
GPU_TABLE, GPU_WORK = "CUPTI_ACTIVITY_KIND_", ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")


class SessionError(Exception):
    """A file is no session that can be read; the message says what to do."""


@dataclass(slots=True, eq=False)
class Range:
    """One range: times in nanoseconds, ``inner`` what it encloses, ``gpu`` the (start, end) of all
    GPU work that was launched inside. ``cut``: the recording ended before it did."""

    name: str
    category: str | None
    payload: float | None
    thread: int
    start: int
    end: int
    cut: bool = False
    outer: "Range | None" = None
    inner: list["Range"] = field(default_factory=list)
    gpu: list[tuple[int, int]] = field(default_factory=list)

    @property
    def path(self) -> tuple[str, ...]:
        """Names from the outermost range to this one."""
        return (self.name,) if self.outer is None else (*self.outer.path, self.name)

    def walk(self) -> Iterator["Range"]:
        """This range and all inside, in order."""
        stack = [self]
        while stack:
            found = stack.pop()
            yield found
            stack.extend(reversed(found.inner))


@dataclass(frozen=True)
class Session:
    """The outermost ranges of a recording, in order. ``on_gpu``: it saw GPU work."""

    ranges: list[Range]
    on_gpu: bool = False

    def walk(self) -> Iterator[Range]:
        """Every range."""
        for outermost in self.ranges:
            yield from outermost.walk()

    def named(self, name: str) -> list[Range]:
        """Every range of this name."""
        return [found for found in self.walk() if found.name == name]

    def captured(self) -> "Session":
        """What lies in ranges called ``capture``, if there are any: the rest is preparation."""
        found = self.named("capture")
        return Session(found, self.on_gpu) if found else self


def load(path: str | Path) -> Session:
    """Read a session; a SessionError if the file is none, or damaged."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror}") from None
    if path.suffix == ".nsys-rep":
        raise SessionError(f"{path} is not exported yet: nsys export -t sqlite {path.name}")
    try:
        session = _sqlite(path) if head == b"SQLite format 3\0" else _lines(path)
    except sqlite3.DatabaseError as error:
        raise SessionError(f"{path} is damaged ({error}): export it again") from None
    if not session.ranges:
        raise SessionError(
            f"{path} holds no range of the domain {DOMAIN}: "
            "`tinytorch-gpu doctor`, run under the same tool, says whether ranges reach it"
        )
    return session


# --- the recorder's lines ---


def _lines(path: Path) -> Session:
    wrong = f"{path} is no session: give what `nsys export -t sqlite` or the recorder has written"
    try:
        lines = path.read_text("utf-8").splitlines()
        if not lines or json.loads(lines[0]) != FORMAT:
            raise SessionError(wrong)
    except ValueError:
        raise SessionError(wrong) from None
    ranges, last = [], 0  # a range of no length is inside the one that it was opened in
    for number, line in enumerate(lines[1:], 2):
        try:
            told = json.loads(line)
            last = max(last, told["start"], told["end"] or 0)
            if told["domain"] == DOMAIN:
                ranges.append((int(told["depth"]), _of_line(told)))
        except (ValueError, KeyError, TypeError):
            raise SessionError(f"{path}: line {number} is broken; record it again") from None
    ranges.sort(key=lambda pair: pair[0])
    return Session(_nested([found for _, found in ranges], last))


def _of_line(told: dict[str, Any]) -> Range:
    end = told["end"]
    return Range(
        str(told["name"]), told["category"], told["payload"], int(told["thread"]),
        int(told["start"]), int(end or 0), end is None,
    )  # fmt: skip


# --- Nsight Systems' tables ---


def _sqlite(path: Path) -> Session:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as data:
        data.row_factory = sqlite3.Row
        tables = {row[0] for row in data.execute("SELECT name FROM sqlite_master")}
        if "NVTX_EVENTS" not in tables:
            raise SessionError(f"{path} holds no NVTX ranges: profile with -t nvtx")
        ranges, last = _events(data, "StringIds" in tables)
        ranges = _nested(ranges, last)
        return Session(ranges, _project(data, tables, ranges))


def _events(data: sqlite3.Connection, strings: bool) -> tuple[list[Range], int]:
    """The ranges of our domain, and the last time seen."""
    columns = {row[1] for row in data.execute("PRAGMA table_info(NVTX_EVENTS)")}
    named = strings and "textId" in columns
    text = "coalesce(e.text, s.value)" if named else "e.text"
    join = "LEFT JOIN StringIds s ON s.id = e.textId" if named else ""
    domains, categories, found, last = set(), {}, [], 0
    for row in data.execute(
        f"SELECT e.*, {text} AS shown FROM NVTX_EVENTS e {join} ORDER BY e.start"
    ):
        scope = (_process(row["globalTid"]), row["domainId"])
        last = max(last, row["start"] or 0, row["end"] or 0)
        if row["eventType"] == DOMAIN_CREATED and row["shown"] == DOMAIN:
            domains.add(scope)
        elif row["eventType"] == CATEGORY:
            categories[scope, row["category"]] = row["shown"]
        elif row["eventType"] == PUSH_POP:
            found.append((scope, row))
    return [_of_row(row, categories.get((scope, row["category"])), columns)
            for scope, row in found if scope in domains], last  # fmt: skip


def _of_row(row: sqlite3.Row, category: str | None, columns: set[str]) -> Range:
    kinds = ("int64Value", "uint64Value", "int32Value", "uint32Value", "doubleValue", "floatValue")
    payloads = (row[kind] for kind in kinds if kind in columns)
    return Range(
        row["shown"] or "", category, next((p for p in payloads if p is not None), None),
        row["globalTid"], row["start"], row["end"] or 0, row["end"] is None,
    )  # fmt: skip


def _process(thread: int) -> int:
    """The process of a global thread or process id of Nsight Systems."""
    return thread >> 24


def _nested(ranges: list[Range], last: int) -> list[Range]:
    """The outermost of ``ranges``, the others put inside each other."""
    outermost: list[Range] = []
    stacks: dict[int, list[Range]] = {}
    for found in ranges:
        if found.cut:
            found.end = max(last, found.start)
    for found in sorted(ranges, key=lambda r: (r.start, -r.end)):
        stack = stacks.setdefault(found.thread, [])
        while stack and stack[-1].end < found.end:
            stack.pop()
        if stack:
            found.outer = stack[-1]
            stack[-1].inner.append(found)
        else:
            outermost.append(found)
        stack.append(found)
    return outermost


# --- the GPU's work ---


def _project(data: sqlite3.Connection, tables: set[str], ranges: list[Range]) -> bool:
    """Give each range the GPU work that was launched inside; return whether there was any work.

    A kernel runs later than its launch: a correlation id tells which belongs to which.
    """
    kinds = [GPU_TABLE + kind for kind in GPU_WORK if GPU_TABLE + kind in tables]
    work: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for table in kinds:
        for row in data.execute(f"SELECT * FROM {table}"):
            process = row["globalPid"] if "globalPid" in row.keys() else 0  # noqa: SIM118
            key = _process(process), row["correlationId"]
            work.setdefault(key, []).append((row["start"], row["end"]))
    seen = bool(work)
    if seen and GPU_TABLE + "RUNTIME" in tables:
        launches: dict[int, list[tuple[int, tuple[int, int]]]] = {}
        for thread, start, correlation in data.execute(
            f"SELECT globalTid, start, correlationId FROM {GPU_TABLE}RUNTIME"
        ):
            for process in (_process(thread), 0):
                for each in work.pop((process, correlation), ()):
                    launches.setdefault(thread, []).append((start, each))
        for thread, found in launches.items():
            _give([r for r in ranges if r.thread == thread], sorted(found))
    return seen


def _give(outermost: list[Range], launches: list[tuple[int, tuple[int, int]]]) -> None:
    """Put each piece of GPU work, launched at a time, into the ranges of that time."""
    starting = [found for each in outermost for found in each.walk()]
    opened: list[Range] = []
    upcoming = 0
    for time, work in launches:
        while upcoming < len(starting) and starting[upcoming].start <= time:
            opened.append(starting[upcoming])
            upcoming += 1
        opened = [found for found in opened if found.end >= time]
        for found in opened:
            found.gpu.append(work)
