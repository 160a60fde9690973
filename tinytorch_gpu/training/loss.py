"""The loss of a language model as an object."""

from typing import Any

from .. import ops
from ..core.tensor import Tensor


class CrossEntropyLoss:
    """The mean loss of next tokens: logits (..., V) and ids (...) to a scalar Tensor."""

    def __init__(self, ignore_index: int = -100, label_smoothing: float = 0.0):
        self.options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}

    def __call__(self, logits: Tensor, targets: Any) -> Tensor:
        flat = logits.reshape(-1, logits.shape[-1])
        ids = targets.data if isinstance(targets, Tensor) else targets
        return ops.cross_entropy(flat, logits.device.asarray(ids).reshape(-1), **self.options)
