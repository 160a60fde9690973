"""Learning rates that change with the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ConstantSchedule:
    """``lr`` throughout, after a linear rise over ``warmup`` steps."""

    lr: float
    warmup: int = 0

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return self.lr * _risen(step, self.warmup)


@dataclass(frozen=True)
class CosineSchedule:
    """A linear rise over ``warmup`` steps to ``lr``, then half a cosine down to ``min_lr`` at
    ``steps``, and ``min_lr`` from there on (Loshchilov & Hutter 2017, without restarts)."""

    lr: float
    warmup: int
    steps: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be from 0 to steps ({self.steps})")

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * _risen(step, self.warmup)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2


Schedule = ConstantSchedule | CosineSchedule


def _risen(step: int, warmup: int) -> float:
    """The share of the full rate that a step of the rise has: the first step moves, too."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0
