"""A decode step that is recorded once and repeated: no modules, no dispatch, no new arrays.

The recorded step is a real one, of a cache that is fixed: where the new token stands is read from two
arrays that stay where they are, so nothing of a position freezes. On the CPU each operation of the step
prepares itself to be repeated in place (``Maker.plan``), the choice of the next token too; those with
native code become one list that one native call replays. On a GPU the kernels are launched again on the same memory (``launches``). If
an operation can do neither, the step stays as it is and says why.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from .. import nvtx
from ..backend import DEVICES
from ..core.op import Call, record
from ..core.tensor import no_grad, wrap
from .cache import Cache
from .launches import CannotRepeatError, described, is_view, record_launches
from .sampler import Sampler

_log = logging.getLogger(__name__)


def capture(
    model: Any, batch: int = 1, cache: Cache | None = None, sampler: Sampler | None = None
) -> "DecodeStep":
    """Return the step that feeds one token to each of ``batch`` rows through ``cache``, by default an
    empty one that the step then has. A cache or a sampler of another batch is a ValueError."""
    cache = Cache.for_model(model, batch) if cache is None else cache
    for name, found in (("cache", cache), ("sampler", sampler)):
        if found is not None and found.batch != batch:
            raise ValueError(f"the {name} is for a batch of {found.batch}, not {batch}")
    return DecodeStep(model, cache, sampler)


class DecodeStep:
    """One token for each row by one call: recorded at the first, repeated at all that follow.

    ``step(ids)`` feeds the tokens ``ids`` (B,), known to be in range, after all that the cache holds,
    and returns the ``logits`` (B, V); a full cache is a ValueError. With a sampler the choice is part
    of the step: ``step()`` feeds the tokens chosen last, chooses the next and returns them (B,), on the
    device, and nothing waits for the host. What is returned may be written anew by the next call.

    ``form`` says what is repeated: "graph" (a CUDA graph), "checked list" (its launches one by one, on
    the emulated device) or "list" (prepared calls, on the CPU); "steps" before the first call, and
    where an operation cannot be repeated, so that each call is an ordinary pass: ``reason`` says why.
    Between calls the cache may be rolled back, reset, restored or fed by other passes.
    """

    def __init__(self, model: Any, cache: Cache, sampler: Sampler | None = None):
        self.model, self.cache, self.sampler = model, cache, sampler
        zeros = model.device.zeros
        self.ids = zeros((cache.batch, 1), "int64") if sampler is None else sampler.ids
        self.logits: Any = None
        self.form, self.reason = "steps", ""
        self._repeat: Callable[[], None] | None = None
        self._tried = False

    def __call__(self, ids: Any = None) -> Any:
        """Take the step; see the class."""
        with self.model.device.active(), no_grad():
            if ids is not None:
                self.ids[:, 0] = self.model.device.asarray(ids)
            if self._repeat is not None:
                self._replay(self._repeat)
            elif self._may_record():
                self._record()
            else:
                self._run()
            return self.logits if self.sampler is None else self.sampler.ids[:, 0]

    def _may_record(self) -> bool:
        if not self._tried:
            self.reason = why_not(self.model)
        return not self.reason

    def _run(self) -> None:
        """An ordinary step: a pass over the ids, and the choice."""
        with self._span():
            hidden, _ = self.model.hidden(wrap(self.ids), cache=self.cache)
            self.logits = self.model.logits(wrap(hidden.data[:, -1]))
        if self.sampler is not None:
            self.sampler(self.logits)

    def _replay(self, repeat: Callable[[], None]) -> None:
        with self._span():
            self.cache.check_step()
            repeat()
            self.cache.count_step()

    def _span(self) -> Any:
        return nvtx.span("decode", "phase", int(self.cache.lengths.max()))

    def _record(self) -> None:
        """Take the step, and keep what repeats it if all of it can be."""
        self._tried, place = True, self.model.device
        if self.model.rotary is not None:
            self.model.rotary.tables(self.cache.capacity)  # the tables must not move later
        self.cache.fix()
        try:
            if place.kind in DEVICES:
                self._repeat = record_launches(self._run, self.cache)
                self.form = "graph" if place.kind == "cuda" else "checked list"
            else:
                self._repeat, self.form = _record_plans(self), "list"
        except CannotRepeatError as error:  # the step itself has been taken
            self.reason = str(error)
            self.cache.unfix()
            _log.info("decode steps are ordinary passes: %s", error)


class CapturedPass:
    """``count`` tokens for each row by one call, recorded and repeated like a ``DecodeStep``: ``step(ids)`` feeds
    ``ids`` (B, count), on the device, and returns the logits (B, count, V), which the next call may write anew."""

    def __init__(self, model: Any, cache: Cache, count: int):
        self.model, self.cache = model, cache
        self.ids = model.device.zeros((cache.batch, count), "int64")
        self.logits: Any = None
        self.form, self.reason = "steps", ""
        self._repeat: Callable[[], None] | None = None

    def __call__(self, ids: Any) -> Any:
        """Take the pass; see the class."""
        with self.model.device.active(), no_grad():
            self.ids[...] = ids
            if self._repeat is not None:
                self.cache.begin(*self.ids.shape)
                self._repeat()
                self.cache.advance()
            elif self.form == "steps" and not self.reason:
                self._record()
            else:
                self._run()
            return self.logits

    def _run(self) -> None:
        hidden, _ = self.model.hidden(wrap(self.ids), cache=self.cache)
        self.logits = self.model.logits(hidden)

    def _record(self) -> None:
        """Take the pass, and keep what repeats it if all of it can be."""
        from .. import native

        self.reason = why_not(self.model)
        if not self.reason and self.model.device.kind != "cpu":
            self.reason = "only a step of one token is a graph"
        if not self.reason and native.library() is None:
            self.reason = "NumPy alone repeats steps of one token only"
        if self.reason:
            self._run()
            return
        if self.model.rotary is not None:
            self.model.rotary.tables(self.cache.capacity)  # the tables must not move later
        fixed = self.cache.fix_pass(self.ids.shape[1])
        with record() as calls:
            self._run()
        try:
            self._repeat, self.form = native.replay(_plans(calls)), "list"
        except CannotRepeatError as error:
            self.reason = str(error)
            if fixed:  # else another pass relies on it
                self.cache.unfix(self.ids.shape[1])


def why_not(model: Any) -> str:
    """Why steps of this model must not be captured; nothing if they may."""
    if nvtx.on and not nvtx.graphs:
        return "layers and parts have NVTX ranges in ordinary steps only"
    if model.encoder is not None:
        return (
            "a decoder that looks at a source reads its keys and values by operations of their own"
        )
    if model.config.position == "relative":
        return "relative positions make the bias of the scores by plain array code at each step"
    if model.device.kind != "cpu" and model.device.kind not in DEVICES:
        return f"nothing on {model.device} can be repeated"
    return ""


# --- on the CPU ---


def _record_plans(step: DecodeStep) -> Callable[[], None]:
    """Take an ordinary step; return one function of what its operations have planned. A choice that
    cannot be repeated is made anew behind it; an operation is a CannotRepeatError."""
    from ..native import replay

    choose, step.sampler = step.sampler, None
    try:
        with record() as calls:
            step._run()
            count = len(calls)
            if choose is not None:
                choose(step.logits)
    finally:
        step.sampler = choose
    plans = _plans(calls[:count])
    if choose is None:
        return replay(plans)
    try:
        return replay([*plans, *_plans(calls[count:])])
    except CannotRepeatError:
        return replay([*plans, functools.partial(choose, step.logits)])


def _plans(calls: list[Call]) -> list[Any]:
    """What repeats the calls that are no views; one that cannot be repeated is a CannotRepeatError."""
    plans = []
    for call in calls:
        if is_view(call):
            continue
        if call.maker is None or call.maker.plan is None:
            raise CannotRepeatError(f"{described(call)} is done by code that cannot be repeated")
        plan = call.maker.plan(call.result, *call.arrays, **call.options)
        if plan is None:
            raise CannotRepeatError(f"{described(call)} cannot be repeated for these arguments")
        plans.append(plan)
    return plans
