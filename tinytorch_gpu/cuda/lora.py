"""Low-rank adapters on a GPU: products of cuBLAS in the dtype of the activations.

A decode step has no kernel of its own for them: merge the adapters into the weights before generating,
which costs nothing per token.
"""

import math
from typing import Any

from ..backend import DEVICES, kind, namespace, narrow
from ..core.op import needed
from ..core.tensor import grad_enabled
from ..ops import lora
from .launch import is_element
from .linear import MOST_ROWS, as_rows, product


def _forward(base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None) -> Any:
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
    rows = math.prod(x.shape[:-1])
    return (
        kind(x) in DEVICES
        and is_element(base, x, *factors)
        and base.dtype == x.dtype
        and base.flags.c_contiguous
        and bool(x.size)
        and (grad_enabled() or rows > MOST_ROWS)
    )


lora.maker("cuda", _forward, _backward, accepts=_accepts)
