"""Tensor: an array that remembers how it was made, with PyTorch's habits.

The arithmetic is in ``ops/``, found by name (``operators.py``), since a lower floor imports no higher one.
Gradients follow the recorded operations backwards, newest first (``graph.py``).
"""

import math
from typing import Any

from ..backend import dtype as dtype_called
from ..backend import dtype_name, float_dtype, is_array, namespace
from ..backend import to_numpy as array_to_numpy
from ..devices import Device, device, device_of
from .deferred import ready, waiting
from .graph import Node, propagate
from .mode import enable_grad, grad_enabled, no_grad
from .operators import Operators, operators

__all__ = [
    "Parameter", "Tensor", "as_array", "enable_grad", "grad_enabled", "is_floating", "no_grad", "wrap",
]  # fmt: skip


class Tensor(Operators):
    """An n-dimensional array with a gradient.

    ``data`` is a NumPy or CuPy array (kept, not copied), a Tensor, a number or nested lists, whose
    floats become float32. ``.data`` is the raw array, ``.grad`` a Tensor or None.
    """

    __slots__ = ("__weakref__", "_data", "grad", "node", "output", "requires_grad")
    __array_ufunc__ = None  # array + tensor is the tensor's business

    def __init__(
        self,
        data: Any,
        requires_grad: bool = False,
        dtype: Any = None,
        device: "str | Device | None" = None,
    ):
        self._data = as_array(data, dtype, device)
        self.grad: Tensor | None = None
        self.node: Node | None = None
        self.output = 0
        self.requires_grad = False
        if requires_grad:
            self.requires_grad_()

    @property
    def data(self) -> Any:
        """The raw array."""
        ready()
        return self._data

    @data.setter
    def data(self, array: Any) -> None:
        ready()
        self._data = array

    # --- what it is ---
    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> Any:
        return self._data.dtype

    @property
    def device(self) -> Device:
        return device_of(self._data)

    @property
    def ndim(self) -> int:
        return len(self._data.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._data.size)

    @property
    def tokens(self) -> int:
        """Number of rows, all axes but the last taken together: tokens, for states (B, T, C)."""
        return math.prod(self._data.shape[:-1])

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-dimensional Tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        notes = f", device={self.device}" if self.device.name != "cpu" else ""
        if self.requires_grad:
            notes += ", requires_grad=True"
        return f"{type(self).__name__}({array_to_numpy(self.data)}, dtype={dtype_name(self.dtype)}{notes})"

    # --- out of the Tensor ---
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return device("cpu").xp.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if dtype_name(self.dtype) == "bfloat16":
            raise TypeError("bfloat16 has no DLPack exchange here: use .to('float32') first")
        return self._plain().__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def numpy(self) -> Any:
        """Return the values as a NumPy array (a copy when they live on a GPU)."""
        return array_to_numpy(self._plain())

    def item(self) -> Any:
        """Return the only element as a Python number."""
        if self.size != 1:
            raise ValueError(f"item() needs a Tensor of one element, not of shape {self.shape}")
        return array_to_numpy(self.data).reshape(()).item()

    def tolist(self) -> Any:
        return array_to_numpy(self.data).tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def _plain(self) -> Any:
        if self.requires_grad:
            raise RuntimeError("this Tensor needs gradients: use .detach() before .numpy()")
        return self.data

    # --- gradients ---
    def requires_grad_(self, wanted: bool = True) -> "Tensor":
        """Ask for a gradient (floating dtypes only) or no longer ask; return self."""
        if wanted:
            if not is_floating(self.data):
                raise ValueError(f"only floating Tensors have gradients, not {self.dtype}")
        elif self.node is not None:
            raise ValueError("only a leaf can stop needing its gradient: use .detach()")
        self.requires_grad = wanted
        return self

    def detach(self) -> "Tensor":
        """Return a Tensor of the same array that no gradient flows through."""
        return wrap(self.data)

    def zero_grad(self) -> None:
        self.grad = None

    def hold(self, gradient: Any) -> None:
        """Make an array the gradient of this leaf."""
        self.grad = wrap(gradient)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add to ``.grad`` of every leaf this came from the gradient of this Tensor.

        ``gradient`` (same shape) is needed unless this is a scalar. The recorded intermediate
        results are freed on the way unless ``retain_graph``.
        """
        if not self.requires_grad:
            raise RuntimeError("this Tensor needs no gradient: nothing led to it from a parameter")
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(f"backward() of shape {self.shape} needs a gradient argument")
            start = namespace(self.data).ones_like(self.data)
        else:
            start = as_array(gradient, self.dtype, self.device)
            if tuple(start.shape) != self.shape:
                raise ValueError(f"gradient has shape {start.shape}, the Tensor {self.shape}")
        with no_grad():
            propagate(self, start, retain_graph)

    # --- moving and casting ---
    def to(self, target: Any) -> "Tensor":
        """Return this on a device ("cuda", a Device) or in a floating dtype ("float16")."""
        if isinstance(target, Device) or _names_device(target):
            place = device(target)
            if place == self.device:
                return self
            moved = wrap(place.asarray(self.data))
            moved.requires_grad = self.requires_grad
            return moved
        wanted = float_dtype(target)
        return self if wanted == self.dtype else operators["cast"](self, dtype=wanted)

    def cpu(self) -> "Tensor":
        return self.to("cpu")

    def cuda(self, index: int = 0) -> "Tensor":
        return self.to(f"cuda:{index}")

    # --- operators that look at the array; the others are in Operators ---
    def __getitem__(self, index: Any) -> "Tensor":
        return operators["getitem"](self, index=_raw_index(index))

    def _compare(self, other: Any, name: str) -> "Tensor":
        raw = other.data if isinstance(other, Tensor) else other
        return wrap(getattr(self.data, name)(raw))

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]
        return self._compare(other, "__eq__")

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return self._compare(other, "__ne__")

    def __lt__(self, other: Any) -> "Tensor":
        return self._compare(other, "__lt__")

    def __le__(self, other: Any) -> "Tensor":
        return self._compare(other, "__le__")

    def __gt__(self, other: Any) -> "Tensor":
        return self._compare(other, "__gt__")

    def __ge__(self, other: Any) -> "Tensor":
        return self._compare(other, "__ge__")

    __hash__ = object.__hash__  # identity, as in PyTorch: tensors are dictionary keys

    def argmax(self, axis: int = -1) -> "Tensor":
        return wrap(namespace(self.data).argmax(self.data, axis=axis))

    def reshape(self, *shape: Any) -> "Tensor":
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if not self.requires_grad:  # a view: nothing to compute, nothing to record
            # What is not there yet is looked at in another way all the same, but not copied.
            raw = self._data if waiting() and self._data.flags.c_contiguous else self.data
            return wrap(namespace(raw).reshape(raw, tuple(wanted)))
        return operators["reshape"](self, shape=tuple(wanted))

    view = reshape

    def transpose(self, first: int = -2, second: int = -1) -> "Tensor":
        """Swap two axes."""
        axes = list(range(self.ndim))
        axes[first], axes[second] = axes[second], axes[first]
        return self.permute(*axes)

    @property
    def T(self) -> "Tensor":  # noqa: N802 - everybody's name
        return self.permute(*reversed(range(self.ndim)))


class Parameter(Tensor):
    """A Tensor that training changes."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True, **where: Any):
        super().__init__(data, requires_grad=requires_grad, **where)


