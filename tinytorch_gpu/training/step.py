"""One update of a model: the gradients of a loss, clipping, a step of the optimizer."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from .. import nvtx
from ..backend import namespace, to_numpy
from ..core.transformers import Transformer
from .batches import DataLoader
from .config import TrainingConfig
from .loss import CrossEntropyLoss
from .optim import LossScaler, clip_grad_norm


@dataclass(frozen=True)
class StepResult:
    """What one update did: ``loss`` in nats a token, ``grad_norm`` before clipping, ``tokens`` of the step, ``seconds``
    by the wall. ``skipped``: its float16 gradients were not finite, so nothing changed."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    skipped: bool = False

    @property
    def tokens_per_second(self) -> float:
        """The pace of this step."""
        return self.tokens / max(self.seconds, 1e-9)


class Stepper:
    """Makes updates of ``model`` by ``config``, each from the next batches of ``tokens``. One wait for the device
    a step, for the loss."""

    def __init__(self, model: Transformer, tokens: Any, config: TrainingConfig):
        if config.length > model.config.max_seq_length:
            raise ValueError(
                f"length ({config.length}) exceeds the model's max_seq_length "
                f"({model.config.max_seq_length}): shorten it"
            )
        self.model, self.config = model, config
        self.loader = DataLoader(tokens, config.batch, config.length, seed=config.seed)
        self.optimizer, self.schedule = config.make_optimizer(model), config.make_schedule()
        self.scaler = LossScaler() if model.dtype.name == "float16" else None
        self.loss = CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.steps_done = 0
        model.recompute = config.recompute
        self.named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def last_good(self) -> Path | None:
        """The newest checkpoint, if there is any to go back to."""
        return None

    def step(self) -> StepResult:
        """Make one update. A loss or gradient that is not finite is a FloatingPointError that names it;
        nothing has changed then (in float16 the step is skipped and the scale halved)."""
        began, number = time.perf_counter(), self.steps_done
        rate = self.optimizer.lr = self.schedule(number)
        self.model.train()
        # In float16 gradients may overflow: that is looked for, and no warning is due.
        quiet = numpy.errstate(all="ignore")
        with quiet, nvtx.span("train.step", "phase", number), self.model.device.active():
            loss = self._gradients(number)
            with nvtx.span("train.update", "phase", number):
                norm, scale = self._scale()
                self.optimizer.step(scale)
            value, length = self._read(loss, norm)
        skipped = not (math.isfinite(value) and math.isfinite(length))
        if skipped:
            self._not_finite(number, value)
        elif self.scaler is not None:
            self.scaler.update(True)
        self.optimizer.zero_grad()
        self.steps_done += 1
        seconds = time.perf_counter() - began
        return StepResult(
            number + 1, value, length, rate, self.config.tokens_per_step, seconds, skipped
        )

    def _gradients(self, number: int) -> Any:
        """Gradients of the mean loss over all batches of a step; returns that loss, on the device."""
        parts, total = self.config.accumulate, None
        factor = (1.0 if self.scaler is None else self.scaler.scale) / parts
        for _ in range(parts):
            inputs, targets = self.loader.next()
            with nvtx.span("train.forward", "phase", number):
                loss = self.loss(self.model(inputs), targets)
            with nvtx.span("train.backward", "phase", number):
                loss.backward(self.model.device.asarray(factor, loss.dtype))
            total = loss.data / parts if total is None else total + loss.data / parts
        return total

    def _scale(self) -> tuple[Any, Any]:
        """(the length of the true gradients, what to multiply the present ones by), on the device."""
        clip = self.config.clip or math.inf
        if self.scaler is None:
            norm, scale = clip_grad_norm(self.named, clip)
            return norm.data, scale.data
        grown = self.scaler.scale
        norm, scale = clip_grad_norm(self.named, clip * grown)
        return norm.data / grown, scale.data / grown

    def _read(self, loss: Any, norm: Any) -> tuple[float, float]:
        """Both numbers at once: the one wait of a step."""
        xp = self.model.device.xp
        value, length = to_numpy(
            xp.stack([xp.astype(x, xp.float64) for x in (loss, norm)])
        ).tolist()
        return value, length

    def _not_finite(self, number: int, loss: float) -> None:
        """Skip a step under loss scaling; else end the run, and say where it went wrong."""
        if self.scaler is not None and math.isfinite(loss):
            self.scaler.update(False)
            return
        named = [n for n, p in self.named if p.grad is not None and not _finite(p.grad.data)]
        what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
        where = f"; the first gradient that is not finite: {named[0]}" if named else ""
        last = self.last_good()
        after = f"; the last good checkpoint is {last}" if last else ""
        self.optimizer.zero_grad()
        raise FloatingPointError(
            f"step {number + 1}: {what}{where}{after}. Lower the learning rate, or clip."
        )


def _finite(array: Any) -> bool:
    xp = namespace(array)
    return bool(to_numpy(xp.all(xp.isfinite(array))))
