"""The recorded operations behind a Tensor, and the way back through them."""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

from .. import nvtx
from ..backend import namespace


class Node:
    """One recorded operation: how to send gradients from its outputs to its parents.

    ``range`` names the NVTX range of its backward (None: it opens none), ``inside`` are the ranges that
    were open around its forward.
    """

    __slots__ = (
        "backward", "inside", "name", "options", "outputs", "parents", "range", "residuals", "time",
    )  # fmt: skip
    _count = 0

    def __init__(
        self,
        name: str,
        backward: Any,
        parents: Any,
        residuals: Any,
        options: Any,
        range: str | None = None,
    ):
        self.name, self.backward, self.parents = name, backward, parents
        self.residuals, self.options, self.range = residuals, options, range
        self.inside = nvtx.opened() if nvtx.on else ()
        self.outputs: list[tuple[tuple[int, ...], Any]] = []
        Node._count += 1
        self.time = Node._count


class _Late(threading.local):
    """Gradients of this thread's backward that are still being computed: by id, what returns when they are
    there. None: there is no backward, or one that waits for each."""

    waits: dict[int, Callable[[], None]] | None = None


_late = _Late()


def put_off(gradients: Iterable[Any], start: Callable[[], bool], wait: Callable[[], None]) -> bool:
    """Let the backward that is going on have gradients, arrays, before they are there.

    For backwards of operations. ``start()`` begins to fill the arrays elsewhere, or says no; ``wait()``
    returns when all that was begun is there, and is called before anybody reads one. False if there is no
    such backward, or by ``start``'s word: the arrays must be filled at once.
    """
    if _late.waits is None or not start():
        return False
    _late.waits.update((id(gradient), wait) for gradient in gradients)
    return True


def tokens(arrays: list[Any]) -> int:
    """How many tokens a call is about, the payload of its range: by its first array, which is ids,
    or states (B, T, ...), or rows (N, C)."""
    first = next((a for a in arrays if hasattr(a, "shape")), None)
    if first is None:
        return 1
    if "int" in str(first.dtype):
        return math.prod(first.shape)
    return math.prod(first.shape[: 2 if len(first.shape) > 2 else 1])


def _history(tensor: Any) -> list[Node]:
    """Every node ``tensor`` came from, oldest first: backwards, an order that is always safe."""
    if tensor.node is None:
        return []
    seen, stack = {tensor.node}, [tensor.node]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent.node is not None and parent.node not in seen:
                seen.add(parent.node)
                stack.append(parent.node)
    return sorted(seen, key=lambda node: node.time)


def propagate(tensor: Any, start: Any, retain_graph: bool) -> None:
    """Add to every leaf behind ``tensor`` its gradient, for ``start``, that of ``tensor``."""
    pending: dict[Node, dict[int, Any]] = {}
    _deliver(tensor, start, pending, alone=False)
    nodes = _history(tensor)
    ranges = _Ranges() if nvtx.on else None
    # A range shows all of an operation: then nothing is put off.
    outer = _late.waits
    if outer is None and not nvtx.on:
        _late.waits = {}
    try:
        while nodes:
            node = nodes.pop()
            if node in pending:
                if ranges is not None:
                    ranges.move(node.inside)
                _step(node, pending, retain_graph)
    finally:
        if ranges is not None:
            ranges.leave()
        if outer is None:
            late, _late.waits = _late.waits, None
            for wait in set((late or {}).values()):
                wait()


