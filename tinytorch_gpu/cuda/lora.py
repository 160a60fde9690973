"""Low-rank adapters on a GPU: launches of kernels/lora.cu for the few rows of a decode step, products of
cuBLAS in the dtype of the activations for more.

Merged into the weights before generating they cost nothing per token.
"""

import math
from typing import Any

from ..backend import DEVICES, kind, namespace, narrow
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..ops import lora
from ..ops.lora import fits, inner_of, sides
from .launch import ELEMENTS, Source, element, empty, is_element, packed
from .linear import MOST_ROWS
from .products import as_rows, product

SOURCE = Source(
    "lora.cu",
    only=lambda v: v["PARAM"] in ("float", v["REAL"]),
    REAL=ELEMENTS.values(),
    PARAM=ELEMENTS.values(),
)
_lower, _raise = SOURCE.kernel("lora_lower"), SOURCE.kernel("lora_raise")
# What kernels/lora.cu has: parts of a weight, rows of x and columns that a block takes.
PARTS, _ROWS, _COLUMNS, _THREADS = 3, 4, 128, 128


def _few(base: Any, x: Any, factors: Any, spans: Any, scales: Any) -> Any:
    """Up to ``MOST_ROWS`` rows in two launches."""
    rows, width, outs = math.prod(x.shape[:-1]), x.shape[-1], base.shape[-1]
    a, b, ranks, starts, stops = sides([packed(f) for f in factors], spans, PARTS)
    low, out = empty(x, (rows * sum(ranks),)), empty(base, base.shape)
    variant = {"REAL": element(x), "PARAM": element(factors[0])}
    sets, sizes = -(-rows // _ROWS), (*ranks, *scales, *(0.0,) * (PARTS - len(spans)))
    _lower((sum(ranks), sets), _THREADS, packed(x), *a, low, rows, width, *sizes, **variant)
    lanes = min(32, 1 << (max(ranks) - 1).bit_length())
    _raise(
        (-(-outs // _COLUMNS), sets), _THREADS, packed(base), *b, low, out, rows, outs, *ranks, *starts,
        *stops, lanes, **variant,
    )  # fmt: skip
    return out, (x, *inner_of(low, x, factors), *factors)


def _is_few(base: Any, x: Any, factors: Any, spans: Any) -> bool:
    """Whether the kernels take these arguments."""
    dtypes = {f.dtype for f in factors}
    narrow_enough = len(dtypes) == 1 and (element(factors[0]) in ("float", element(x)))
    short = math.prod(x.shape[:-1]) <= MOST_ROWS
    return short and narrow_enough and 0 < len(spans) <= PARTS and base.shape[-1] < 2**31


def _forward(base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None) -> Any:
    if _is_few(base, x, factors, spans):
        return _few(base, x, factors, spans, scales)
    rows, out, inner = as_rows(x), base.copy(), []
    flat = as_rows(out)
    for (start, stop), scale, a, b in zip(spans, scales, factors[::2], factors[1::2], strict=True):
        low = product(rows, a.T, x.dtype) * x.dtype.type(scale)
        flat[:, start:stop] += product(low, b.T, x.dtype)
        inner.append(low.reshape(*x.shape[:-1], low.shape[-1]))
    return out, (x, *inner, *factors)


def _backward(residuals: Any, dout: Any, *, spans: Any, scales: Any, needs: Any = None) -> Any:
    x, inner, factors = residuals[0], residuals[1 : 1 + len(spans)], residuals[1 + len(spans) :]
    rows, dy, gradients = as_rows(x), as_rows(dout), []
    dx = namespace(x).zeros_like(rows) if needed(needs, 1) else None
    for i, ((start, stop), scale) in enumerate(zip(spans, scales, strict=True)):
        a, b = factors[2 * i : 2 * i + 2]
        part = dy[:, start:stop]
        dlow = product(part, b, x.dtype) * x.dtype.type(scale)
        da, db = product(dlow.T, rows, x.dtype), product(part.T, as_rows(inner[i]), x.dtype)
        gradients += [narrow(da, a.dtype), narrow(db, b.dtype)]
        if dx is not None:
            dx += product(dlow, a, x.dtype)
    return dout, None if dx is None else dx.reshape(x.shape), *gradients


def _accepts(base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None) -> bool:
    many = grad_enabled() or math.prod(x.shape[:-1]) > MOST_ROWS
    return (
        kind(x) in DEVICES
        and is_element(base, x, *factors)
        and base.dtype == x.dtype
        and base.flags.c_contiguous
        and bool(x.size)
        and fits(base, x, factors, spans)
        and (many or _is_few(base, x, factors, spans))
    )


lora.maker("cuda", _forward, _backward, accepts=_accepts)
