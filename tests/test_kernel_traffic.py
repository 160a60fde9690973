"""Bytes that kernels move against the least possible, counted on the emulated device.

The least is what must be read and written once, by the formula beside each case. ``sectors`` are those
touched over the fewest that the bytes can lie in, ``shared`` the wavefronts of shared memory likewise.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_device import emulated_device

from tinytorch_gpu import backend, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda.linear import decode_linear, quantized_linear
from tinytorch_gpu.cuda.loss import cross_entropy_with_gradient

EMULATED = emulated_device()

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
ROWS, WIDTH = 512, 1024


def array(*shape: int, dtype: str = "float16") -> Any:
    random = np.random.default_rng(math.prod(shape))
    return EMULATED.asarray(random.standard_normal(shape).astype(backend.dtype(dtype)))


def check(least: float, run: Callable[[], Any], most: float, sectors: float = 1.1) -> Any:
    """Run the launches; bytes, sectors and wavefronts must stay near the least."""
    with emulated.recorded() as launches:
        run()
    total = emulated.Counters(launches=0)
    for launch in launches:
        total.add(launch.counters)
    moved = total.read_bytes + total.written_bytes
    assert moved <= most * least, f"{moved / least:.3f} of the least"
    touched = total.read_sectors + total.written_sectors
    assert touched <= sectors * total.ideal_sectors, f"{touched / total.ideal_sectors:.3f}"
    assert total.shared_wavefronts <= 2 * total.ideal_wavefronts + 64
    return launches


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations(name: str, dtype: str) -> None:
    """Forward: x in, y out. Backward: x and dy in, dx out."""
    x, dout, maker = (
        array(64, WIDTH, dtype=dtype),
        array(64, WIDTH, dtype=dtype),
        OPS[name].makers["cuda"],
    )
    bytes_ = 64 * WIDTH * SIZES[dtype]
    check(2 * bytes_, lambda: maker.forward(x), 1.05)
    _, residuals = maker.forward(x)
    check(3 * bytes_, lambda: maker.backward(residuals, dout), 1.05)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated_activations(name: str, dtype: str) -> None:
    """Forward: gate and up in, y out. Backward: gate, up and dy in, two gradients out."""
    x, dout, maker = (
        array(64, 2048, dtype=dtype),
        array(64, 1024, dtype=dtype),
        OPS[name].makers["cuda"],
    )
    bytes_ = 64 * 1024 * SIZES[dtype]
    check(3 * bytes_, lambda: maker.forward(x), 1.05)
    _, residuals = maker.forward(x)
    check(5 * bytes_, lambda: maker.backward(residuals, dout), 1.05)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms(name: str) -> None:
    """x in, y out, two (one) numbers a row; back x and dy in, dx out, and partial sums of weights.

    Forward, each row reads the weights again: they come from the cache, but the counter sees the
    requests, so they are in its formula."""
    maker, weights = OPS[name].makers["cuda"], 2 if name == "layer_norm" else 1
    x, dout = array(ROWS, WIDTH), array(ROWS, WIDTH)
    parameters = [array(WIDTH) for _ in range(weights)]
    per_row, bytes_ = 4 * weights * ROWS, 2 * ROWS * WIDTH
    check((2 + weights) * bytes_ + per_row, lambda: maker.forward(x, *parameters), 1.05)
    _, residuals = maker.forward(x, *parameters)
    check(3 * bytes_ + per_row + 4 * WIDTH, lambda: maker.backward(residuals, dout), 1.05)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"])
def test_linear_decode(storage: str, rows: int) -> None:
    """Every weight in once, x in and y out."""
    width, outs = 1024, 1536
    blocks = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
    if storage in blocks:
        pitch, itemsize, x = width // 32 * blocks[storage], 2, array(rows, width)
        raw = EMULATED.asarray(np.zeros((outs, pitch), np.uint8))
        run: Callable[[], Any] = lambda: quantized_linear(x, raw, storage)  # noqa: E731
    else:
        itemsize = SIZES[storage]
        pitch, x = width * itemsize, array(rows, width, dtype=storage)
        weight = array(outs, width, dtype=storage)
        run = lambda: decode_linear(x, weight)  # noqa: E731
    check(outs * pitch + rows * (width + outs) * itemsize, run, 1.10)


@pytest.mark.parametrize(
    ("batch", "heads", "kv", "width", "keys"), [(1, 9, 3, 64, 2048), (2, 32, 8, 128, 512)]
)
def test_cached_attention(batch: int, heads: int, kv: int, width: int, keys: int) -> None:
    """Keys and values in, once; the new ones in and appended; the queries in and the results out."""
    packed = array(batch, 1, heads + 2 * kv, width)
    cache = [array(batch, keys, kv, width) for _ in range(2)]
    maker = OPS["cached_attention"].makers["cuda"]
    least = 2 * batch * width * (2 * keys * kv + 2 * heads + 2 * kv)
    check(
        least, lambda: maker.forward(packed, *cache, keys - 1, None, heads=heads, stop=keys), 1.10
    )


def test_loss_and_gradient_of_rows_that_fit_on_chip() -> None:
    """Logits in, gradients out, targets in."""
    logits, targets = array(64, 4096), EMULATED.asarray(np.arange(64))
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    least = 2 * 64 * 4096 * 2 + 64 * 8
    check(least, lambda: cross_entropy_with_gradient(logits, targets, **options), 1.05)