def _step(node: Node, pending: dict[Node, dict[int, Any]], retain_graph: bool) -> None:
    """Send what waits for a node to its parents, and let go of what only it held."""
    if node.residuals is None:
        raise RuntimeError(
            f"the results saved for {node.name} are gone after the first backward(): "
            "pass retain_graph=True to it to go back twice"
        )
    douts = _complete(node, pending.pop(node))
    if nvtx.on and node.range is not None:
        with nvtx.span(node.range, "op", tokens(douts)):
            gradients = list(node.backward(node.residuals, *douts, **node.options))
    else:
        gradients = list(node.backward(node.residuals, *douts, **node.options))
    parents = node.parents
    if not retain_graph:
        # Freed now, though the last result may live on.
        node.residuals, node.parents = None, ()
    owners = [id(_memory(x)) for x in (*gradients, *douts) if x is not None]
    douts.clear()
    for i, parent in enumerate(parents):
        gradient, gradients[i] = gradients[i], None
        if parent is not None and gradient is not None and parent.requires_grad:
            _deliver(parent, gradient, pending, alone=owners.count(id(gradient)) == 1)


def _await(*gradients: Any) -> None:
    """Wait for what was put off if one of these was."""
    waits = _late.waits or {}
    for gradient in gradients:
        wait = waits.pop(id(gradient), None)
        if wait is not None:
            wait()


def _memory(array: Any) -> Any:
    """The array whose memory another is a view of, or itself."""
    base = getattr(array, "base", None)
    return array if base is None else base


def _complete(node: Node, found: dict[int, Any]) -> list[Any]:
    """The gradients of all outputs of a node: an output that was not used counts 0."""
    if len(found) == len(node.outputs):
        return [found[i] for i in range(len(found))]
    xp = namespace(next(iter(found.values())))
    return [
        found[i] if i in found else xp.zeros(shape, dtype=dtype)
        for i, (shape, dtype) in enumerate(node.outputs)
    ]


def _deliver(tensor: Any, gradient: Any, pending: dict[Node, dict[int, Any]], alone: bool) -> None:
    """Add a gradient to a leaf's, or to what waits for the node of another Tensor.

    Where two meet, one is added in place to the other that is nobody else's. A leaf's gradient is always its own:
    an array that is part of another, or that others were given too (not ``alone``), is copied.
    """
    # NumPy's scalars are no arrays: they cannot be added to in place.
    own = bool(alone and gradient.shape and _memory(gradient) is gradient)
    if tensor.node is not None:
        if _late.waits:
            _await(gradient)
        of_node = pending.setdefault(tensor.node, {})
        before = of_node.get(tensor.output)
        of_node[tensor.output] = gradient if before is None else _sum(gradient, before, own)
        return
    if _late.waits and not (own and tensor.grad is None):
        _await(gradient, None if tensor.grad is None else tensor.grad.data)
    if tensor.grad is not None:
        tensor.grad.data[...] += gradient
        return
    if not own:
        xp = namespace(gradient)
        gradient = xp.astype(xp.asarray(gradient), gradient.dtype, copy=True)
    tensor.hold(gradient)


def _sum(gradient: Any, before: Any, own: bool) -> Any:
    """Both gradients of one array together, in the memory of the first if that is ``own``."""
    if not own or before.dtype != gradient.dtype:
        return before + gradient
    gradient += before
    return gradient


class _Ranges:
    """The layer and part whose ranges are open while the backward walks through them."""

    def __init__(self) -> None:
        self.outside, self.open = nvtx.opened(), ()  # type: tuple[Any, ...], tuple[Any, ...]

    def move(self, inside: tuple[Any, ...]) -> None:
        """Close the ranges that do not hold the next operation, and open those that do."""
        # A part that runs again in the backward has what is open there around it already.
        common = len(self.outside)
        wanted = inside[common:] if inside[:common] == self.outside else inside
        kept = 0
        for a, b in zip(self.open, wanted, strict=False):
            if a != b:
                break
            kept += 1
        self._close(len(self.open) - kept)
        for each in wanted[kept:]:
            nvtx.push(*each)
        self.open = wanted

    def leave(self) -> None:
        """Close all that is open."""
        self._close(len(self.open))
        self.open = ()

    def _close(self, count: int) -> None:
        for _ in range(count if nvtx.on else 0):
            nvtx.pop()
