"""Measured ranges beside what was counted: the tree phase > layer > part > operation, and a table of roles.

A range of an operation is told from others of its name by where it is: the layer, the part, and which of its
kind there (the second linear map of ``attention`` is the projection out); backwards the order turns round.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .account import BACKWARD, FORWARD, RECOMPUTE, UPDATE, total
from .calls import Call, Setting
from .costs import Cost, backward_costs, forward_costs
from .recorder import Span
from .roofline import least_time, product_dtype
from .spec import DeviceSpec

SHOWN_AS = {"cached_attention": "attention"}  # operations whose range has another name
NO_RANGE = ("final_norm", "loss")  # parts of a model that open none


@dataclass
class Node:
    """A range, all of the same path together: ``calls`` of them took ``seconds``.

    ``cost`` is what was counted for them (None where nothing is), ``least`` the least seconds for that on the
    device, ``peak`` the most bytes alive in one of them, where memory was recorded.
    """

    name: str
    calls: int = 0
    seconds: float = 0.0
    cost: Cost | None = None
    least: float = 0.0
    peak: int = 0
    children: dict[str, "Node"] = field(default_factory=dict)

    @property
    def flops_per_second(self) -> float:
        """Operations a second."""
        return self.cost.flops / self.seconds if self.cost and self.seconds else 0.0

    @property
    def share_of_roofline(self) -> float:
        """The least time over the measured one."""
        return self.least / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, children included."""
        return {
            "name": self.name, "calls": self.calls, "seconds": self.seconds, "least_seconds": self.least,
            "cost": None if self.cost is None else self.cost.to_dict(), "peak_bytes": self.peak,
            "flops_per_second": self.flops_per_second, "share_of_roofline": self.share_of_roofline,
            "children": [child.to_dict() for child in self.children.values()],
        }  # fmt: skip


@dataclass(frozen=True)
class MeasuredRow:
    """All operations of one role, part and direction: what a ``Row`` of the accounting was in the run.

    ``seconds`` is their sum. A machine that does something else now and then disturbs ``typical`` less, the
    median of a call times the calls, and ``best`` least, the shortest call times the calls.
    """

    direction: str
    part: str
    role: str
    op: str
    calls: int
    seconds: float
    typical: float
    best: float
    cost: Cost
    least: float
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "direction": self.direction, "part": self.part, "role": self.role, "op": self.op,
            "calls": self.calls, "seconds": self.seconds, "typical_seconds": self.typical,
            "best_seconds": self.best, "least_seconds": self.least, "bound": self.bound,
            "flops_per_second": self.cost.flops / self.seconds if self.seconds else 0.0,
            "bytes_per_second": self.cost.bytes / self.seconds if self.seconds else 0.0,
            "share_of_roofline": self.least / self.seconds if self.seconds else 0.0, **self.cost.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True)
class Found:
    """An operation's range and the call that it was; None for one that is not of the model."""

    span: Span
    call: Call | None
    direction: str

    def costs(self) -> list[tuple[str, Cost]]:
        """(role, cost) of its pieces."""
        if self.call is None:
            return []
        costs = backward_costs if self.direction == BACKWARD else forward_costs
        return list(costs(self.call))


def match(phase: Span, calls: list[Call]) -> Iterator[tuple[tuple[str, ...], Found]]:
    """(names of the ranges around it, what it is) of each operation's range in ``phase``."""
    places: dict[Any, list[Call]] = {}
    for call in calls:
        part = "" if call.part in NO_RANGE else call.part
        places.setdefault((call.layer, part, f"op.{SHOWN_AS.get(call.op, call.op)}"), []).append(
            call
        )
    counts: dict[Any, int] = {}
    for path, span in _operations(phase, ()):
        name, back = span.name.removesuffix(" (reference)"), False
        if name.endswith(".backward"):
            name, back = name.removesuffix(".backward"), True
        direction = _direction(path, back)
        key = (_layer(path), _part(path), name)
        known = places.get(key, [])
        if back:
            known = [c for c in reversed(known) if any(c.differentiable)]
        index = counts.get((direction, key), 0)
        counts[direction, key] = index + 1
        yield path, Found(span, known[index] if index < len(known) else None, direction)


