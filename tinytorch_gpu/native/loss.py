"""Cross entropy by the library (kernels/cpu/loss.cpp)."""

from typing import Any

import numpy

from ..host.loss import mean_loss
from ..ops import cross_entropy
from .library import Operation, packed, pointer

_cross_entropy = Operation("cross_entropy", "3P2q")  # logits, lse, sums; rows, classes
# logits, lse, factors, targets, gradient; rows, classes, label smoothing
_backward = Operation("cross_entropy_backward", "5P2qd")


def _accepts(logits: Any, targets: Any, **options: Any) -> bool:
    fits = logits.ndim == 2 and targets.shape == logits.shape[:1] and bool(logits.shape[1])
    return fits and logits.dtype == numpy.float32 and targets.dtype.kind == "i"


def _forward(
    logits: Any, targets: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    logits = packed(logits)
    rows, classes = logits.shape
    counted = targets != ignore_index
    safe = numpy.where(counted, targets, numpy.zeros_like(targets))
    lse = numpy.empty((rows, 1), numpy.float32)
    sums = numpy.empty((rows, 1)) if label_smoothing else None
    _cross_entropy(4 * logits.size, pointer(logits), pointer(lse), pointer(sums), rows, classes)
    means = None if sums is None else (sums / classes).astype(numpy.float32)
    return mean_loss(logits, safe, counted, lse, means, label_smoothing)


def _gradient(
    residuals: Any, dout: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    logits, targets, weight, lse = residuals
    rows, classes = logits.shape
    factors = packed(weight * dout)
    places = numpy.where(targets < 0, targets + classes, targets).astype(numpy.int64)
    gradient = numpy.empty((rows, classes), numpy.float32)
    pointers = map(pointer, (logits, lse, factors, places, gradient))
    _backward(4 * logits.size, *pointers, rows, classes, label_smoothing)
    return gradient, None


cross_entropy.maker("cpu", _forward, _gradient, accepts=_accepts, ahead=True)
