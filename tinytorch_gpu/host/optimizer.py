"""Steps of the optimizers in chunks that stay in cache: each array is read and written once."""

import math
from collections.abc import Iterator
from typing import Any

import numpy

from ..ops import adamw, gradient_norm, sgd
from .buffers import flat_views, plain
from .threads import share, split

# Values of a chunk, which has four arrays and two buffers.
CHUNK = 1 << 15


def _state_fits(param: Any, master: Any, *state: Any) -> bool:
    """Whether weights and state lie in memory the same way, in dtypes that are computed in."""
    weights = param if master is None else master
    return plain(weights, *state) and flat_views(param, master, *state) is not None


def beside(param: Any, grad: Any) -> Any:
    """The gradient in the parameter's order in memory."""
    return grad if flat_views(param, grad) else numpy.asarray(
        grad, order="C" if param.flags.c_contiguous else "F"
    )  # fmt: skip


def _chunks(arrays: tuple[Any, ...]) -> Iterator[list[Any]]:
    """The same parts of arrays that lie in memory the same way (None stays None), as 1-D views."""
    views = flat_views(*arrays)
    assert views is not None, "accepts() has seen to it"
    for start in range(0, views[0].size, CHUNK):
        yield [x if x is None else x[start : start + CHUNK] for x in views]


def _adamw_accepts(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> bool:  # fmt: skip
    return _state_fits(param, master, first, second)


def _adamw(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> Any:  # fmt: skip
    adamw_many([(param, grad, first, second, master)], rate, step, scale, **options)
    return param


def adamw_accepts(arrays: tuple[Any, ...]) -> bool:
    """Whether ``adamw_many`` steps a (param, grad, first, second, master)."""
    param, _, *state = arrays
    return _state_fits(param, state[-1], *state[:-1])


def adamw_many(
    tensors: list[tuple[Any, ...]], rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> None:  # fmt: skip
    """``adamw`` of many (param, grad, first, second, master), their chunks shared among threads."""
    if scale == 0:
        return
    rate, scale = rate.item(), scale.item()
    first_share, second_share = reached(beta1, int(step)), reached(beta2, int(step))
    # Factors of whole arrays are gathered: what is left is few passes over them.
    to_first, to_second = scale * (1 - beta1), scale * math.sqrt(1 - beta2)
    grown, shrunk, decay = second_share**-0.5, rate / first_share, rate * weight_decay
    chunks = [
        chunk
        for param, grad, *state in tensors
        for chunk in _chunks((param, beside(param, grad), *state))
    ]

    def one(part: slice) -> None:
        real = chunks[0][2].dtype.type
        size = max(len(chunk[0]) for chunk in chunks[part])
        held = [numpy.empty(size, real) for _ in range(2)]
        for w, g, m, v, wide in chunks[part]:
            change, work = (x[: len(w)] for x in held)
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
            if decay:
                change += numpy.multiply(weights, decay, out=work)
            weights -= change
            if wide is not None:
                w[...] = wide

    share(one, split(len(chunks), len(chunks) // 2))


def reached(beta: float, step: int) -> float:
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
    arrays = (param, beside(param, grad), velocity, master)
    held = [numpy.empty(min(CHUNK, param.size), real) for _ in range(2)]
    for w, g, fresh, wide in _chunks(arrays):
        scaled, work = (x[: len(w)] for x in held)
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
    """The root of the sum of squares, products of chunks with themselves; few numbers are added at a
    time, for the rounding errors."""
    chunks = [chunk for grad in grads for (chunk,) in _chunks((_dense(grad),))]
    sums = numpy.empty(len(chunks), grads[0].dtype)

    def one(part: slice) -> None:
        for i in range(part.start, part.stop):
            sums[i] = numpy.dot(chunks[i], chunks[i])

    share(one, split(len(chunks), len(chunks) // 8))
    return numpy.sqrt(sums.sum())


def _dense(grad: Any) -> Any:
    return grad if flat_views(grad) else numpy.ascontiguousarray(grad)


adamw.maker("cpu", _adamw, accepts=_adamw_accepts)
sgd.maker("cpu", _sgd, accepts=_sgd_accepts)
gradient_norm.maker("cpu", _gradient_norm, accepts=plain)
