"""The cases of activations and dropout that go around their kernels' corners: the last elements after
whole chunks, blocks of one row and of many, values at which functions bend, overflow or end."""

from typing import Any

import numpy as np
from case_specs import Case, fixed, normal, state

_PLAIN, _GATED = ("relu", "gelu", "gelu_tanh", "silu"), ("swiglu", "geglu")
_SIZES = [(8,), (2, 17), (1031,), (3, 5, 7), (4, 512), (2, 2051), (0,), (3, 0)]
# Width before halving: halves of 1, odd, whole chunks, more than the threads of a block hold.
_WIDTHS = [(3, 2), (5, 6), (7, 16), (2, 3, 48), (300, 8), (3, 130), (2, 4112), (0, 8), (4, 0)]
_BENDS = [-80.0, -30.0, -9.0, -5.0, -3.0, -1.0, -0.1, -1e-6, 0.0, 1e-6, 0.5, 2.0, 4.0, 8.0, 50.0]
_ENDS = [np.nan, np.inf, -np.inf, 1e4, -1e4, 3.0]


def _gates(values: list[float]) -> Any:
    """Each value as a gate, beside 1.5."""
    return fixed(np.array([[value, 1.5] for value in values]))


def _draws(count: int, seed: int, offset: int, p: float) -> Case:
    specs = (normal(count), state(seed, offset))
    return Case("dropout", f"{count} numbers of ({seed}, {offset}), p = {p}", specs, {"p": p})


ACTIVATION: list[Case] = [
    *(Case(name, f"{s}", (normal(*s),)) for name in _PLAIN for s in _SIZES),
    *(Case(name, f"{s}", (normal(*s),)) for name in _GATED for s in _WIDTHS),
    *(Case(name, "bends", (fixed(_BENDS),), smooth=False) for name in _PLAIN),
    *(Case(name, "bends", (_gates(_BENDS),), smooth=False) for name in _GATED),
    *(Case(name, "NaN and infinity", (fixed(_ENDS),), smooth=False) for name in _PLAIN),
    *(Case(name, "NaN and infinity", (_gates(_ENDS),), smooth=False) for name in _GATED),
]

DROPOUT: list[Case] = [
    _draws(1, 1, 0, 0.5), _draws(3, 2, 9, 0.1), _draws(8, 3, 2**33 + 1, 0.5), _draws(1029, 4, 5, 0.9),
    _draws(4099, 2**64 - 1, 2**64 - 1, 0.2), _draws(0, 1, 1, 0.5), _draws(64, 5, 5, 0.0),
    Case("dropout", "(4, 64)", (normal(4, 64), state(3, 1)), {"p": 0.25}),
    Case("dropout", "(2, 3, 5)", (normal(2, 3, 5), state(6, 7)), {"p": 0.25}),
    Case("dropout", "NaN and infinity", (fixed(_ENDS * 3), state(8, 9)), {"p": 0.5}, smooth=False),
]  # fmt: skip
