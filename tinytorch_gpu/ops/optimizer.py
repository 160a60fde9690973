"""One step of an optimizer on one tensor. What changes from step to step is in arrays, so that a
captured step does not freeze it, and nothing waits for the host."""

import functools
import math
import operator
from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op


@op(mutates=("param", "first", "second", "master"), differentiable=False)
def adamw(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> Any:  # fmt: skip
    """One step of AdamW (Loshchilov & Hutter 2019) on ``param``, in place; returns it.

    ``first`` and ``second`` are the moments, in float32 (float64 for such a ``param``), zeros before
    the first step. ``master`` is None, or the float32 weights that a 16-bit ``param`` is rounded
    from. The rest are arrays of one number: ``rate``, the learning rate; ``step``, an integer that
    counts from 1; ``scale``, which the gradient is multiplied by (clipping, loss scaling). A
    ``scale`` of 0 skips the step: nothing is written.
    """
    xp, real = namespace(param), first.dtype
    taken = scale != 0
    rate, times = narrow(rate, real), xp.astype(step, xp.float64)
    gradient = narrow(widen(grad), real) * narrow(scale, real)
    new_first = beta1 * first + (1 - beta1) * gradient
    new_second = beta2 * second + (1 - beta2) * (gradient * gradient)
    unbiased = (_unbiased(xp, m, b, times) for m, b in ((new_first, beta1), (new_second, beta2)))
    change = next(unbiased) / (xp.sqrt(next(unbiased)) + eps)
    weights = narrow(widen(param) if master is None else master, real)
    weights = weights - rate * (change + weight_decay * weights)
    for target, values in ((first, new_first), (second, new_second), (master, weights)):
        if target is not None:
            target[...] = xp.where(taken, values, target)
    param[...] = xp.where(taken, narrow(weights, param.dtype), param)
    return param


def _unbiased(xp: Any, moment: Any, beta: float, times: Any) -> Any:
    """``moment / (1 - beta ** times)``: a mean that began at 0 is too small by that factor."""
    if beta == 0:
        return moment
    return moment / xp.astype(-xp.expm1(times * math.log(beta)), moment.dtype)


@op(mutates=("param", "velocity", "master"), differentiable=False)
def sgd(
    param: Any, grad: Any, velocity: Any, master: Any, rate: Any, scale: Any,
    *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0,
) -> Any:  # fmt: skip
    """One step of stochastic gradient descent on ``param``, in place; returns it.

    ``velocity`` is None without ``momentum``; for the rest see ``adamw``. The decay is added to the
    gradient.
    """
    xp, real = namespace(param), rate.dtype
    taken = scale != 0
    weights = narrow(widen(param) if master is None else master, real)
    gradient = narrow(widen(grad), real) * narrow(scale, real) + weight_decay * weights
    if velocity is not None:
        fresh = momentum * velocity + gradient
        velocity[...] = xp.where(taken, fresh, velocity)
        gradient = gradient + momentum * fresh if nesterov else fresh
    weights = weights - rate * gradient
    if master is not None:
        master[...] = xp.where(taken, weights, master)
    param[...] = xp.where(taken, narrow(weights, param.dtype), param)
    return param


@op(differentiable=False)
def gradient_norm(*grads: Any) -> Any:
    """The length of all ``grads`` as one vector: the root of the sum of their squares, a scalar."""
    xp = namespace(grads[0])
    sums = [xp.sum(wide * wide) for wide in map(widen, grads)]
    return xp.sqrt(functools.reduce(operator.add, sums))


@op(differentiable=False)
def clip_scale(norm: Any, *, max_norm: float) -> Any:
    """What to multiply gradients of length ``norm`` (a scalar) by, so that they are no longer than
    ``max_norm`` (Pascanu et al. 2013); 0, which skips the step, if the norm is not finite."""
    xp = namespace(norm)
    scale = max_norm / (norm + 1e-6)
    scale = xp.minimum(scale, xp.ones_like(scale))
    return xp.where(xp.isfinite(norm), scale, xp.zeros_like(scale))