def wrap(array: Any) -> Tensor:
    """Return a Tensor of ``array`` without looking at it: the cheap way out of an operation."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = array
    tensor.grad = tensor.node = None
    tensor.output = 0
    tensor.requires_grad = False
    return tensor


def as_array(data: Any, dtype: Any = None, place: "str | Device | None" = None) -> Any:
    """Return ``data`` (Tensor, array, number, nested lists) as a raw array on ``place``."""
    array = data.data if isinstance(data, Tensor) else data
    if not is_array(array):
        array = _from_python(array)
        array = device("cpu" if place is None else place).asarray(array)
    elif place is not None and device(place) != device_of(array):
        array = device(place).asarray(array)
    if dtype is not None and dtype_name(array.dtype) != dtype_name(dtype):
        array = namespace(array).astype(array, dtype_called(dtype))
    return array


def _from_python(data: Any) -> Any:
    if hasattr(data, "__dlpack__"):
        return device("cpu").xp.from_dlpack(data)
    numpy = device("cpu").xp
    if isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data):
        data = [item.numpy() if isinstance(item, Tensor) else item for item in data]
    array = numpy.asarray(data)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a Tensor holds numbers, not {type(data).__name__} of {array.dtype}")
    return array.astype(numpy.float32) if array.dtype == numpy.float64 else array


def is_floating(array: Any) -> bool:
    """Whether an array holds floating-point numbers."""
    return "float" in dtype_name(array.dtype)


def _names_device(target: Any) -> bool:
    return isinstance(target, str) and target.partition(":")[0] in (
        "auto",
        "cpu",
        "cuda",
        "emulated",
    )


def _raw_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(i.data if isinstance(i, Tensor) else i for i in index)
    return index.data if isinstance(index, Tensor) else index
