"""Arrays that NumPy's operations on rows wait for together, instead of being let go of one by one (``host/chain.py``)."""

from typing import Any

from ..host import chain
from ..host.threads import row_parts, sequence_parts
from .calls import Array, Call
from .costs import VIEWS, has_bias
from .workspace import by_library

_ROWS = ("linear", "layer_norm", "rms_norm")
_SEQUENCES = ("attention", "rotary")


def joins(call: Call, where: str) -> bool:
    """Whether a call in a model's layers waits for others: NumPy's, of rows or sequences that threads share."""
    first = call.arrays[0]
    if where != "cpu" or by_library(call) or first is None:
        return False
    if call.op == "attention" and (call.options.get("dropout") or has_bias(call)):
        return False
    if call.op in _SEQUENCES:
        return len(sequence_parts(*first.shape[:2])) > 1
    dense = call.op != "linear" or all(w.width == first.width for w in call.weights[:1])
    return call.op in _ROWS and dense and len(row_parts(first.size // first.shape[-1])) > 1


class Deferral:
    """Arrays of calls that are not done yet, in a ``ledger``: all that they read and make is held until they are."""

    def __init__(self, ledger: Any, where: str):
        self.ledger, self.where = ledger, where
        self.used: set[Array] = set()
        self.held: list[Array] = []
        self.nbytes = self.workspace = 0

    def before(self, call: Call) -> None:
        """A call that does not wait has all others done first; a view does nothing."""
        if call.op not in VIEWS and not joins(call, self.where):
            self.finish()

    def made(self, call: Call, arrays: list[Array], workspace: int) -> None:
        """``arrays`` are what the call makes, and ``workspace`` the bytes that it needs while it runs. Among these is an
        array before an activation that nobody keeps: it is there as long as the call waits."""
        if not joins(call, self.where):
            self.ledger.need(workspace)
            return
        self.used |= {array.owner for array in (*call.arrays, *arrays) if array is not None}
        self.nbytes += sum(array.nbytes for array in arrays)
        if call.op == "linear" and call.options.get("activation") and not call.keeps:
            inner = Array((*call.outputs[0].shape[:-1], call.weights[0].shape[0]), arrays[0].width)
            self.ledger.make(inner)
            self.held.append(inner)
            self.nbytes += inner.nbytes
            workspace -= inner.nbytes
        self.workspace = max(self.workspace, workspace)

    def drop(self, array: Array) -> None:
        """Let go of an array when no call that waits reads or makes it."""
        if array in self.used:
            self.held.append(array)
        else:
            self.ledger.drop(array)

    def settle(self) -> None:
        """Behind a call: too much has all of it done."""
        if self.nbytes > chain.WAITING:
            self.finish()

    def finish(self) -> None:
        """All is done."""
        self.ledger.need(self.workspace)
        held, self.held, self.used = self.held, [], set()
        self.nbytes = self.workspace = 0
        for array in held:
            self.ledger.drop(array)
