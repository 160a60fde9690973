"""The recorded operations behind a Tensor, and the way back through them."""

from typing import Any

from .. import nvtx
from ..backend import namespace


class Node:
    """One recorded operation: how to send gradients from its outputs to its parents."""

    __slots__ = ("backward", "name", "options", "outputs", "parents", "residuals", "time")
    _count = 0

    def __init__(self, name: str, backward: Any, parents: Any, residuals: Any, options: Any):
        self.name, self.backward, self.parents = name, backward, parents
        self.residuals, self.options = residuals, options
        self.outputs: list[tuple[tuple[int, ...], Any]] = []
        Node._count += 1
        self.time = Node._count


def _history(tensor: Any) -> list[Node]:
    """Every node ``tensor`` came from, newest first: an order that is always safe."""
    if tensor.node is None:
        return []
    seen, stack = {tensor.node}, [tensor.node]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent.node is not None and parent.node not in seen:
                seen.add(parent.node)
                stack.append(parent.node)
    return sorted(seen, key=lambda node: -node.time)


def propagate(tensor: Any, start: Any, retain_graph: bool) -> None:
    pending: dict[Node, dict[int, Any]] = {}
    owned = {id(start)}
    _deliver(tensor, start, pending, owned)
    nodes = _history(tensor)[::-1]
    while nodes:
        node = nodes.pop()
        found = pending.pop(node, None)
        if found is None:
            continue
        gradients, parents = _gradients(node, found), node.parents
        if not retain_graph:
            # What nothing else holds is freed now, though the last result may live on.
            node.residuals, node.parents = None, ()
        for parent, gradient in zip(parents, gradients, strict=False):
            if parent is not None and gradient is not None and parent.requires_grad:
                _deliver(parent, gradient, pending, owned)


def _gradients(node: Node, found: dict[int, Any]) -> Any:
    """The gradients of a node's parents from those of its outputs; an unused output counts 0."""
    if node.residuals is None:
        raise RuntimeError(
            f"the results saved for {node.name} are gone after the first backward(): "
            "pass retain_graph=True to it to go back twice"
        )
    some = next(iter(found.values()))
    xp = namespace(some)
    douts = [
        found[i] if i in found else xp.zeros(shape, dtype=dtype)
        for i, (shape, dtype) in enumerate(node.outputs)
    ]
    if not nvtx.on:
        return node.backward(node.residuals, *douts, **node.options)
    with nvtx.span(f"op.{node.name}.backward"):
        return node.backward(node.residuals, *douts, **node.options)


def _deliver(tensor: Any, gradient: Any, pending: Any, owned: set[int]) -> None:
    """Add a gradient to a leaf's, or to what waits for the node of another Tensor.

    A leaf's gradient is its own: an array that is part of another or has been given away (``owned``)
    is copied, so that writing to one gradient changes no other. More is added in place.
    """
    if tensor.node is None:
        if tensor.grad is not None:
            tensor.grad.data[...] += gradient
            return
        if id(gradient) in owned or getattr(gradient, "base", None) is not None:
            gradient = namespace(gradient).asarray(gradient, copy=True)
        owned.add(id(gradient))
        tensor.hold(gradient)
        return
    of_node = pending.setdefault(tensor.node, {})
    before = of_node.get(tensor.output)
    of_node[tensor.output] = gradient if before is None else before + gradient
