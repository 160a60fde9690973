"""Arrays: the one place that knows NumPy's from CuPy's.

Everything above computes through ``xp = namespace(x)`` in the array API standard's spelling, so it
runs on NumPy, on CuPy and, in the tests, on array-api-strict (``special`` has what that lacks).
"""

import sys
from typing import Any

import numpy

from . import nvtx

_FLOAT32 = numpy.dtype("float32")
FLOATS = ("float32", "float64", "float16", "bfloat16")


# --- arrays ---------------------------------------------------------------------------------


_namespaces: dict[type, Any] = {numpy.ndarray: numpy}  # by type: asked for in every operation


def namespace(x: Any) -> Any:
    """Return the module whose functions act on ``x``: numpy, cupy, or any standard one."""
    found = _namespaces.get(type(x))
    if found is not None:
        return found
    if type(x).__module__.partition(".")[0] == "cupy":
        found = sys.modules["cupy"]
    elif isinstance(x, numpy.ndarray | numpy.generic):
        found = numpy
    elif hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    else:
        raise TypeError(f"expected an array, not {type(x).__name__}")
    _namespaces[type(x)] = found
    return found


def is_array(x: Any) -> bool:
    """Whether ``x`` is an array of some array module (a NumPy scalar counts as one)."""
    return hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, type)


# Kinds whose arrays leave the device by ``get()`` only.
DEVICES = ("cuda", "emulated")

# Device kind by type, "" for what is no array: asked for every argument of every operation.
kinds: dict[type, str] = {numpy.ndarray: "cpu", type(None): "", int: "", float: ""}


def kind_of_type(x: Any) -> str:
    """Return where arrays of the type of ``x`` live, "" if it is no array; remember it."""
    found = ""
    if is_array(x):
        module = type(x).__module__.partition(".")[0]
        found = {"numpy": "cpu", "cupy": "cuda"}.get(module, module)
        found = getattr(type(x), "device_kind", found)
        if isinstance(x, numpy.ndarray | numpy.generic):
            found = "cpu"
    kinds[type(x)] = found
    return found


def kind(x: Any) -> str:
    """Return where ``x`` lives: "cpu", "cuda", "emulated", or another array module's name."""
    found = kinds.get(type(x))
    return kind_of_type(x) if found is None else found


def to_numpy(x: Any) -> numpy.ndarray:
    """Copy ``x`` to the host (no copy if it is there already)."""
    if kind(x) in DEVICES:
        with nvtx.span("d2h", "io", int(x.nbytes)):
            return x.get()
    return numpy.asarray(x)


def assign(view: Any, values: Any) -> None:
    """Copy ``values`` (an array of any device) into ``view``, casting to its dtype.

    The view may be strided, so a row group of a fused weight or its transpose is filled in place.
    A shape that differs is a ValueError.
    """
    if tuple(view.shape) != tuple(values.shape):
        raise ValueError(f"cannot put an array of {values.shape} into one of {view.shape}")
    if kind(view) in DEVICES and kind(values) == "cpu" and not hasattr(view, "moved_to"):
        host = numpy.ascontiguousarray(values, dtype=view.dtype)
        with nvtx.span("h2d", "io", host.nbytes):
            values = namespace(view).asarray(host)
    elif kind(view) == "cpu" and kind(values) in DEVICES and not hasattr(view, "moved_to"):
        values = to_numpy(values)
    view[...] = values


# --- dtypes ---------------------------------------------------------------------------------


def dtype(name: Any) -> Any:
    """Return the NumPy dtype called ``name``; "bfloat16" comes from the ml_dtypes package."""
    if str(name) == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ValueError("bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
        return numpy.dtype(ml_dtypes.bfloat16)
    try:
        return numpy.dtype(name)
    except TypeError:
        raise ValueError(f"unknown dtype {name!r}; choose one of {', '.join(FLOATS)}") from None


named_dtype = dtype  # for methods that have an argument called dtype


def float_dtype(name: Any) -> Any:
    """Return the floating dtype called ``name``; any other kind of dtype is a ValueError."""
    found = dtype(name)
    if found.name not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(FLOATS)}, not {name!r}")
    return found


def compute_dtype(storage: Any, where: str = "cpu") -> Any:
    """Return the dtype of activations for weights stored in ``storage`` on a kind of device: the same
    on a GPU, whose kernels take 16 bits and add up in 32; 32 bits at least elsewhere."""
    if getattr(storage, "blocked", False):  # a format of blocks has no arithmetic of its own
        return _FLOAT32
    wanted = storage if isinstance(storage, numpy.dtype) else dtype(storage)
    return _FLOAT32 if wanted.itemsize == 2 and where not in DEVICES else wanted


_names: dict[Any, str] = {}  # NumPy makes a dtype's name anew each time, in microseconds


def dtype_name(of: Any) -> str:
    """Return a dtype's name, such as "float32", for a dtype of any array module."""
    found = _names.get(of)
    if found is None:
        found = _names[of] = getattr(of, "name", None) or str(of).rpartition(".")[2]
    return found


def is_half(x: Any) -> bool:
    """Whether ``x`` is stored in 16 bits: float16 or bfloat16."""
    return x.dtype.itemsize == 2 if isinstance(x, numpy.ndarray) else _half_name(x)


def _half_name(x: Any) -> bool:
    return dtype_name(x.dtype) in ("float16", "bfloat16")


def widen(x: Any) -> Any:
    """Return ``x`` in float32 if it is stored in 16 bits or in blocks, else ``x`` itself.

    References compute in float32: a 16-bit product is slow on a CPU and imprecise anywhere.
    """
    if hasattr(x, "dequantize"):
        return x.dequantize()
    return namespace(x).astype(x, numpy.float32) if is_half(x) else x


def narrow(x: Any, to: Any) -> Any:
    """Return ``x`` in dtype ``to``, without a copy if it has it already."""
    return x if x.dtype == to else namespace(x).astype(x, to)