def _operations(span: Span, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Span]]:
    here = (*path, span.name)
    for child in span.children:
        if child.name.startswith("op."):
            yield here, child
        else:
            yield from _operations(child, here)


def _direction(path: tuple[str, ...], back: bool) -> str:
    if back:
        return BACKWARD
    if "train.update" in path:
        return UPDATE
    return RECOMPUTE if "train.backward" in path else FORWARD


def _layer(path: tuple[str, ...]) -> int | None:
    found = [name for name in path if name.startswith("layer.")]
    return int(found[-1].removeprefix("layer.")) if found else None


def _part(path: tuple[str, ...]) -> str:
    parts = ("norm1", "attention", "norm2", "ffn", "embed", "lm_head", "sample")
    found = [name for name in path if name in parts]
    return found[-1] if found else ""


class Measurement:
    """Adds up ranges of phases as a tree and as rows."""

    def __init__(self, setting: Setting, device: DeviceSpec):
        self.device, self.dtype = device, product_dtype(setting)
        self.root = Node("run")
        self._rows: dict[tuple[str, str, str, str], list[Found]] = {}
        self._update: dict[str, Cost] = {}
        self.phases = 0

    def add(self, phase: Span, calls: list[Call], update: dict[str, Cost] | None = None) -> None:
        """Take in one phase, whose operations are ``calls``; ``update`` are the costs of its optimizer's
        operations by name, over all parameters together."""
        found = {id(f.span): f for _, f in match(phase, calls)}
        self._grow(self.root, phase, found)
        self.phases += 1
        for name, cost in (update or {}).items():
            self._update[name] = self._update.get(name, Cost()) + cost
        for each in found.values():
            role, op, part = _label(each)
            self._rows.setdefault((each.direction, part, role, op), []).append(each)

    def _grow(self, above: Node, span: Span, found: dict[int, Found]) -> tuple[float, list[Cost]]:
        """Add a range to the tree; gives its least seconds and the costs below it."""
        known = found.get(id(span))
        name = span.name if known is None else f"{_label(known)[0]} ({span.name})"
        node = above.children.setdefault(name, Node(name))
        least, costs = 0.0, [] if known is None else [cost for _, cost in known.costs()]
        if costs:
            least = least_time(total(costs), self.device, self.dtype)[0]
        for child in span.children:
            below, more = self._grow(node, child, found)
            least, costs = least + below, costs + more
        node.calls, node.seconds = node.calls + 1, node.seconds + span.seconds
        node.least, node.peak = node.least + least, max(node.peak, span.peak)
        if costs:
            node.cost = total([*costs, node.cost or Cost()])
        return least, costs

    def rows(self) -> list[MeasuredRow]:
        """One for each role, in the order of the first run."""
        made = []
        for (direction, part, role, op), found in self._rows.items():
            cost = total(cost for each in found for _, cost in each.costs())
            if direction == UPDATE:
                cost = self._update.get(op, cost)
            least, bound = least_time(cost, self.device, self.dtype, len(found))
            times = self._times(found)
            seconds, count = sum(each.span.seconds for each in found), len(times)
            typical, best = statistics.median(times) * count, min(times) * count
            made.append(
                MeasuredRow(
                    direction,
                    part,
                    role,
                    op,
                    len(found),
                    seconds,
                    typical,
                    best,
                    cost,
                    least,
                    bound,
                )
            )
        return made

    def _times(self, found: list[Found]) -> list[float]:
        """Seconds of each call; those of an update, which differ in size, a phase together."""
        times = [each.span.seconds for each in found]
        if found[0].direction != UPDATE:
            return times
        each = len(times) // self.phases
        return [sum(times[i : i + each]) for i in range(0, len(times), each)]


def _label(found: Found) -> tuple[str, str, str]:
    """(role, operation, part) of a range; of one that is no call of the model, its own name."""
    name = found.span.name.removeprefix("op.").removesuffix(".backward")
    if found.call is None:
        role = {"adamw": "optimizer", "sgd": "optimizer"}.get(name, name)
        return role, name, found.direction
    return found.call.role, found.call.op, found.call.part
