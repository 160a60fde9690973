"""Bytes that the kernels move against the least possible, counted on the emulated device.

    python profiling/kernel_traffic.py [--only norm ...] [--save]

Each entry says what must be read and written once, and why; ``tests/test_kernel_traffic.py`` holds the kernels
to the limits. Sectors are the 32-byte pieces of memory that requests touch, over the fewest that their
bytes can lie in; wavefronts those of shared memory, over the fewest, at the worst instruction that makes a
twentieth of a launch's requests or more: 2 is a 2-way bank conflict. ``--save`` writes
profiling/results/traffic.md, with ``--only`` the rows of these names anew. Needs a C++ compiler, no GPU.
"""

import argparse
import datetime
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinytorch_gpu import backend, devices, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.quantized import BLOCKED, Blocks, QuantizedMatrix, format_named
from tinytorch_gpu.quantized.cache import EightBit

RESULTS = Path(__file__).parent / "results" / "traffic.md"
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
SECTORS, CONFLICT = 1.1, 2.0  # the most over the fewest


@dataclass(frozen=True)
class Entry:
    """One thing to run: ``least`` bytes must move, ``most`` times that may; None: no limit. The most
    ``sectors`` over the fewest."""

    name: str
    shape: str
    dtype: str
    why: str
    least: int
    most: float | None
    run: Callable[[], Any]
    sectors: float = SECTORS

    def __str__(self) -> str:
        return f"{self.name}, {self.shape}, {self.dtype}"


@dataclass(frozen=True)
class Measured:
    """Bytes over the least, sectors and wavefronts over the fewest."""

    moved: float
    sectors: float
    conflict: float


def measure(entry: Entry) -> Measured:
    """Run an entry and count."""
    with emulated.recorded() as launches:
        entry.run()
    total = emulated.Counters(launches=0)
    for launch in launches:
        total.add(launch.counters)
    moved = total.read_bytes + total.written_bytes
    touched = total.read_sectors + total.written_sectors
    return Measured(
        moved / entry.least, touched / max(1, total.ideal_sectors), max(map(_conflict, launches))
    )


def _conflict(launch: Any) -> float:
    """Wavefronts over the fewest at the worst instruction of those that count."""
    shared = [site for site in launch.sites if site["shared"]]
    requests = sum(site["requests"] for site in shared)
    often = [site for site in shared if 20 * site["requests"] >= requests]
    return max((site["wavefronts"] / max(1, site["ideal"]) for site in often), default=1.0)


def array(*shape: int, dtype: str) -> Any:
    """Normal numbers on the emulated device."""
    random = np.random.default_rng(math.prod(shape))
    values = random.standard_normal(shape).astype(backend.dtype(dtype))
    return devices.device("emulated").asarray(values)


def maker(name: str) -> Any:
    """The kernels of an operation."""
    return OPS[name].makers["cuda"][0]


def backward(name: str, *arguments: Any, **options: Any) -> Callable[[Any], Callable[[], Any]]:
    """What runs the backward half of a call for given gradients of its results."""
    residuals = maker(name).forward(*arguments, **options)[1]
    return lambda *douts: lambda: maker(name).backward(residuals, *douts, **options)


def activations(dtype: str) -> Iterator[Entry]:
    """x in, y out; back x and dy in, dx out; gated: two numbers in for one, and two gradients."""
    each, (rows, width) = SIZES[dtype], (64, 1024)
    size, shape = rows * width * each, f"{rows} x {width}"
    for name in ("relu", "gelu", "gelu_tanh", "silu"):
        x, dout = array(rows, width, dtype=dtype), array(rows, width, dtype=dtype)
        run, back = lambda n=name, x=x: maker(n).forward(x), backward(name, x)
        yield Entry(name, shape, dtype, "x in, y out", 2 * size, 1.05, run)
        yield Entry(
            f"{name}, backward", shape, dtype, "x, dy in, dx out", 3 * size, 1.05, back(dout)
        )
    for name in ("swiglu", "geglu"):
        x, dout = array(rows, 2 * width, dtype=dtype), array(rows, width, dtype=dtype)
        run, back = lambda n=name, x=x: maker(n).forward(x), backward(name, x)
        yield Entry(name, shape, dtype, "gate, up in, y out", 3 * size, 1.05, run)
        yield Entry(f"{name}, backward", shape, dtype, "gate, up, dy in, two gradients out", 5 * size,
                    1.05, back(dout))  # fmt: skip


