"""AdamW, SGD and the length of all gradients by the library (kernels/cpu/optimizer.cpp)."""

import math
from typing import Any

import numpy

from ..backend import dtype_name
from ..host import optimizer as host
from ..host.buffers import flat_views
from ..ops import adamw, gradient_norm, sgd
from .blocks import FORMATS, PLAIN
from .library import Operation, library, pointer

# tensors; count, values; betas, factors of the gradient, factor of the root, eps, rate, decay
_adamw = Operation("adamw", "P2q8d")
_sgd = Operation("sgd", "P3q4d")  # tensors; count, values, nesterov; rate, scale, momentum, decay
_norm = Operation("gradient_norm", "2P2q")  # gradients, sums; count, parts
_PART = 1 << 14  # of kernels/cpu/optimizer.cpp


def adamw_many(
    tensors: list[Any], rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> None:  # fmt: skip
    """``adamw`` of many (param, grad, first, second, master) as ``host.flat_tensors`` gives them, at once: by the
    library if there is one and the state is float32; then they may have any shape."""
    options = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    if library() is None or not all(map(_single, tensors)):
        host.adamw_many(tensors, rate, step, scale, **options)
    elif scale != 0:
        _step(tensors, rate.item(), int(step), scale.item(), options)


def _step(
    tensors: list[tuple[Any, ...]], rate: float, step: int, scale: float, options: dict[str, float]
) -> None:
    beta1, beta2 = options["beta1"], options["beta2"]
    _held, table, total = _table(tensors)
    _adamw(
        total, pointer(table), len(table), total, beta1, beta2,
        scale * (1 - beta1), scale * math.sqrt(1 - beta2), host.reached(beta2, step) ** -0.5,
        options["eps"], rate / host.reached(beta1, step), rate * options["weight_decay"],
    )  # fmt: skip


def _table(tensors: list[tuple[Any, ...]]) -> tuple[Any, Any, int]:
    """What must stay alive, the rows that the library takes of (param, grad, first, second, master), and how many
    values there are."""
    held = [(param, host.beside(param, grad), *state) for param, grad, *state in tensors]
    rows = [(*map(pointer, five), five[0].size, *_formats(*five[:2])) for five in held]
    return held, numpy.array(rows, numpy.int64), sum(param.size for param, *_ in held)


def _formats(*arrays: Any) -> list[int]:
    return [FORMATS[dtype_name(x.dtype)] for x in arrays]


def _single(arrays: tuple[Any, ...]) -> bool:
    """Whether the arithmetic is float32's, and weights and moments lie in memory the same way."""
    param, grad, *state = arrays
    weights = param if state[-1] is None else state[-1]
    if not all(x is None or x.dtype == numpy.float32 for x in (weights, *state)):
        return False
    narrow = param is weights or dtype_name(param.dtype) in PLAIN[1:]
    same = flat_views(param, *state) is not None
    return narrow and same and dtype_name(grad.dtype) in PLAIN


def _accepts(
    param: Any, grad: Any, first: Any, second: Any, master: Any, *numbers: Any, **options: Any
) -> bool:
    return _single((param, grad, first, second, master))


def _one(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> Any:  # fmt: skip
    adamw_many([(param, grad, first, second, master)], rate, step, scale, **options)
    return param


def _sgd_accepts(
    param: Any, grad: Any, velocity: Any, master: Any, rate: Any, scale: Any, **options: Any
) -> bool:
    return rate.dtype == numpy.float32 and _single((param, grad, velocity, master))


def _sgd_one(
    param: Any, grad: Any, velocity: Any, master: Any, rate: Any, scale: Any,
    *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0,
) -> Any:  # fmt: skip
    if scale != 0:
        _held, table, total = _table([(param, grad, velocity, None, master)])
        numbers = (rate.item(), scale.item(), momentum, weight_decay)
        _sgd(total, pointer(table), 1, total, nesterov, *numbers)
    return param


def _norm_accepts(*grads: Any) -> bool:
    return all(dtype_name(g.dtype) in PLAIN for g in grads)


def _gradient_norm(*grads: Any) -> Any:
    held = [g if flat_views(g) else numpy.ascontiguousarray(g) for g in grads]
    table = numpy.array([(pointer(g), g.size, *_formats(g)) for g in held], numpy.int64)
    parts = sum(-(-g.size // _PART) for g in held)
    sums = numpy.empty(parts)
    _norm(sum(g.size for g in held), pointer(table), pointer(sums), len(held), parts)
    return numpy.float32(math.sqrt(sums.sum()))


if library() is not None:  # without, training still imports this file
    adamw.maker("cpu", _one, accepts=_accepts, ahead=True)
    sgd.maker("cpu", _sgd_one, accepts=_sgd_accepts, ahead=True)
    gradient_norm.maker("cpu", _gradient_norm, accepts=_norm_accepts, ahead=True)
