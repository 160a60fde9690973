"""The cases of the norms that go around their kernels' corners: widths at which a row changes from a
few lanes to a warp, to several warps, to elements one at a time; row counts that leave threads over."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, fixed, normal, weight

# Rows of whole 16-byte chunks in 16 bits (8), in float32 only (4), and of neither.
_SHAPES = [
    (1, 1), (5, 2), (5, 3), (70, 4), (3, 8), (33, 16), (9, 24), (2, 3, 64), (130, 72), (3, 257), (2, 512),
    (3, 520), (5, 768), (2, 1024), (3, 1032), (1, 1536), (2, 1001), (300, 40), (0, 16), (2, 0, 8),
]  # fmt: skip
_LONG = [(2, 2056), (1, 4096), (2, 4099), (1, 8200), (1, 8201), (1, 16384)]


def _scaled(factor: float, *shape: int, shift: float = 0.0) -> Floats:
    return Floats(lambda random: random.standard_normal(shape) * factor + shift)


def _arguments(name: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """States around 0.5: a mean that is 0 but for chance is also nothing but rounding errors."""
    states = (_scaled(1.0, *shape, shift=0.5),) * (2 if name.startswith("add") else 1)
    return (*states, *(weight(shape[-1]),) * (2 if "layer" in name else 1))


def _special() -> Any:
    values = np.arange(32.0).reshape(4, 8)
    values[1, 3], values[2, 0], values[3, 5:7] = np.nan, np.inf, (np.inf, -np.inf)
    return fixed(values)


def _cases(name: str) -> list[Case]:
    fused, parameters = name.startswith("add"), (weight(48),) * (2 if "layer" in name else 1)
    roundings = 3 if fused else 1
    # One or two elements brought to mean 0 and variance 1 have no gradient but rounding errors.
    shapes = _SHAPES[2:] if "layer" in name else _SHAPES
    made = [Case(name, f"{s}", _arguments(name, s), roundings=roundings) for s in shapes]
    long = _LONG[1::3] if fused else _LONG
    made += [Case(name, f"long {s}", _arguments(name, s), roundings=roundings) for s in long]
    for note, states in (
        ("tiny values", _scaled(1e-4, 3, 48)),
        ("huge values", _scaled(1e4, 3, 48)),
        ("far from 0", _scaled(0.05, 24, 48, shift=2.0)),
        ("all the same", fixed(np.full((2, 48), 3.0))),
        ("zeros", fixed(np.zeros((2, 48)))),
    ):
        given = (states,) * (2 if fused else 1)
        made.append(Case(name, note, (*given, *parameters), smooth=False, roundings=roundings))
    short = (weight(8),) * len(parameters)
    special = (_special(), normal(4, 8)) if fused else (_special(),)
    made.append(Case(name, "NaN and infinity", (*special, *short), smooth=False))
    return made


def _heads_case(note: str, shape: tuple[int, ...], heads: int, **options: Any) -> Case:
    gains = (weight(shape[-1]), weight(shape[-1]))
    return Case("norm_heads", note, (normal(*shape), *gains), {"heads": heads, **options})


# In the table that gradients are taken of too: small.
HEADS: list[Case] = [
    _heads_case("grouped", (2, 3, 8, 5), 4),
    _heads_case("as many keys as queries", (1, 2, 3, 4), 1),
    _heads_case("one token", (1, 1, 5, 8), 3),
    _heads_case("eps", (1, 2, 4, 6), 2, eps=0.5),
]


NORM: list[Case] = [
    case
    for name in ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
    for case in _cases(name)
]
NORM += [
    _heads_case(f"heads of {width}", (2, 3, 7, width), 3)
    for width in (1, 2, 7, 12, 16, 64, 100, 128, 256, 260, 1032)
]
NORM += [
    _heads_case("many tokens", (3, 70, 6, 32), 2),
    _heads_case("no tokens", (2, 0, 6, 8), 2),
    Case("norm_heads", "NaN and infinity",
         (Floats(lambda random: _special().draw(random).reshape(1, 1, 4, 8)), weight(8), weight(8)),
         {"heads": 2}, smooth=False),
    Case("norm_heads", "zeros", (fixed(np.zeros((1, 2, 4, 16))), weight(16), weight(16)),
         {"heads": 2}, smooth=False),
]  # fmt: skip