def norms(dtype: str) -> Iterator[Entry]:
    """Weights are read once, whatever the rows; in practice once by each block, which is why there must be
    rows enough. Their gradients are summed up in two stages, which write and read a row of sums a block."""
    each = SIZES[dtype]
    for rows, width in ((1024, 1024), (2048, 576), (512, 4096)):
        x, other, dout = (array(rows, width, dtype=dtype) for _ in range(3))
        size, shape = rows * width * each, f"{rows} x {width}"
        for name, count in (("layer_norm", 2), ("rms_norm", 1)):
            weights = [array(width, dtype=dtype) for _ in range(count)]
            small, saved = count * width * each, 4 * count * rows
            yield Entry(
                name, shape, dtype, "x, weights in, y and statistics out",
                2 * size + small + saved, 1.05, lambda n=name, x=x, w=weights: maker(n).forward(x, *w),
            )  # fmt: skip
            yield Entry(
                f"add_{name}", shape, dtype, "x, residual, weights in, sum, y and statistics out",
                4 * size + small + saved, 1.05,
                lambda n=name, x=x, o=other, w=weights: maker(f"add_{n}").forward(x, o, *w),
            )  # fmt: skip
            back = backward(name, x, *weights)
            yield Entry(
                f"{name}, backward", shape, dtype, "x, dy, weight, statistics in, dx and gradients out",
                3 * size + 2 * small + saved, 1.05, back(dout),
            )  # fmt: skip
    yield from _head_norms(dtype)


