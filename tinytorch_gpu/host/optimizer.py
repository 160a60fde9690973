"""Steps of the optimizers in chunks that stay in cache: each array is read and written once."""

import math
from collections.abc import Iterator
from typing import Any

import numpy

from ..ops import adamw, gradient_norm, sgd
from .buffers import flat_views, plain

# Values of a chunk, which has four arrays and two buffers.
CHUNK = 1 << 15


def _state_fits(param: Any, master: Any, *state: Any) -> bool:
    """Whether weights and state lie in memory the same way, in dtypes that are computed in."""
    weights = param if master is None else master
    return plain(weights, *state) and flat_views(param, master, *state) is not None


def _beside(param: Any, grad: Any) -> Any:
    """The gradient in the parameter's order in memory."""
    return grad if flat_views(param, grad) else numpy.asarray(
        grad, order="C" if param.flags.c_contiguous else "F"
    )  # fmt: skip


def _chunks(arrays: tuple[Any, ...], dtype: Any) -> Iterator[list[Any]]:
    """The same part of arrays that lie in memory the same way (None stays None), and of two buffers
    of ``dtype``."""
    views = flat_views(*arrays)
    assert views is not None, "accepts() has seen to it"
    size = views[0].size
    held = [numpy.empty(min(CHUNK, size), dtype) for _ in range(2)]
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        parts = [x if x is None else x[start:stop] for x in views]
        yield [*parts, *(x[: stop - start] for x in held)]


def _adamw_accepts(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> bool:  # fmt: skip
    return _state_fits(param, master, first, second)


def _adamw(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> Any:  # fmt: skip
    if scale == 0:
        return param
    real = first.dtype.type
    rate, scale = rate.item(), scale.item()
    first_share, second_share = _reached(beta1, int(step)), _reached(beta2, int(step))
    # Factors of whole arrays are gathered: what is left is few passes over them.
    to_first, to_second = scale * (1 - beta1), scale * math.sqrt(1 - beta2)
    grown, shrunk = second_share**-0.5, rate / first_share
    arrays = (param, _beside(param, grad), first, second, master)
    for w, g, m, v, wide, change, work in _chunks(arrays, first.dtype):
        m *= beta1
        m += numpy.multiply(g, real(to_first), out=work, dtype=real)
        v *= beta2
        numpy.multiply(g, real(to_second), out=work, dtype=real)
        work *= work
        v += work
        numpy.sqrt(v, out=work)
        work *= grown
        work += eps
        numpy.divide(m, work, out=change)
        change *= shrunk
        weights = w if wide is None else wide
        if weight_decay:
            change += numpy.multiply(weights, rate * weight_decay, out=work)
        weights -= change
        if wide is not None:
            w[...] = wide
    return param


def _reached(beta: float, step: int) -> float:
    """What a mean that began at 0 has reached of its value: 1 - beta ** step."""
    return -math.expm1(step * math.log(beta)) if beta else 1.0


def _sgd_accepts(
    param: Any, grad: Any, velocity: Any, master: Any, rate: Any, scale: Any, **options: Any
) -> bool:
    return rate.dtype == (param if master is None else master).dtype and _state_fits(
        param, master, velocity
    )


def _sgd(
    param: Any, grad: Any, velocity: Any, master: Any, rate: Any, scale: Any,
    *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0,
) -> Any:  # fmt: skip
    if scale == 0:
        return param
    real = rate.dtype.type
    rate, scale = real(rate.item()), real(scale.item())
    arrays = (param, _beside(param, grad), velocity, master)
    for w, g, fresh, wide, scaled, work in _chunks(arrays, rate.dtype):
        weights = w if wide is None else wide
        numpy.multiply(g, scale, out=scaled, dtype=real)
        if weight_decay:
            numpy.multiply(weights, weight_decay, out=work)
            scaled += work
        if fresh is not None:
            fresh *= momentum
            fresh += scaled
            if nesterov:
                numpy.multiply(fresh, momentum, out=work)
                scaled += work
        change = scaled if fresh is None or nesterov else fresh
        numpy.multiply(change, rate, out=work)
        weights -= work
        if wide is not None:
            w[...] = wide
    return param


def _gradient_norm(*grads: Any) -> Any:
    total = sum(_squares(grad) for grad in grads)
    return numpy.sqrt(total)


def _squares(grad: Any) -> Any:
    """The sum of squares, a product with itself; chunk by chunk, for its rounding errors."""
    views = flat_views(grad)
    flat = grad.reshape(-1) if views is None else views[0]
    if flat.size <= CHUNK:
        return numpy.dot(flat, flat)
    parts = [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]
    return numpy.sum([numpy.dot(x, x) for x in parts], dtype=grad.dtype)


adamw.maker("cpu", _adamw, accepts=_adamw_accepts)
sgd.maker("cpu", _sgd, accepts=_sgd_accepts)
gradient_norm.maker("cpu", _gradient_norm, accepts=plain)
