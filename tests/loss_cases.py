"""More cases of cross entropy: rows of every length and alignment, and extreme logits."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, array, fixed, ids, normal


def _case(note: str, logits: Floats, targets: Any, smooth: bool = False, **options: Any) -> Case:
    return Case("cross_entropy", note, (logits, targets), options, smooth=smooth, roundings=0)


def _spread(*shape: int) -> Floats:
    return Floats(lambda random: random.standard_normal(shape) * 10)


def _some_ignored(random_rows: int, classes: int) -> Any:
    targets = np.arange(random_rows) * 7 % classes
    targets[::3] = -100
    return array(targets)


LOSS: list[Case] = [
    *(_case(f"{v} classes", normal(3, v), ids(v, 3)) for v in (1, 2, 8, 33, 256, 1023, 1025)),
    *(_case(f"{v} classes, far apart", _spread(2, v), ids(v, 2)) for v in (2049, 5003)),
    _case("a long row", _spread(1, 16391), ids(16391, 1), label_smoothing=0.1),
    _case("many rows", normal(67, 5), ids(5, 67), label_smoothing=0.2),
    _case("many rows, some ignored", normal(70, 9), _some_ignored(70, 9)),
    _case("more rows than a block has threads", normal(1100, 3), _some_ignored(1100, 3)),
    _case("long rows, some ignored", normal(4, 1100), _some_ignored(4, 1100), label_smoothing=0.1),
    *(_case(f"the largest last of {v}", fixed([[0.0] * (v - 1) + [200.0]]), array([v - 1]))
      for v in (1024, 2048, 4099)),
    _case("no rows", normal(0, 6), array([])),
    _case("int32 targets", normal(5, 7), array([0, 6, -100, 3, 1], "int32"), smooth=True),
    _case("smoothing of 1", normal(3, 4), ids(4, 3), smooth=True, label_smoothing=1.0),
    _case("equal logits", fixed(np.full((2, 40), 3.25)), array([0, 39])),
    _case("tiny logits", fixed(np.arange(-5, 7).reshape(2, 6) * 1e-5), array([5, 0])),
    _case("huge logits", fixed([[6e4, -6e4, 0, 5.9e4], [-6e4, -6e4, -6e4, -6e4]]), array([3, 1])),
    _case("hidden classes", fixed([[0.5, -np.inf, 2, -np.inf], [-np.inf, 1, -np.inf, -np.inf]]),
          array([2, 1])),
    _case("a hidden target", fixed([[0.5, -np.inf, 2.0]]), array([1])),
    _case("nothing but hidden", fixed([[-np.inf, -np.inf, -np.inf], [1.0, 0.0, -1.0]]), array([1, 2])),
    _case("infinite", fixed([[0.5, np.inf, 2.0], [1.0, 2.0, 3.0]]), array([0, 1])),
    _case("not a number", fixed([[0.5, np.nan, 2.0], [1.0, 2.0, 3.0]]), array([0, 1])),
]  # fmt: skip
