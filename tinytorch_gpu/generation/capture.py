"""A decode step that is recorded once and repeated: no modules, no dispatch, no new arrays.

The recorded step is a real one, of a cache that is fixed: where the new token stands is read from two
arrays that stay where they are, so nothing of a position freezes. On the CPU each operation of the step
prepares itself to be repeated in place (``Maker.plan``); those with native code become one list
that one native call replays. On a GPU the kernels are launched again on the same memory, all of them as
one CUDA graph; a norm is done by the linear map behind it. If an operation can do neither, the step stays
as it is.
"""

from collections.abc import Callable
from typing import Any

import numpy

from .. import nvtx
from ..backend import DEVICES
from ..core.op import Call, record
from ..core.tensor import Tensor, no_grad, wrap
from .cache import Cache

# Operations that may only look at memory in another way.
VIEWS = ("reshape", "permute", "getitem", "split_heads")


class CapturedStep:
    """Single-token steps of a batch: call it with the tokens, get the logits (B, V).

    The logits are one array, written anew by each call.
    """

    def __init__(self, cache: Cache, ids: Any, replay: Callable[[], None], logits: Tensor):
        self.cache, self.ids, self.replay, self.logits = cache, ids, replay, logits

    def __call__(self, ids: Any) -> Tensor:
        """Feed the tokens ``ids`` (B,), arrays of the device; a full cache is a ValueError."""
        self.cache.check_step()
        self.ids[:, 0] = ids
        self.replay()
        self.cache.count_step()
        return self.logits


def can_capture(model: Any, cache: Cache) -> bool:
    """Whether steps of this model through this cache may be captured."""
    if nvtx.on and not nvtx.graphs:  # layers and parts have ranges in ordinary steps only
        return False
    return model.device.kind == "cpu" or model.device.kind in DEVICES


def capture(
    model: Any, cache: Cache, ids: Any, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, CapturedStep | None]:
    """Run ``step`` (ids (B, 1) to logits) on the tokens ``ids`` (B,), an array of the model's device.

    Returns its logits, and the step to repeat from then on, or None if an operation of it cannot
    be repeated.
    """
    if model.rotary is not None:
        model.rotary.tables(cache.capacity)  # the tables must not move later
    cache.fix()
    held = cache.device.empty((cache.batch, 1), "int64")
    held[:, 0] = ids
    record_step = _launches if model.device.kind in DEVICES else _plans
    logits, replay = record_step(cache, held, step)
    if replay is None:
        cache.unfix()
        return logits, None
    return logits, CapturedStep(cache, held, replay, logits)


# --- on the CPU ---


def _plans(
    cache: Cache, held: Any, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Callable[[], None] | None]:
    """Run a step and make one function of what its operations have planned."""
    from ..native import replay

    with no_grad(), record() as calls:
        logits = step(wrap(held))
    plans = [_plan(call) for call in calls if not _is_view(call)]
    if not plans or any(plan is None for plan in plans):
        return logits, None
    return logits, replay(plans)


def _plan(call: Call) -> Any:
    if call.maker is None or call.maker.plan is None:
        return None
    return call.maker.plan(call.result, *call.arrays, **call.options)


# --- on a GPU ---


class _Recorded(list[Call]):
    """Calls, and for each the arrays that it asked for."""

    def __init__(self, arena: Any):
        super().__init__()
        self.arena, self.given = arena, []  # type: ignore[var-annotated]

    def append(self, call: Call) -> None:
        """Note the arrays asked for since the last call."""
        self.given.append(self.arena.arrays[sum(map(len, self.given)) :])
        super().append(call)


def _launches(
    cache: Cache, held: Any, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Callable[[], None] | None]:
    """Run a step and make one graph of what its operations have launched."""
    from ..cuda.graph import graph_of
    from ..cuda.launch import Arena

    arena = Arena()
    calls = _Recorded(arena)
    with no_grad(), arena.recording(), record(calls):
        logits = step(wrap(held))
    launches = _repeatable(calls, len(cache.keys))
    if launches is None:
        return logits, None

    def run() -> None:
        for launch in launches:
            launch()

    return logits, graph_of(cache.device, run).replay


def _repeatable(calls: _Recorded, layers: int) -> list[Callable[[], None]] | None:
    """The functions that launch the recorded kernels again; None if an operation has none."""
    if sum(call.op.name == "cached_attention" for call in calls) != layers:
        return None  # keys and values were appended by plain array code
    made: list[Callable[[], None]] = []
    skip = False
    for i, call in enumerate(calls):
        if skip or _is_view(call):
            skip = False
            continue
        if call.maker is None or not _in_place(call):
            return None
        after = calls[i + 1] if i + 1 < len(calls) else None
        fused = _normed_linear(call, after, calls)
        skip = fused is not None
        forward, given = fused or call.maker.forward, calls.given[i + skip]
        source = after if skip and after is not None else call
        made.append(_launch(forward, source, given))
    return made


def _launch(forward: Callable[..., Any], call: Call, given: list[Any]) -> Callable[[], None]:
    from ..cuda.launch import Arena

    arena = Arena(given)

    def launch() -> None:
        with no_grad(), arena.repeating():
            forward(*call.arrays, **call.options)

    return launch


def _in_place(call: Call) -> bool:
    """Whether the kernels take the arrays as they lie: a copy made first would be new memory."""
    given = [a for a in call.arrays if hasattr(a, "flags")]
    return call.op.name == "cached_attention" or all(a.flags.c_contiguous for a in given)


def _is_view(call: Call) -> bool:
    """Whether a call has done nothing: its result lies in its argument's memory."""
    if call.op.name not in VIEWS:
        return False
    x = call.arrays[0]
    results = call.result if isinstance(call.result, tuple) else (call.result,)
    if type(x) is numpy.ndarray:
        return all(numpy.may_share_memory(x, r) for r in results)
    return all(x.data.ptr <= r.data.ptr < x.data.ptr + max(1, x.nbytes) for r in results)


def _normed_linear(call: Call, after: Call | None, calls: list[Call]) -> Any:
    """The forward that does a norm and the linear map behind it in one launch, if there is one."""
    from ..cuda.linear import after_norm

    if after is None or after.op.name != "linear" or call.op.name not in ("layer_norm", "rms_norm"):
        return None
    uses = sum(any(a is call.result for a in c.arrays) for c in calls)
    if after.arrays[0] is not call.result or uses != 1:
        return None
    return after_norm(call.op.name, call.arrays, call.options, after.arrays)
