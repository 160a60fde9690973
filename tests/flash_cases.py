"""The cases of attention that go around its kernels' corners: head sizes on both sides of every compiled
one, rows just past a tile, and what hides keys, across the edges of tiles."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, Given, allowed, array, fixed, normal, qkv, state

# Widths in whole 16-byte chunks and not, up to each head size that kernels are compiled for.
_WIDTHS = (1, 3, 8, 31, 32, 40, 64, 65, 80, 96, 100, 128, 136, 160, 192, 200, 250, 256)


def _scaled(factor: float, *shape: int, shift: float = 0.0) -> Floats:
    return Floats(lambda random: random.standard_normal(shape) * factor + shift)


def _whole(most: int, *shape: int) -> Floats:
    """Whole numbers from -``most`` to ``most``."""
    return Floats(lambda random: random.integers(-most, most + 1, shape).astype(float))


def _rows(values: Any) -> Given:
    """Lengths or starts in 32 bits."""
    return array(values, "int32")


def _float32(*shape: int) -> Given:
    """A bias that stays in 32 bits whatever the queries are."""
    return Given(lambda random: random.standard_normal(shape).astype(np.float32))


def _partly_hidden(*shape: int) -> Floats:
    """A bias that hides keys by -inf, for one query all of them."""

    def draw(random: np.random.Generator) -> Any:
        values = random.standard_normal(shape)
        values[random.random(shape) < 0.3] = -np.inf
        values[..., 1, :] = -np.inf
        return values

    return Floats(draw, gradient=False)


def _shapes() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    causal = {"causal": True}
    return [
        *((f"a head of {d}", qkv(1, 5, 2, d, s=19, k=1), causal) for d in _WIDTHS),
        ("one past a tile of queries", qkv(1, 129, 1, 32, s=6), {}),
        ("one past a tile of keys", qkv(1, 6, 1, 64, s=65), {}),
        ("tiles both ways", qkv(1, 70, 1, 24, s=70), causal),
        ("tiles of a wide head", qkv(1, 35, 1, 132, s=35), causal),
        ("tiles of the widest head", qkv(1, 34, 1, 256, s=34), causal),
        ("more queries than keys, in tiles", qkv(1, 90, 1, 8, s=20), causal),
        ("a long row of keys", qkv(1, 2, 2, 16, s=600, k=1), causal),
        ("three heads to a key head, in tiles", qkv(1, 67, 3, 16, s=67, k=1), causal),
        ("many rows", qkv(9, 1, 4, 8, s=3, k=2), causal),
        ("one key, and many", (*qkv(2, 3, 2, 16, s=9), None, None, array([1, 9])), {}),
        ("negative scale", qkv(1, 5, 2, 16, s=9), {"scale": -0.2}),
        # Of whole numbers and by a power of two, so that scores of 50 are exact in any order of summing.
        ("scores far apart", (*(_whole(9, 1, 5, 2, 32) for _ in range(2)), normal(1, 5, 2, 32)), {"scale": 0.125}),
        ("tiny values", tuple(_scaled(1e-3, 1, 5, 2, 16) for _ in range(3)), {}),
        ("far from 0", tuple(_scaled(0.5, 1, 5, 2, 16, shift=1.0) for _ in range(3)), causal),
    ]  # fmt: skip


def _sights() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    causal, window = {"causal": True}, {"causal": True, "window": 20}
    blind = np.ones((66, 70), bool)
    blind[3], blind[64] = False, False
    return [
        ("a window over tiles", qkv(1, 80, 1, 16), window),
        ("a window of two", qkv(1, 70, 1, 8), {"causal": True, "window": 2}),
        ("a window both ways, in tiles", qkv(1, 70, 1, 8), {"window": 9}),
        ("a window wider than the keys", qkv(1, 5, 2, 8, s=9), {"window": 100}),
        ("a window of none", qkv(1, 3, 2, 8, s=9), {**causal, "window": 0}),
        ("lengths in tiles", (*qkv(3, 4, 1, 16, s=80), None, None, array([64, 80, 0])), {}),
        ("lengths in 32 bits", (*qkv(2, 3, 2, 8, s=9), None, None, _rows([5, 9])), causal),
        ("starts in 32 bits", (*qkv(2, 3, 2, 8, s=9), None, None, None, _rows([2, 6])), causal),
        ("one length for all rows", (*qkv(2, 3, 2, 8, s=9), None, None, array([7])), causal),
        ("longer than the keys", (*qkv(2, 3, 2, 8, s=9), None, None, array([12, 9])), causal),
        ("starts before the keys", (*qkv(2, 4, 2, 8, s=5), None, None, None, array([-2, 1])), causal),
        ("starts in tiles", (*qkv(2, 40, 1, 16, s=90), None, None, array([55, 90]), array([10, 50])), window),
        ("mask (1, S)", (*qkv(2, 3, 2, 8, s=9), allowed(1, 9)), {}),
        ("mask (T, 1)", (*qkv(2, 3, 2, 8, s=9), allowed(3, 1)), {}),
        ("mask (B, 1, 1, S)", (*qkv(2, 3, 2, 8, s=9), allowed(2, 1, 1, 9)), causal),
        ("mask (1, H, T, S)", (*qkv(2, 3, 2, 8, s=9, k=1), allowed(1, 2, 3, 9)), {}),
        ("mask of floats", (*qkv(2, 3, 2, 8, s=9), Given(lambda r: r.integers(0, 2, (3, 9)) * 0.5)), {}),
        ("mask over tiles", (*qkv(1, 66, 1, 16, s=70), array(blind, "bool")), {}),
        ("a mask all true", (*qkv(1, 3, 2, 8, s=9), array(np.ones((3, 9)), "bool")), {}),
        ("bias in 32 bits", (*qkv(2, 3, 2, 8, s=9), None, _float32(2, 3, 9)), causal),
        ("bias of heads", (*qkv(2, 3, 4, 8, s=9, k=2), None, normal(4, 1, 9)), causal),
        ("bias (S,)", (*qkv(2, 3, 2, 8, s=9), None, normal(9)), {}),
        ("bias over tiles", (*qkv(1, 66, 1, 16, s=70), None, normal(1, 1, 66, 70)), {}),
        ("bias that hides", (*qkv(1, 4, 2, 8, s=9), None, _partly_hidden(2, 4, 9)), {}),
    ]  # fmt: skip


def _drops() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    def case(note: str, shape: tuple[Any, ...], **options: Any) -> tuple[str, Any, Any]:
        return note, (*shape, None, None, None, None, state(7, 5)), {"dropout": 0.3, **options}

    return [
        case("dropout of whole fours", qkv(2, 4, 2, 16, s=36), causal=True),
        case("dropout of an odd row", qkv(2, 5, 2, 16, s=37)),
        case("dropout over tiles", qkv(1, 70, 2, 16, s=67, k=1), causal=True),
        case("dropout of a wide head", qkv(1, 5, 2, 160, s=33), window=30),
        case("dropout of nearly all", qkv(1, 5, 2, 8, s=9), **{"dropout": 0.97}),
    ]


def _not_finite(note: str, place: int, value: float) -> Case:
    """A key or value that every query of the second row sees, and no query of the first."""
    arguments: list[Any] = list(qkv(2, 3, 1, 8, s=9))
    values = np.random.default_rng(0).standard_normal((2, 9, 1, 8))
    values[1, 4, 0, 2] = value
    arguments[place] = fixed(values)
    return Case("attention", note, tuple(arguments), smooth=False)


FLASH: list[Case] = [
    Case("attention", *rest, smooth=False) for rest in (*_shapes(), *_sights(), *_drops())
]
# Apart, since tests of all attention ask for finite gradients.
FLASH_NOT_FINITE: list[Case] = [
    _not_finite("a key that is NaN", 1, np.nan),
    _not_finite("a value that is NaN", 2, np.nan),
]
