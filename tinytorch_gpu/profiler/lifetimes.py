"""Which arrays of a training step are alive when: its forward and backward, replayed without numbers.

The rules are those of ``core/graph.py``: a recorded call keeps what it saves and the inputs that a gradient
goes to; going back frees them call by call; gradients that meet are added in place where one is nobody
else's; a parameter's gradient stays.
"""

from collections import deque
from dataclasses import dataclass

from ..host import threads
from .calls import Array, Call
from .costs import VIEWS
from .deferral import Deferral
from .workspace import backward_workspace, forward_workspace, is_native, made_unrecorded


class Ledger:
    """Bytes alive now and at most; each array is held a number of times."""

    def __init__(self, live: int = 0):
        self.live = self.peak = live
        self._holds: dict[Array, int] = {}

    def make(self, array: Array) -> None:
        """Allocate an array, held once."""
        self._holds[array] = 1
        self.live += array.nbytes
        self.peak = max(self.peak, self.live)

    def hold(self, array: Array) -> None:
        """Hold an array once more; what was never made here (a parameter) is none of its business."""
        if array in self._holds:
            self._holds[array] += 1

    def drop(self, array: Array) -> None:
        """Let go of an array once, and free it if nothing else holds it."""
        if array not in self._holds:
            return
        self._holds[array] -= 1
        if not self._holds[array]:
            del self._holds[array]
            self.live -= array.nbytes

    def need(self, nbytes: int) -> None:
        """Note bytes that are needed for a moment."""
        self.peak = max(self.peak, self.live + nbytes)


def held(call: Call) -> list[Array]:
    """The arrays that a recorded call keeps alive for its backward, parameters and views aside."""
    inputs = [a.owner for a in call.differentiable if a is not None and a.kind == "activation"]
    return list(dict.fromkeys([*inputs, *saved_outputs(call), *call.keeps]))


def saved_outputs(call: Call) -> list[Array]:
    """The results that a call saves: attention's, and the sum that was normed."""
    return [call.outputs[0].owner] if call.op == "attention" or call_is_norm(call) else []


def run_forward(
    calls: list[Call], ledger: Ledger, recorded: bool, where: str, given: Array | None
) -> Array:
    """Replay calls; the last one's first output is left held. ``given`` came in and is the caller's."""
    last: dict[Array, int] = {}
    for i, call in enumerate(calls):
        for array in (*call.arrays, *call.outputs):
            if array is not None:
                last[array.owner] = max(last.get(array.owner, 0), i)
        if call.role == "norm":  # its result is in a variable of the block while its part runs
            normed = call.outputs[-1].owner
            last[normed] = max(last[normed], _end_of_part(calls, i))
    if not recorded:
        _hold_inputs(calls, last)
    result, deferral = result_of(calls).owner, Deferral(ledger, where)
    for i, call in enumerate(calls):
        deferral.before(call)
        made = [a for a in call.outputs if a.base is None and a.kind != "ids"]
        keeps = call.keeps if recorded else made_unrecorded(call, where)
        for array in (*made, *keeps):
            ledger.make(array)
        deferral.made(call, [*made, *keeps], forward_workspace(call, where, recorded))
        if recorded:
            for array in held(call):
                ledger.hold(array)
        for array in keeps:
            deferral.drop(array)
        for array in [a for a, until in last.items() if until == i]:
            if array is not result and array is not given:
                deferral.drop(array)
        deferral.settle()
    deferral.finish()
    return result


def _hold_inputs(calls: list[Call], last: dict[Array, int]) -> None:
    """What a block was called with lives until it returns: its caller has it in a variable."""
    for i, call in enumerate(calls):
        first = call.layer is not None and (i == 0 or calls[i - 1].layer != call.layer)
        if first and call.arrays[0] is not None:
            end = i
            while end + 1 < len(calls) and calls[end + 1].layer == call.layer:
                end += 1
            array = call.arrays[0].owner
            last[array] = max(last[array], end)


def result_of(calls: list[Call]) -> Array:
    """What the last of some calls gives to those after them."""
    return calls[-1].outputs[-1 if call_is_norm(calls[-1]) else 0]


def call_is_norm(call: Call) -> bool:
    """Whether the call gives a sum and its norm, of which the norm goes on."""
    return call.op.startswith("add_") and len(call.outputs) == 2


def _end_of_part(calls: list[Call], index: int) -> int:
    """The last call of the part of a block that the norm at ``index`` is for."""
    norm, last = calls[index], index
    part = next((c.part for c in calls[index + 1 :] if c.layer == norm.layer), None)
    while last + 1 < len(calls) and calls[last + 1].layer == norm.layer is not None:
        if calls[last + 1].part not in (norm.part, part):
            break
        last += 1
    return last


def _puts_off(call: Call) -> bool:
    """Whether the backward of a call leaves the gradient of its weight for later: NumPy's, with threads for it."""
    if call.op != "linear" or is_native(call) or threads.threads() < 2:
        return False
    x, weight = call.arrays[:2]
    assert x is not None and weight is not None
    return weight.width == x.width


