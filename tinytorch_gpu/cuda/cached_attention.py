"""Attention through a cache: launches of kernels/cached_attention.cu."""

import functools
from typing import Any

from ..backend import dtype_name, kind
from ..ops import cached_attention
from .attention import accepts as attend_accepts
from .attention import attend
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors
from .rotary import takes_tables, turn_arguments

# A cache may be narrower than the numbers beside it; eight queries share a block's reading of it.
SOURCE = Source(
    "cached_attention.cu",
    only=lambda v: v["CACHE"] == v["REAL"] or v["REAL"] == "float",
    REAL=ELEMENTS.values(),
    CACHE=ELEMENTS.values(),
    QUERIES=(1, 4, 8),
)
_STRIDED = ("keys", "values")
_attend_cached = SOURCE.kernel("attend_cached", strided=_STRIDED)
_turn_and_append = SOURCE.kernel("turn_and_append", strided=_STRIDED)
MOST_TOKENS, WARPS, THREADS = 8, 4, 256
_FAR = 2**62


@functools.cache
def _counters(where: str, index: int, count: int) -> Any:
    """Counters of arrived blocks: zeros, and left as zeros by every launch. Launches of one device
    that use them are ordered, being of one stream."""
    from ..backend import device

    return device(f"cuda:{index}" if where == "cuda" else where).zeros((count,), "uint32")


def _splits(like: Any, blocks: int, stop: int, queries: int) -> tuple[int, int]:
    """Into how many parts the keys fall, and keys a part: enough to fill the processors, but not
    so small that the parts' results weigh anything."""
    least = 128 if queries <= 4 else 256
    splits = max(1, min(stop // least, 4 * processors(like) // max(1, blocks)))
    per_split = -(-max(1, -(-stop // splits)) // 32) * 32
    return -(-max(1, stop) // per_split), per_split


def _steps(cache: Any) -> tuple[int, ...]:
    return tuple(stride // cache.itemsize for stride in cache.strides[:3])


def _decode(
    packed_heads: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any, sin: Any,
    positions: Any, heads: int, stop: int, causal: bool, window: int | None,
    table: Any = None, capacity: int | None = None, page: int = 1,
) -> Any:  # fmt: skip
    x = packed(packed_heads)
    batch, tokens, _, width = x.shape
    kv_heads = keys.shape[2]
    all_queries = heads // kv_heads * tokens
    queries = next((n for n in (1, 4) if n >= all_queries), 8)
    sets = -(-all_queries // queries)
    blocks = batch * kv_heads * sets
    splits, per_split = _splits(x, blocks, stop, min(queries, all_queries))
    out = empty(x, (batch, tokens, heads * width))
    scratch = None
    if splits > 1:
        scratch = empty(x, (blocks * splits * queries * (width + 2),), "float32")
    cos, sin, positions, per_batch, half, kind_of_table = turn_arguments(cos, sin, positions)
    start = starts if isinstance(starts, int) else 0
    index = x.device.id if kind(x) == "cuda" else 0
    # Queries by eight elements for each of up to 32 lanes, the new tokens, the warps' results.
    shared = 4 * (256 * queries + 2 * tokens * width + WARPS * queries * (width + 2))
    _attend_cached(
        (splits, kv_heads * sets, batch), 32 * WARPS, x, keys, values, table,
        None if isinstance(starts, int) else starts, lengths, cos, sin, positions, out, scratch,
        _counters(kind(x), index, blocks), per_batch if batch > 1 else 0, half, kind_of_table,
        *_steps(keys), *_steps(values), tokens, heads, kv_heads, width, stop,
        keys.shape[1] if capacity is None else capacity, start, page,
        1 if table is None else table.shape[1], _FAR if window is None else window, width**-0.5,
        causal, splits, per_split, shared=shared,
        REAL=element(x), CACHE=element(keys), QUERIES=queries,
    )  # fmt: skip
    return out


def _prefill(
    packed_heads: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any, sin: Any,
    positions: Any, heads: int, stop: int, causal: bool, window: int | None,
) -> Any:  # fmt: skip
    x = packed(packed_heads)
    batch, tokens, count, width = x.shape
    q = empty(x, (batch, tokens, heads, width))
    cos, sin, positions, per_batch, half, kind_of_table = turn_arguments(cos, sin, positions)
    start = starts if isinstance(starts, int) else 0
    firsts = None if isinstance(starts, int) else starts
    parts = x.size * x.itemsize // 16
    _turn_and_append(
        min(max(1, -(-parts // THREADS)), 8 * processors(x)), THREADS, x, keys, values, firsts,
        cos, sin, positions, q, per_batch if batch > 1 else 0, half, kind_of_table, *_steps(keys),
        *_steps(values), batch, tokens, heads, (count - heads) // 2, width, keys.shape[1], start,
        REAL=element(x), CACHE=element(keys), QUERIES=1,
    )  # fmt: skip
    known = (keys[:, :stop], values[:, :stop])
    out, _ = attend(
        q, *known, None, None, lengths, firsts, causal=causal, window=window, want_lse=False
    )
    return out.reshape(batch, tokens, heads * width)


def _forward(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    window: int | None = None,
) -> Any:  # fmt: skip
    way = _decode if packed.shape[1] <= MOST_TOKENS else _prefill
    given = (packed, keys, values, starts, lengths, cos, sin, positions)
    return way(*given, heads, stop, causal, window)


def paged_attention(
    packed: Any, key_pages: Any, value_pages: Any, table: Any, starts: Any, lengths: Any,
    cos: Any = None, sin: Any = None, positions: Any = None, *, heads: int, stop: int,
    causal: bool = True, window: int | None = None,
) -> Any:  # fmt: skip
    """``cached_attention`` of up to 8 new tokens over a cache in pages.

    ``key_pages`` and ``value_pages`` are (pages, page size, K, D); ``table`` int32 (B, pages of a row)
    says which page holds places i * page size on of each row; two rows must not append to one page.
    """
    if packed.shape[1] > MOST_TOKENS:
        raise ValueError(f"{packed.shape[1]} new tokens: paged attention takes {MOST_TOKENS}")
    page = key_pages.shape[1]
    return _decode(
        packed, key_pages, value_pages, starts, lengths, cos, sin, positions, heads, stop, causal,
        window, table, page * table.shape[1], page,
    )  # fmt: skip


def _accepts(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    window: int | None = None,
) -> bool:  # fmt: skip
    tokens, width = packed.shape[1], packed.shape[3]
    whole = (
        x is None or isinstance(x, int) or dtype_name(x.dtype) == "int64" for x in (starts, lengths)
    )
    if not (is_element(packed, keys, values) and keys.dtype == values.dtype and packed.size):
        return False
    if width > 256 or keys.shape != values.shape or not all(whole) or not keys.shape[2]:
        return False
    if keys.strides[3] != keys.itemsize or values.strides[3] != values.itemsize:
        return False
    if not takes_tables(cos, sin, positions, width):
        return False
    if tokens > MOST_TOKENS:
        q = packed[:, :, :heads]
        return keys.dtype == packed.dtype and attend_accepts(q, keys, values)
    return keys.dtype == packed.dtype or dtype_name(packed.dtype) == "float32"


cached_attention.maker("cuda", _forward, accepts=_accepts)
