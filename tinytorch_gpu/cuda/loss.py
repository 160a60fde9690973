"""Cross entropy on a GPU: forward, backward, and both in one pass over the logits."""

from typing import Any

from ..backend import dtype_name
from ..ops import cross_entropy
from .launch import ELEMENTS, Source, element, empty, is_element, packed, shared_limit

SOURCE = Source("loss.cu", REAL=ELEMENTS.values())
_forward_kernel = SOURCE.kernel("cross_entropy_forward")
_mean_kernel = SOURCE.kernel("cross_entropy_mean")
_count_kernel = SOURCE.kernel("cross_entropy_count")
_backward_kernel = SOURCE.kernel("cross_entropy_backward")
_both_kernel = SOURCE.kernel("cross_entropy_both")
_IGNORED = -100  # what is ignored unless a caller says otherwise
_STATIC = 256  # bytes of shared memory that the kernel itself declares, and some


def _blocks(rows: int, classes: int) -> tuple[int, tuple[int, int]]:
    """The grid and the (threads of a row, rows) of a block."""
    if classes <= 1024:
        return -(-rows // 8), (32, 8)
    return rows, (256 if classes < 16384 else 512, 1)


def _accepts(
    logits: Any, targets: Any, *, ignore_index: int = _IGNORED, label_smoothing: float = 0.0
) -> bool:
    return (
        is_element(logits)
        and logits.ndim == 2
        and targets.shape == logits.shape[:1]
        and 0 < logits.shape[1] < 2**31 - 16
        and dtype_name(targets.dtype) in ("int32", "int64")
    )


def _mean(losses: Any, targets: Any, ignore_index: int, shares: Any, real: str) -> Any:
    mean = empty(losses, ())
    _mean_kernel(
        1, 1024, losses, targets, targets.dtype.itemsize, ignore_index, mean, shares,
        losses.shape[0], REAL=real,
    )  # fmt: skip
    return mean


def _forward(
    logits: Any, targets: Any, *, ignore_index: int = _IGNORED, label_smoothing: float = 0.0
) -> Any:
    logits, targets = packed(logits), packed(targets)
    rows, classes = logits.shape
    real = element(logits)
    safe = empty(targets, targets.shape)
    lse, losses, shares = (empty(logits, s, "float32") for s in ((rows, 1), rows, rows))
    grid, block = _blocks(rows, classes)
    _forward_kernel(
        grid, block, logits, targets, targets.dtype.itemsize, ignore_index, label_smoothing,
        safe, lse, losses, rows, classes, REAL=real,
    )  # fmt: skip
    mean = _mean(losses, targets, ignore_index, shares, real)
    return mean, (logits, safe, shares, lse)


def _backward(
    residuals: Any, dout: Any, *, ignore_index: int = _IGNORED, label_smoothing: float = 0.0
) -> Any:
    logits, targets, shares, lse = residuals
    gradients = empty(logits, logits.shape)
    grid, block = _blocks(*logits.shape)
    _backward_kernel(
        grid, block, logits, targets, targets.dtype.itemsize, shares, lse, dout, label_smoothing,
        gradients, *logits.shape, REAL=element(logits),
    )  # fmt: skip
    return gradients, None


def cross_entropy_with_gradient(
    logits: Any, targets: Any, *, ignore_index: int = _IGNORED, label_smoothing: float = 0.0,
    out: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Return the loss of ``cross_entropy`` and its gradient by ``logits`` (N, V), read once.

    ``out`` (N, V), if given, receives the gradient; it may be ``logits``. Arguments that no kernel
    takes are a ValueError.
    """
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if not _accepts(logits, targets, **options):
        raise ValueError(
            f"no kernel for logits {logits.shape} of {logits.dtype} and targets "
            f"{targets.shape} of {targets.dtype}"
        )
    if out is not None and (out.shape, out.dtype) != (logits.shape, logits.dtype):
        raise ValueError(f"out must be {logits.shape} of {logits.dtype}, not {out.shape}")
    logits, targets = packed(logits), packed(targets)
    gradients = empty(logits, logits.shape) if out is None else out
    (rows, classes), real = logits.shape, element(logits)
    count, losses = empty(logits, (), "float32"), empty(logits, rows, "float32")
    size = targets.dtype.itemsize
    _count_kernel(1, 1024, targets, size, ignore_index, count, rows, REAL=real)
    grid, block = _blocks(rows, classes)
    kept = (classes * logits.dtype.itemsize + 15) // 16 * 16 + 16
    kept = kept if kept * block[1] <= shared_limit(logits) - _STATIC else 0
    _both_kernel(
        grid, block, logits, targets, size, ignore_index, label_smoothing, count, losses,
        gradients, rows, classes, kept, shared=kept * block[1], REAL=real,
    )  # fmt: skip
    return _mean(losses, targets, ignore_index, None, real), gradients


cross_entropy.maker("cuda", _forward, _backward, _accepts)
