"""What NVTX ranges cost: nanoseconds of one, and their share of a decode step on a CPU.

Without a tool a range is a look at ``nvtx.on`` (three forms of it are timed, each in a loop less the
empty loop); the share is what all ranges of a step cost so, over the time of the step. With a tool
(the recorder beside this file) steps are timed with ranges on and off in turn. Times are processor
time, so all work must be in one thread: `make bench-nvtx` sees to that.

    make bench-nvtx                           # a table
    make bench-nvtx ARGS=--save               # also results/nvtx_cpu.json and docs/profiling.md
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy

from tinytorch_gpu import Transformer, nvtx
from tinytorch_gpu.config import preset

HERE = Path(__file__).resolve().parent
RESULT, DOCS = HERE / "results" / "nvtx_cpu.json", HERE.parent / "docs" / "profiling.md"
MODELS = ("smollm2-135m", "shakespeare-char")
TARGET_NS, TARGET_SHARE = 100, 0.01


class Counting:
    """An NVTX domain that counts ranges by category."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def get_event_attributes(self, message: str, color: str, category: str) -> Any:
        return SimpleNamespace(key=(category, message), payload=None)

    def push_range(self, attributes: Any) -> None:
        self.counts[attributes.key] += 1

    def pop_range(self) -> None:
        pass


# --- one range without a tool ---


def _nothing(count: int) -> None:
    for _ in range(count):
        pass


def _guarded(count: int) -> None:
    """An operation's range."""
    for _ in range(count):
        if nvtx.on:
            nvtx.push("op.linear")


