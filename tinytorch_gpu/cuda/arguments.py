"""What a kernel's parameters make of the arguments that they are given.

A converter is asked for every argument of every launch, some thirty of attention's: each looks first at what it nearly
always gets.
"""

from collections.abc import Callable
from typing import Any

import numpy

from ..backend import dtype_name, kind

_POINTED = {
    "float": "float32", "half": "float16", "bfloat16": "bfloat16", "int": "int32",
    "long long": "int64", "unsigned long long": "uint64", "unsigned": "uint32",
    "unsigned char": "uint8", "bool": "bool", "double": "float64", "eight_bit": "int8",
}  # fmt: skip
_SCALARS: dict[str, Any] = {
    "int": numpy.int32, "unsigned": numpy.uint32, "long long": numpy.int64,
    "unsigned long long": numpy.uint64, "float": numpy.float32, "bool": numpy.bool_,
}  # fmt: skip
_NULL = numpy.uint64(0)


def address(label: str, pointed: str, any_strides: bool) -> Callable[[Any], Any]:
    """What takes an array as a pointer to the C type ``pointed``; ``label`` names it in errors."""
    wanted = None if pointed == "void" else _POINTED[pointed]

    def convert(x: Any) -> Any:
        if x is None:
            return _NULL
        where = kind(x)
        if not where or where == "cpu":
            what = "an array of a GPU, not of NumPy" if where else f"an array, not {x!r}"
            raise TypeError(f"{label} must be {what}")
        if wanted is not None and dtype_name(x.dtype) != wanted:
            raise TypeError(f"{label} must hold {wanted}, not {dtype_name(x.dtype)}")
        if not any_strides and not x.flags.c_contiguous:
            raise ValueError(f"{label} must be contiguous, not of strides {x.strides}")
        return x

    return convert


def number(label: str, scalar: str) -> Callable[[Any], Any]:
    """What takes a number as the C type ``scalar``."""
    wanted = _SCALARS[scalar]
    if wanted is numpy.float32:
        return wanted
    low, high = (
        (0, 1) if wanted is numpy.bool_ else (numpy.iinfo(wanted).min, numpy.iinfo(wanted).max)
    )

    def convert(x: Any) -> Any:
        if type(x) is not int and type(x) is not bool:
            if not hasattr(x, "__index__") and not isinstance(x, numpy.bool_):
                raise TypeError(f"{label} must be a whole number, not {x!r}")
            x = int(x)
        if not low <= x <= high:
            raise OverflowError(f"{label} does not fit {wanted.__name__}: {x}")
        return wanted(x)

    return convert
