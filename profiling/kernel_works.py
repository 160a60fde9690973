"""What bench_kernels.py times: each kernel at the shapes of a model, its check and its peer in PyTorch."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch_twin import torch_on_a_gpu

from tinytorch_gpu import backend, devices
from tinytorch_gpu.core.op import OPS, reference_only
from tinytorch_gpu.core.tensor import no_grad
from tinytorch_gpu.cuda.linear import can_multiply, quantized_linear
from tinytorch_gpu.quantized import Blocks, QuantizedMatrix, encode
from tinytorch_gpu.quantized.cache import EightBit


@dataclass
class Work:
    """One thing to time: ``ours`` and, if there is one, ``peer``; what it must move and compute."""

    name: str
    ours: Any
    check: Any  # by how much it differs from its reference; None where running it changes what it is given
    bytes: float
    operations: float
    peer: Any = None


def differ(made: Any, expected: Any) -> float:
    """The largest difference, relative to the largest expected number or to 1."""
    pairs = zip(_arrays(made), _arrays(expected), strict=True)
    return max(float(np.abs(m - e).max() / max(1.0, np.abs(e).max())) for m, e in pairs)


def _arrays(x: Any) -> list[Any]:
    if isinstance(x, tuple | list):
        return [array for one in x for array in _arrays(one)]
    data = getattr(x, "data", x) if hasattr(x, "requires_grad") else x
    return [] if data is None else [data.get().astype(float)]


def forward(name: str, *arrays: Any, **options: Any) -> tuple[Any, Any]:
    """A launch of an operation that records nothing, and a check that its kernel gives what its reference
    gives, both on the card."""

    def run() -> Any:
        with no_grad():
            return OPS[name](*arrays, **options)

    def check() -> float:
        made = run()
        with reference_only():
            return differ(made, run())

    return run, check


def backward(name: str, dout: Any, *arrays: Any, **options: Any) -> tuple[Any, Any]:
    """The same of the backward half of an operation."""
    op = OPS[name]
    saved = op.makers["cuda"][0].forward(*arrays, **options)[1]

    def run() -> Any:
        return op.makers["cuda"][0].backward(saved, dout, **options)

    def check() -> float:
        kept = op.reference(*arrays, **options)[1]
        return differ(run(), op.reference_backward(kept, dout, **options))

    return run, check


def quantized(x: Any, weight: Any) -> tuple[Any, Any]:
    """A product with GGUF's blocks, and a check by the weights that they are."""
    moved = weight.moved_to(devices.device_of(x))

    def run() -> Any:
        return quantized_linear(x, moved)

    def check() -> float:
        few = weight[:256]
        expected = x.get().astype(np.float32) @ np.asarray(few).T
        made = run().get().astype(float)[:, : few.shape[0]]
        return float(np.abs(made - expected).max() / max(1.0, np.abs(expected).max()))

    return run, check


