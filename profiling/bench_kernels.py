"""Time the kernels on an NVIDIA GPU: beside the card's own ceilings and, where it is installed, PyTorch.

    python profiling/bench_kernels.py [--only norm ...] [--dtype float16] [--scale 1.0] [--save]

Each kernel is first compared with its reference on the card. Times are medians of CUDA events over
repeated launches after a warm-up; GB/s count the bytes that must move (tests/test_kernel_traffic.py), TFLOP/s the
operations that must be done. The ceilings are measured first: a copy of 256 MB and a cuBLAS product. ``--scale``
shrinks the shapes. ``--save`` writes profiling/results/kernels_gpu.json with the card's name, versions and date.
"""

import argparse
import datetime
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinytorch_gpu import backend, devices
from tinytorch_gpu.core.op import OPS, reference_only
from tinytorch_gpu.core.tensor import no_grad

RESULTS = Path(__file__).parent / "results" / "kernels_gpu.json"


@dataclass
class Work:
    """One thing to time: ``ours`` and, if there is one, ``peer``; what it must move and compute."""

    name: str
    ours: Any
    bytes: float
    operations: float
    peer: Any = None
    check: Any = None


def median_ms(cupy: Any, run: Any, repeats: int) -> float:
    """The median time of ``run`` on the device."""
    run(), run()
    times = []
    for _ in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end))
    return statistics.median(times)


def ceilings(cupy: Any, repeats: int, dtype: str, scale: float) -> tuple[float, float]:
    """GB/s of a copy and TFLOP/s of a product, on this card."""
    a = cupy.zeros(int(2**26 * scale), dtype="float32")
    b = cupy.empty_like(a)
    copy = 2 * a.nbytes / median_ms(cupy, lambda: cupy.copyto(b, a), repeats) / 1e6
    n = max(64, int(4096 * scale))
    m = cupy.zeros((n, n), dtype=dtype)
    product = 2 * n**3 / median_ms(cupy, lambda: m @ m, repeats) / 1e9
    return copy, product


def equal(op: str, *arrays: Any, **options: Any) -> Any:
    """A check that an operation's kernel gives what its reference gives, both on the card."""

    def check() -> float:
        with no_grad():
            made = OPS[op](*arrays, **options)
            with reference_only():
                expected = OPS[op](*arrays, **options)
        made, expected = (x[-1] if isinstance(x, tuple) else x for x in (made, expected))
        difference = np.abs(made.data.get().astype(float) - expected.data.get().astype(float)).max()
        return float(difference / max(1.0, np.abs(expected.data.get().astype(float)).max()))

    return check


def called(op: str, *arrays: Any, **options: Any) -> Any:
    """A launch of an operation, recording nothing."""
    operation = OPS[op]

    def run() -> None:
        with no_grad():
            operation(*arrays, **options)

    return run


def works(place: Any, dtype: str, scale: float) -> list[Work]:
    """The shapes: GPT-2 and LLaMA sized, for training and for a decode step."""
    random, size = np.random.default_rng(0), backend.dtype(dtype).itemsize
    torch = _torch()

    def array(*shape: int) -> Any:
        return place.asarray(random.standard_normal(shape).astype(backend.dtype(dtype)))

    def peer(function: Any, *arrays: Any) -> Any:
        if torch is None or dtype == "bfloat16":
            return None
        tensors = [torch.from_dlpack(a) for a in arrays]
        return lambda: function(torch, *tensors)

    rows, width = max(8, int(8192 * scale)), max(64, int(4096 * scale) // 64 * 64)
    x, weight, bias = array(rows, width), array(width), array(width)
    made = [
        Work("layer_norm", called("layer_norm", x, weight, bias), 2 * x.nbytes, 8 * x.size,
             peer(lambda t, x, w, b: t.nn.functional.layer_norm(x, x.shape[-1:], w, b), x, weight, bias),
             equal("layer_norm", x, weight, bias)),
        Work("rms_norm", called("rms_norm", x, weight), 2 * x.nbytes, 6 * x.size, None,
             equal("rms_norm", x, weight)),
        Work("gelu_tanh", called("gelu_tanh", x), 2 * x.nbytes, 10 * x.size,
             peer(lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), x), equal("gelu_tanh", x)),
    ]  # fmt: skip
    heads, length, head = 16, max(64, int(2048 * scale)), 64
    q, k, v = (array(2, length, heads, head) for _ in "qkv")
    operations = 2 * 2 * 2 * heads * length * length * head / 2
    made.append(Work(
        "attention, causal", called("attention", q, k, v, causal=True), 4 * q.nbytes, operations,
        peer(lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True), q, k, v),
        equal("attention", q, k, v, causal=True)))  # fmt: skip
    for batch in (1, 8):
        one, matrix = array(batch, width), array(4 * width, width)
        made.append(Work(f"linear, {batch} rows", called("linear", one, matrix), matrix.nbytes, 2 * batch * matrix.size,
                         peer(lambda t, x, w: x @ w.T, one, matrix), equal("linear", one, matrix)))  # fmt: skip
    keys = max(64, int(8192 * scale))
    packed, cache = array(1, 1, 48, 128), [array(1, keys, 8, 128) for _ in "kv"]
    options = {"heads": 32, "stop": keys}
    given = (packed, *cache, keys - 1, None)
    made.append(Work("cached attention", called("cached_attention", *given, **options), 2 * keys * 8 * 128 * size,
                     4 * keys * 32 * 128, None, equal("cached_attention", *given, **options)))  # fmt: skip
    logits, targets = array(max(8, int(2048 * scale)), 50257), None
    targets = place.asarray(np.arange(logits.shape[0]))
    made.append(Work("cross_entropy", called("cross_entropy", logits, targets), logits.nbytes, 4 * logits.size,
                     peer(lambda t, x, y: t.nn.functional.cross_entropy(x, y), logits, targets),
                     equal("cross_entropy", logits, targets)))  # fmt: skip
    return made


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=(), help="names that begin so")
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    place: Any = devices.device("cuda")
    cupy = place.xp
    devices.load_makers("cuda")
    name = cupy.cuda.runtime.getDeviceProperties(place.index)["name"].decode()
    copy, product = ceilings(cupy, arguments.repeats, arguments.dtype, arguments.scale)
    print(f"{name}: copy {copy:.0f} GB/s, {arguments.dtype} product {product:.1f} TFLOP/s")
    rows = []
    for work in works(place, arguments.dtype, arguments.scale):
        if arguments.only and not work.name.startswith(tuple(arguments.only)):
            continue
        off = work.check()
        ms = median_ms(cupy, work.ours, arguments.repeats)
        peer = None if work.peer is None else median_ms(cupy, work.peer, arguments.repeats)
        row = {"name": work.name, "ms": ms, "gb_s": work.bytes / ms / 1e6, "tflop_s": work.operations / ms / 1e9,
               "peer_ms": peer, "relative_error": off}  # fmt: skip
        rows.append(row)
        beside = "" if peer is None else f", {peer / ms:.2f} x PyTorch's speed"
        print(f"{work.name:20} {ms:8.3f} ms  {row['gb_s']:7.0f} GB/s ({row['gb_s'] / copy:.0%})  "
              f"{row['tflop_s']:6.1f} TFLOP/s ({row['tflop_s'] / product:.0%}), off by {off:.1e}{beside}")  # fmt: skip
    if arguments.save:
        about = {"card": name, "cupy": cupy.__version__, "dtype": arguments.dtype, "copy_gb_s": copy,
                 "product_tflop_s": product, "date": datetime.date.today().isoformat()}  # fmt: skip
        RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