class _PutOff:
    """Gradients of weights that wait for a thread (``host/threads.py``): what they are made of is kept alive, the
    oldest until too much waits. Another thread may be quicker: this is the most that it can be."""

    def __init__(self, ledger: Ledger):
        self.ledger, self.nbytes = ledger, 0
        self.works: deque[tuple[Array, ...]] = deque()

    def add(self, call: Call, dout: Array) -> None:
        """The product of a call's input and of what comes back, that before an activation being an array of its own."""
        x = call.arrays[0]
        assert x is not None
        if call.options.get("activation"):
            dout = Array(call.keeps[0].shape, call.keeps[0].width)
            self.ledger.make(dout)
        else:
            self.ledger.hold(dout)
        self.ledger.hold(x.owner)
        self.works.append((x.owner, dout))
        self.nbytes += x.nbytes + dout.nbytes
        while self.nbytes > threads.PUT_OFF and self.works:
            self._one()

    def settle(self) -> None:
        """All is made."""
        while self.works:
            self._one()

    def _one(self) -> None:
        for array in self.works.popleft():
            self.ledger.drop(array)
            self.nbytes -= array.nbytes


@dataclass
class Backward:
    """The way back: gradients that wait for the call that made an array, and those of parameters."""

    ledger: Ledger
    where: str
    parameters: dict[Array, Array]

    def __post_init__(self) -> None:
        self.late = _PutOff(self.ledger)

    def run(
        self, calls: list[Call], gradient: Array, of: Array, stop: Array | None = None
    ) -> Array | None:
        """Replay calls backwards from ``gradient`` of array ``of``; gives the gradient of ``stop``, which is
        a leaf like a parameter."""
        waiting = {of: gradient}
        for call in reversed(calls):
            found = [waiting.pop(a) for a in call.outputs if a in waiting]
            if found:
                self._step(call, found, waiting, stop)
        return waiting.get(stop) if stop is not None else None

    def _step(
        self, call: Call, douts: list[Array], waiting: dict[Array, Array], stop: Array | None
    ) -> None:
        ledger = self.ledger
        for extra in call.outputs[len(douts) :] if call_is_norm(call) else ():
            zeros = Array(extra.shape, extra.width)  # a result that was not used counts 0
            ledger.make(zeros)
            douts.append(zeros)
        gradients = self._gradients(call, douts)
        ledger.need(backward_workspace(call, self.where))
        if self.where == "cpu" and _puts_off(call):
            self.late.add(call, douts[0])
        if call.op not in VIEWS:
            for array in (*call.keeps, *saved_outputs(call)):
                ledger.drop(array)
        for dout in douts:
            ledger.drop(dout)
        for target, gradient in zip(call.differentiable, gradients, strict=True):
            if target is not None and gradient is not None:
                shared = gradient in douts or gradients.count(gradient) > 1
                self._deliver(target, gradient, waiting, stop, shared)
        for array in held(call):
            if array not in call.keeps and array not in saved_outputs(call):
                ledger.drop(array)

    def _gradients(self, call: Call, douts: list[Array]) -> list[Array | None]:
        """One gradient for each input, held once for each: made, or the result's own."""
        made: list[Array | None] = []
        for i, array in enumerate(call.differentiable):
            alias = (
                (call.op == "linear" and i == 3)
                or call.op == "reshape"
                or (call.op == "add" and array is not None and array.shape == douts[0].shape)
            )
            if array is None:
                made.append(None)
            elif alias:
                self.ledger.hold(douts[0])
                made.append(douts[0])
            elif call.op.startswith("add_") and i == 1:
                assert made[0] is not None
                self.ledger.hold(made[0])
                made.append(made[0])
            else:
                fresh = Array(
                    array.owner.shape if call.op == "split_heads" else array.shape, array.width
                )
                self.ledger.make(fresh)
                made.append(fresh)
        return made

    def _deliver(
        self, array: Array, gradient: Array, waiting: dict[Array, Array],
        stop: Array | None, shared: bool,
    ) -> None:  # fmt: skip
        ledger = self.ledger
        if array.kind == "weight":
            if array in self.parameters:  # added in place
                ledger.drop(gradient)
            else:
                self.parameters[array] = gradient
        elif array not in waiting:
            if array is stop and shared:  # a leaf has a copy of its own
                own = Array(array.shape, array.width)
                ledger.make(own)
                ledger.drop(gradient)
                gradient = own
            waiting[array] = gradient
        elif array is stop:
            ledger.drop(gradient)
        elif not shared:  # added in place
            ledger.drop(waiting[array])
            waiting[array] = gradient
        else:
            both = Array(array.shape, array.width)
            ledger.make(both)
            ledger.drop(waiting[array])
            ledger.drop(gradient)
            waiting[array] = both
