"""Time the kernels on an NVIDIA GPU: beside the card's own ceilings and, where it is installed, PyTorch.

    python profiling/bench_kernels.py [--only norm ...] [--dtype float16 ...] [--scale 1.0] [--save]

Each kernel is first compared with its reference on the card; one that differs ends in an error. Times are medians of
CUDA events, kernel and peer in turn, after a warm-up. Before each, the card's cache is written over, and a kernel that
only waits holds the stream until all is launched, so that what Python takes for a launch is not in it. GB/s count the
bytes that must move (kernel_traffic.py), TFLOP/s the operations that must be done. The ceilings are measured first: a
copy of 1 GB and a product of 8192 x 8192 by cuBLAS. What is timed and its peers, PyTorch's where it is installed, are
in kernel_works.py. ``--scale`` shrinks the shapes. ``--save`` writes profiling/results/kernels_gpu.json, with the card's
name, versions and date, and .md.
"""

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from kernel_works import Bench
from torch_twin import torch_on_a_gpu

from tinytorch_gpu import backend, devices

RESULTS = Path(__file__).parent / "results" / "kernels_gpu.json"
# How far a kernel may be from its reference in the same dtype, relative to the largest number.
EQUAL = {"float16": 5e-3, "bfloat16": 4e-2, "float32": 1e-4}
WAIT = """extern "C" __global__ void wait(long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {}
}"""
WAITED = 3_000_000  # cycles: longer than the launches of any one run take


class Clock:
    """Times what runs queue on the device, and nothing of how they were launched."""

    def __init__(self, cupy: Any, repeats: int, scale: float):
        self.cupy, self.repeats = cupy, repeats
        self.wait = cupy.RawKernel(WAIT, "wait")
        self.waited = int(WAITED * min(1.0, scale))
        self.flushed = cupy.empty(int(2**28 * scale), "uint8")

    def median_ms(self, *runs: Any) -> list[float]:
        """The median time of each of ``runs``, taken in turn: what slows one slows all."""
        times: list[list[float]] = [[] for _ in runs]
        for run in runs * 2:
            run()
        for _ in range(self.repeats):
            for run, of in zip(runs, times, strict=True):
                of.append(self._once(run))
        return [statistics.median(of) for of in times]

    def _once(self, run: Any) -> float:
        start, end = (self.cupy.cuda.Event() for _ in range(2))
        self.flushed.fill(0)
        self.wait((1,), (1,), (self.waited,))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end))


def ceilings(clock: Clock, dtype: str, scale: float) -> tuple[float, float]:
    """GB/s of a copy and TFLOP/s of a product, on this card."""
    cupy, n = clock.cupy, max(64, int(8192 * scale))
    a = cupy.random.standard_normal(int(2**27 * scale), dtype="float32")
    b = cupy.empty_like(a)
    left, right = (
        cupy.random.standard_normal((n, n), dtype="float32").astype(backend.dtype(dtype))
        for _ in range(2)
    )
    copied, multiplied = clock.median_ms(lambda: cupy.copyto(b, a), lambda: left @ right)
    return 2 * a.nbytes / copied / 1e6, 2 * n**3 / multiplied / 1e9


def measured(clock: Clock, place: Any, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    """The ceilings and all figures of one dtype, printed as they come."""
    copy, product = ceilings(clock, dtype, given.scale)
    print(f"{dtype}: copy {copy:.0f} GB/s, product {product:.1f} TFLOP/s")
    bench, rows = Bench(place, dtype, given.scale), []
    for work in bench.works():
        if given.only and not work.name.startswith(tuple(given.only)):
            continue
        off = work.check() if work.check else 0.0
        if not off <= EQUAL[dtype]:
            raise SystemExit(f"{work.name} is not what its reference is: off by {off:.1e}")
        ms, *peers = clock.median_ms(
            *([work.ours] if work.peer is None else [work.ours, work.peer])
        )
        rows.append({
            "name": work.name, "ms": ms, "gb_s": work.bytes / ms / 1e6, "tflop_s": work.operations / ms / 1e9,
            "peer_ms": peers[0] if peers else None, "relative_error": off,
        })  # fmt: skip
        print(line(rows[-1], copy, product), flush=True)
    return {"dtype": dtype, "copy_gb_s": copy, "product_tflop_s": product, "rows": rows}


def line(row: dict[str, Any], copy: float, product: float) -> str:
    """One row of the table."""
    peer = "" if row["peer_ms"] is None else f"{row['peer_ms'] / row['ms']:.2f}"
    return (
        f"| {row['name']} | {row['ms'] * 1e3:.1f} | {peer} | {row['gb_s']:.0f} ({row['gb_s'] / copy:.0%}) "
        f"| {row['tflop_s']:.1f} ({row['tflop_s'] / product:.0%}) | {row['relative_error']:.0e} |"
    )


def table(result: dict[str, Any]) -> str:
    """All figures as Markdown."""
    cuda = result["driver"]  # the version that the driver speaks
    lines = [
        "# Kernels on a GPU",
        "",
        f"{result['card']}, CUDA {cuda // 1000}.{cuda % 1000 // 10}, CuPy {result['cupy']}, peer PyTorch {result['torch']}, "
        f"{result['date']}, by profiling/bench_kernels.py. Medians of {result['repeats']}, from memory, without the "
        "launch. A speed above 1 means that this kernel takes less time than PyTorch's. In brackets: of the copy's "
        "bytes and of the product's operations a second.",
    ]
    for part in result["dtypes"]:
        copy, product = part["copy_gb_s"], part["product_tflop_s"]
        lines += [
            "", f"## {part['dtype']}: a copy {copy:.0f} GB/s, a product {product:.1f} TFLOP/s", "",
            "| kernel | µs | speed against the peer | GB/s | TFLOP/s | off by |", "|---|---|---|---|---|---|",
            *(line(row, copy, product) for row in part["rows"]),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=(), help="names that begin so")
    parser.add_argument(
        "--dtype", nargs="*", default=list(EQUAL), choices=EQUAL, help="default: all"
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    place: Any = devices.device("cuda")
    cupy, torch = place.xp, torch_on_a_gpu()
    devices.load_makers("cuda")
    clock = Clock(cupy, given.repeats, given.scale)
    result = {
        "card": cupy.cuda.runtime.getDeviceProperties(place.index)["name"].decode(),
        "driver": cupy.cuda.runtime.driverGetVersion(), "cupy": cupy.__version__,
        "torch": None if torch is None else torch.__version__, "repeats": given.repeats,
        "date": datetime.date.today().isoformat(),
        "dtypes": [measured(clock, place, dtype, given) for dtype in given.dtype],
    }  # fmt: skip
    if given.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
