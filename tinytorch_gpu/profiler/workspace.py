"""Bytes that an operation needs for itself while it runs, beyond its results and what it saves.

These are facts about the CPU's makers (``native/`` and ``host/``), op by op; where a maker changes its temporaries, change its
line here: a test compares the sums with what NumPy allocates. Small change (statistics of rows, buffers of a
few kilobytes) is left out. Kernels on a GPU need none worth counting, but for the references that they fall
back to.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from .. import native
from ..config import GATED
from ..host.activation import BUFFERS, SLOPED
from ..host.attention import batch_parts
from ..host.buffers import BLOCK
from ..host.optimizer import CHUNK
from ..host.scores import QUERIES, SCORES, is_exact
from ..host.threads import Cut, row_parts, split, threads, unequal
from ..native.sizes import MANY_ROWS, MOST_TOKENS, parts_size, rounded_bytes
from ..quantized.cache import groups_of
from .calls import Array, Call
from .costs import has_bias

# The reference of an exact GELU makes a temporary for every step: so many blocks at the worst moment.
GELU = 14
FEW_TOKENS = 8  # MOST_TOKENS of cuda/cached_attention.py: more are a prompt to a GPU
# Attention with dropout or a bias runs its reference: arrays of all scores at the worst moment.
SCORES_KEPT, SCORES_BACK = 10, 9
BIAS_KEPT, BIAS_BACK = 3, 4


def forward_workspace(call: Call, where: str = "cpu", recorded: bool = True) -> int:
    """Bytes beside the results while a call runs."""
    if where != "cpu":
        return _decoded_there(call)
    read = _read(call)
    if is_native(call):
        return read if recorded or call.op != "linear" else _native_linear(call)
    need = _FORWARD.get(call.op)
    sloped = recorded and call.op == "linear" and call.options["activation"] in SLOPED
    return (
        read
        + (0 if need is None else need(call))
        + (_buffers(call, BUFFERS, split) if sloped else 0)
    )


def backward_workspace(call: Call, where: str = "cpu") -> int:
    """Bytes beside the gradients while the backward of a call runs."""
    if call.op == "linear" and call.options.get("activation") and where != "cpu":
        return call.keeps[0].nbytes  # the gradient before the activation, on every device
    need = _BACKWARD.get(call.op)
    if is_native(call):
        return _native_linear_back(call) if call.op == "linear" else 0
    return need(call) if need is not None and where == "cpu" else 0


def update_workspace(weights: list[Array], where: str = "cpu") -> int:
    """Bytes beside the state while an optimizer steps: two buffers of a chunk; for the norm of gradients in 16
    bits the largest widened, and squared."""
    largest = max(weights, key=lambda w: w.size, default=None)
    if largest is None or where != "cpu":
        return 0
    if largest.width <= 4 and native.library() is not None:
        return 0
    if largest.width < 4:
        return 8 * largest.size
    return round(2 * largest.width * min(CHUNK, largest.size)) * threads()


def made_unrecorded(call: Call, where: str) -> tuple[Array, ...]:
    """What a call that is not recorded makes of what it would keep: NumPy's makers all the same."""
    return () if where == "cpu" and is_native(call) else call.keeps


# Native code works in place, or a few rows at a time.
_NATIVE = ("linear", "attention", "cross_entropy", "embedding", "rotary")


def is_native(call: Call) -> bool:
    """Whether native code does a call, which needs nothing beside the results."""
    if call.op not in _NATIVE or not by_library(call):
        return False
    return call.op != "attention" or not has_bias(call)


def by_library(call: Call) -> bool:
    """Whether there is native code, and for numbers like these."""
    return native.library() is not None and call.outputs[0].width == 4


def _first(call: Call) -> Array:
    found = call.arrays[0]
    assert found is not None
    return found


def _native_linear(call: Call) -> int:
    """What is not recorded: of many rows both halves of a gated product, where the weight is of floats, and x in
    8 bit where it is in blocks."""
    x, weight = _first(call), call.arrays[1]
    assert weight is not None
    rows, width = x.size // x.shape[-1], x.shape[-1]
    if weight.width < 2:
        return rows * rounded_bytes(width) if rows > 1 else 0
    many = call.options.get("activation") in GATED and rows >= MANY_ROWS
    return 4 * rows * weight.shape[0] if many else 0


