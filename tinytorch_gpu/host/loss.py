"""Cross entropy a block of rows at a time: no (N, V) array but the gradient."""

from typing import Any

import numpy

from ..ops import cross_entropy
from .buffers import plain, row_blocks
from .threads import share


def _accepts(logits: Any, targets: Any, **options: Any) -> bool:
    return plain(logits) and targets.dtype.kind == "i"


def _forward(
    logits: Any, targets: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    rows, classes = logits.shape
    counted = targets != ignore_index
    safe = numpy.where(counted, targets, numpy.zeros_like(targets))
    lse = numpy.empty((rows, 1), logits.dtype)

    def one(part: slice) -> None:
        top = logits[part].max(axis=1, keepdims=True)
        powers = numpy.subtract(logits[part], top)
        numpy.exp(powers, out=powers)
        lse[part] = top + numpy.log(powers.sum(axis=1, keepdims=True))

    share(one, row_blocks(rows, classes))
    means = logits.mean(axis=1, keepdims=True) if label_smoothing else None
    return mean_loss(logits, safe, counted, lse, means, label_smoothing)


def mean_loss(
    logits: Any, safe: Any, counted: Any, lse: Any, means: Any, label_smoothing: float
) -> Any:
    """The mean over the ``counted`` (N,) of the targets ``safe`` (N,) of logits (N, V), and the residuals.

    ``lse`` (N, 1) is the logarithm of each row's sum of powers, ``means`` (N, 1) its mean, needed for smoothing
    only. A target out of range is an IndexError.
    """
    loss = lse - (1 - label_smoothing) * numpy.take_along_axis(logits, safe[:, None], axis=1)
    if means is not None:
        loss -= label_smoothing * means
    weight = counted.astype(logits.dtype)
    total = weight.sum()
    count = numpy.maximum(total, numpy.ones_like(total))
    return (loss[:, 0] * weight).sum() / count, (logits, safe, weight / count, lse)


def _backward(
    residuals: Any, dout: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    logits, targets, weight, lse = residuals
    rows, classes = logits.shape
    factor = (weight * dout)[:, None]
    gradient = numpy.empty((rows, classes), logits.dtype)

    def one(part: slice) -> None:
        block = numpy.subtract(logits[part], lse[part], out=gradient[part])
        numpy.exp(block, out=block)
        block[numpy.arange(len(block)), targets[part]] -= 1 - label_smoothing
        if label_smoothing:
            block -= label_smoothing / classes
        block *= factor[part]

    share(one, row_blocks(rows, classes))
    return gradient, None


cross_entropy.maker("cpu", _forward, _backward, accepts=_accepts)
