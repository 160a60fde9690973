"""The next token from logits. All parameters are arrays, one value a row, so that a captured step
does not freeze them, and nothing waits for the host."""

from typing import Any

from ..backend import namespace, widen
from ..core.op import op
from ..rng import uniform


@op(differentiable=False)
def argmax(logits: Any) -> Any:
    """The likeliest token of each row of ``logits`` (B, V), the first of equals: ids (B,)."""
    return namespace(logits).argmax(logits, axis=-1)


@op(mutates=("seen",), differentiable=False)
def mark_seen(seen: Any, ids: Any) -> Any:
    """Set ``seen[b, ids[b, t]]`` for all t: ``seen`` (B, V) boolean, ``ids`` (B, T), -1 skipped."""
    xp = namespace(seen)
    places = xp.arange(seen.shape[1])[None, :]
    for t in range(ids.shape[1]):
        seen[...] = seen | (places == ids[:, t : t + 1])
    return seen


@op(differentiable=False)
def penalize(logits: Any, seen: Any, penalty: Any) -> Any:
    """Make tokens already ``seen`` (B, V) less likely: positive logits are divided by the row's
    ``penalty`` (B,), negative ones multiplied (Keskar et al. 2019, CTRL)."""
    xp, wide, factor = namespace(logits), widen(logits), penalty[:, None]
    return xp.where(seen, xp.where(wide > 0, wide / factor, wide * factor), wide)


@op(differentiable=False)
def sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, state: Any) -> Any:
    """Draw one token per row from softmax(logits / temperature), cut to the likely ones.

    ``logits`` (B, V); the rest (B,): temperature 0 takes the likeliest; ``top_k`` 0 keeps all;
    ``top_p`` keeps the fewest likeliest tokens that reach that probability (Holtzman et al. 2019),
    among the top k; ``min_p`` drops tokens less likely than that share of the likeliest. Equal
    logits at the edge stay together. ``state`` uint64 [seed, offset], or (B, 2) of each row. Gives
    ids (B,).
    """
    xp, wide = namespace(logits), widen(logits)
    rows, classes = wide.shape
    greedy = temperature == 0
    scaled = wide / xp.where(greedy, xp.ones_like(temperature), temperature)[:, None]
    ordered = -xp.sort(-scaled, axis=-1)
    top = ordered[:, :1]
    last = xp.where(top_k == 0, xp.full_like(top_k, classes), top_k)
    last = xp.minimum(last, xp.full_like(last, classes))[:, None]
    inside = xp.arange(classes)[None, :] < last
    powers = xp.where(inside, xp.exp(ordered - top), xp.zeros_like(ordered))
    reached = xp.cumulative_sum(xp.astype(powers, xp.float64), axis=-1)
    before = (reached - powers) / reached[:, -1:]
    kept = inside & (before < xp.astype(top_p, xp.float64)[:, None])
    kept = kept | (xp.arange(classes) == 0)[None, :]
    count = xp.sum(xp.astype(kept, xp.int64), axis=-1, keepdims=True)
    edge = xp.take_along_axis(ordered, count - 1, axis=-1)
    floor = xp.exp(scaled - top) >= min_p[:, None]
    weights = xp.where((scaled >= edge) & floor, xp.exp(scaled - top), xp.zeros_like(scaled))
    total = xp.cumulative_sum(xp.astype(weights, xp.float64), axis=-1)
    goal = uniform(state, rows, xp.float64)[:, None] * total[:, -1:]
    drawn = xp.sum(xp.astype(total <= goal, xp.int64), axis=-1)
    return xp.where(greedy, xp.argmax(wide, axis=-1), drawn)


@op(mutates=("held", "state"), differentiable=False)
def feed(held: Any, ids: Any, state: Any) -> Any:
    """Put the chosen ``ids`` (B,) where the next step reads them, ``held`` (B, 1), and let the next
    draw be another one: ``state`` as for ``sample``."""
    held[...] = ids[:, None]
    state[..., 1] = state[..., 1] + 1
    return held
