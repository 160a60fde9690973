"""The loss of a language model."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op


def _log_sum_exp(x: Any) -> Any:
    xp = namespace(x)
    top = xp.max(x, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(x - top), axis=-1, keepdims=True))


@op
def cross_entropy(
    logits: Any, targets: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Any:
    """Mean over the targets not ignored of -log softmax(logits)[target]; a scalar.

    ``logits`` (N, V), ``targets`` (N,) integers. ``label_smoothing`` e mixes the target with the
    uniform distribution: (1 - e) one-hot + e / V (Szegedy et al. 2016). No target left gives 0.
    """
    xp, wide = namespace(logits), widen(logits)
    lse = _log_sum_exp(wide)
    counted = targets != ignore_index
    safe = xp.where(counted, targets, xp.zeros_like(targets))
    chosen = xp.take_along_axis(wide, safe[:, None], axis=-1)
    loss = lse - (1 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * xp.mean(wide, axis=-1, keepdims=True)
    counted = xp.astype(counted, wide.dtype)
    total = xp.sum(counted)
    count = xp.maximum(total, xp.ones_like(total))
    return xp.sum(loss[:, 0] * counted) / count, (logits, safe, counted / count, lse)


@cross_entropy.backward
def _(residuals: Any, dout: Any, *, ignore_index: int = -100, label_smoothing: float = 0.0) -> Any:
    logits, targets, share, lse = residuals
    xp, wide = namespace(logits), widen(logits)
    classes = wide.shape[-1]
    hit = xp.arange(classes, dtype=targets.dtype)[None, :] == targets[:, None]
    gradient = xp.exp(wide - lse) - xp.astype(hit, wide.dtype) * (1 - label_smoothing)
    gradient = (gradient - label_smoothing / classes) * (share * dout)[:, None]
    return narrow(gradient, logits.dtype), None
