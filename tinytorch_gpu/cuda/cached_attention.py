"""Attention through a cache: launches of kernels/cached_attention.cu, and of dequantize_cache.cu for a prompt."""

import functools
import threading
from collections.abc import Callable
from typing import Any

from ..backend import dtype_name, kind, namespace, narrow
from ..ops import cached_attention
from ..quantized.cache import groups_of
from .attention import accepts as attend_accepts
from .attention import attend
from .cache_place import EIGHT_BIT, Place, place_of
from .launch import ELEMENTS, Source, element, empty, is_element, packed, processors
from .rotary import takes_tables, turn_arguments

# A cache may be narrower than the numbers beside it; QUERIES share a block's reading of it.
SOURCE = Source(
    "cached_attention.cu",
    only=lambda v: v["CACHE"] in (v["REAL"], EIGHT_BIT) or v["REAL"] == "float",
    REAL=ELEMENTS.values(),
    CACHE=(*ELEMENTS.values(), EIGHT_BIT),
    QUERIES=(1, 2, 4, 8),
)
WIDENING = Source("dequantize_cache.cu", REAL=ELEMENTS.values(), CACHE=(EIGHT_BIT,))
_CACHES = ("keys", "values", "key_scales", "value_scales")
_attend_cached = SOURCE.kernel("attend_cached", strided=_CACHES)
_turn_and_append = SOURCE.kernel("turn_and_append", strided=_CACHES)
_dequantize = WIDENING.kernel("dequantize_cache", strided=_CACHES)
# What kernels/cached_attention.cu has: warps of a block, keys that a warp takes at once.
WARPS, TILE, THREADS = 4, 32, 256
MOST_TOKENS = 8  # of one row; more are a prompt, whose attention is a kernel of its own
MOST_SPLITS = 128
_RESIDENT = {1: 4, 2: 4, 4: 3, 8: 2}  # blocks of a processor at once, by queries
_FAR = 2**62
_LIMIT = 2**30  # places: the sum of two fits 32 bits


# By device, thread and size: see ``_counters``. Never freed, since graphs hold their addresses.
_COUNTERS: dict[tuple[str, int, int, int], Any] = {}


def _counters(like: Any, count: int) -> Any:
    """Counters of arrived blocks: zeros, and left as zeros by every launch. Each thread has its own:
    launches of one thread follow one another, those of two may meet."""
    count = max(64, 1 << (count - 1).bit_length())
    device = like.device.id if kind(like) == "cuda" else 0
    key = (kind(like), device, threading.get_ident(), count)
    if key not in _COUNTERS:
        _COUNTERS[key] = namespace(like).zeros(count, dtype="uint32")
    return _COUNTERS[key]


