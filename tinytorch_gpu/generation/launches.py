"""The kernels of a decode step on a GPU, launched again on the same memory, all as one CUDA graph.

A norm is done by the linear map behind it, that of queries and keys by attention, so that a layer is five launches; adapters
beside a linear map are two more, and a norm in front of them one of its own.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy

from ..core.op import Call, record
from ..core.tensor import no_grad
from .cache import Cache


def record_launches(run: Callable[[], None], cache: Cache) -> Callable[[], None]:
    """Run a step through a fixed cache; return what repeats it as one graph. An operation without a
    kernel is a CannotRepeatError."""
    from ..cuda.graph import graph_of
    from ..cuda.launch import Arena

    arena = Arena()
    calls = _Recorded(arena)
    with arena.recording(), record(calls):
        run()
    launches = _repeatable(calls, len(cache.keys))

    def again() -> None:
        for launch in launches:
            launch()

    return graph_of(cache.device, again).replay


class CannotRepeatError(Exception):
    """A step holds an operation that cannot be repeated: the message says which."""


class _Recorded(list[Call]):
    """Calls, and for each the arrays that it asked for and the libraries that it called."""

    def __init__(self, arena: Any):
        super().__init__()
        self.arena, self.given, self.libraries = arena, [], []  # type: ignore[var-annotated]

    def append(self, call: Call) -> None:
        """Note the arrays asked for, and the libraries called, since the last call."""
        self.given.append(self.arena.arrays[sum(map(len, self.given)) :])
        self.libraries.append(self.arena.libraries[sum(map(len, self.libraries)) :])
        super().append(call)


def _repeatable(calls: _Recorded, layers: int) -> list[Callable[[], None]]:
    """The functions that launch the recorded kernels again."""
    if sum(call.op.name == "cached_attention" for call in calls) != layers:
        raise CannotRepeatError("keys and values were appended by plain array code")
    made: list[Callable[[], None]] = []
    uses = Counter(number for call in calls for number in {id(a) for a in call.arrays})
    skip = False
    for i, call in enumerate(calls):
        if skip or is_view(call):
            skip = False
            continue
        if call.maker is None:
            raise CannotRepeatError(f"{described(call)} has no kernel")
        if calls.libraries[i]:
            name = calls.libraries[i][0]
            raise CannotRepeatError(f"{described(call)} is done by {name}, which no graph can hold")
        if not _in_place(call):
            raise CannotRepeatError(f"{described(call)} copies an argument that is not contiguous")
        after = calls[i + 1] if i + 1 < len(calls) else None
        fused = None
        if after is not None and after.arrays[0] is call.result and uses[id(call.result)] == 1:
            fused = _with_norm(call, after)
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


def described(call: Call) -> str:
    """An operation and its arrays, in words."""
    arrays = [f"{a.dtype} {tuple(a.shape)}" for a in call.arrays if hasattr(a, "shape")]
    return f"{call.op.name} of {', '.join(arrays)}"


def is_view(call: Call) -> bool:
    """Whether a call has done nothing: its result lies in its argument's memory."""
    if not call.op.view:
        return False
    x = call.arrays[0]
    results = call.result if isinstance(call.result, tuple) else (call.result,)
    if type(x) is numpy.ndarray:
        return all(numpy.may_share_memory(x, r) for r in results)
    return all(x.data.ptr <= r.data.ptr < x.data.ptr + max(1, x.nbytes) for r in results)


def _with_norm(call: Call, after: Call) -> Any:
    """The forward that does a norm and the operation behind it, which alone uses its result, in one launch, if
    there is one."""
    from ..cuda.cached_attention import after_norm_heads
    from ..cuda.linear import after_norm

    norm, behind = call.op.name, after.op.name
    if norm in ("layer_norm", "rms_norm") and behind == "linear":
        return after_norm(
            norm, call.arrays, call.options, after.arrays, after.options.get("activation")
        )
    if norm == "norm_heads" and behind == "cached_attention":
        return after_norm_heads(call.arrays, call.options["eps"])
    return None
