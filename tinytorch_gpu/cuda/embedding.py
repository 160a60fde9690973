"""Rows of a table by number on a GPU, positions added on the way, and the sum of gradients."""

from typing import Any

from ..backend import dtype_name, namespace
from ..ops import embedding
from .launch import ELEMENTS, Source, element, empty, is_element, packed

SOURCE = Source("embedding.cu", PARAM=ELEMENTS.values(), REAL=ELEMENTS.values())
_forward_kernel = SOURCE.kernel("embedding_forward")
_count_kernel = SOURCE.kernel("embedding_count")
_reserve_kernel = SOURCE.kernel("embedding_reserve")
_list_kernel = SOURCE.kernel("embedding_list")
_order_kernel = SOURCE.kernel("embedding_order")
_sum_kernel = SOURCE.kernel("embedding_sum")
_THREADS, _WARPS = 256, 8


def _accepts(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> bool:
    return (
        is_element(weight)
        and weight.ndim == 2
        and weight.flags.c_contiguous
        and (dtype is None or dtype_name(dtype) in ELEMENTS)
        and _are_ids(ids)
        and ids.size < 2**31 - _THREADS
    )


def _are_ids(ids: Any) -> bool:
    return dtype_name(ids.dtype) in ("int32", "int64")


def _vectors(width: int, *arrays: Any) -> tuple[int, bool]:
    """How many elements a thread moves at once, and whether more than one."""
    each = 16 // max(a.dtype.itemsize for a in arrays)
    whole = width % each == 0 and all(_address(a) % (each * a.dtype.itemsize) == 0 for a in arrays)
    return (each if whole else 1), whole


def _address(x: Any) -> int:
    return x.data.ptr


def _gather(
    ids: Any, table: Any, dtype: Any, scale: float, position_ids: Any, position_table: Any
) -> Any:
    ids, width = packed(ids), table.shape[1]
    out = empty(table, (*ids.shape, width), dtype)
    tables = (table,) if position_table is None else (table, position_table)
    each, vectors = _vectors(width, out, *tables)
    lanes = min(_THREADS, max(1, 1 << (-(-width // each) - 1).bit_length()))
    rows = _THREADS // lanes
    positions = (None, 4, 1, None, 0)
    if position_table is not None:
        position_ids = packed(position_ids)
        positions = (
            position_ids, position_ids.dtype.itemsize, position_ids.size, position_table,
            position_table.shape[0],
        )  # fmt: skip
    if out.size:
        _forward_kernel(
            -(-ids.size // rows), (lanes, rows), ids, ids.dtype.itemsize, table, table.shape[0],
            *positions, scale, out, ids.size, width, vectors,
            PARAM=element(table), REAL=element(out),
        )  # fmt: skip
    return out


def _forward(
    ids: Any, weight: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    out = _gather(ids, weight, dtype, scale, None, None)
    return out, (ids, weight.shape[0], weight.dtype)


def embed(
    ids: Any, table: Any, position_ids: Any, position_table: Any, *, dtype: Any = None,
    scale: float = 1.0,
) -> Any:  # fmt: skip
    """Return ``table[ids] * scale + position_table[position_ids]`` (..., C), each row read once.

    ``position_ids`` has the shape of the last axes of ``ids``, of which it is the same for all the
    rest; both tables (., C) one dtype. Arguments that no kernel takes are a ValueError.
    """
    for x, numbers in ((table, ids), (position_table, position_ids)):
        if not _accepts(numbers, x, dtype=dtype):
            raise ValueError(f"no kernel for ids of {numbers.dtype} and a table of {x.dtype}")
    if (table.shape[1], table.dtype) != (position_table.shape[1], position_table.dtype):
        raise ValueError(
            f"the tables differ: {table.shape} of {table.dtype}, "
            f"{position_table.shape} of {position_table.dtype}"
        )
    if tuple(ids.shape[ids.ndim - position_ids.ndim :]) != tuple(position_ids.shape):
        raise ValueError(f"position_ids {position_ids.shape} do not fit ids {ids.shape}")
    return _gather(ids, table, dtype, scale, position_ids, position_table)


def _backward(
    residuals: Any, dout: Any, *, dtype: Any = None, padding: int | None = None, scale: float = 1.0
) -> Any:
    ids, rows, weight_dtype = residuals
    ids, dout, xp = packed(ids), packed(dout), namespace(dout)
    width, count, size = dout.shape[-1], ids.size, ids.dtype.itemsize
    gradient = empty(dout, (rows, width), weight_dtype)
    variant = {"PARAM": element(gradient), "REAL": element(dout)}
    counts = xp.zeros(rows + 1, dtype="int32")  # the last one: how much of the list is reserved
    starts = empty(counts, rows)
    arrivals, listed, ordered = (empty(counts, count) for _ in range(3))
    absent = padding % rows if padding is not None and rows else -1
    grid = -(-count // _THREADS)
    _count_kernel(
        grid, _THREADS, ids, size, rows, absent, counts[:rows], arrivals, count, **variant
    )
    _reserve_kernel(-(-rows // _THREADS), _THREADS, counts, starts, counts[rows:], rows, **variant)
    _list_kernel(grid, _THREADS, ids, size, starts, arrivals, listed, count, **variant)
    _order_kernel(
        grid, _THREADS, ids, size, counts, starts, arrivals, listed, ordered, count, **variant
    )
    each, vectors = _vectors(width, dout, gradient)
    _sum_kernel(
        (-(-rows // _WARPS), -(-width // (32 * each))), _THREADS, dout, counts, starts, ordered,
        scale, gradient, rows, width, vectors, **variant,
    )  # fmt: skip
    return None, gradient


embedding.maker("cuda", _forward, _backward, _accepts)
