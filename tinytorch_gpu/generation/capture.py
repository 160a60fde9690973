"""A decode step that is recorded once and repeated: no modules, no dispatch, no new arrays.

The recorded step is a real one. On the CPU each of its operations prepares itself to be repeated in
place (``Maker.plan``). On a GPU the kernels are launched again on the same memory, all of them as one
CUDA graph; a norm is done by the linear map behind it. If an operation can do neither, the step stays as
it is.
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
    """Single-token steps of one sequence on the CPU: call it with a token, get the logits (1, V).

    The logits are one array, written anew by each call.
    """

    def __init__(self, cache: Cache, ids: Any, positions: Any, plans: list[Any], logits: Tensor):
        self.cache, self.ids, self.positions = cache, ids, positions
        self.plans, self.logits = plans, logits

    def __call__(self, ids: Any) -> Tensor:
        """Feed token ``ids`` (1,) after all that the cache holds; a full cache is a ValueError."""
        position = self.cache.begin(1, 1).first
        self.ids[...] = ids
        if self.positions is not None:
            self.positions[...] = position
        with numpy.errstate(over="ignore"):  # see native/activation.py
            for run in self.plans:
                run(position)
        self.cache.advance()
        return self.logits


class CapturedLaunches:
    """Single-token steps of a batch on a GPU as one graph; its logits (B, V) are written anew."""

    def __init__(self, cache: Cache, ids: Any, run: Callable[[], None], logits: Tensor):
        from ..cuda.graph import graph_of

        self.cache, self.ids, self.logits = cache, ids, logits
        self.graph = graph_of(cache.device, run)

    def __call__(self, ids: Any) -> Tensor:
        """Feed the tokens ``ids`` (B,), on the device; a full cache is a ValueError."""
        self.cache.check_step()
        self.ids[:, 0] = ids
        self.graph.replay()
        self.cache.count_step()
        return self.logits


def can_capture(model: Any, cache: Cache) -> bool:
    """Whether steps of this model through this cache may be captured."""
    if nvtx.on:  # the ranges of layers and parts exist in ordinary steps only
        return False
    return model.device.kind in DEVICES or (model.device.kind == "cpu" and cache.batch == 1)


def capture(
    model: Any, cache: Cache, ids: Any, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, CapturedStep | CapturedLaunches | None]:
    """Run ``step`` (ids (B, 1) to logits) on token ``ids`` (B,), an array of the model's device.

    Returns its logits, and the step to repeat from then on, or None if an operation of it cannot
    be repeated.
    """
    if model.rotary is not None:
        model.rotary.tables(cache.capacity)  # the tables must not move later
    if model.device.kind in DEVICES:
        return _capture_launches(cache, ids, step)
    held = numpy.array(ids, dtype=numpy.int64).reshape(1, 1)
    with no_grad(), record() as calls:
        logits = step(wrap(held))
    plans = [_plan(call) for call in calls]
    if not plans or any(plan is None for plan in plans):
        return logits, None
    return logits, CapturedStep(cache, held, _positions(calls, held), plans, logits)


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


def _capture_launches(
    cache: Cache, ids: Any, step: Callable[[Tensor], Tensor]
) -> tuple[Tensor, CapturedLaunches | None]:
    from ..cuda.launch import Arena

    cache.fix()
    held, arena = cache.device.empty((cache.batch, 1), "int64"), Arena()
    held[:, 0] = ids
    calls = _Recorded(arena)
    with no_grad(), arena.recording(), record(calls):
        logits = step(wrap(held))
    launches = _launches(calls, len(cache.keys))
    if launches is None:
        return logits, None

    def run() -> None:
        for launch in launches:
            launch()

    return logits, CapturedLaunches(cache, held, run, logits)


def _launches(calls: _Recorded, layers: int) -> list[Callable[[], None]] | None:
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
        with arena.repeating():
            forward(*call.arrays, **call.options)

    return launch


def _in_place(call: Call) -> bool:
    """Whether the kernels take the arrays as they lie: a copy made first would be new memory."""
    given = [a for a in call.arrays if hasattr(a, "flags")]
    return call.op.name == "cached_attention" or all(a.flags.c_contiguous for a in given)


def _is_view(call: Call) -> bool:
    """Whether a call has launched nothing: its result lies in its argument's memory."""
    if call.op.name not in VIEWS:
        return False
    x = call.arrays[0]
    results = call.result if isinstance(call.result, tuple) else (call.result,)
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
