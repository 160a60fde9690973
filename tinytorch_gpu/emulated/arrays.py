"""The emulated device's arrays: a strict stand-in for CuPy's.

An Array holds an ndarray and is none: it has no buffer protocol, refuses to meet a host array, and
leaves the device only by ``get()`` or ``item()``, which are counted and, in a capture, forbidden. Memory
from ``empty`` is poisoned and knows which of its bytes have been written.
"""

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy


class CaptureError(RuntimeError):
    """Something inside a capture that a CUDA graph cannot hold."""


@dataclass
class Traffic:
    """What happened since the start: waits for the device, copies to it, memory asked for."""

    syncs: int = 0
    uploads: int = 0
    allocations: int = 0


traffic = Traffic()


@dataclass
class Pool:
    """Memory that is kept for reuse: what a step freed serves the next one, as in CuPy's pools.

    Once ``sealed`` it does not grow: an ``empty`` that finds no free block is a CaptureError.
    """

    sealed: bool = False
    free: dict[int, list[Any]] = field(default_factory=dict)

    def take(self, size: int) -> Any:
        """Return a block of ``size`` bytes."""
        blocks = self.free.get(size)
        if blocks:
            return blocks.pop()
        if self.sealed:
            raise CaptureError(f"{size} new bytes are needed inside a capture: warm up first")
        traffic.allocations += 1
        return aligned(size)


class _Place:
    pool: Pool | None = None
    capturing = False


place = _Place()


@contextlib.contextmanager
def using_pool(pool: Pool) -> Iterator[Pool]:
    """Take the memory of ``empty`` from ``pool`` inside."""
    before, place.pool = place.pool, pool
    try:
        yield pool
    finally:
        place.pool = before


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Refuse inside what a CUDA graph cannot hold."""
    before, place.capturing = place.capturing, True
    try:
        yield
    finally:
        place.capturing = before


def forbid_in_capture(what: str) -> None:
    """Raise a CaptureError if a capture is under way."""
    if place.capturing:
        raise CaptureError(f"{what} inside a capture")


class Memory:
    """One allocation: its bytes and, for memory from ``empty``, which have been written."""

    __slots__ = ("block", "pool", "valid")

    def __init__(self, size: int):
        self.pool = place.pool
        if self.pool is None:
            forbid_in_capture("an allocation outside a pool")
            traffic.allocations += 1
            self.block = aligned(size)
        else:
            self.block = self.pool.take(size)
        self.block[:] = 0xFF  # NaN, whatever the dtype
        self.valid = numpy.zeros(size, numpy.uint8)

    def __del__(self) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None and hasattr(self, "block"):
            pool.free.setdefault(self.block.size, []).append(self.block)


def aligned(size: int, make: Any = numpy.empty) -> Any:
    """``size`` bytes of ``make`` (numpy.empty or zeros) at a multiple of 256, as CUDA's allocations are."""
    raw = make(size + 256, numpy.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size]


def placed(values: Any) -> Any:
    """A copy of a host array whose first byte lies where CUDA's allocations do."""
    if not values.size:
        return values
    made = aligned(values.nbytes).view(values.dtype)
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    made = made.reshape(values.shape, order=order)
    made[...] = values
    return made


@dataclass(frozen=True)
class Pointer:
    """An address of the emulated device's memory."""

    ptr: int