def _linear(call: Call) -> int:
    """By NumPy: an array before the activation (which training keeps anyway) and the temporaries of a GELU."""
    activation, x, weight = call.options.get("activation"), _first(call), call.arrays[1]
    assert weight is not None
    if activation is None:
        return 0
    inner = round(x.size // x.shape[-1] * weight.shape[0] * x.width)
    some = _buffers(call, GELU, split) if activation == "gelu" else 0
    return (0 if call.keeps else inner) + some


def _linear_back(call: Call) -> int:
    """The gradient before the activation; of a 16-bit weight also itself and its gradient, widened."""
    weight, activation = call.arrays[1], call.options.get("activation")
    assert weight is not None
    own = call.keeps[0].nbytes if activation else 0
    if activation == "gelu":
        own += _buffers(call, GELU, unequal)
    if weight.width < 4:
        return own + 8 * weight.size
    return own + (_buffers(call, 2 + BUFFERS, unequal, 2) if activation in GATED else 0)


def _native_linear_back(call: Call) -> int:
    """The gradient before an activation, which takes the place of the result's unless it is wider; of a 16-bit weight
    itself, and then its gradient, widened."""
    weight = call.arrays[1]
    assert weight is not None
    wide = 4 * weight.size if weight.width < 4 else 0
    return wide + (call.keeps[0].nbytes if call.options.get("activation") in GATED else 0)


def _buffers(call: Call, count: int, cut: Cut, share: int = 1) -> int:
    """``count`` buffers of a block of rows, each a ``share`` of what an activation is applied to, in each thread, which
    ``cut`` gives its part."""
    x, weight = _first(call), call.arrays[1]
    assert weight is not None
    rows, width = x.size // x.shape[-1], weight.shape[0] // share
    most, parts = max(1, BLOCK // width), row_parts(rows, cut)[: threads()]
    at_once = sum(min(part.stop - part.start, most) for part in parts)
    return round(count * at_once * width * x.width)


def _block(call: Call, queries: int, keys: int) -> tuple[int, int, int]:
    """(scores, heads times queries, heads times keys) of the blocks of so many queries that are worked on at a time in
    the attention over ``keys``: of several rows of the batch, or of a part of one."""
    q, k = call.arrays[:2]
    assert q is not None and k is not None
    groups, kv_heads = _groups(call), k.shape[2]
    each = groups * queries * max(keys, 1)
    count, parts = max(1, SCORES // each), batch_parts(q, k)
    together = min(kv_heads, count) * max(1, min(parts[0].stop, count // kv_heads))
    together *= min(threads(), len(parts))
    return together * each, together * groups * queries, together * keys


def _largest(call: Call) -> tuple[int, int, int, int]:
    """The most that ``_block`` says of any block, and what more scores there are at a time: a buffer that has
    become too small is there until the new one is."""
    q, k, options = *call.arrays[:2], call.options
    assert q is not None and k is not None
    tokens, window = q.shape[1], options["window"]
    most, more = (0, 0, 0), 0
    for first in range(0, tokens, QUERIES):
        last = min(first + QUERIES, tokens)
        seen = k.shape[1] - (tokens - last if options["causal"] else 0)
        seen = seen if window is None else min(seen, window + QUERIES)
        found = _block(call, last - first, seen)
        if found[0] > most[0]:
            more = max(more + most[0], most[0] + found[0]) - found[0]
        most = tuple(map(max, most, found))  # type: ignore[assignment]
    return *most, more


def _attention(call: Call) -> int:
    """A block of scores and the one before; what they hide; its queries, mixed values and sums."""
    kept = SCORES_KEPT if call.options.get("dropout") else BIAS_KEPT if has_bias(call) else 0
    if kept:
        return kept * _all_scores(call)
    scores, rows, _, before = _largest(call)
    head, width = call.outputs[0].shape[-1], _first(call).width
    scores = 0 if _keeps_weights(call) else scores
    queries = rows * head if _copies_queries(call) else 0
    more = queries + max(before, rows * head + 4 * rows)
    return round(width * (scores + more)) + _masks(call)


def _masks(call: Call) -> int:
    """Which keys of a block are later than its queries, and 1 where they are not; those of the block before are there
    until they are made."""
    if not call.options["causal"]:
        return 0
    tokens = _first(call).shape[1]
    queries, blocks = min(QUERIES, tokens), 2 if tokens > QUERIES else 1
    return round(blocks * (1 + _first(call).width) * queries**2)


def _attention_back(call: Call) -> int:
    """Two blocks of scores, or one beside weights that were kept, and what they hide; copies of queries and results'
    gradients, and a product of a block, or of its keys behind the first."""
    kept = SCORES_BACK if call.options.get("dropout") else BIAS_BACK if has_bias(call) else 0
    if kept:
        return kept * _all_scores(call)
    scores, rows, keys, before = _largest(call)
    head, width = call.outputs[0].shape[-1], _first(call).width
    hidden = 0 if _keeps_weights(call) else _masks(call)
    scores *= 1 if _keeps_weights(call) else 2
    queries, grouped = _first(call), _groups(call) > 1
    copies = (int(_copies_queries(call)) + int(grouped)) * rows * head
    product = keys * head if queries.shape[1] > QUERIES else 0
    product = max(product, rows * head if grouped else 0)
    return hidden + round(width * (scores + copies + max(before, product)))


def _groups(call: Call) -> int:
    """Query heads of a key head."""
    q, k = call.arrays[:2]
    assert q is not None and k is not None
    return q.shape[2] // k.shape[2]


def _copies_queries(call: Call) -> bool:
    """Whether a block's queries are put together first, or multiplied by a scale that is exact."""
    return _groups(call) > 1 or is_exact(_first(call).shape[3] ** -0.5)


def _keeps_weights(call: Call) -> bool:
    """Whether the forward of an attention leaves its weights to the backward: they are its scores then."""
    return bool(call.keeps) and call.keeps[0].shape[-1] > 1


def _all_scores(call: Call) -> int:
    q, k = call.arrays[:2]
    assert q is not None and k is not None
    return round(q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * q.width)


def _cached(call: Call) -> int:
    """Many tokens through the cache: turned, appended, and mixed with all that it holds, of which there is a
    copy if it is narrower. The result is not there yet while they are turned."""
    packed, keys = call.arrays[:2]
    assert packed is not None and keys is not None
    batch, tokens, _, width = packed.shape
    heads, shared = call.options["heads"], keys.shape[2]
    turned = packed.nbytes if turns(call) else 0
    new = round(batch * tokens * shared * width * packed.width)
    if by_library(call):
        if tokens <= MOST_TOKENS:
            return 4 * parts_size(batch, heads, tokens, width)
        mix = 0
    else:
        q = Array((batch, tokens, heads, width), packed.width)
        k = Array(keys.shape, packed.width)
        mix = _attention(replace(call, arrays=(q, k, k), outputs=(q,)))
    # The result is not there yet while heads are turned; the factors of the pass before were let go of.
    early = -call.outputs[0].nbytes
    turning = early + turned * (1 if by_library(call) else 2)
    append = early + turned + (_rounding(new, width) if keys.width < 2 else 0)
    return max(turning, append, turned + _copies(keys, packed.width) + mix)


def _rounding(new: int, head: int) -> int:
    """Three arrays like the keys, or values, that are put in 8 bit, and four of a number for each scale."""
    return 3 * new + 4 * new * groups_of(head) // head


def _copies(keys: Array, width: float) -> int:
    """Keys and values widened from the cache: by way of float32, or of 8 bit the scales too."""
    if keys.width == width:
        return 0
    both = round(2 * keys.size * width)
    if width > 4:
        return both + 4 * keys.size
    return both + (
        4 * keys.size * groups_of(keys.shape[3]) // keys.shape[3] if keys.width < 2 else 0
    )


def _read(call: Call) -> int:
    """What attention that appends to a cache apart reads of it, widened."""
    if call.op != "attention":
        return 0
    keys = call.arrays[1]
    assert keys is not None
    return _copies(keys, _first(call).width) if keys.kind == "cache" else 0


def _decoded_there(call: Call) -> int:
    """On a GPU a prompt reads a cache in 8 bit by a copy in its own dtype."""
    if call.op != "cached_attention" or _first(call).shape[1] <= FEW_TOKENS:
        return 0
    keys = call.arrays[1]
    assert keys is not None
    return round(2 * keys.size * _first(call).width) if keys.width < 2 else 0


def turns(call: Call) -> bool:
    """Whether a call through the cache makes a turned copy of its queries and keys: that for many tokens."""
    if call.op != "cached_attention" or call.arrays[5] is None:
        return False
    return not (by_library(call) and _first(call).shape[1] <= MOST_TOKENS)


def _loss(call: Call) -> int:
    """A block of rows of the logits."""
    logits = _first(call)
    rows, classes = logits.shape
    return math.ceil(min(rows, max(1, BLOCK // classes)) * classes * logits.width)


def _rotary(call: Call) -> int:
    """The other halves, multiplied; and the factors, beside those of the pass before."""
    x = _first(call)
    return x.nbytes + rotary_factors(call)


def rotary_factors(call: Call) -> int:
    """Bytes of the factors that the maker holds on to until the next positions."""
    x = _first(call)
    return 2 * math.prod(x.shape[1:]) * math.ceil(x.width)


def _rotary_back(call: Call) -> int:
    """The reference: the turned halves, and the heads that are turned."""
    x, heads = _first(call), call.options.get("heads")
    return x.nbytes if heads is None else round(x.nbytes * heads / x.shape[2])


def _embedding_back(call: Call) -> int:
    """Rows in the order of their ids, and the sums of equal ones; for 16 bits the table in 32."""
    table, rows = call.arrays[1], call.outputs[0]
    assert table is not None
    return 2 * rows.nbytes + (4 * table.size if table.width < 4 else 0)


_FORWARD: dict[str, Callable[[Call], int]] = {
    "linear": _linear, "attention": _attention, "cached_attention": _cached, "cross_entropy": _loss,
    "rotary": _rotary,
}  # fmt: skip
_BACKWARD: dict[str, Callable[[Call], int]] = {
    "linear": _linear_back, "attention": _attention_back, "rotary": _rotary_back,
    "embedding": _embedding_back,
}  # fmt: skip
