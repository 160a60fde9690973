"""Attention by tiles (FlashAttention-2, Dao 2023): the scores never exist in memory."""

import math
from typing import Any

from ..backend import dtype_name, namespace, narrow
from ..ops import attention
from .launch import (
    ELEMENTS,
    Source,
    compute_capability,
    element,
    empty,
    is_element,
    packed,
)  # fmt: skip

# Head sizes that kernels are compiled for; a head runs as the next larger one.
HEADS = (32, 64, 96, 128, 192, 256)
THREADS = 128
_WARPS = THREADS // 32
_INPUTS = ("q", "k", "v", "mask", "bias")
_LIMIT = 2**30  # queries and keys: a difference of two fits 32 bits

SOURCE = Source("attention.cu", REAL=ELEMENTS.values(), HEAD=HEADS)
_FORWARD = SOURCE.kernel("attention_forward", strided=_INPUTS)

BACKWARD = Source("attention_backward.cu", REAL=ELEMENTS.values(), HEAD=HEADS)
_DELTA = BACKWARD.kernel("attention_delta")
_KEYS = BACKWARD.kernel("attention_backward_keys", strided=_INPUTS)
_QUERIES = BACKWARD.kernel("attention_backward_queries", strided=_INPUTS)


def accepts(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, **options: Any,
) -> bool:  # fmt: skip
    """Whether ``attend`` takes these arguments."""
    return (
        is_element(q, k, v, bias)
        and q.dtype == k.dtype == v.dtype
        and (bias is None or bias.dtype == q.dtype or dtype_name(bias.dtype) == "float32")
        and len(q.shape) == len(k.shape) == 4
        and k.shape == v.shape
        and 0 < q.shape[3] == k.shape[3] <= HEADS[-1]
        and q.shape[0] == k.shape[0]
        and q.shape[1] < _LIMIT
        and k.shape[1] < _LIMIT
        and k.shape[2] > 0
        and q.shape[2] % k.shape[2] == 0
    )


def compiled_head(width: int) -> int:
    """Return the head size of the kernel that a head of ``width`` runs by."""
    return next(head for head in HEADS if head >= width)


def by_cores(like: Any) -> bool:
    """Whether products of the dtype of ``like`` go to tensor cores, as kernels/attention_tile.cuh
    has it."""
    name = dtype_name(like.dtype)
    return name == "float16" or (name == "bfloat16" and compute_capability(like) >= 80)


def forward_tiles(like: Any, head: int) -> tuple[int, int]:
    """Return queries a block and bytes of shared memory: the numbers of kernels/attention.cu."""
    if by_cores(like):
        few = head > 128 or (head == 64 and compute_capability(like) < 90)
        own, keys, slab = (128 if head <= 64 else 64), (32 if few else 64), 0
    else:
        own = 64 if head <= 128 else 32 if head <= 192 else 16
        keys = 32 if head <= 96 else 16
        slab = _WARPS * 16 * (keys + 8)
    return own, ((own + 2 * keys) * head + slab) * like.dtype.itemsize


def backward_tiles(like: Any, head: int) -> tuple[int, int]:
    """Return rows that a block owns and bytes of shared memory: see attention_backward.cu."""
    if by_cores(like):
        own, other, slab = (64 if head <= 128 else 32), (64 if head <= 64 else 32), 0
        other = 16 if head == 256 else other
        stages = 2 if compute_capability(like) >= 80 else 1
    else:
        own = 64 if head <= 96 else 32 if head <= 128 else 16
        other, stages = {32: 32, 64: 32, 128: 16, 192: 16}.get(head, 8), 1
        slab = _WARPS * 16 * (other + 8) * 4  # of one part in float32, of two in bfloat16
    elements = 2 * (own + stages * other) * head
    return own, elements * like.dtype.itemsize + slab + 2 * stages * other * 4


