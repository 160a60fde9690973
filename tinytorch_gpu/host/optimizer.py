"""Steps of the optimizers in chunks that stay in cache: each array is read and written once."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy

from ..ops import adamw, gradient_norm, sgd
from .buffers import flat_views, plain
from .threads import share, split

# Values of a chunk, which has four arrays and two buffers: they stay in cache, and a call on them is long enough
# for another thread to take its turn.
CHUNK = 1 << 16
# Tensors of fewer values are stepped together, as one: a call takes as long for ten values as for a thousand.
FEW = 1 << 12
# Values whose squares are summed at once, and how many such sums are worth another thread: each is so short that
# threads are in each other's way.
SUMMED, SHARED = 1 << 15, 1 << 8


def _state_fits(param: Any, master: Any, *state: Any) -> bool:
    """Whether weights and state lie in memory the same way, in dtypes that are computed in."""
    weights = param if master is None else master
    return plain(weights, *state) and flat_views(param, master, *state) is not None


def beside(param: Any, grad: Any) -> Any:
    """The gradient in the parameter's order in memory."""
    return grad if flat_views(param, grad) else numpy.asarray(
        grad, order="C" if param.flags.c_contiguous else "F"
    )  # fmt: skip


def _chunks(views: list[Any], size: int = CHUNK) -> Iterator[list[Any]]:
    """The same parts of 1-D arrays (None stays None)."""
    for start in range(0, len(views[0]), size):
        yield [x if x is None else x[start : start + size] for x in views]


def _adamw_accepts(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> bool:  # fmt: skip
    return _state_fits(param, master, first, second)


def _adamw(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> Any:  # fmt: skip
    adamw_many([_flat(param, grad, first, second, master)], rate, step, scale, **options)
    return param


def flat_tensors(tensors: list[tuple[Any, ...]]) -> list[Any] | None:
    """What ``adamw_many`` steps of many (param, grad, first, second, master): each as 1-D views, the gradient's of a
    copy where it lies in memory in another way than the rest; None if it does not take one of them."""
    flat = [_flat(*five) for five in tensors]
    return None if None in flat else flat


def adamw_many(
    tensors: list[Any], rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> None:  # fmt: skip
    """``adamw`` of many ``flat_tensors``, their chunks shared among threads."""
    if scale == 0:
        return
    rate, scale = rate.item(), scale.item()
    first_share, second_share = reached(beta1, int(step)), reached(beta2, int(step))
    grown = math.sqrt(second_share)
    factors = _Factors(
        beta1, scale * (1 - beta1), beta2, scale * math.sqrt(1 - beta2),
        eps * grown, rate * grown / first_share, rate * weight_decay,
    )  # fmt: skip
    pieces = _pieces(tensors)

    def one(part: slice) -> None:
        real = pieces[0][0][2].dtype.type
        held = numpy.empty((2, max(sum(len(w) for w, *_ in piece) for piece in pieces[part])), real)
        for piece in pieces[part]:
            if len(piece) == 1:
                _change(piece[0], factors, held)
            else:
                _change_together(piece, factors, held)

    share(one, split(len(pieces), len(pieces) // 2))


def _flat(param: Any, grad: Any, first: Any, second: Any, master: Any) -> list[Any] | None:
    if not plain(param if master is None else master, first, second):
        return None
    found = flat_views(param, grad, first, second, master)
    return found or flat_views(param, beside(param, grad), first, second, master)


class _Factors(NamedTuple):
    """The numbers of a step: factors of whole arrays are gathered, so that what is left is few passes over them."""

    beta1: float
    to_first: float
    beta2: float
    to_second: float
    eps: float
    rate: float
    decay: float


def _pieces(tensors: list[Any]) -> list[list[list[Any]]]:
    """Chunks of flat tensors, each a piece of its own, and tensors of few values, together in a piece."""
    pieces: list[list[list[Any]]] = []
    few: list[list[Any]] = []
    count = 0
    for tensor in tensors:
        size = len(tensor[0])
        if size >= FEW or tensor[-1] is not None:
            pieces.extend([chunk] for chunk in _chunks(tensor))
            continue
        if count + size > CHUNK:
            pieces.append(few)
            few, count = [], 0
        few.append(tensor)
        count += size
    return [*pieces, few] if few else pieces


def _change(arrays: Sequence[Any], factors: _Factors, held: Any) -> None:
    """A step of 1-D arrays (param, grad, first, second, master), in place."""
    w, g, m, v, wide = arrays
    change, work = held[:, : len(w)]
    real = m.dtype.type
    m *= factors.beta1
    m += numpy.multiply(g, real(factors.to_first), out=work, dtype=real)
    v *= factors.beta2
    numpy.multiply(g, real(factors.to_second), out=work, dtype=real)
    work *= work
    v += work
    numpy.sqrt(v, out=work)
    work += factors.eps
    numpy.divide(m, work, out=change)
    change *= factors.rate
    weights = w if wide is None else wide
    if factors.decay:
        change += numpy.multiply(weights, factors.decay, out=work)
    weights -= change
    if wide is not None:
        w[...] = wide


def _change_together(piece: list[list[Any]], factors: _Factors, held: Any) -> None:
    """The same of tensors that are put together in one, and taken apart again."""
    gathered = [numpy.concatenate(arrays) for arrays in list(zip(*piece, strict=True))[:4]]
    _change([*gathered, None], factors, held)
    start = 0
    for w, _, m, v, _ in piece:
        stop = start + len(w)
        for array, changed in zip((w, m, v), (gathered[0], *gathered[2:]), strict=True):
            array[...] = changed[start:stop]
        start = stop


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
    views = flat_views(param, beside(param, grad), velocity, master)
    assert views is not None, "accepts() has seen to it"
    held = [numpy.empty(min(CHUNK, param.size), real) for _ in range(2)]
    for w, g, fresh, wide in _chunks(views):
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
    chunks = [chunk for grad in grads for (chunk,) in _chunks(_dense(grad), SUMMED)]
    sums = numpy.empty(len(chunks), grads[0].dtype)

    def one(part: slice) -> None:
        for i in range(part.start, part.stop):
            sums[i] = numpy.dot(chunks[i], chunks[i])

    share(one, split(len(chunks), len(chunks) // SHARED))
    return numpy.sqrt(sums.sum())


def _dense(grad: Any) -> list[Any]:
    return flat_views(grad) or [numpy.ravel(grad)]


adamw.maker("cpu", _adamw, accepts=_adamw_accepts)
sgd.maker("cpu", _sgd, accepts=_sgd_accepts)
gradient_norm.maker("cpu", _gradient_norm, accepts=plain)
