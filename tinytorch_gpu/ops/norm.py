"""Layer normalization (Ba et al. 2016) and RMS normalization (Zhang and Sennrich 2019).

Both over the last axis; each also fused with the residual addition that comes before it in a block,
which saves one trip of the residual stream through memory. ``norm_heads`` is the RMS norm of queries and
keys where they lie, packed beside the values.
"""

from collections.abc import Callable
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


@op
def norm_heads(x: Any, q_weight: Any, k_weight: Any, *, heads: int, eps: float = 1e-6) -> Any:
    """The RMS norm of each query and key in ``x`` (B, T, H + 2 K, D), whose values stay as they are.

    The first ``heads`` of x are queries and scaled by ``q_weight`` (D,), the next K keys, by
    ``k_weight`` (Henry et al. 2020, "Query-key normalization for transformers"; RMS as Qwen3 has it).
    Residuals: x, both weights, and 1 / root mean square (B, T, H + K, 1) in float32 or wider.
    """
    xp, count = namespace(x), normed_heads(x, heads)
    wide, parts = widen(x[:, :, :count, :]), (slice(None, heads), slice(heads, None))
    rstd = 1 / xp.sqrt(xp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    normed = [
        narrow(wide[:, :, part, :] * rstd[:, :, part, :] * widen(weight), x.dtype)
        for part, weight in zip(parts, (q_weight, k_weight), strict=True)
    ]
    return xp.concat((*normed, x[:, :, count:, :]), axis=2), (x, q_weight, k_weight, rstd)


@norm_heads.backward
def _(residuals: Any, dout: Any, *, heads: int, eps: float = 1e-6) -> Any:
    return heads_gradient(rms_norm.differentiate, residuals, dout, heads)


def heads_gradient(
    back: Callable[[Any, Any], Any], residuals: Any, dout: Any, heads: int
) -> tuple[Any, Any, Any]:
    """The gradients of ``norm_heads`` by ``back``, the backward of ``rms_norm``."""
    (x, *weights, rstd), count = residuals, normed_heads(dout, heads)
    gradients, dweights = [], []
    for part, weight in zip((slice(None, heads), slice(heads, count)), weights, strict=True):
        saved = (x[:, :, part, :], weight, rstd[:, :, part, :])
        dx, dweight, *_ = back(saved, dout[:, :, part, :])
        gradients.append(dx)
        dweights.append(dweight)
    q_weight, k_weight = dweights
    dx = namespace(x).concat((*gradients, dout[:, :, count:, :]), axis=2)
    return dx, q_weight, k_weight


def normed_heads(x: Any, heads: int) -> int:
    """How many of the heads in x (B, T, H + 2 K, D) are queries or keys."""
    return (heads + x.shape[2]) // 2
