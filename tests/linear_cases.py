"""The cases of ``linear`` that go around its kernels' corners: rows at which another one takes over,
widths that leave lanes, warps and 16-byte loads over, outputs that leave a tile over, strange numbers."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, fixed, normal, weight

# One row more than each number of rows that a kernel is made for, and one fewer.
_ROWS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17]
# (rows, width, outs): one, odd, one more than 16 bytes hold, around what a warp and a block take at once.
_SIZES = [
    (1, 1, 1), (1, 1, 5), (2, 3, 2), (3, 1, 16), (4, 8, 1), (1, 9, 17), (5, 16, 15), (3, 24, 33), (2, 31, 7),
    (16, 32, 16), (9, 33, 8), (7, 40, 18), (1, 255, 6), (1, 256, 31), (3, 257, 5), (12, 264, 34), (1, 1032, 9),
    (6, 1000, 12), (1, 2056, 3), (2, 4096, 6), (16, 520, 20), (20, 72, 48), (1, 64, 300), (4, 48, 161), (33, 8, 2),
    (17, 16, 33), (19, 8, 257),
]  # fmt: skip
_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu")
_GATED = ("swiglu", "geglu")


def _scaled(factor: float, *shape: int, **kind: Any) -> Floats:
    return Floats(lambda random: random.standard_normal(shape) * factor, **kind)


def _whole(rows: int, width: int, outs: int, activation: str | None) -> Case:
    """Bias, activation and residual at once. ReLU goes without a bias: added to a product that was
    rounded to 16 bits, it may turn the sign of a sum near 0, and with it a whole gradient."""
    made = outs // 2 if activation in _GATED else outs
    bias = None if activation == "relu" else normal(outs)
    specs = (normal(rows, width), weight(outs, width), bias, normal(rows, made))
    note = f"{activation} and residual, {rows} x {width} to {outs}"
    return Case("linear", note, specs, {"activation": activation})


def _special() -> list[Case]:
    """Row 0 is ordinary; a NaN and infinities of both signs fill the others, or a row of the weight."""
    random = np.random.default_rng(6)
    made = []
    for rows, width in ((4, 40), (3, 9), (26, 16)):
        x = random.standard_normal((rows, width))
        x[1, 3], x[2, 7] = np.nan, np.inf
        x[-1, :2] = np.inf, -np.inf
        given = (fixed(x), weight(20, width))
        made.append(Case("linear", f"NaN and infinity in x, {width}", given, smooth=False))
        for name in _ACTIVATIONS:
            options = {"activation": name}
            note = f"NaN in x, {width}, {name}"
            made.append(Case("linear", note, given, options, smooth=False))
        w = random.standard_normal((18, width))
        w[1, 3], w[17, 7], w[9, 0] = np.nan, np.inf, -np.inf
        given = (normal(rows, width), fixed(w, weight=True))
        made.append(Case("linear", f"NaN and infinity in the weight, {width}", given, smooth=False))
    return made


def _frozen(rows: int, activation: str | None, bias: bool) -> Case:
    """A weight, and a bias, that are not trained; or of the two the weight only."""
    made = 9 if activation in _GATED else 18
    frozen = Floats(normal(18, 24).draw, weight=True, gradient=False)
    specs = (normal(rows, 24), frozen, Floats(normal(18).draw, gradient=bias), normal(rows, made))
    options = {"activation": activation, "needs": (True, False, bias, True)}
    return Case("linear", f"frozen, {rows} rows, {activation}", specs, options)


LINEAR: list[Case] = [
    *(_frozen(*what) for what in ((3, None, False), (33, "swiglu", False), (17, "gelu", True), (2, "silu", True))),
    *(Case("linear", f"{r} rows", (normal(r, 72), weight(20, 72), normal(20))) for r in _ROWS),
    *(Case("linear", f"{n} x {i} to {o}", (normal(n, i), weight(o, i))) for n, i, o in _SIZES),
    *(_whole(r, 40, 36, name) for name in _ACTIVATIONS for r in (1, 4, 16)),
    *(_whole(rows, 33, 10, "swiglu") for rows in (2, 5, 17)),
    _whole(1, 256, 2, "geglu"), _whole(3, 24, 66, None), _whole(11, 13, 5, None),
    # Whole matrices: tiles, blocks of rows and depths that leave something over.
    *(Case("linear", f"{n} x {i} to {o}", (normal(n, i), weight(o, i), normal(o)))
      for n, i, o in ((24, 7, 5), (50, 393, 66), (151, 770, 34), (30, 40, 1100))),
    *(_whole(rows, 72, 36, name) for rows, name in zip((24, 25, 29, 36, 40, 160), _ACTIVATIONS, strict=True)),
    Case("linear", "three axes", (normal(2, 4, 48), weight(17, 48), None, normal(2, 4, 17))),
    Case("linear", "a vector", (normal(264), weight(34, 264), normal(34))),
    *(Case("linear", f"tiny values, {r} rows", (_scaled(1e-3, r, 64), _scaled(1e-2, 20, 64, weight=True)))
      for r in (1, 6)),
    *(Case("linear", f"huge values, {r} rows", (_scaled(30.0, r, 64), _scaled(20.0, 20, 64, weight=True)))
      for r in (1, 6)),
    *_special(),
]  # fmt: skip
