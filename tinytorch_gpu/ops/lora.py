"""Low-rank adapters: a small trained product beside a large frozen one."""

import math
from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import needed, op


@op
def lora(base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None) -> Any:
    """``base`` (..., out) + ``scale * x a^T b^T`` in the columns of each span (LoRA: Hu et al. 2021).

    ``x`` is (..., in); ``factors`` are a (r, in) and b (stop - start, r) of each of the ``spans``
    (start, stop), which may not overlap; ``scales`` has a number for each. Nothing of the weight that made
    ``base`` is needed, so it may be stored in any way. The result has the dtype of ``base``.
    """
    xp = namespace(base)
    wide = widen(x)
    out = xp.astype(base, widen(base[..., :0]).dtype, copy=True)
    inner = []
    for (start, stop), scale, a, b in _parts(factors, spans, scales):
        low = xp.matmul(wide, widen(a).T) * scale
        out[..., start:stop] = out[..., start:stop] + xp.matmul(low, widen(b).T)
        inner.append(narrow(low, x.dtype))
    return narrow(out, base.dtype), (x, *inner, *factors)


def fits(base: Any, x: Any, factors: Any, spans: Any) -> bool:
    """Whether all shapes are as ``lora`` says: a maker that does not look further takes no others."""
    return len(factors) == 2 * len(spans) and all(
        0 <= start <= stop <= base.shape[-1]
        and a.shape[1] == x.shape[-1]
        and b.shape == (stop - start, a.shape[0])
        for (start, stop), a, b in zip(spans, factors[::2], factors[1::2], strict=True)
    )


def sides(factors: Any, spans: Any, parts: int) -> tuple[list[Any], ...]:
    """Factors a and b, ranks, first and last columns of each part, filled up with nothing to ``parts``: what a
    kernel takes that has so many."""
    spare = parts - len(spans)
    a, b = ([*factors[i::2], *(None,) * spare] for i in range(2))
    starts, stops = ([*ends, *(0,) * spare] for ends in zip(*spans, strict=True))
    return a, b, [0 if f is None else len(f) for f in a], starts, stops


def inner_of(low: Any, x: Any, factors: Any) -> list[Any]:
    """The views (..., r) of each part in ``low``, where x in the ranks of all parts is, one part behind the other."""
    inner, first = [], 0
    for a in factors[::2]:
        shape = (*x.shape[:-1], len(a))
        inner.append(low[first : first + math.prod(shape)].reshape(shape))
        first += math.prod(shape)
    return inner


@lora.backward
def _(residuals: Any, dout: Any, *, spans: Any, scales: Any, needs: Any = None) -> Any:
    x, inner, factors = residuals[0], residuals[1 : 1 + len(spans)], residuals[1 + len(spans) :]
    xp = namespace(dout)
    rows = xp.reshape(widen(x), (-1, x.shape[-1]))
    dy = xp.reshape(dout, (-1, dout.shape[-1]))
    dx = xp.zeros_like(rows) if needed(needs, 1) else None
    gradients = []
    for low, ((start, stop), scale, a, b) in zip(
        inner, _parts(factors, spans, scales), strict=True
    ):
        part = widen(dy[:, start:stop])
        dlow = xp.matmul(part, widen(b)) * scale
        db = xp.matmul(part.T, xp.reshape(widen(low), (-1, low.shape[-1])))
        gradients += [narrow(xp.matmul(dlow.T, rows), a.dtype), narrow(db, b.dtype)]
        if dx is not None:
            dx = dx + xp.matmul(dlow, widen(a))
    dx = None if dx is None else narrow(xp.reshape(dx, x.shape), x.dtype)
    return dout, dx, *gradients


def _parts(factors: Any, spans: Any, scales: Any) -> Any:
    """(span, scale, a, b) of each part."""
    return zip(spans, scales, factors[::2], factors[1::2], strict=True)
