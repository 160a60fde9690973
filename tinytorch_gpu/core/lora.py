"""LoRA: a model is tuned by small low-rank adapters beside its weights, which stay as they are.

Hu et al. 2021, "LoRA: Low-rank adaptation of large language models". The model runs query, key and value
(and gate and up) as one weight; an adapter belongs to a group of its rows, so each can be chosen alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy

from .. import ops
from ..backend import assign, dtype_name, namespace, narrow, to_numpy, widen
from ..config import whole
from .layers import Dropout, Linear
from .module import Module
from .tensor import Parameter, Tensor

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of ``rank`` on each of ``targets`` in all layers, their product multiplied by ``alpha / rank``.

    ``targets``: q, k, v, o (attention), gate, up, down (feed-forward), or "all" that the model has.
    ``dropout`` drops elements of an adapter's input in training.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self) -> None:
        whole("the rank of LoRA", self.rank, 1)
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be a number above 0, not {self.alpha!r}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of LoRA must be in [0, 1), not {self.dropout!r}")
        given = self.targets.split(",") if isinstance(self.targets, str) else self.targets
        targets = tuple(dict.fromkeys(t.strip() for t in given))
        unknown = [t for t in targets if t not in (*TARGETS, "all")]
        if unknown or not targets:
            raise ValueError(
                f"unknown LoRA target {unknown[0]!r}: choose from {', '.join(TARGETS)}, or all"
                if unknown else f"LoRA needs at least one target of {', '.join(TARGETS)}"
            )  # fmt: skip
        object.__setattr__(self, "targets", targets)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` takes back."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LoraConfig":
        """Of ``to_dict``'s values."""
        return cls(**{**values, "targets": tuple(values["targets"])})


class Part(Module):
    """The factors of some rows of a Linear: ``a`` (rank, in) and ``b`` (rows, rank), which begins at 0, so
    that an adapter changes nothing before it is trained."""

    def __init__(self, a: Any, b: Any, span: tuple[int, int], scale: float):
        self.a, self.b, self.span, self.scale = Parameter(a), Parameter(b), span, scale

    @property
    def rank(self) -> int:
        """Width between the two factors."""
        return self.a.shape[0]

    def product(self) -> Any:
        """What it adds to its rows of the weight (rows, in), in float32 or wider."""
        a, b = widen(self.a.data), widen(self.b.data)
        return namespace(a).matmul(b, a) * self.scale


class Adapter(Module):
    """The parts on one Linear, by the groups of rows that each covers: ``("q",)``, or several in a row."""

    def __init__(self, dropout: Dropout):
        self.dropout = dropout
        self.groups: dict[str, tuple[str, ...]] = {}

    def add(self, groups: Sequence[str], part: Part) -> None:
        """Put a part on consecutive groups of rows."""
        name = "_".join(groups)
        self.groups[name] = tuple(groups)
        setattr(self, name, part)

    def parts(self) -> Iterator[tuple[tuple[str, ...], Part]]:
        """(groups, part), in the order of the rows."""
        for name, groups in self.groups.items():
            yield groups, getattr(self, name)

    def forward(self, base: Tensor, x: Tensor) -> Tensor:
        """``base`` (..., out), which the weight made of ``x`` (..., in), plus what the parts make of it."""
        parts = [part for _, part in self.parts()]
        factors = [factor for part in parts for factor in (part.a, part.b)]
        return ops.lora(
            base, self.dropout(x), *factors,
            spans=tuple(part.span for part in parts), scales=tuple(part.scale for part in parts),
        )  # fmt: skip


class Place(NamedTuple):
    """A Linear that may have adapters, by its module's name in the model."""

    name: str
    layer: Linear


_LINEARS = (
    "attention.qkv", "attention.out", "cross_attention.query", "cross_attention.memory",
    "cross_attention.out", "ffn.rise", "ffn.fall",
)  # fmt: skip


def places(model: Module) -> list[Place]:
    """Every Linear of the blocks, an encoder's too, in order: the head has no adapters."""
    found, encoder = [], getattr(model, "encoder", None)
    for start, stack in (("encoder.", encoder), ("", model)):
        for i, block in enumerate(getattr(stack, "transformer_blocks", [])):
            for name in _LINEARS:
                module, _, layer = name.partition(".")
                part = getattr(block, module, None)
                if part is not None:
                    full = f"{start}transformer_blocks.{i}.{name}"
                    found.append(Place(full, getattr(part, layer)))
    return found


def adapters(model: Module) -> list[tuple[Place, Adapter]]:
    """Every Linear that has an adapter beside it."""
    return [(p, p.layer.adapter) for p in places(model) if p.layer.adapter is not None]


