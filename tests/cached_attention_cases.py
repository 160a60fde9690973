"""Cached attention beyond the plain cases: several splits of the keys, many heads, odd head sizes."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, array, normal


def _tables(rotated: int, places: int) -> tuple[Floats, Floats]:
    angles = np.arange(places)[:, None] * 0.7 ** np.arange(rotated // 2)
    return (
        Floats(lambda random: np.cos(angles), gradient=False),
        Floats(lambda random: np.sin(angles), gradient=False),
    )


def _case(
    note: str, batch: int, tokens: int, heads: int, kv: int, width: int, capacity: int, stop: int,
    starts: Any, lengths: Any = None, rotated: int = 0, **options: Any,
) -> Case:  # fmt: skip
    cache = normal(batch, capacity, kv, width, gradient=False)
    tables: tuple[Any, ...] = ()
    if rotated:
        first = np.reshape(np.asarray(starts), (-1, 1))
        places = first + np.arange(tokens)
        tables = (*_tables(rotated, capacity), array(places if len(places) > 1 else places[0]))
    given = (
        starts if isinstance(starts, int) else array(starts),
        None if lengths is None else array(lengths),
    )
    packed = normal(batch, tokens, heads + 2 * kv, width, gradient=False)
    specs = (packed, cache, cache, *given, *tables)
    return Case(
        "cached_attention", note, specs, {"heads": heads, "stop": stop, **options}, roundings=2
    )


CACHED: list[Case] = [
    _case("three splits", 1, 1, 4, 2, 8, 400, 389, 388, rotated=8),
    _case("splits of rows apart", 2, 1, 6, 2, 16, 300, 300, [40, 290], [41, 291], rotated=8),
    _case("a row of no keys", 2, 1, 2, 1, 8, 300, 270, [0, 269], [0, 270]),
    _case("the whole capacity offered", 2, 1, 3, 1, 8, 512, 512, [5, 200], [6, 201], rotated=8),
    _case("new tokens over two splits", 1, 8, 2, 1, 8, 300, 260, 252, rotated=8),
    _case("windowed splits", 1, 2, 4, 2, 8, 500, 450, 448, window=200),
    _case("eight heads to one", 1, 2, 8, 1, 32, 64, 40, 38, rotated=32),
    _case(
        "three heads to one, five tokens", 2, 5, 9, 3, 64, 40, 33, [20, 28], [25, 33], rotated=64
    ),
    _case("heads of 80", 1, 1, 2, 2, 80, 20, 17, 16, rotated=40),
    _case("heads of 128", 1, 3, 4, 2, 128, 24, 20, 17, rotated=128),
    _case("heads of 256", 1, 1, 2, 1, 256, 16, 9, 8, rotated=256),
    _case("heads of 2", 1, 1, 1, 1, 2, 8, 5, 4, rotated=2),
    _case("an odd head", 1, 2, 2, 1, 7, 12, 9, 7, rotated=6),
    _case("all keys both ways", 1, 3, 2, 1, 8, 300, 290, 287, causal=False),
    _case("a prompt of nine", 2, 9, 4, 2, 16, 30, 14, 5, rotated=16),
    _case("a prompt of rows apart", 2, 12, 4, 2, 8, 40, 30, [3, 18], [15, 28], rotated=4),
    _case("the first token", 1, 1, 2, 2, 8, 4, 1, 0, rotated=8),
]