class Array:
    """An array of the emulated device; made by its namespace's functions only."""

    __slots__ = ("_memory", "_values")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 1000
    device_kind = "emulated"

    def __init__(self, values: Any, memory: Memory | None = None):
        self._values, self._memory = values, memory

    # --- what it is ---
    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    itemsize = property(lambda self: self._values.itemsize)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: self._values.flags)
    T = property(lambda self: Array(self._values.T, self._memory))

    @property
    def address(self) -> int:
        """Where its first element lies."""
        return self._values.ctypes.data

    @property
    def data(self) -> "Pointer":
        """Where it lies, as CuPy says it: ``x.data.ptr``."""
        return Pointer(self.address)

    def validity_at(self, address: int) -> int:
        """The address of the validity of the byte at ``address``, 0 if all of it is valid."""
        if self._memory is None:
            return 0
        return self._memory.valid.ctypes.data + address - self._memory.block.ctypes.data

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        from . import namespace

        return namespace

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<emulated array {self.shape} {self.dtype}>"

    # --- to the host, on purpose ---
    def get(self) -> Any:
        """Copy to the host, waiting for the device; unwritten memory is a ValueError."""
        forbid_in_capture("a copy to the host")
        traffic.syncs += 1
        return read(self).copy()

    def item(self) -> Any:
        """The only element, as a Python number; waits for the device."""
        return self.get().item()

    # --- to the host, by accident ---
    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this would copy an array from the device: use .get() or .item()")

    __array__ = __float__ = __int__ = __bool__ = __index__ = __complex__ = _refuse
    __iter__ = __contains__ = tolist = __dlpack__ = __array_function__ = _refuse

    # --- views and elements ---
    def __getitem__(self, index: Any) -> "Array":
        own = host_index(index)
        if _is_view(index):
            parts = own if isinstance(own, tuple) else (own,)
            # With an ellipsis a single element is an array too, not a copied number.
            parts = parts if any(p is ... for p in parts) else (*parts, ...)
            return Array(self._values[parts], self._memory)
        forbid_in_capture("indexing by an array")
        return Array(numpy.asarray(read(self)[own]))

    def __setitem__(self, index: Any, value: Any) -> None:
        forbid_in_capture("an assignment")
        self._values[host_index(index)] = operand(value)
        if self._memory is not None:
            self._memory.valid[:] = 1

    def reshape(self, *shape: Any) -> "Array":
        """Another shape: a view where the strides allow it, else a copy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        made = self._values.reshape(wanted)
        if numpy.may_share_memory(made, self._values) or not made.size:
            return Array(made, self._memory)
        forbid_in_capture("a reshape that copies")
        return Array(read(self).reshape(wanted))

    def transpose(self, *axes: Any) -> "Array":
        """The axes in another order: a view."""
        return Array(self._values.transpose(*axes), self._memory)

    def view(self, dtype: Any) -> "Array":
        """The same bytes as another dtype."""
        return Array(self._values.view(dtype), self._memory)

    def fill(self, value: Any) -> None:
        """Set every element."""
        self[...] = value


def _is_view(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is ... or isinstance(p, int | slice) for p in parts)


def host_index(index: Any) -> Any:
    """An index as NumPy takes it; host arrays in it are refused."""
    if isinstance(index, tuple):
        return tuple(host_index(part) for part in index)
    if index is None or index is ... or isinstance(index, int | slice | numpy.integer | list):
        return index
    return operand(index)


def read(x: Array) -> Any:
    """The ndarray inside; memory that nobody has written is a ValueError."""
    memory = x._memory
    if memory is not None and x.size:
        low, high = bounds(x)
        start = low - memory.block.ctypes.data
        marks = memory.valid[start : start + high - low]
        if not marks.all():
            spread = numpy.lib.stride_tricks.as_strided(marks, x.shape, x.strides)
            if not spread.all() and all(s >= 0 for s in x.strides):
                raise ValueError("an array is read that has not been written in full")
    return x._values


def bounds(x: Array) -> tuple[int, int]:
    """The addresses from the first to after the last byte."""
    return numpy.lib.array_utils.byte_bounds(x._values)


def operand(x: Any) -> Any:
    """What NumPy is to compute with: an Array's values, or a number; a host array is refused."""
    if isinstance(x, Array):
        return read(x)
    if isinstance(x, numpy.ndarray):
        raise TypeError("an array of NumPy among arrays of the device: use asarray(...) first")
    if isinstance(x, tuple | list):
        return type(x)(operand(item) for item in x)
    return x


def computed(function: Any, *args: Any, **options: Any) -> Any:
    """``function`` of NumPy on Arrays, giving Arrays; what a graph cannot hold is refused."""
    forbid_in_capture(f"plain array code ({getattr(function, '__name__', function)})")
    options = {name: operand(value) for name, value in options.items()}
    with numpy.errstate(all="ignore"):
        made = function(*(operand(a) for a in args), **options)
    return as_arrays(made)


def as_arrays(made: Any) -> Any:
    """Results of NumPy as Arrays, also inside tuples."""
    if isinstance(made, numpy.ndarray | numpy.generic):
        traffic.allocations += 1
        made = numpy.asarray(made)
        return Array(placed(made) if made.base is None else made)
    if isinstance(made, tuple | list):
        return type(made)(as_arrays(item) for item in made)
    return made


def _operator(name: str, reflected: bool = False) -> Any:
    function = getattr(operator, f"__{name}__")

    def method(self: Array, *others: Any) -> Any:
        if any(
            not isinstance(o, Array | int | float | numpy.generic | numpy.ndarray) for o in others
        ):
            return NotImplemented
        operands = (self, *(_same(self, o) for o in others))
        return computed(function, *(reversed(operands) if reflected else operands))

    return method


def _same(x: Array, other: Any) -> Any:
    """A Python number takes the dtype of the array, as in NumPy 2."""
    if isinstance(other, bool | int | float) and not isinstance(other, numpy.generic):
        return numpy.asarray(other, dtype=numpy.result_type(x.dtype, other))[()]
    return other


def _in_place(name: str) -> Any:
    def method(self: Array, other: Any) -> Array:
        forbid_in_capture("arithmetic in place")
        getattr(read(self), name)(operand(other))
        return self

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
           "lshift", "rshift")  # fmt: skip
for _name in _BINARY:
    setattr(Array, f"__{_name}__", _operator(_name))
    setattr(Array, f"__r{_name}__", _operator(_name, reflected=True))
    if _name != "matmul":
        setattr(Array, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert"):
    setattr(Array, f"__{_name}__", _operator(_name))
for _name in ("astype", "copy", "sum", "max", "min", "mean", "any", "all", "ravel", "argmax"):

    def _method(self: Array, *args: Any, _of: str = _name, **options: Any) -> Any:
        return computed(getattr(numpy.ndarray, _of), self, *args, **options)

    setattr(Array, _name, _method)
