"""Memory for time: a part of the model runs a second time in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost": only the input of each part is kept, and
what its operations save for their gradients exists for one part at a time.
"""

from collections.abc import Callable
from typing import Any

from .. import nvtx
from ..rng import Generator
from .graph import Node, propagate
from .tensor import Tensor, enable_grad, grad_enabled, no_grad, wrap


def recompute(
    function: Callable[[Tensor], Tensor], x: Tensor, generator: Generator | None = None
) -> Tensor:
    """``function(x)``, of which nothing but ``x`` is kept for the backward.

    The function must do the same twice, and draw random numbers from ``generator`` only: they are drawn
    again. Gradients, those of parameters that it uses included, are the same to the last bit.
    """
    if not grad_enabled():
        return function(x)
    wanted = x.requires_grad
    offset = 0 if generator is None else generator.offset
    with no_grad():
        out = wrap(function(x).data)

    def backward(residuals: Any, dout: Any) -> tuple[Any]:
        again = wrap(residuals[0])
        again.requires_grad = wanted
        after = 0 if generator is None else generator.offset
        if generator is not None:
            generator.offset = offset
        try:
            with enable_grad(), nvtx.span("recompute", "phase"):
                made = function(again)
        finally:
            if generator is not None:
                generator.offset = after
        if made.requires_grad:
            propagate(made, dout, False)
        return (None if again.grad is None else again.grad.data,)

    node = Node("recompute", backward, [x if wanted else None], (x.data,), {})
    node.outputs.append((out.data.shape, out.data.dtype))
    out.node, out.output, out.requires_grad = node, 0, True
    return out
