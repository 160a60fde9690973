"""The functions of the emulated device's arrays: names that CuPy has, computed by NumPy.

What is not listed here raises, as it would be a function that CuPy lacks or that nothing has needed.
"""

import math
from typing import Any

import numpy

from .arrays import Array, Memory, aligned, computed, forbid_in_capture, operand, placed, traffic
from .runtime import settings

_FUNCTIONS = [
    "abs",
    "absolute",
    "add",
    "all",
    "any",
    "argmax",
    "argsort",
    "arange",
    "array_equal",
    "astype",
    "bitwise_and",
    "ceil",
    "clip",
    "concat",
    "concatenate",
    "copy",
    "cos",
    "count_nonzero",
    "cumsum",
    "cumulative_sum",
    "diff",
    "divide",
    "einsum",
    "equal",
    "erf",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "floor",
    "full",
    "full_like",
    "greater",
    "hypot",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "linspace",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moveaxis",
    "multiply",
    "negative",
    "nonzero",
    "not_equal",
    "ones",
    "ones_like",
    "outer",
    "power",
    "prod",
    "repeat",
    "rint",
    "sign",
    "sin",
    "sort",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "subtract",
    "sum",
    "take",
    "take_along_axis",
    "tanh",
    "tensordot",
    "tile",
    "trace",
    "tril",
    "triu",
    "unique",
    "var",
    "where",
    "zeros_like",
]
_VIEWS = ("broadcast_to", "permute_dims", "transpose", "swapaxes")
_NUMBERS = (
    "bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128", "inf", "nan", "pi", "e", "newaxis",
    "finfo", "iinfo", "dtype", "result_type", "isdtype", "can_cast",
)  # fmt: skip
SHARED_LIMIT = 99 << 10


def _wrapped(name: str) -> Any:
    function = getattr(numpy, name)

    def call(*args: Any, **options: Any) -> Any:
        return computed(function, *args, **options)

    call.__name__ = name
    return call


for _name in _FUNCTIONS:
    if hasattr(numpy, _name):
        globals()[_name] = _wrapped(_name)
for _name in _NUMBERS:
    globals()[_name] = getattr(numpy, _name)


def _view(name: str) -> Any:
    function = getattr(numpy, name)

    def call(x: Array, *args: Any, **options: Any) -> Array:
        return Array(function(x._values, *args, **options), x._memory)

    call.__name__ = name
    return call


for _name in _VIEWS:
    globals()[_name] = _view(_name)


def __getattr__(name: str) -> Any:
    if name == "PROCESSORS":
        return settings.processors
    if name == "COMPUTE_CAPABILITY":
        return settings.compute_capability
    raise AttributeError(f"the emulated device has no function {name!r}")


ndarray = Array


def empty(shape: Any, dtype: Any = "float64", order: str = "C") -> Array:
    """Uninitialised memory: poisoned, and a read before a write is found."""
    kind = numpy.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    memory = Memory(math.prod(sizes) * kind.itemsize)
    return Array(memory.block.view(kind).reshape(sizes, order=order), memory)


def zeros(shape: Any, dtype: Any = "float64") -> Array:
    """Zeros that lie where CUDA's allocations do; memory that nobody touches costs nothing."""
    forbid_in_capture("zeros")
    traffic.allocations += 1
    kind = numpy.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    block = aligned(math.prod(sizes) * kind.itemsize, numpy.zeros)
    return Array(block.view(kind).reshape(sizes))


def asarray(values: Any, dtype: Any = None) -> Array:
    """Numbers or a host array copied to the device; an Array of the device as it is."""
    if isinstance(values, Array):
        return values if dtype in (None, values.dtype) else computed(numpy.asarray, values, dtype)
    forbid_in_capture("a copy from the host")
    traffic.uploads += 1
    values = [operand(v) for v in values] if isinstance(values, list) else values
    return Array(placed(numpy.array(values, dtype=dtype, order="K")))


array = asarray


def ascontiguousarray(x: Array) -> Array:
    """Its elements one after the other: ``x`` itself if they are."""
    if x.flags.c_contiguous:
        return x
    return computed(numpy.ascontiguousarray, x)


def matmul(a: Array, b: Array) -> Array:
    """a @ b; 16-bit numbers are added up in float32, as cuBLAS does it."""
    return computed(_product, a, b)


def _product(a: Any, b: Any) -> Any:
    kind = numpy.result_type(a, b)
    if kind.itemsize > 2:
        return numpy.matmul(a, b)
    return numpy.matmul(a.astype(numpy.float32), b.astype(numpy.float32)).astype(kind)


def reshape(x: Array, shape: Any) -> Array:
    """Another shape."""
    return x.reshape(shape)


class add:  # noqa: N801  CuPy's name
    """``xp.add(a, b)`` and ``xp.add.at(target, index, values)``."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return computed(numpy.add, *args, **options)

    @staticmethod
    def at(target: Array, index: Any, values: Any) -> None:
        """Add ``values`` at ``index``, as often as it is named."""
        forbid_in_capture("add.at")
        numpy.add.at(operand(target), operand(index), operand(values))
