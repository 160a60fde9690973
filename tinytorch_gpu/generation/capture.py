"""A decode step that is recorded once and repeated: no modules, no dispatch, no new arrays.

The recorded step is a real one. Each of its operations prepares itself to be repeated in place
(``Maker.plan``); if one cannot, the step stays as it is. On a GPU this will be a CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import numpy

from .. import nvtx
from ..core.op import Call, record
from ..core.tensor import Tensor, no_grad, wrap
from .cache import Cache


class CapturedStep:
    """Single-token steps of one sequence on the CPU: call it with a token, get the logits (1, V).

    The logits are one array, written anew by each call.
    """

    def __init__(self, cache: Cache, ids: Any, positions: Any, plans: list[Any], logits: Tensor):
        self.cache, self.ids, self.positions = cache, ids, positions
        self.plans, self.logits = plans, logits

    def __call__(self, token: int) -> Tensor:
        """Feed ``token`` after all that the cache holds; a full cache is a ValueError."""
        position = self.cache.begin(1, 1).first
        self.ids[...] = token
        if self.positions is not None:
            self.positions[...] = position
        with numpy.errstate(over="ignore"):  # see native/activation.py
            for run in self.plans:
                run(position)
        self.cache.advance()
        return self.logits


def can_capture(model: Any, cache: Cache) -> bool:
    """Whether steps of this model through this cache may be captured."""
    if nvtx.on:  # the ranges of layers and parts exist in ordinary steps only
        return False
    return model.device.kind == "cpu" and cache.batch == 1


def capture(
    model: Any, cache: Cache, token: int, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, CapturedStep | None]:
    """Run ``step`` (ids (1, 1) to logits) on ``token``; return its logits, and the step to repeat
    from then on, or None if an operation of it cannot be repeated."""
    if model.rotary is not None:
        model.rotary.tables(cache.capacity)  # the tables must not move later
    ids = numpy.array([[token]])
    with no_grad(), record() as calls:
        logits = step(wrap(ids))
    plans = [_plan(call) for call in calls]
    if not plans or any(plan is None for plan in plans):
        return logits, None
    return logits, CapturedStep(cache, ids, _positions(calls, ids), plans, logits)


def _plan(call: Call) -> Any:
    if call.maker is None or call.maker.plan is None:
        return None
    return call.maker.plan(call.result, *call.arrays, **call.options)


def _positions(calls: list[Call], ids: Any) -> Any:
    """The array of positions that a table of position embeddings is looked up by, if there is."""
    for call in calls:
        if call.op.name == "embedding" and call.arrays[0] is not ids:
            return call.arrays[0]
    return None
