"""``bench``: how fast a model reads a prompt (pp) and writes (tg), in the manner of llama-bench.

A test of pp512 reads 512 tokens into an empty cache; tg128 writes 128, one after the other, without
sampling; ``@ d1000`` means that the cache held 1000 tokens before. A run is repeated; the rate is given
as the mean over the repetitions and their standard deviation.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from .. import __version__
from ..backend import to_numpy
from ..checkpoint import open_model
from ..core.tensor import no_grad
from ..devices import device
from ..generation import Cache, capture
from ..generation.prefill import prefill
from ..processors import set_threads, threads


@dataclass(frozen=True)
class Row:
    """One test. ``rates`` are tokens/s of each repetition, all rows of the batch together."""

    model: str
    size: int
    params: int
    backend: str
    threads: int
    dtype: str
    cache_dtype: str
    batch: int
    n_prompt: int
    n_gen: int
    n_depth: int
    rates: tuple[float, ...]

    @property
    def test(self) -> str:
        """The name of the test, as "pp512" or "tg128 @ d1000"."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def mean(self) -> float:
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        own = {"build": __version__, **asdict(self), "rates": list(self.rates), "test": self.test}
        return own | {"avg_ts": self.mean, "stddev_ts": self.deviation}


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if not any(arguments.n_prompt) and not any(arguments.n_gen):
        raise ValueError("nothing to measure: give -p or -n above 0")
    if min(arguments.batch) < 1:
        raise ValueError("--batch must be at least 1")
    place = device(arguments.device)
    rows: list[Row] = []
    with _threads(arguments.threads):
        for name, dtype in itertools.product(arguments.model or ["smollm2"], arguments.dtype):
            file = open_model(name)
            if not file.config.decoder_only:
                raise ValueError(f"{name} is no decoder alone: bench measures those")
            model = file.load(place, dtype)
            for row in measured(model, str(name), dtype, arguments):
                rows.append(row)
                print(
                    f"tinytorch-gpu: {row.model} {row.test}: {row.mean:.2f} tokens/s",
                    file=sys.stderr,
                )
    print(WRITERS[arguments.output](rows), end="")
    return 0


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use ``count`` threads inside, in the BLAS too where threadpoolctl is installed."""
    if count is None:
        yield
        return
    set_threads(count)
    try:
        import threadpoolctl
    except ImportError:
        print("tinytorch-gpu: -t leaves the BLAS alone: pip install threadpoolctl", file=sys.stderr)
        limits: Any = contextlib.nullcontext()
    else:
        limits = threadpoolctl.threadpool_limits(count)
    try:
        with limits:
            yield
    finally:
        set_threads(None)


def measured(model: Any, name: str, dtype: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Run every test of one model."""
    tests = [(n, 0) for n in arguments.n_prompt if n] + [(0, n) for n in arguments.n_gen if n]
    for batch, depth, (prompt, count) in itertools.product(
        arguments.batch, arguments.n_depth, tests
    ):
        test = Test(model, batch, depth, prompt, count, arguments.cache_dtype)
        if not arguments.no_warmup:
            test.once()
        rates = tuple(test.once() for _ in range(arguments.repetitions))
        yield Row(
            name, model.nbytes, model.count_parameters(), str(model.device), threads(),
            stored(model) if dtype in ("auto", "stored") else dtype, test.cache_dtype, batch, prompt,
            count, depth, rates,
        )  # fmt: skip


def stored(model: Any) -> str:
    """How a model's weights are stored: the format of most bytes, and the others behind it."""
    found: dict[str, int] = {}
    for parameter in model.parameters():
        if len(parameter.shape) > 1:
            name = str(parameter.dtype)
            found[name] = found.get(name, 0) + int(parameter.data.nbytes)
    return "+".join(sorted(found, key=lambda name: -found[name]))


class Test:
    """One test of a model: ``once`` gives its rate."""

    def __init__(
        self, model: Any, batch: int, depth: int, prompt: int, count: int, cache_dtype: str | None
    ):
        self.model, self.batch, self.depth = model, batch, depth
        self.prompt, self.count = prompt, count
        room = depth + prompt + count + 1
        if room - 1 > model.config.max_seq_length:
            limit = model.config.max_seq_length
            raise ValueError(f"{room - 1} tokens exceed the model's context of {limit}")
        self.cache = Cache.for_model(model, batch, room, cache_dtype)
        self.cache_dtype = str(self.cache.keys[0].dtype)
        random = numpy.random.default_rng(0)
        self.ids = random.integers(0, model.config.vocab_size, (batch, max(depth, prompt, 1)))
        self.step = capture(model, batch, self.cache)

    def once(self) -> float:
        """Tokens/s of one run, of all rows together."""
        self.cache.reset()
        with no_grad(), self.model.device.active():
            self._read(self.depth)
            self.model.device.synchronize()
            start = time.perf_counter()
            if self.prompt:
                self._read(self.prompt)
            else:
                self._write()
            self.model.device.synchronize()
        return self.batch * (self.prompt or self.count) / (time.perf_counter() - start)

    def _read(self, count: int) -> None:
        """Feed ``count`` tokens as a prompt is fed; the head sees the last one only."""
        if count:
            to_numpy(prefill(self.model, self.ids[:, :count], self.cache).data)

    def _write(self) -> None:
        """Feed tokens one by one, by a captured step where there is one."""
        ids = self.model.device.asarray(self.ids[:, 0])
        for _ in range(self.count):
            logits = self.step(ids)
            to_numpy(logits.data[:, 0])  # as sampling waits for it


# --- output ---


def table(rows: list[Row]) -> str:
    """A Markdown table, as llama-bench prints it."""
    heads = (
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "dtype",
        "cache",
        "batch",
        "test",
        "t/s",
    )
    lines = [[
        row.model, f"{row.size / 2**20:.2f} MiB", f"{row.params / 1e6:.2f} M", row.backend,
        str(row.threads), row.dtype, row.cache_dtype, str(row.batch), row.test,
        f"{row.mean:.2f} ± {row.deviation:.2f}",
    ] for row in rows]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    left = (0, 3, 5, 6)
    rule = [("-" * w + "-" if i in left else "-" * w + ":") for i, w in enumerate(widths)]
    shown = [
        "| " + " | ".join(c.ljust(w) if i in left else c.rjust(w)
                          for i, (c, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in (heads, *lines)
    ]  # fmt: skip
    shown.insert(1, "| " + "| ".join(rule) + "|")
    return "\n".join(shown) + f"\n\nbuild: tinytorch_gpu {__version__}\n"


def as_json(rows: list[Row]) -> str:
    return json.dumps([row.facts() for row in rows], indent=2) + "\n"


def as_csv(rows: list[Row]) -> str:
    """One line a test; the single rates are in the JSON only."""
    out = io.StringIO()
    facts = [{k: v for k, v in row.facts().items() if k != "rates"} for row in rows]
    writer = csv.DictWriter(out, list(facts[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return out.getvalue()


WRITERS = {"md": table, "json": as_json, "csv": as_csv}