@functools.cache
def _splits(
    processors: int, blocks: int, stop: int, queries: int, itemsize: int
) -> tuple[int, int]:
    """Into how many parts the keys fall at most, and how many keys a part has at least: enough parts
    to fill the processors, but so long that their results and queries stay below a tenth of the bytes."""
    least = max(2 * TILE, -(-queries * {1: 72, 2: 30}.get(itemsize, 17) // TILE) * TILE)
    queries_of_block = next(n for n in _RESIDENT if n >= queries)
    room = _RESIDENT[queries_of_block] * processors
    return max(1, min(MOST_SPLITS, room // blocks, -(-stop // least))), least


def _shared(width: int, tokens: int, queries: int, splits: int, itemsize: int) -> int:
    """Bytes of shared memory: what is staged, then the sums of the warps, then the weights of the splits."""
    lanes = 4
    while 8 * lanes < width:
        lanes *= 2
    room = 8 * lanes
    staged = 4 * queries * (room + WARPS * TILE) + 2 * tokens * room * itemsize
    if itemsize == 1:  # scales: of a tile for each warp, and of the new tokens
        staged += groups_of(width) * (4 * WARPS * (TILE + 4) + 4 * tokens)
    return max(staged, 4 * WARPS * queries * room, 4 * splits * queries)


def _decode(
    x: Any, place: Place, starts: Any, lengths: Any, cos: Any, sin: Any, positions: Any,
    heads: int, stop: int, causal: bool, scale: float, window: int | None, norm: Any = None,
) -> Any:  # fmt: skip
    """A few new tokens: everything in one launch, the norm of queries and keys too: (their weights, eps)."""
    (batch, tokens, _, width), kv_heads = x.shape, place.keys.shape[2]
    shared_by = heads // kv_heads * tokens
    queries = next((n for n in (1, 2, 4) if n >= shared_by), 8)
    sets = -(-shared_by // queries)
    blocks, itemsize = batch * kv_heads * sets, place.keys.itemsize
    splits, least = _splits(processors(x), blocks, stop, min(queries, shared_by), itemsize)
    out, scratch = empty(x, (batch, tokens, heads * width)), None
    if splits > 1:
        scratch = empty(x, blocks * splits * queries * (-(-width // 4) * 4 + 4), "float32")
    cos, sin, positions, per_batch, half, table_kind = turn_arguments(cos, sin, positions)
    _attend_cached(
        (splits * sets, kv_heads, batch), 32 * WARPS, packed(x), *(norm or (None, None, 0.0)), *place.arrays,
        None if isinstance(starts, int) else packed(starts), packed(lengths), cos, sin, positions,
        out, scratch, _counters(x, blocks), per_batch if batch > 1 else 0, half, table_kind,
        *place.arguments(), tokens, heads, kv_heads, width, starts if isinstance(starts, int) else 0,
        stop, _FAR if window is None else window, scale, causal, sets, least,
        shared=_shared(width, tokens, queries, splits, itemsize),
        REAL=element(x), CACHE=place.element, QUERIES=queries,
    )  # fmt: skip
    return out


def _append(
    x: Any, place: Place, starts: Any, cos: Any, sin: Any, positions: Any, heads: int
) -> Any:
    """Write the new keys and values to the cache in one launch; return the queries (B, T, H, D)."""
    batch, tokens, count, width = x.shape
    turned = None if cos is None else empty(x, (batch, tokens, heads, width))
    cos, sin, positions, per_batch, half, table_kind = turn_arguments(cos, sin, positions)
    parts = x.size * x.itemsize // 16
    _turn_and_append(
        min(max(1, -(-parts // (4 * THREADS))), 8 * processors(x)), THREADS, x, *place.arrays,
        None if isinstance(starts, int) else packed(starts), cos, sin,
        positions, turned, per_batch if batch > 1 else 0, half, table_kind, *place.arguments(),
        batch, tokens, heads, (count - heads) // 2, width, starts if isinstance(starts, int) else 0,
        REAL=element(x), CACHE=place.element, QUERIES=1,
    )  # fmt: skip
    return x[:, :, :heads] if turned is None else turned


def _run(
    x: Any, place: Place, starts: Any, lengths: Any, cos: Any, sin: Any, positions: Any,
    heads: int, stop: int, causal: bool, scale: float | None, window: int | None, norm: Any = None,
) -> Any:  # fmt: skip
    x = packed(x)
    batch, tokens, _, width = x.shape
    scale = width**-0.5 if scale is None else scale
    if not x.size:
        return empty(x, (batch, tokens, heads * width))
    if tokens <= MOST_TOKENS:
        return _decode(
            x, place, starts, lengths, cos, sin, positions, heads, stop, causal, scale, window, norm
        )  # fmt: skip
    q = _append(x, place, starts, cos, sin, positions, heads)
    k, v = _known(place, stop, x)
    firsts = None if isinstance(starts, int) else starts
    out, _ = attend(
        q,
        k,
        v,
        lengths=lengths,
        starts=firsts,
        causal=causal,
        scale=scale,
        window=window,
        want_lse=False,
    )
    return out.reshape(batch, tokens, heads * width)


def _known(place: Place, stop: int, like: Any) -> tuple[Any, Any]:
    """The first ``stop`` places of each row, keys and values in the dtype of ``like``: views where they can be."""
    if place.key_scales is not None:
        return _dequantized(place, stop, like)
    keys, values = (_first(cache, place.table, stop) for cache in (place.keys, place.values))
    return narrow(keys, like.dtype), narrow(values, like.dtype)


def _first(cache: Any, table: Any, stop: int) -> Any:
    """The first ``stop`` places of each row: a view, or a copy of its pages."""
    if table is None:
        return cache[:, :stop]
    pages = -(-stop // cache.shape[1])
    rows = namespace(cache).take(cache, table[:, :pages].reshape(-1), axis=0)
    return rows.reshape(table.shape[0], -1, *cache.shape[2:])[:, :stop]


def _dequantized(place: Place, stop: int, like: Any) -> tuple[Any, Any]:
    batch, _, heads, width = place.shape
    keys, values = (empty(like, (batch, stop, heads, width)) for _ in "kv")
    blocks = min(max(1, -(-stop * heads * width // (8 * THREADS))), 8 * processors(like))
    _dequantize(
        (blocks, batch, 2), THREADS, *place.arrays, keys, values, *place.arguments(), stop, heads,
        width, REAL=element(like), CACHE=place.element,
    )  # fmt: skip
    return keys, values


def _fits(
    x: Any, place: Place, starts: Any, lengths: Any, cos: Any, sin: Any, positions: Any,
    heads: int, stop: int,
) -> bool:  # fmt: skip
    """Whether the kernels take these arguments."""
    keys = place.keys
    if not is_element(x) or len(x.shape) != 4 or not place.whole():
        return False
    batch, tokens, count, width = x.shape
    rows, capacity, kv_heads, _ = place.shape
    return (
        (place.element in (EIGHT_BIT, element(x)) or dtype_name(x.dtype) == "float32")
        and rows == batch < 2**16
        and 0 < kv_heads < 2**16
        and count == heads + 2 * kv_heads
        and heads % kv_heads == 0
        and 0 < keys.shape[3] == width <= 256
        and 0 < stop <= capacity < _LIMIT
        and batch * tokens < 2**31
        and _is_start(starts, batch, capacity - tokens)
        and (lengths is None or _is_per_row(lengths, batch))
        and takes_tables(cos, sin, positions, width)
        and (cos is None or positions.shape in ((tokens,), (batch, tokens)))
        and (tokens <= MOST_TOKENS or _attends(x, heads, kv_heads))
    )


def _attends(x: Any, heads: int, kv_heads: int) -> bool:
    """Whether the kernel of a prompt's attention takes heads like these."""
    keys = x[:, :, heads : heads + kv_heads]
    return attend_accepts(x[:, :, :heads], keys, keys)


def _is_start(x: Any, batch: int, last: int) -> bool:
    return 0 <= x <= last if isinstance(x, int) else _is_per_row(x, batch)


def _is_per_row(x: Any, batch: int) -> bool:
    return x.shape == (batch,) and dtype_name(x.dtype) == "int64"


def _forward(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, causal: bool = True,
    scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    given = (starts, lengths, cos, sin, positions)
    return _run(packed, place_of(keys, values), *given, heads, stop, causal, scale, window)


def after_norm_heads(normed: Any, eps: float) -> Callable[..., Any] | None:
    """A forward of ``cached_attention`` that norms queries and keys in the same launch.

    ``normed`` are the arrays of ``norm_heads``. None if the kernel cannot take the weights, or so many tokens.
    """
    x, q_weight, k_weight = normed
    same = q_weight.dtype == k_weight.dtype == x.dtype
    if not same or x.shape[1] > MOST_TOKENS:
        return None

    def forward(
        _: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None, sin: Any = None,
        positions: Any = None, *, heads: int, stop: int, causal: bool = True,
        scale: float | None = None, window: int | None = None,
    ) -> Any:  # fmt: skip
        given = (starts, lengths, cos, sin, positions, heads, stop, causal, scale, window)
        norm = (packed(q_weight), packed(k_weight), eps)
        return _run(x, place_of(keys, values), *given, norm)

    return forward


def _accepts(
    packed: Any, keys: Any, values: Any, starts: Any, lengths: Any, cos: Any = None,
    sin: Any = None, positions: Any = None, *, heads: int, stop: int, **options: Any,
) -> bool:  # fmt: skip
    given = (starts, lengths, cos, sin, positions)
    return _fits(packed, place_of(keys, values), *given, heads, stop)


def paged_attention(
    packed: Any, key_pages: Any, value_pages: Any, table: Any, starts: Any, lengths: Any,
    cos: Any = None, sin: Any = None, positions: Any = None, *, heads: int, stop: int | None = None,
    causal: bool = True, scale: float | None = None, window: int | None = None,
) -> Any:  # fmt: skip
    """``cached_attention`` over a cache in pages.

    ``key_pages`` and ``value_pages`` are (pages, page size, K, D); ``table``, int32 (B, pages of a row),
    says which page holds places i * page size on of each row. Two rows must not append to one page,
    and of a prompt (more than 8 tokens) all pages up to ``stop`` are read. ``stop`` is by default all
    places.
    Arguments that the kernels do not take are a ValueError.
    """
    place = place_of(key_pages, value_pages, _table(table, packed.shape[0]))
    stop = place.shape[1] if stop is None else stop
    given = (starts, lengths, cos, sin, positions)
    if not _fits(packed, place, *given, heads, stop):
        raise ValueError(
            f"paged attention cannot take new tokens {packed.shape} in {packed.dtype}, pages "
            f"{key_pages.shape} in {key_pages.dtype} and a table {table.shape} with stop {stop}"
        )
    return _run(packed, place, *given, heads, stop, causal, scale, window)


def _table(table: Any, batch: int) -> Any:
    """Return ``table``, contiguous; one that is not int32 (B, pages) is a ValueError."""
    if len(table.shape) != 2 or table.shape[0] != batch or dtype_name(table.dtype) != "int32":
        raise ValueError(
            f"table must be int32 ({batch}, pages of a row), not {table.dtype} {table.shape}"
        )
    return packed(table)


cached_attention.maker("cuda", _forward, accepts=_accepts)
