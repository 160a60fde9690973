"""How a case of an operation is described: its arguments, its options, what may differ.

An argument is described, not built: ``Case.arguments`` draws it in any dtype, so that the same case
runs in float64 for numeric gradients, in 16 bits for rounding, and on any array module.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Floats:
    """A floating array; ``weight`` ones may be stored narrower than the rest."""

    draw: Draw
    weight: bool = False
    gradient: bool = True


@dataclass(frozen=True)
class Given:
    """An array of a dtype of its own (ids, masks, lengths, states), or anything else."""

    draw: Draw


class DType(str):
    """An option that is a dtype: made one of the array module at hand."""


@dataclass(frozen=True)
class Case:
    """``op(*specs, **options)``; ``roundings`` of 16-bit values between the inputs and a result."""

    op: str
    note: str
    specs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    smooth: bool = True  # whether central differences mean anything here
    roundings: int = 1
    unit: float = 0.0  # the unit roundoff of what is stored, where that is more than the dtype's
    standard: bool = True  # whether the array API standard has what the backward needs

    def __str__(self) -> str:
        return f"{self.op}: {self.note}"

    def arguments(self, dtype: Any, weights: Any = None, seed: int = 0) -> list[Any]:
        """NumPy arguments, the floating ones in ``dtype`` and the weights in ``weights``."""
        random = np.random.default_rng([seed, *self.note.encode()])
        made = []
        for spec in self.specs:
            if isinstance(spec, Floats):
                wanted = weights if spec.weight and weights is not None else dtype
                made.append(np.asarray(spec.draw(random)).astype(wanted))
            else:
                made.append(spec.draw(random) if isinstance(spec, Given) else spec)
        return made

    @property
    def differentiable(self) -> list[int]:
        """Places of the arguments that have a gradient."""
        return [i for i, s in enumerate(self.specs) if isinstance(s, Floats) and s.gradient]

    def options_for(self, xp: Any) -> dict[str, Any]:
        """The options, with dtypes and index arrays of the module ``xp``."""
        return {name: _option(value, xp) for name, value in self.options.items()}


def _option(value: Any, xp: Any) -> Any:
    if isinstance(value, DType):
        return getattr(xp, value) if xp is not np else np.dtype(value)
    if isinstance(value, np.ndarray):
        return xp.asarray(value)
    return tuple(_option(v, xp) for v in value) if isinstance(value, tuple) else value


def normal(*shape: int, **kind: Any) -> Floats:
    """Normal numbers, none so near 0 that a difference quotient would step over it."""

    def draw(random: np.random.Generator) -> Any:
        values = random.standard_normal(shape)
        return values + np.copysign(0.05, values)

    return Floats(draw, **kind)


def weight(*shape: int) -> Floats:
    return normal(*shape, weight=True)


def positive(*shape: int, low: float = 0.5, **kind: Any) -> Floats:
    return Floats(lambda random: random.uniform(low, low + 2, shape), **kind)


def fixed(values: Any, **kind: Any) -> Floats:
    return Floats(lambda random: np.array(values, dtype=float), **kind)


def distinct(*shape: int) -> Floats:
    """Numbers of which no two are equal or nearly so."""
    size = int(np.prod(shape))
    return Floats(lambda random: (random.permutation(size) - size / 2).reshape(shape) / 4)


def ids(high: int, *shape: int) -> Given:
    return Given(lambda random: random.integers(0, high, shape))


def array(values: Any, dtype: str = "int64") -> Given:
    return Given(lambda random: np.array(values, dtype=dtype))


def allowed(*shape: int) -> Given:
    """A mask in which some may look and some may not, as integers."""
    return Given(lambda random: random.integers(0, 2, shape))


def state(seed: int, offset: int) -> Given:
    return array([seed, offset], "uint64")


def states(rows: int) -> Given:
    """A seed and an offset for each row."""
    return array([[2**40 + 3, 7 * row + 2**32 - 4] for row in range(rows)], "uint64")


def seen(*shape: int) -> Given:
    return Given(lambda random: random.random(shape) < 0.4)


def qkv(b: int = 2, t: int = 3, h: int = 4, d: int = 6, s: int = 0, k: int = 0) -> tuple[Any, ...]:
    shape = (b, s or t, k or h, d)
    return normal(b, t, h, d), normal(*shape), normal(*shape)
