"""Memory for time: a part of the model runs a second time in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost": only the inputs of each part are kept, and
what its operations save for their gradients exists for one part at a time.
"""

from collections.abc import Callable
from typing import Any

from .. import nvtx
from ..rng import Generator
from .graph import Node, propagate
from .tensor import Tensor, enable_grad, grad_enabled, no_grad, wrap


def recompute(
    function: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor | None, ...],
    generator: Generator | None = None,
) -> Tensor:
    """``function(*inputs)``, of which nothing but the inputs is kept for the backward.

    The function must do the same twice, reach other results of operations through ``inputs`` only, and draw
    random numbers from ``generator`` only: they are drawn again. Gradients, those of parameters that it uses
    included, are the same to the last bit.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not grad_enabled():
        return function(*given)
    parents = [x if x is not None and x.requires_grad else None for x in given]
    offset = 0 if generator is None else generator.offset
    with no_grad():
        out = wrap(function(*given).data)

    def backward(residuals: Any, dout: Any) -> tuple[Any, ...]:
        again = [None if data is None else wrap(data) for data in residuals]
        for tensor, parent in zip(again, wanted, strict=True):
            if tensor is not None:
                tensor.requires_grad = parent
        after = 0 if generator is None else generator.offset
        if generator is not None:
            generator.offset = offset
        try:
            with enable_grad(), nvtx.span("recompute", "phase"):
                made = function(*again)
        finally:
            if generator is not None:
                generator.offset = after
        if made.requires_grad:
            propagate(made, dout, False)
        return tuple(None if x is None or x.grad is None else x.grad.data for x in again)

    wanted = [parent is not None for parent in parents]
    saved = tuple(None if x is None else x.data for x in given)
    node = Node("recompute", backward, parents, saved, {})
    node.outputs.append((out.data.shape, out.data.dtype))
    out.node, out.output, out.requires_grad = node, 0, True
    return out