def attend(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, *, causal: bool = False, scale: float | None = None,
    window: int | None = None, dropout: float = 0.0, want_lse: bool = True,
) -> Any:  # fmt: skip
    """Return (out, lse or None): see ``ops.attention``. ``q``, ``k`` and ``v`` may be strided."""
    batch, rows, heads, width = q.shape
    out = empty(q, q.shape)
    lse = empty(q, (batch, heads, rows, 1), namespace(q).float32) if want_lse else None
    arrays, numbers = arguments(
        (q, k, v, mask, None, lengths, starts, state), causal, scale, window, dropout
    )
    steps = (0, 0, 0, 0) if bias is None else _broadcast(bias.shape, _steps(bias))
    wide = bias is not None and dtype_name(bias.dtype) == "float32"
    head = compiled_head(width)
    own, shared = forward_tiles(q, head)
    _FORWARD(
        -(-rows // own) * heads * batch, THREADS, *arrays, bias, out, lse, *numbers, *steps, wide,
        shared=shared, REAL=element(q), HEAD=head,
    )  # fmt: skip
    return out, lse


def arguments(
    inputs: Any, causal: bool, scale: float | None, window: int | None, dropout: float
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what every kernel of attention takes: the arrays but the bias, and the numbers."""
    q, k, v, mask, _, lengths, starts, state = inputs
    (batch, rows, heads, width), keys = q.shape, k.shape[1]
    q, k, v = (with_rows(x) for x in (q, k, v))
    mask_steps: Any = (0, 0, 0, 0)
    if mask is not None:
        mask = mask if dtype_name(mask.dtype) == "bool" else mask != 0
        mask_steps = _mask_steps(mask)
    arrays = (
        q, k, v, mask, _per_row(lengths, batch), _per_row(starts, batch),
        state if dropout else None,
    )  # fmt: skip
    numbers = (
        *(step for x in (q, k, v) for step in _steps(x)[:3]), *mask_steps,
        rows, keys, heads, heads // k.shape[2], width,
        2**62 if window is None else max(-(2**62), min(window, 2**62)),
        width**-0.5 if scale is None else scale, dropout, 1 / (1 - dropout), causal,
    )  # fmt: skip
    return arrays, numbers


def _mask_steps(mask: Any) -> tuple[int, ...]:
    shape, steps = mask.shape, _steps(mask)
    if len(shape) == 3:  # (B, T, S): the same for all heads
        shape, steps = (shape[0], 1, *shape[1:]), (steps[0], 0, *steps[1:])
    return _broadcast(shape, steps)


def with_rows(x: Any) -> Any:
    """Return ``x``, or a copy if its last axis is not contiguous."""
    return x if x.shape[-1] == 1 or x.strides[-1] == x.dtype.itemsize else packed(x)


def _steps(x: Any) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(stride // x.dtype.itemsize for stride in x.strides)


def _broadcast(shape: Any, steps: Any) -> tuple[int, ...]:
    """The steps of an array broadcast to (B, H, T, S): 0 along axes that it lacks or has one of."""
    kept = (0 if size == 1 else step for size, step in zip(shape, steps, strict=True))
    return (0,) * (4 - len(shape)) + tuple(kept)


def _per_row(x: Any, batch: int) -> Any:
    """``lengths`` or ``starts`` as int64 (B,)."""
    if x is None:
        return None
    xp = namespace(x)
    if dtype_name(x.dtype) != "int64":
        x = xp.astype(x, xp.int64)
    if math.prod(x.shape) != batch:
        x = xp.broadcast_to(xp.reshape(x, (-1,)), (batch,))
    return packed(x)


def _forward(
    q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, lengths: Any = None,
    starts: Any = None, state: Any = None, **options: Any,
) -> Any:  # fmt: skip
    inputs = (q, k, v, mask, bias, lengths, starts, state)
    out, lse = attend(*inputs, **options)
    return out, (inputs, out, lse)


def _backward(residuals: Any, dout: Any, **options: Any) -> Any:
    inputs, out, lse = residuals
    if inputs[4] is not None:  # the gradient of a bias needs the scores themselves
        return attention.differentiate(residuals, dout, **options)
    return *gradients(inputs, out, lse, dout, **options), None, None, None, None, None


def gradients(
    inputs: Any, out: Any, lse: Any, dout: Any, *, causal: bool = False,
    scale: float | None = None, window: int | None = None, dropout: float = 0.0,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Return dq, dk and dv of attention without bias."""
    q, k, v = inputs[:3]
    (batch, rows, heads, width), keys, kv_heads = q.shape, k.shape[1], k.shape[2]
    dq, dk, dv = empty(q, q.shape), empty(k, k.shape), empty(v, v.shape)
    delta = empty(lse, lse.shape)
    head = compiled_head(width)
    variant = {"REAL": element(q), "HEAD": head}
    dout, lse = packed(narrow(dout, q.dtype)), packed(lse)
    lanes = min(32, max(4, head * q.dtype.itemsize // 16))
    lanes = 1 << (lanes - 1).bit_length()  # of a warp, to a row
    lines = batch * rows * heads
    _DELTA(
        -(-lines * lanes // THREADS), THREADS, dout, packed(out), delta, lines, rows, heads, width,
        **variant,
    )  # fmt: skip
    arrays, numbers = arguments(inputs, causal, scale, window, dropout)
    own, shared = backward_tiles(q, head)
    arrays = (*arrays, dout, lse, delta)
    blocks = -(-rows // own) * heads * batch
    _QUERIES(blocks, THREADS, *arrays, dq, *numbers, shared=shared, **variant)
    blocks = -(-keys // own) * kv_heads * batch
    _KEYS(blocks, THREADS, *arrays, dk, dv, *numbers, shared=shared, **variant)
    return dq, dk, dv


attention.maker("cuda", _forward, _backward, accepts)
