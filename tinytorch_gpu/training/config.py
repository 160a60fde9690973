"""What a training run is told, and recipes of it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..config import one_of, whole
from .groups import decay_groups
from .optim import SGD, AdamW
from .schedules import ConstantSchedule, CosineSchedule, Schedule

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """A run of ``steps`` updates, each of ``accumulate`` batches of ``batch`` windows of ``length`` tokens.

    ``clip`` 0 does not clip. ``eval_every``, ``save_every``, ``sample_every`` and ``log_every`` are steps, 0 for
    never; ``eval_tokens`` bounds an evaluation, 0 for all there are. ``keep`` checkpoints stay, beside the best.
    """

    steps: int = 2000
    batch: int = 12
    length: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 100
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.1
    clip: float = 1.0
    label_smoothing: float = 0.0
    recompute: bool = False
    seed: int = 1337
    log_every: int = 10
    eval_every: int = 250
    eval_tokens: int = 0
    save_every: int = 500
    sample_every: int = 500
    sample_tokens: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "accumulate", "keep", "sample_tokens"):
            whole(name, getattr(self, name), 1)
        for name in (
            "warmup",
            "eval_tokens",
            "seed",
            *(f"{n}_every" for n in ("log", "eval", "save", "sample")),
        ):
            whole(name, getattr(self, name), 0)
        for name in ("lr", "min_lr", "eps", "weight_decay", "clip"):
            _number(name, getattr(self, name), math.inf)
        for name in ("momentum", "label_smoothing"):
            _number(name, getattr(self, name), 1)
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, not {self.betas!r}")
        for beta in self.betas:
            _number("betas", beta, 1)
        object.__setattr__(self, "betas", tuple(self.betas))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)

    @property
    def tokens_per_step(self) -> int:
        """Tokens learned from in one update."""
        return self.batch * self.length * self.accumulate

    def due(self, step: int, every: int) -> bool:
        """Whether what is done ``every`` so many steps, and after the last, is due after ``step``."""
        return step == self.steps or (every > 0 and step % every == 0)

    def make_schedule(self) -> Schedule:
        """The learning rate of each step. A warm-up longer than the run is cut to it."""
        warmup = min(self.warmup, self.steps)
        if self.schedule == "constant":
            return ConstantSchedule(self.lr, warmup)
        return CosineSchedule(self.lr, warmup, self.steps, min(self.min_lr, self.lr))

    def make_optimizer(self, model: Any) -> AdamW | SGD:
        """The optimizer of a model's parameters that are trained."""
        groups = decay_groups(model, self.weight_decay)
        if self.optimizer == "sgd":
            return SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay)
        return AdamW(groups, self.lr, self.betas, self.eps, self.weight_decay)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` takes back."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingConfig":
        """Of ``to_dict``'s values; unknown names are a ValueError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown training settings {unknown}; known are {sorted(known)}")
        return cls(**values)


def _number(name: str, value: Any, below: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise ValueError(f"{name} must be a number from 0 to below {below:g}, not {value!r}")


# How models of the presets (config.PRESETS) are usually trained; others by the defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "shakespeare-char": {},
    "gpt2": dict(steps=600_000, batch=12, length=1024, accumulate=40, lr=6e-4, min_lr=6e-5, warmup=2000,
                 betas=(0.9, 0.95), eval_every=2000, save_every=1000, sample_every=2000),
}  # fmt: skip
