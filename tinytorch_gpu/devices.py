"""Devices: where arrays live, who allocates them, and which fast operations serve them."""

import contextlib
import functools
import importlib
import importlib.util
import sys
from typing import Any

import numpy

from . import nvtx
from .backend import DEVICES, dtype_name, kind, named_dtype, namespace, to_numpy


class DeviceError(RuntimeError):
    """A device that was asked for cannot be used; the message says what to install or change."""


class Device:
    """A place where arrays live, and the only allocator of them.

    ``name`` is "cpu" or "cuda:0"; ``xp`` the array module; ``makers`` the packages whose import
    registers the operations' fast versions for it, best first, for arrays of the kind that it
    ``serves``; ``note`` says why ``auto`` chose it.
    """

    makers: tuple[str, ...] = ()
    serves: str = ""
    note: str = ""

    def __init__(self, name: str, xp: Any):
        self.name, self.xp, self.kind = name, xp, name.partition(":")[0]

    def __repr__(self) -> str:
        return f"device({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return self.name == (other.name if isinstance(other, Device) else other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def empty(self, shape: Any, dtype: Any = "float32", order: str = "C") -> Any:
        """Return an uninitialised array; ``order="F"`` stores a matrix column by column."""
        return self.xp.empty(shape, dtype=named_dtype(dtype), order=order)

    def zeros(self, shape: Any, dtype: Any = "float32") -> Any:
        """Return an array of zeros."""
        with self.active():
            return self.xp.zeros(shape, dtype=named_dtype(dtype))

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        """Return ``values`` (nested lists or an array of any device) as an array here."""
        if hasattr(values, "moved_to"):  # more than one array: it knows how
            return values.moved_to(self)
        wanted = None if dtype is None else named_dtype(dtype)
        if kind(values) in DEVICES and self.kind != kind(values):
            values = to_numpy(values)
        parts = values if isinstance(values, list | tuple) else [values]
        if self.kind not in DEVICES or any(kind(x) in DEVICES for x in parts):
            return self.xp.asarray(values, dtype=wanted)
        host = numpy.asarray(values, dtype=wanted)
        with nvtx.span("h2d", "io", host.nbytes):
            return self.xp.asarray(host)

    def weight_order(self, out: int, width: int, dtype: Any) -> str:
        """Return how a weight (out, in) is best stored here: "C" row by row, "F" by columns."""
        return "C"

    def cache_pair(
        self, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: Any
    ) -> tuple[Any, Any]:
        """Return keys and values (batch, capacity, kv heads, head dim), laid out in memory as
        attention reads them fastest here.

        They are zeros: a value that no query sees still takes part in a product, and a NaN that
        memory happened to hold would come through it.
        """
        shape = (batch, capacity, kv_heads, head_dim)
        return self.zeros(shape, dtype), self.zeros(shape, dtype)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which this is the current device."""
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    def memory(self) -> dict[str, int]:
        """Return bytes: ``used`` now and ``peak`` so far."""
        return {"used": _status("RssAnon"), "peak": _peak_resident()}


class CudaDevice(Device):
    """One NVIDIA GPU, through CuPy."""

    makers, serves = ("tinytorch_gpu.cuda",), "cuda"

    def __init__(self, index: int, cupy: Any):
        super().__init__(f"cuda:{index}", cupy)
        self.index = index

    def active(self) -> contextlib.AbstractContextManager[Any]:
        return self.xp.cuda.Device(self.index)

    def empty(self, shape: Any, dtype: Any = "float32", order: str = "C") -> Any:
        with self.active():
            return super().empty(shape, dtype, order)

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        with self.active():
            return super().asarray(values, dtype)

    def synchronize(self) -> None:
        self.xp.cuda.Device(self.index).synchronize()

    def memory(self) -> dict[str, int]:
        pool = self.xp.get_default_memory_pool()
        # The pool keeps what it freed, so what it holds is the peak it needed.
        return {"used": pool.used_bytes(), "peak": pool.total_bytes()}


class CpuDevice(Device):
    """The host, through NumPy."""

    makers, serves = ("tinytorch_gpu.native", "tinytorch_gpu.host"), "cpu"
    has_library = False  # set by the native makers

    def __init__(self, note: str = ""):
        super().__init__("cpu", numpy)
        self.note = note

    def cache_pair(
        self, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: Any
    ) -> tuple[Any, Any]:
        load_makers("cpu")
        by_place = (batch, kv_heads, capacity, head_dim)
        values = self.zeros(by_place, dtype).transpose(0, 2, 1, 3)
        if self.has_library:
            return self.zeros(by_place, dtype).transpose(0, 2, 1, 3), values
        # For OpenBLAS one query times all keys is a product along the keys, which therefore lie together.
        keys = self.zeros((batch, kv_heads, head_dim, capacity), dtype)
        return keys.transpose(0, 3, 1, 2), values

    def weight_order(self, out: int, width: int, dtype: Any) -> str:
        # Native products read a weight by rows. With OpenBLAS wide outputs are read faster by columns
        # for one row of x; a 16-bit weight is widened row by row.
        load_makers("cpu")
        by_columns = ("float64",) if self.has_library else ("float32", "float64")
        return "F" if out > width and dtype_name(dtype) in by_columns else "C"


class EmulatedDevice(Device):
    """A GPU made of software: the CUDA kernels run thread by thread on the CPU, under checks."""

    makers, serves = ("tinytorch_gpu.cuda",), "emulated"

    def __init__(self) -> None:
        super().__init__("emulated", importlib.import_module("tinytorch_gpu.emulated.namespace"))


_CPU = CpuDevice()


def device(spec: "str | Device" = "auto") -> Device:
    """Return the device called ``spec``: "auto", "cpu", "cuda", "cuda:1" or "emulated".

    "auto" is the first GPU if one can be used, else the CPU, whose ``note`` then says why.
    "cuda" raises DeviceError with the fix if CuPy, the driver or NVRTC is missing.
    """
    if isinstance(spec, Device):
        return spec
    name, _, index = str(spec).partition(":")
    if name == "cpu" and not index:
        return _CPU
    if name == "cuda" and (index or "0").isdecimal():
        return _cuda(int(index or 0))
    if name == "auto" and not index:
        try:
            return _cuda(0)
        except DeviceError as error:
            return CpuDevice(str(error))
    if name == "emulated" and not index:
        return _emulated()
    raise ValueError(f"device must be auto, cpu, cuda, cuda:N or emulated, not {spec!r}")


@functools.cache
def _emulated() -> EmulatedDevice:
    from .emulated import CompilerError, compiler

    try:
        compiler()
    except CompilerError as error:
        raise DeviceError(str(error)) from None
    return EmulatedDevice()


@functools.cache
def _cuda(index: int) -> CudaDevice:
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError(
            "CuPy is not installed: pip install 'tinytorch-gpu[cuda12]' (or cuda13: your driver's)"
        )
    cupy = importlib.import_module("cupy")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"no usable NVIDIA driver ({error}): install or update it, then run nvidia-smi"
        ) from None
    if index >= count:
        raise DeviceError(f"cuda:{index} does not exist: this machine has {count} GPU(s)")
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy's own type for this is not public
        raise DeviceError(
            f"NVRTC is missing ({type(error).__name__}): pip install 'cupy-cuda13x[ctk]', "
            "or install the CUDA toolkit of your driver's version"
        ) from None
    return CudaDevice(index, cupy)


def device_of(x: Any) -> Device:
    """Return the device that array ``x`` lives on."""
    where = kind(x)
    if where == "cpu":
        return _CPU
    if where == "cuda":
        return _cuda(x.device.id)
    if where == "emulated":
        return _emulated()
    return Device(where, namespace(x))


loaded_makers: set[str] = set()


def load_makers(where: str) -> None:
    """Import the packages that register the fast operations for arrays of ``where``, once."""
    if where in loaded_makers:
        return
    loaded_makers.add(where)
    devices: tuple[type[Device], ...] = (CpuDevice, CudaDevice, EmulatedDevice)
    for found in devices:
        if found.serves == where:
            for package in found.makers:
                importlib.import_module(package)


def _status(field: str) -> int:
    """Bytes of a field of the process status (0 where the system has none)."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _peak_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