class Bench:
    """Arrays of one dtype on a card, and what PyTorch does with the same memory."""

    def __init__(self, place: Any, dtype: str, scale: float):
        self.place, self.dtype, self.scale = place, dtype, scale
        self.size, self.random = backend.dtype(dtype).itemsize, np.random.default_rng(0)
        self.torch = torch_on_a_gpu()

    def array(self, *shape: int) -> Any:
        values = self.random.standard_normal(shape, np.float32).astype(backend.dtype(self.dtype))
        return self.place.asarray(values)

    def scaled(self, count: int, least: int = 64) -> int:
        """``count`` times the scale, a multiple of 64."""
        return max(least, int(count * self.scale) // 64 * 64)

    def peer(self, function: Any, *arrays: Any, dout: Any = None) -> Any:
        """What runs ``function(torch, *tensors)``, or with ``dout`` its backward alone."""
        torch = self.torch
        if torch is None:
            return None
        tensors = [self._tensor(a) for a in arrays]
        if dout is None:
            return lambda: function(torch, *tensors)
        leaves = [t.requires_grad_() for t in tensors]
        made, gradient = function(torch, *leaves), self._tensor(dout)
        return lambda: torch.autograd.grad(made, leaves, gradient, retain_graph=True)

    def _tensor(self, x: Any) -> Any:
        if x.dtype == backend.dtype("bfloat16"):
            return self.torch.from_dlpack(x.view("int16")).view(self.torch.bfloat16)
        return self.torch.from_dlpack(x)

    def works(self) -> Iterator[Work]:
        """All of them."""
        for part in (self.norms, self.attentions, self.linears, self.ends):
            yield from part()

    def norms(self) -> Iterator[Work]:
        rows, width = self.scaled(8192), self.scaled(4096)
        x, dout, weight, bias = (
            self.array(*s) for s in ((rows, width), (rows, width), (width,), (width,))
        )
        layer = lambda t, x, w, b: t.nn.functional.layer_norm(x, x.shape[-1:], w, b)  # noqa: E731
        yield Work("layer_norm", *forward("layer_norm", x, weight, bias), 2 * x.nbytes, 8 * x.size,
                   self.peer(layer, x, weight, bias))  # fmt: skip
        yield Work("layer_norm, backward", *backward("layer_norm", dout, x, weight, bias), 3 * x.nbytes,
                   14 * x.size, self.peer(layer, x, weight, bias, dout=dout))  # fmt: skip
        yield Work("rms_norm", *forward("rms_norm", x, weight), 2 * x.nbytes, 6 * x.size,
                   self.peer(lambda t, x, w: t.nn.functional.rms_norm(x, x.shape[-1:], w, 1e-5), x, weight))  # fmt: skip
        yield Work("gelu_tanh", *forward("gelu_tanh", x), 2 * x.nbytes, 10 * x.size,
                   self.peer(lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), x))  # fmt: skip

    def attentions(self) -> Iterator[Work]:
        heads, length, head = 16, self.scaled(2048), 64
        q, k, v, dout = (self.array(2, length, heads, head) for _ in range(4))
        operations = 2 * 2 * 2 * heads * length * length * head / 2

        def peer(t: Any, q: Any, k: Any, v: Any) -> Any:
            turned = (x.transpose(1, 2) for x in (q, k, v))
            return t.nn.functional.scaled_dot_product_attention(*turned, is_causal=True).transpose(
                1, 2
            )

        yield Work("attention, causal", *forward("attention", q, k, v, causal=True), 4 * q.nbytes,
                   operations, self.peer(peer, q, k, v))  # fmt: skip
        yield Work("attention, backward", *backward("attention", dout, q, k, v, causal=True), 8 * q.nbytes,
                   2.5 * operations, self.peer(peer, q, k, v, dout=dout))  # fmt: skip
        for keys in (64, self.scaled(8192)):
            yield from self.cached(keys)

    def cached(self, keys: int) -> Iterator[Work]:
        """One new token of a LLaMA that has 32 heads on 8, after ``keys`` - 1."""
        packed, cache = self.array(1, 1, 48, 128), [self.array(1, keys, 8, 128) for _ in "kv"]
        given, options = (packed, *cache, keys - 1, None), {"heads": 32, "stop": keys}

        def peer(t: Any, packed: Any, k: Any, v: Any) -> Any:
            q, k, v = (x.transpose(1, 2) for x in (packed[:, :, :32], k, v))
            return t.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        yield Work(f"cached attention, {keys} keys", *forward("cached_attention", *given, **options),
                   2 * keys * 8 * 128 * self.size, 4 * keys * 32 * 128, self.peer(peer, packed, *cache))  # fmt: skip
        eight = [EightBit.zeros(x.shape, self.place) for x in cache]
        for store, numbers in zip(eight, cache, strict=True):
            store[...] = numbers
        given = (packed, *eight, keys - 1, None)
        yield Work(f"8-bit cache, {keys} keys", *forward("cached_attention", *given, **options),
                   2 * eight[0].nbytes, 4 * keys * 32 * 128)  # fmt: skip

    def linears(self) -> Iterator[Work]:
        """Beside the dense product; there is no such peer of quantized weights."""
        width = self.scaled(4096, 256)
        outs, matrix = 4 * width, self.array(4 * width, width)
        for rows in (1, 2, 8, 16):
            x = self.array(rows, width)
            yield Work(f"linear, {rows} rows", *forward("linear", x, matrix), matrix.nbytes,
                       2 * rows * matrix.size, self.peer(lambda t, x, w: x @ w.T, x, matrix))  # fmt: skip
            for name in ("q8_0", "q4_0", "q4_k", "q6_k"):
                blocks = self.blocks(name, width, outs)
                if not can_multiply(x, blocks, None):  # more rows than shared memory has place for
                    continue
                yield Work(f"{name}, {rows} rows", *quantized(x, blocks), blocks.nbytes,
                           2 * rows * width * outs)  # fmt: skip

    @functools.cache  # noqa: B019  one bench a process
    def blocks(self, name: str, width: int, outs: int) -> QuantizedMatrix:
        """A matrix in a format of blocks. Rounding takes long, so its rows repeat."""
        few = min(outs, 256)
        noise = self.random.standard_normal((few, width), np.float32) * 0.05
        return QuantizedMatrix(Blocks(name, np.tile(encode(noise, name), (outs // few, 1))))

    def ends(self) -> Iterator[Work]:
        """The loss, the optimizer, the next token."""
        logits, asarray = self.array(self.scaled(2048), 50257), self.place.asarray
        targets = asarray(np.arange(logits.shape[0]))
        yield Work("cross_entropy", *forward("cross_entropy", logits, targets), logits.nbytes, 4 * logits.size,
                   self.peer(lambda t, x, y: t.nn.functional.cross_entropy(x, y), logits, targets))  # fmt: skip
        count = self.scaled(1 << 24)
        param, grad = self.array(count), self.array(count)
        moments = [self.place.zeros(count, "float32") for _ in range(2)]
        given = (
            param,
            grad,
            *moments,
            None,
            *(asarray(np.float32(1e-3)), asarray(np.int64(1)), asarray(np.float32(1))),
        )
        run = lambda: OPS["adamw"].makers["cuda"][0].forward(*given)  # noqa: E731
        yield Work("adamw", run, None, 3 * param.nbytes + 16 * count, 20 * count)
        rows = [np.full(1, v, d) for v, d in ((0.8, "f4"), (50, "i8"), (0.9, "f4"), (0.0, "f4"))]
        given_rows = (*map(asarray, rows), asarray(np.array([1, 2], np.uint64)))
        yield Work(
            "sample", *forward("sample", logits[:1], *given_rows), logits[:1].nbytes, 10 * 50257
        )
