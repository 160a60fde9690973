"""Low-rank adapters of a few rows by the library (kernels/cpu/lora.cpp)."""

import math
from typing import Any

import numpy

from ..backend import dtype_name
from ..ops import lora
from ..ops.lora import fits, inner_of, sides
from .blocks import FORMATS, PLAIN
from .library import Operation, Record, packed, pointer

PARTS = 3  # of kernels/cpu/lora.cpp
# base, x, factors a and b of three parts, low, out; rows, width, outs, format; ranks, first and last columns
# of the parts; their scales
_lora = Operation("lora", "10P13q3d")

# More rows are a prompt, whose products are better made by the BLAS.
MOST_ROWS = 16


def _accepts(base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None) -> bool:
    return (
        all(y.dtype == numpy.float32 and y.size for y in (base, x))
        and base.shape[:-1] == x.shape[:-1]
        and math.prod(x.shape[:-1]) <= MOST_ROWS
        and 0 < len(spans) <= PARTS
        and all(f.dtype == factors[0].dtype and f.flags.c_contiguous for f in factors)
        and dtype_name(factors[0].dtype) in PLAIN
        and fits(base, x, factors, spans)
    )


def _fields(base: Any, x: Any, factors: Any, low: Any, out: Any, spans: Any, scales: Any) -> Any:
    a, b, ranks, starts, stops = sides(factors, spans, PARTS)
    sizes = (x.size // x.shape[-1], x.shape[-1], base.shape[-1])
    form = FORMATS[dtype_name(factors[0].dtype)]
    numbers = (*sizes, form, *ranks, *starts, *stops, *scales, *(0.0,) * (PARTS - len(spans)))
    return (*map(pointer, (base, x, *a, *b, low, out)), *numbers)


def _room(x: Any, factors: Any) -> Any:
    """Room for x in the ranks of all parts, one part behind the other."""
    rows = x.size // x.shape[-1]
    return numpy.empty(rows * sum(len(a) for a in factors[::2]), numpy.float32)


def _forward(
    base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None
) -> Any:  # fmt: skip
    low, out = _room(x, factors), numpy.empty(base.shape, base.dtype)
    work = sum(f.size for f in factors) * (x.size // x.shape[-1])
    _lora(work, *_fields(packed(base), packed(x), factors, low, out, spans, scales))
    return out, (x, *inner_of(low, x, factors), *factors)


def _plan(
    out: Any, base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None
) -> Record | None:
    """The same of whatever base and x hold by then."""
    if not (base.flags.c_contiguous and x.flags.c_contiguous):
        return None
    low = _room(x, factors)
    fields = _fields(base, x, factors, low, out, spans, scales)
    return _lora.record((out, base, x, factors, low), *fields)


lora.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