def _head_norms(dtype: str) -> Iterator[Entry]:
    """Weights come from the cache for every head: a warp's heads read them together."""
    each, (tokens, heads, kv_heads) = SIZES[dtype], (64, 16, 8)
    for width in (64, 128):
        x = array(1, tokens, heads + 2 * kv_heads, width, dtype=dtype)
        gains = [array(width, dtype=dtype) for _ in range(2)]
        normed = tokens * (heads + kv_heads)
        together = max(1, 512 // (width * each))  # heads of a warp
        yield Entry(
            "norm_heads", f"{tokens} x {heads} + 2 x {kv_heads} x {width}", dtype,
            "x in, y and statistics out; a weight for a warp's heads from the cache",
            2 * x.nbytes + normed * (width * each // together + 4), 1.05,
            lambda x=x, g=gains: maker("norm_heads").forward(x, *g, heads=heads),
        )  # fmt: skip


def adapters(dtype: str) -> Iterator[Entry]:
    """Adapters beside a map of 768 to 768 + 2 x 256 columns: the factors once, base in, y out."""
    each, width, outs, spans = SIZES[dtype], 768, 1280, ((0, 768), (1024, 1280))
    for rows, rank in ((1, 8), (1, 16), (4, 32)):
        base, x = array(rows, outs, dtype=dtype), array(rows, width, dtype=dtype)
        factors = [
            array(*shape, dtype="float32")
            for a, b in spans
            for shape in ((rank, width), (b - a, rank))
        ]
        # x is read for every number of the rank, the low product for the columns that a warp makes at once.
        least = sum(f.nbytes for f in factors) + 2 * base.nbytes
        columns = sum(b - a for a, b in spans) * rank // 32
        cached = 2 * rank * x.nbytes + each * rows * rank * (2 + columns)
        yield Entry(
            "lora", f"{rows} x {width} to {outs}, rank {rank}", dtype,
            "factors, base in, y out; x and the low product from the cache",
            least + cached, 1.05,
            lambda b=base, x=x, f=factors: maker("lora").forward(
                b, x, *f, spans=spans, scales=(2.0, 2.0)
            ),
        )  # fmt: skip


def losses(dtype: str) -> Iterator[Entry]:
    """A row that fits on chip is read once for the loss and its gradient."""
    from tinytorch_gpu.cuda.loss import cross_entropy_with_gradient

    rows, classes = 64, 4096
    logits = array(rows, classes, dtype=dtype)
    targets = devices.device("emulated").asarray(np.arange(rows))
    size, options = rows * classes * SIZES[dtype], {"ignore_index": -100, "label_smoothing": 0.0}
    least, back = 2 * size + rows * 8, backward("cross_entropy", logits, targets, **options)
    yield Entry("cross entropy", f"{rows} x {classes}", dtype, "logits, targets in, a number a row out",
                size + rows * 16, 1.05, lambda: maker("cross_entropy").forward(logits, targets, **options))  # fmt: skip
    yield Entry("cross entropy, backward", f"{rows} x {classes}", dtype, "logits, targets in, gradients out",
                least, 1.05, back(devices.device("emulated").asarray(np.float32(1))))  # fmt: skip
    yield Entry("cross entropy and gradient", f"{rows} x {classes}", dtype,
                "logits, targets in, gradients out", least, 1.05,
                lambda: cross_entropy_with_gradient(logits, targets))  # fmt: skip


def optimizers(dtype: str) -> Iterator[Entry]:
    """Clipping needs the norm of all gradients first, so they are read twice."""
    from tinytorch_gpu.cuda.optimizer import TensorTable, adamw_many

    count, place, each = 1 << 18, devices.device("emulated"), SIZES[dtype]
    values = {name: array(count, dtype=dtype) for name in ("param", "grad")}
    moments = {name: place.zeros(count, "float32") for name in ("first", "second")}
    masters = [place.zeros(count, "float32")] if each == 2 else None
    table = TensorTable(
        [values["param"]], [values["grad"]], [moments["first"]], [moments["second"]], masters
    )
    rate, step = place.asarray(np.float32(1e-3)), place.asarray(np.int64(1))
    least = count * (each + 16 + (each + 8 if masters else 2 * each))

    def run() -> None:
        norm = maker("gradient_norm").forward(values["grad"])
        adamw_many(table, rate, step, maker("clip_scale").forward(norm, max_norm=1.0))

    one = (values["param"], values["grad"], *moments.values(), masters and masters[0], rate, step)
    yield Entry("AdamW of one tensor", f"{count}", dtype,
                "gradient in, weights (16 bits: their masters), two moments in and out", least, 1.05,
                lambda: maker("adamw").forward(*one, place.asarray(np.float32(1))))  # fmt: skip
    yield Entry("AdamW with clipping", f"{count}", dtype,
                "gradients in twice, weights (16 bits: their masters), two moments in and out",
                least + count * each, 1.05, run)  # fmt: skip


def linears(storage: str) -> Iterator[Entry]:
    """A decode step's product reads every weight once, whatever the rows. Every block reads x: beside 4-bit weights
    sixteen rows of it need outputs enough."""
    from tinytorch_gpu.cuda.linear import decode_linear, quantized_linear

    width = 1024
    for rows in (1, 2, 4, 8, 16):
        outs = 1536 if rows <= 8 else 4096
        if storage in BLOCKED:
            pitch = format_named(storage).row_bytes(width)
            raw = devices.device("emulated").asarray(np.zeros((outs, pitch), np.uint8))
            x, blocks, each = (
                array(rows, width, dtype="float16"),
                QuantizedMatrix(Blocks(storage, raw)),
                2,
            )
            run: Callable[[], Any] = lambda x=x, blocks=blocks: quantized_linear(x, blocks)  # noqa: E731
        else:
            x, each = array(rows, width, dtype=storage), SIZES[storage]
            pitch, weight = width * each, array(outs, width, dtype=storage)
            run = lambda x=x, weight=weight: decode_linear(x, weight)  # noqa: E731
        # 1024 weights in Q6_K are 840 bytes, so that loads do not begin with sectors: of five that one touches, the
        # last is in the first-level cache when the next load asks for it.
        yield Entry(f"linear, {rows} rows", f"{width} to {outs}", storage, "weights, x in, y out",
                    outs * pitch + rows * (width + outs) * each, 1.10, run,
                    1.2 if storage == "q6_k" else SECTORS)  # fmt: skip


def attentions(dtype: str) -> Iterator[Entry]:
    """Over a cache every key and value is read once for all query heads that share it. A prompt's
    tiles read keys again for each tile of queries: no limit there, only bank conflicts count."""
    each = SIZES[dtype]
    for batch, heads, kv, width, keys in ((1, 9, 3, 64, 2048), (2, 32, 8, 128, 512)):
        packed = array(batch, 1, heads + 2 * kv, width, dtype=dtype)
        shape = f"{batch} x {keys} keys, {heads} heads on {kv} of {width}"
        new = each * batch * width * 2 * (heads + kv)
        run = lambda c, p=packed, k=keys, h=heads: maker("cached_attention").forward(  # noqa: E731
            p, *c, k - 1, None, heads=h, stop=k)  # fmt: skip
        cache = [array(batch, keys, kv, width, dtype=dtype) for _ in range(2)]
        yield Entry(
            "cached attention", shape, dtype, "keys, values, queries in, the new ones and results out",
            2 * keys * batch * kv * width * each + new, 1.10, lambda c=cache, r=run: r(c),
        )  # fmt: skip
        eight = [EightBit.zeros((batch, keys, kv, width), "emulated") for _ in range(2)]
        yield Entry(
            "cached attention, 8 bit", shape, dtype, "the same, and a scale for 32 numbers of the cache",
            2 * keys * batch * kv * width * 34 // 32 + new, 1.10, lambda c=eight, r=run: r(c),
        )  # fmt: skip
    q, k, v, dout = (array(1, 128, h, 64, dtype=dtype) for h in (2, 1, 1, 2))
    least = each * 128 * 64 * (2 + 2 + 2)
    back = backward("attention", q, k, v, causal=True)
    yield Entry("attention", "128 causal, 2 heads of 64", dtype, "queries, keys, values in, results out",
                least, None, lambda: maker("attention").forward(q, k, v, causal=True))  # fmt: skip
    yield Entry("attention, backward", "128 causal, 2 heads of 64", dtype,
                "the same with gradients", 3 * least, None, back(dout))  # fmt: skip


def copies(dtype: str) -> Iterator[Entry]:
    """Rows into a wider matrix or out of it, by words and, of odd width, by elements: each byte once. Rows of odd width
    begin within a sector, so that a warp's 64 bytes lie in three: the third is in the cache for its neighbour."""
    from tinytorch_gpu.cuda.shape import copy_rows

    each = SIZES[dtype]
    for rows, width, filled in ((64, 1024, 1280), (64, 1001, 1008), (16, 4099, 4104)):
        x, wide = array(rows, width, dtype=dtype), array(rows, filled, dtype=dtype)
        most = SECTORS if width % 8 == 0 else 1.4
        yield Entry("copy of rows", f"{rows} x {width} into {filled}", dtype, "x in, y and its zeros out",
                    rows * (width + filled) * each, 1.05, lambda x=x, y=wide: copy_rows(x, y), most)  # fmt: skip
        yield Entry("copy of rows", f"{rows} x {width} of {filled}", dtype, "x in, y out", 2 * x.nbytes,
                    1.05, lambda x=wide[:, :width], y=x: copy_rows(x, y), most)  # fmt: skip
    for heads, kv, width in ((9, 3, 64), (12, 12, 64), (32, 8, 128)):
        sizes = (heads, kv, kv)
        packed = array(1, 32, sum(sizes), width, dtype=dtype)
        douts = [array(1, 32, n, width, dtype=dtype) for n in sizes]
        yield Entry("split_heads, backward", f"32 x {heads} + 2 x {kv} x {width}", dtype,
                    "three gradients in, one out", 2 * packed.nbytes, 1.05,
                    backward("split_heads", packed, sizes=sizes)(*douts))  # fmt: skip


PARTS = [
    *(
        (part, dtype)
        for part in (norms, adapters, activations, losses, optimizers, attentions, copies)
        for dtype in SIZES
    ),
    *((linears, storage) for storage in (*SIZES, *BLOCKED)),
]


def row_of(entry: Entry) -> str:
    """An entry's line of the table."""
    found = measure(entry)
    limit = "-" if entry.most is None else f"{entry.most:.2f}"
    cells = (entry.name, entry.shape, entry.dtype, entry.why, entry.least, f"{found.moved:.3f}", limit,
             f"{found.sectors:.2f}", f"{found.conflict:.2f}")  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def save(rows: list[str], only: tuple[str, ...]) -> None:
    """Write the table: these rows, behind those saved before whose names do not begin as ``only`` says."""
    before = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    old = [line for line in before[6:] if not line.removeprefix("| ").startswith(only)]
    lines = [
        "# Bytes moved over the least possible", "",
        f"Counted on the emulated device by profiling/kernel_traffic.py, last on {datetime.date.today().isoformat()}.", "",
        "| kernel | shape | dtype | must move once | bytes | of the least | limit | sectors of the fewest | worst bank conflict |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    RESULTS.write_text("\n".join([*lines, *old, *rows]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=("",), help="names that begin so")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    only, rows = tuple(arguments.only), []
    devices.load_makers("emulated")
    for entry in (entry for part, kind in PARTS for entry in part(kind)):
        if entry.name.startswith(only):
            rows.append(row_of(entry))
            print(rows[-1], flush=True)
    if arguments.save:
        save(rows, only)


if __name__ == "__main__":
    main()
