"""Layer normalization (Ba et al. 2016) and RMS normalization (Zhang and Sennrich 2019).

Both over the last axis; each also fused with the residual addition that comes before it in a block,
which saves one trip of the residual stream through memory.
"""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op


@op
def layer_norm(x: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """Bring the last axis of ``x`` (..., C) to mean 0 and variance 1, then scale and shift it.

    ``weight`` and ``bias`` are (C,). The variance is the biased one. Residuals: x, weight, and
    mean and 1 / standard deviation (..., 1) in float32 or wider.
    """
    xp, wide = namespace(x), widen(x)
    mean = xp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    rstd = 1 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    out = centred * rstd * widen(weight) + widen(bias)
    return narrow(out, x.dtype), (x, weight, mean, rstd)


@layer_norm.backward
def _(residuals: Any, dout: Any, *, eps: float = 1e-5) -> Any:
    x, weight, mean, rstd = residuals
    xp, dy = namespace(x), widen(dout)
    normed = (widen(x) - mean) * rstd
    dnormed = dy * widen(weight)
    dx = dnormed - xp.mean(dnormed, axis=-1, keepdims=True)
    dx = (dx - normed * xp.mean(dnormed * normed, axis=-1, keepdims=True)) * rstd
    rows = tuple(range(len(x.shape) - 1))
    dweight, dbias = xp.sum(dy * normed, axis=rows), xp.sum(dy, axis=rows)
    return narrow(dx, x.dtype), narrow(dweight, weight.dtype), narrow(dbias, weight.dtype)


@op
def rms_norm(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """Bring the last axis of ``x`` (..., C) to mean square 1, then scale it by ``weight`` (C,).

    Residuals: x, weight, and 1 / root mean square (..., 1) in float32 or wider.
    """
    xp, wide = namespace(x), widen(x)
    rstd = 1 / xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return narrow(wide * rstd * widen(weight), x.dtype), (x, weight, rstd)


@rms_norm.backward
def _(residuals: Any, dout: Any, *, eps: float = 1e-6) -> Any:
    x, weight, rstd = residuals
    xp, dy = namespace(x), widen(dout)
    normed = widen(x) * rstd
    dnormed = dy * widen(weight)
    dx = (dnormed - normed * xp.mean(dnormed * normed, axis=-1, keepdims=True)) * rstd
    dweight = xp.sum(dy * normed, axis=tuple(range(len(x.shape) - 1)))
    return narrow(dx, x.dtype), narrow(dweight, weight.dtype)


@op(outputs=2)
def add_layer_norm(x: Any, residual: Any, weight: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """``total = x + residual`` and ``layer_norm(total)``: returns both, each (..., C)."""
    total = x + residual
    normed, residuals = layer_norm.reference(total, weight, bias, eps=eps)
    return (total, normed), residuals


@add_layer_norm.backward
def _(residuals: Any, dtotal: Any, dnormed: Any, *, eps: float = 1e-5) -> Any:
    dx, dweight, dbias = layer_norm.differentiate(residuals, dnormed, eps=eps)
    dx = dx + dtotal
    return dx, dx, dweight, dbias


@op(outputs=2)
def add_rms_norm(x: Any, residual: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """``total = x + residual`` and ``rms_norm(total)``: returns both, each (..., C)."""
    total = x + residual
    normed, residuals = rms_norm.reference(total, weight, eps=eps)
    return (total, normed), residuals


@add_rms_norm.backward
def _(residuals: Any, dtotal: Any, dnormed: Any, *, eps: float = 1e-6) -> Any:
    dx, dweight = rms_norm.differentiate(residuals, dnormed, eps=eps)
    dx = dx + dtotal
    return dx, dx, dweight