def add_lora(model: Any, config: LoraConfig, seed: int = 0) -> None:
    """Freeze ``model`` and put adapters of ``config`` beside its weights; only they are trained.

    A is uniform within 1 / sqrt(in), drawn from ``seed``, and B is 0. They are float32 (float64 in such a
    model) whatever the weights are stored in. A model that has adapters, or lacks a target, is a ValueError.
    """
    if adapters(model):
        raise ValueError("the model has adapters already: merge_lora(model) first")
    available = [g for p in places(model) for g in p.layer.weight.groups]
    wanted = config.targets if "all" not in config.targets else tuple(dict.fromkeys(available))
    absent = [t for t in wanted if t not in available]
    if absent or not wanted:
        has = ", ".join(dict.fromkeys(available)) or "no layers"
        raise ValueError(f"the model has nothing called {', '.join(absent)} to adapt: it has {has}")
    random = numpy.random.default_rng([seed, 0x10BA])
    freeze(model)
    for place in places(model):
        for group in place.layer.weight.groups:
            if group in wanted:
                width = place.layer.weight.shape[1]
                a = random.uniform(-1, 1, (config.rank, width)) / math.sqrt(width)
                rows = place.layer.weight.groups[group]
                b = numpy.zeros((rows, config.rank))
                attach(model, place, (group,), a, b, config.alpha / config.rank, config.dropout)


def freeze(model: Module) -> None:
    """Ask for no gradient of any parameter."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def attach(
    model: Any, place: Place, groups: Sequence[str], a: Any, b: Any, scale: float, dropout: float
) -> None:
    """Put factors (arrays of the host) on consecutive groups of rows of one Linear."""
    wide = "float64" if dtype_name(model.dtype) == "float64" else "float32"
    if place.layer.adapter is None:
        place.layer.adapter = Adapter(Dropout(dropout, model.generator)).train(model.training)
    a, b = (model.device.asarray(numpy.ascontiguousarray(f), wide) for f in (a, b))
    part = Part(a, b, span_of(place.layer, groups), scale)
    place.layer.adapter.add(groups, part)


def span_of(layer: Linear, groups: Sequence[str]) -> tuple[int, int]:
    """First row and the one after the last of consecutive groups of a Linear's weight."""
    names, sizes = list(layer.weight.groups), list(layer.weight.groups.values())
    first = names.index(groups[0])
    if tuple(names[first : first + len(groups)]) != tuple(groups):
        raise ValueError(f"{', '.join(groups)} are no neighbours among {', '.join(names)}")
    start = sum(sizes[:first])
    return start, start + sum(sizes[first : first + len(groups)])


class Merged:
    """What ``merge_lora(keep=True)`` changed, for ``undo``."""

    def __init__(self, model: Any, kept: list[tuple[Place, Adapter, Any]]):
        self.model, self.kept = model, kept

    def undo(self) -> None:
        """Put the weights back bit for bit, and the adapters beside them. Once only."""
        if not self.kept:
            raise ValueError("this merge has been undone already")
        freeze(self.model)
        for place, adapter, rows in self.kept:
            for (_, part), before in zip(adapter.parts(), rows, strict=True):
                assign(place.layer.weight.data[slice(*part.span)], before)
            place.layer.adapter = adapter
        self.kept = []


def merge_lora(model: Any, keep: bool = False) -> Merged | None:
    """Add the adapters' products to the weights and take the adapters off: an ordinary model again.

    In 16 bits the sums are rounded. ``keep`` copies the rows that change, and returns what can undo it.
    No adapters, a weight that is not dense, or a sum that its dtype cannot hold is a ValueError; nothing
    has changed then.
    """
    found = adapters(model)
    if not found:
        raise ValueError("the model has no adapters: they are merged already, or were never added")
    for place, adapter in found:
        for _, part in adapter.parts():
            _check_sum(place, part)
    kept = []
    for place, adapter in found:
        rows = [place.layer.weight.data[slice(*p.span)] for _, p in adapter.parts()]
        kept.append((place, adapter, [to_numpy(r).copy() for r in rows] if keep else None))
        for view, (_, part) in zip(rows, adapter.parts(), strict=True):
            view[...] = narrow(widen(view) + part.product(), view.dtype)
        place.layer.adapter = None
    for parameter in model.parameters():
        if not getattr(parameter, "quantized", False):
            parameter.requires_grad_(True)
    return Merged(model, kept) if keep else None


def mergeable(model: Any) -> bool:
    """Whether every weight with an adapter is dense, so that the product can be added to it."""
    return not any(place.layer.weight.quantized for place, _ in adapters(model))


def _check_sum(place: Place, part: Part) -> None:
    weight = place.layer.weight
    if weight.quantized:
        raise ValueError(
            f"{place.name} is quantized, and adapters merge into dense weights only: load the model with "
            "dtype float32, float16 or bfloat16"
        )
    xp = namespace(weight.data)
    view = weight.data[slice(*part.span)]
    made = narrow(widen(view) + part.product(), view.dtype)
    if not bool(to_numpy(xp.all(xp.isfinite(widen(made))))):
        raise ValueError(
            f"merging the adapter of {place.name} makes values that {dtype_name(view.dtype)} cannot hold"
        )
