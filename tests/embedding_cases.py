"""More cases of embedding: widths of every alignment, rare and frequent rows."""

from typing import Any

import numpy as np
from case_specs import Case, DType, array, ids, weight


def _case(note: str, numbers: Any, table: Any, **options: Any) -> Case:
    return Case("embedding", note, (numbers, table), options, smooth=False)


def _frequent(count: int, rows: int) -> Any:
    """Two thirds are one row, more than one warp sums; the rest are spread."""
    numbers = np.arange(count) * 7 % rows
    numbers[np.arange(count) % 3 > 0] = rows // 2
    return array(numbers)


EMBEDDING: list[Case] = [
    *(_case(f"width {c}", ids(11, 2, 4), weight(11, c)) for c in (1, 3, 8, 33, 40, 136, 264)),
    *(_case(f"a frequent row, width {c}", _frequent(151, 10), weight(10, c)) for c in (5, 72)),
    _case("a frequent row of padding", _frequent(120, 10), weight(10, 8), padding=5, scale=0.5),
    _case("padding from the end", ids(4, 9), weight(4, 6), padding=-1),
    _case("all the same", array(np.full((3, 40), 2)), weight(3, 12)),
    _case("as often as one warp sums", array(np.repeat([2, 0, 1], [32, 33, 31])), weight(3, 8)),
    _case("a wide row", array([3, 0]), weight(4, 1540)),
    _case("a wide row, one by one", array([3, 0, 3]), weight(4, 1541)),
    _case("more rows than a block", ids(300, 50), weight(300, 4)),
    _case("no ids", array(np.zeros((0, 3))), weight(5, 4)),
    _case("a number", array(2), weight(4, 8)),
    _case("to float32", ids(9, 2, 5), weight(9, 24), dtype=DType("float32"), scale=2.0),
]