def _parts(count: int) -> None:
    """Four parts of a layer, and what ends the last."""
    for _ in range(count // 4):
        try:
            if nvtx.on:
                nvtx.enter("norm1", "part", 1)
            if nvtx.on:
                nvtx.enter("attention", "part", 1)
            if nvtx.on:
                nvtx.enter("norm2", "part", 1)
            if nvtx.on:
                nvtx.enter("ffn", "part", 1)
        finally:
            if nvtx.on:
                nvtx.leave("part")


def _spans(count: int) -> None:
    """A phase's range."""
    for _ in range(count):
        with nvtx.span("decode", "phase", count):
            pass


def one_range(windows: int, count: int = 2_000) -> dict[str, float]:
    """Nanoseconds of a range that no tool hears, by the form in which it is opened.

    Windows of a tenth of a millisecond, so that most are not interrupted.
    """
    forms = {"op": (_guarded, 1), "part": (_parts, 4), "span": (_spans, 1)}
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(windows):
        for name, (form, in_a_turn) in forms.items():
            empty = _seconds(_nothing, count // in_a_turn)
            found[name].append((_seconds(form, count) - empty) / count * 1e9)
    return {name: round(median(each), 1) for name, each in found.items()}


def _seconds(function: Any, *arguments: Any) -> float:
    """Processor time of this thread, which other programs do not add to."""
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


# --- a decode step ---


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Inside, decode steps are not captured: each asks anew whether it may be."""
    capture = importlib.import_module("tinytorch_gpu.generation.capture")
    before, capture.why_not = capture.why_not, lambda *_: "not asked for"
    try:
        yield
    finally:
        capture.why_not = before


def steps(model: Transformer, count: int) -> Any:
    """An iterator over decode steps, past the first ones."""
    made = model.generate(numpy.arange(1, 17), count, temperature=0, stream=True)
    for _ in range(4):
        next(made)
    return made


def ranges_of_a_step(model: Transformer) -> dict[str, int]:
    """How many ranges of each form one decode step opens when a tool listens, and when captured."""
    watch = Counting()
    nvtx.enable(watch)
    with ordinary():
        made = steps(model, 8)
        watch.counts.clear()
        next(made)
    nvtx.disable()
    forms: Counter[str] = Counter()
    for (category, name), count in watch.counts.items():
        inner = name.startswith("op.")
        forms["op" if inner else "part" if category in ("part", "layer") else "span"] += count
    return dict(forms)


def timed_steps(model: Transformer, count: int) -> float:
    """Seconds of a step, the median of ``count``."""
    made = steps(model, count + 4)
    return median(_seconds(next, made) for _ in range(count))


def without_a_tool(name: str, windows: int) -> dict[str, Any]:
    """The cost of all ranges of a decode step over the step's time."""
    model = Transformer.from_config(preset(name, max_seq_length=512), device="cpu", seed=0)
    forms, cost = ranges_of_a_step(model), one_range(10 * windows)
    spent = sum(count * cost[form] for form, count in forms.items())
    total = sum(forms.values())
    with ordinary():
        eager = timed_steps(model, windows)
    captured = timed_steps(model, windows)
    # decode, sample, op.argmax: all that a captured one has
    outside = cost["span"] * 2 + cost["op"]
    return {
        "model": name, "ranges": total, "forms": forms, "ns": cost,
        "mean_ns": round(spent / total, 1), "step_ms": round(eager * 1e3, 3),
        "share": spent / 1e9 / eager, "captured_step_ms": round(captured * 1e3, 3),
        "captured_share": outside / 1e9 / captured,
    }  # fmt: skip


def with_a_tool(name: str, windows: int) -> dict[str, Any]:
    """Time of a step with the recorder listening over time without ranges, in turn."""
    if not nvtx.on:
        raise SystemExit("bench_nvtx.py: the recorder is not attached")
    model = Transformer.from_config(preset(name, max_seq_length=512), device="cpu", seed=0)
    pairs = []
    with ordinary():
        made = steps(model, 2 * windows + 4)
        for _ in range(windows):
            nvtx.on = False
            silent = _seconds(next, made)
            nvtx.on = True
            pairs.append((_seconds(next, made), silent))
    ratios = sorted(loud / silent for loud, silent in pairs)
    return {"model": name, "ratio": round(median(ratios), 3),
            "ratio_low": round(ratios[len(ratios) // 4], 3),
            "ratio_high": round(ratios[3 * len(ratios) // 4], 3)}  # fmt: skip


def recorded(name: str, windows: int) -> dict[str, Any]:
    """``with_a_tool`` in a process under the recorder."""
    from nsight import build_recorder

    with tempfile.TemporaryDirectory() as folder:
        told = {"NVTX_INJECTION64_PATH": str(build_recorder(Path(folder) / "recorder.so")),
                "NVTX_RECORDER_FILE": str(Path(folder) / "ranges.jsonl")}  # fmt: skip
        command = [sys.executable, __file__, "--with-a-tool", name, "--windows", str(windows)]
        done = subprocess.run(
            command, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit("bench_nvtx.py: the steps under the recorder failed")
        return json.loads(done.stdout)


def page(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    ns = result["without"][0]["ns"]
    lines = [
        f"{result['machine']}, Python {result['python']}, nvtx {result['nvtx']}, {result['date']}. "
        f"Targets without a tool: {TARGET_NS} ns a range, {TARGET_SHARE:.0%} of a decode step. "
        f"The range of an operation costs {ns['op']} ns, of a layer or part {ns['part']} ns, the "
        f"context manager, of which a step has a handful, {ns['span']} ns.",
        "",
        "| model | ranges a step | ns each | step, ms | share | captured step, ms | share | recorded, ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, loud in zip(result["without"], result["with"], strict=True):
        lines.append(
            f"| {row['model']} | {row['ranges']} | {row['mean_ns']} | {row['step_ms']} "
            f"| {row['share']:.2%} | {row['captured_step_ms']} | {row['captured_share']:.3%} "
            f"| {loud['ratio']} ({loud['ratio_low']} to {loud['ratio_high']}) |"
        )
    return "\n".join(lines)


def main() -> None:
    import importlib.metadata
    import platform

    from bench_train import machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=31, help="counted windows (default 31)")
    parser.add_argument("--save", action="store_true", help="write results/ and docs/profiling.md")
    parser.add_argument("--with-a-tool", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.with_a_tool:
        print(json.dumps(with_a_tool(given.with_a_tool, given.windows)))
        return
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1" or os.environ.get("TINYTORCH_THREADS") != "1":
        parser.error("set OPENBLAS_NUM_THREADS=1 and TINYTORCH_THREADS=1: one thread is timed")
    nvtx.disable()
    result = {
        "machine": machine(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
        "nvtx": importlib.metadata.version("nvtx"), "windows": given.windows,
        "without": [without_a_tool(name, given.windows) for name in MODELS],
        "with": [recorded(name, given.windows) for name in MODELS],
    }  # fmt: skip
    print(page(result))
    if given.save:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        begin, end = "<!-- bench-nvtx:begin -->", "<!-- bench-nvtx:end -->"
        text = DOCS.read_text("utf-8")
        head, tail = text.split(begin)[0], text.split(end)[1]
        DOCS.write_text(f"{head}{begin}\n{page(result)}\n{end}{tail}", "utf-8")


if __name__ == "__main__":
    main()
