"""The cases of attention, without and with a cache."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, allowed, array, fixed, normal, qkv, state


def _attention_cases() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Both attention operations take the same: (note, arguments, options)."""
    no_row = np.ones((3, 5), int)
    no_row[1] = 0
    causal = {"causal": True}
    return [
        ("both ways", qkv(), {}),
        ("causal", qkv(t=5), causal),
        ("one query, one key, one head", qkv(1, 1, 1, 1), causal),
        ("one new query", qkv(t=1, s=7, k=2), causal),
        ("one sequence, one query", qkv(1, 1, 4, 6, s=7, k=2), causal),
        ("grouped heads", qkv(t=3, h=6, k=2, s=5), causal),
        ("one key head, odd width", qkv(h=3, k=1, d=5), causal),
        ("more queries than keys", qkv(t=5, s=3), causal),
        ("scale", qkv(s=5), {"scale": 0.3}),
        ("window", qkv(t=7), {**causal, "window": 3}),
        ("window both ways", qkv(t=6), {"window": 2}),
        ("mask (T, S)", (*qkv(s=5), allowed(3, 5)), {}),
        ("mask (B, T, S)", (*qkv(s=5), allowed(2, 3, 5)), causal),
        ("mask (B, H, T, S)", (*qkv(s=5, k=2), allowed(2, 4, 3, 5)), {}),
        ("mask (1, 1, 1, S)", (*qkv(s=5), allowed(1, 1, 1, 5)), {}),
        ("boolean mask", (*qkv(s=5), array(no_row, "bool")), {}),
        ("a row that sees nothing", (*qkv(s=5), array(no_row)), {}),
        ("nothing seen at all", (*qkv(s=5), array(np.zeros((3, 5)))), {}),
        ("bias", (*qkv(s=5), None, normal(1, 4, 3, 5)), causal),
        ("bias of a row", (*qkv(s=5), None, normal(2, 1, 1, 5)), {}),
        ("bias and mask", (*qkv(s=5), array(no_row), normal(2, 4, 3, 5)), {}),
        ("lengths", (*qkv(s=6, k=2), None, None, array([6, 4])), causal),
        ("lengths, no causality", (*qkv(s=6), None, None, array([2, 5])), {}),
        ("no key in a row", (*qkv(s=4), None, None, array([0, 4])), {}),
        ("lengths and starts", (*qkv(s=8, k=2), None, None, array([5, 8]), array([2, 6])), causal),
        ("padded queries", (*qkv(b=3, s=6), None, None, array([1, 3, 4]), array([0, 0, 3])), causal),
        ("starts and window", (*qkv(s=8), None, None, array([5, 8]), array([2, 5])),
         {**causal, "window": 2}),
        ("dropout", (*qkv(s=5), None, None, None, None, state(3, 1)), {**causal, "dropout": 0.4}),
        ("dropout, grouped, masked", (*qkv(s=5, k=2), array(no_row), None, None, None, state(3, 2)),
         {"dropout": 0.25}),
    ]  # fmt: skip


def _cached_case(
    note: str,
    t: int,
    starts: Any,
    lengths: Any = None,
    rotated: int = 0,
    kv: int = 2,
    **options: Any,
) -> Case:
    """Cached attention of 4 query heads of 6 dimensions over a cache of 9 places."""
    cache = normal(2, 9, kv, 6, gradient=False)
    tables: tuple[Any, ...] = ()
    if rotated:
        first = np.reshape(starts if isinstance(starts, int) else starts.draw(None), (-1, 1))
        places = first + np.arange(t)
        tables = (*turns(rotated), array(places if len(places) > 1 else places[0]))
    specs = (normal(2, t, 4 + 2 * kv, 6, gradient=False), cache, cache, starts, lengths, *tables)
    return Case("cached_attention", note, specs, {"heads": 4, **options})


def _cached_cases() -> list[Case]:
    apart = array([0, 4])
    return [
        _cached_case("prefill", 4, 0, stop=4),
        _cached_case("prefill on", 3, 2, rotated=6, stop=5),
        _cached_case("one token", 1, 7, rotated=6, stop=8),
        _cached_case("one token, part of a head turned", 1, 7, rotated=4, stop=8),
        _cached_case("rows apart", 3, apart, array([3, 7]), rotated=6, stop=7),
        _cached_case("padded rows", 3, apart, array([1, 7]), stop=7),
        _cached_case("one token of rows apart", 1, apart, array([1, 5]), rotated=6, kv=1, stop=5),
        _cached_case("window", 4, 3, kv=4, stop=7, window=2),
        _cached_case("both ways", 2, 1, stop=3, causal=False),
    ]


def turns(rotated: int) -> tuple[Floats, Floats]:
    """cos and sin of 12 positions."""
    angles = np.arange(12)[:, None] * 0.7 ** np.arange(rotated // 2)
    return fixed(np.cos(angles), gradient=False), fixed(np.sin(angles), gradient=False)


ATTENTION: list[Case] = [
    # Tensor cores take the weights, and going back their gradients, in 16 bits: two roundings more.
    *(Case("attention", *rest, roundings=3) for rest in _attention_cases()),
    *(Case("attention_with_weights", *rest) for rest in _attention_cases()),
    *_cached_cases(),
]
