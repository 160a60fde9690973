"""AdamW and the length of the gradient on a GPU: tensor by tensor, or all of a table in one launch."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy

from ..backend import dtype_name
from ..devices import Device, device_of
from ..ops.optimizer import adamw, clip_scale, gradient_norm
from .launch import ELEMENTS, Source, element, empty, is_element, packed

# A gradient has its parameter's type, or float32 where several are summed up.
SOURCE = Source(
    "optimizer.cu",
    only=lambda v: v["GRAD"] in (v["PARAM"], "float"),
    PARAM=ELEMENTS.values(),
    GRAD=ELEMENTS.values(),
)
_step_kernel = SOURCE.kernel("adamw_step")
_step_many_kernel = SOURCE.kernel("adamw_step_many")
_squares_many_kernel = SOURCE.kernel("gradient_squares_many")
_length_kernel = SOURCE.kernel("gradient_length")
_clip_kernel = SOURCE.kernel("gradient_clip")
_CHUNK, _THREADS, _COLUMNS = 8192, 256, 8


def _fits(param: Any, grad: Any, first: Any, second: Any, master: Any) -> bool:
    """Whether these five are of one size, contiguous and of types that the kernels take."""
    given = [x for x in (param, grad, first, second, master) if x is not None]
    return (
        is_element(param, grad)
        and (grad.dtype == param.dtype or dtype_name(grad.dtype) == "float32")
        and all(x.shape == param.shape and x.flags.c_contiguous for x in given)
        and all(dtype_name(x.dtype) == "float32" for x in given[2:])
    )


def _is_number(x: Any, dtype: str) -> bool:
    return getattr(x, "size", 0) == 1 and dtype_name(x.dtype) == dtype


def _constants(beta1: float, beta2: float, eps: float, weight_decay: float) -> tuple[float, ...]:
    """The kernel's numbers: 1 - beta and log(beta) would lose digits in float32."""
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return (beta1, beta2, 1 - beta1, 1 - beta2, *logs, eps, weight_decay)


def _accepts(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    **options: float,
) -> bool:  # fmt: skip
    return (
        _fits(param, grad, first, second, master)
        and _is_number(rate, "float32")
        and _is_number(step, "int64")
        and _is_number(scale, "float32")
    )


def _adamw(
    param: Any, grad: Any, first: Any, second: Any, master: Any, rate: Any, step: Any, scale: Any,
    *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> Any:  # fmt: skip
    _step_kernel(
        -(-param.size // _CHUNK), _THREADS, param, grad, first, second, master, param.size,
        rate, step, scale, *_constants(beta1, beta2, eps, weight_decay),
        PARAM=element(param), GRAD=element(grad),
    )  # fmt: skip
    return param


class TensorTable:
    """Tensors that are stepped together: where they are, in device memory.

    Built once from arrays of one dtype that stay where they are: parameters, their gradients, both
    moments and, if there are any, the masters. The arrays are kept alive. Arrays that do not fit
    each other, or are not contiguous, are a ValueError.
    """

    def __init__(
        self,
        params: Sequence[Any],
        grads: Sequence[Any],
        firsts: Sequence[Any],
        seconds: Sequence[Any],
        masters: Sequence[Any] | None = None,
    ):
        masters = [None] * len(params) if masters is None else masters
        self.tensors = list(zip(params, grads, firsts, seconds, masters, strict=True))
        if not self.tensors:
            raise ValueError("a table of no tensors")
        self.variant = {"PARAM": element(params[0]), "GRAD": element(grads[0])}
        for i, five in enumerate(self.tensors):
            same = (five[0].dtype, five[1].dtype) == (params[0].dtype, grads[0].dtype)
            if not same or not _fits(*five):
                raise ValueError(f"tensor {i} is not like its gradient, its moments or the others")
        self.reaches = [x for five in self.tensors for x in five if x is not None]
        rows = [
            (*(0 if x is None else x.data.ptr for x in five), five[0].size) for five in self.tensors
        ]
        self.addresses, self.owners, self.chunks = _table(device_of(params[0]), rows)


def _table(place: Device, rows: Sequence[tuple[int, ...]]) -> tuple[Any, Any, int]:
    """Addresses and sizes as the kernels read them on ``place``, the tensor of each chunk, and how many chunks."""
    table = numpy.zeros((len(rows), _COLUMNS), numpy.uint64)
    table[:, :6] = rows
    chunks = -(-table[:, 5].astype(numpy.int64) // _CHUNK)
    table[:, 6] = numpy.cumsum(chunks) - chunks
    owners = numpy.repeat(numpy.arange(len(rows)), chunks)
    return place.asarray(table), place.asarray(owners, "int32"), int(chunks.sum())


# Gradients mostly lie where those of the step before lay.
@functools.lru_cache(maxsize=16)
def _gradient_table(place: Device, gradients: tuple[tuple[int, int], ...]) -> tuple[Any, Any, int]:
    """The table of gradients alone, each by its address and size."""
    return _table(place, [(0, address, 0, 0, 0, size) for address, size in gradients])


def adamw_many(
    table: TensorTable, rate: Any, step: Any, scale: Any, *, beta1: float = 0.9,
    beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> None:  # fmt: skip
    """``adamw`` of every tensor of ``table`` in one launch; see there for the arguments."""
    _step_many_kernel(
        table.chunks, _THREADS, table.addresses, table.owners, rate, step, scale,
        *_constants(beta1, beta2, eps, weight_decay), reaches=table.reaches, **table.variant,
    )  # fmt: skip


def _gradient_norm(*grads: Any) -> Any:
    by_kind: dict[str, list[Any]] = {}
    for grad in grads:
        by_kind.setdefault(element(grad), []).append(packed(grad))
    place, tables = device_of(grads[0]), []
    for kind, found in by_kind.items():
        places = tuple((x.data.ptr, x.size) for x in found)
        tables.append((kind, found, *_gradient_table(place, places)))
    sums, done = empty(grads[0], sum(chunks for *_, chunks in tables), "float32"), 0
    for kind, found, addresses, owners, chunks in tables:
        _squares_many_kernel(
            chunks, _THREADS, addresses, owners, sums[done : done + chunks], reaches=found,
            PARAM=kind, GRAD=kind,
        )  # fmt: skip
        done += chunks
    norm = empty(sums, ())
    _length_kernel(1, 1024, sums, done, norm, PARAM="float", GRAD="float")
    return norm


def _clip_scale(norm: Any, *, max_norm: float) -> Any:
    scale = empty(norm, ())
    _clip_kernel(1, 32, norm, max_norm, scale, PARAM="float", GRAD="float")
    return scale


adamw.maker("cuda", _adamw, accepts=_accepts)
gradient_norm.maker("cuda", _gradient_norm, accepts=lambda *grads: is_element(*grads))
clip_scale.maker(
    "cuda", _clip_scale, accepts=lambda norm, **options: _is_number(norm, "float32")
    and norm.ndim == 0,
)  # fmt: skip
