"""Module: a part of a model, with its parameters, and the builder that makes them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy

from ..backend import assign, float_dtype
from ..devices import Device, device
from ..weight import Weight
from .tensor import Parameter, Tensor, as_array


class Module:
    """Something callable made of parameters and other modules, found among its attributes."""

    training = True

    def __init_subclass__(cls) -> None:
        # Calling a module is its forward itself: a hop less for each part of each layer.
        if "forward" in cls.__dict__:
            cls.__call__ = cls.forward  # type: ignore[method-assign]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.forward(*args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """Name and module of each direct part; list items are called ``name.index``."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Name and Parameter as stored and trained: matrices that run together are one."""
        seen: set[int] = set()
        for name, parameter in self._all_parameters(prefix):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _all_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, child in self.children():
            yield from child._all_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """Every Parameter once."""
        return [parameter for _, parameter in self.named_parameters()]

    def count_parameters(self) -> int:
        """Number of trained values, shared ones once."""
        return sum(parameter.size for parameter in self.parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters as stored, shared ones once."""
        return sum(int(parameter.data.nbytes) for parameter in self.parameters())

    def own_state(self) -> Iterator[tuple[str, Any]]:
        """Name and live array view of this module's own state, in the course's orientation."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value.data

    def state_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return name -> array view of all state. Writing to a view changes the model."""
        state = {prefix + name: array for name, array in self.own_state()}
        for name, child in self.children():
            state.update(child.state_dict(f"{prefix}{name}."))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays or Tensors in by name; every name and shape must fit, or nothing changes."""
        own = self.state_dict()
        missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or unknown:
            raise ValueError(f"state does not fit: missing {missing}, unexpected {unknown}")
        arrays = {name: as_array(value) for name, value in state.items()}
        for name, array in arrays.items():
            if tuple(array.shape) != tuple(own[name].shape):
                raise ValueError(f"{name} has shape {own[name].shape}, the state {array.shape}")
        for name, array in arrays.items():
            assign(own[name], array)

    def to(self, target: Any) -> "Module":
        """Move the parameters to a device in place, as PyTorch does; return self."""
        place = device(target)
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.data = place.asarray(value.data)
                    value.grad = None if value.grad is None else value.grad.to(place)
            module.moved(place)
        return self

    def moved(self, place: Device) -> None:
        """Follow a move: override where a module holds arrays that are not parameters."""

    def train(self, mode: bool = True) -> "Module":
        """Turn dropout on (``mode``) or off in all parts; return self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Turn dropout off in all parts; return self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None


class Builder:
    """Makes parameters: on one device, in one dtype, from one seed.

    With ``init=False`` they are allocated and left for a loader to fill; with ``storage=False`` too, the
    matrices are pending: the loader gives them storage (``Weight.allocate``).
    """

    def __init__(
        self, place: Any = "cpu", dtype: Any = "float32", seed: int | None = None, init: bool = True,
        storage: bool = True,
    ):  # fmt: skip
        self.device, self.dtype = device(place), float_dtype(dtype)
        self.init, self.storage = init and storage, storage
        self.random = numpy.random.default_rng(seed)

    def vector(self, size: int, value: float = 0.0) -> Parameter:
        """A Parameter (size,) filled with ``value``."""
        array = self.device.empty((size,), self.dtype)
        array[...] = value
        return Parameter(array)

    def table(self, rows: int, width: int, std: float | None = None, bound: float = 0.0) -> Weight:
        """A Weight (rows, width), normal with ``std`` or uniform within +-``bound``."""
        weight = self._weight({"weight": rows}, width)
        self._draw(weight.data, std, bound)
        return weight

    def weight(self, groups: Mapping[str, int], width: int, std: float | None = None) -> Weight:
        """A Weight of row groups (out, width), normal with ``std`` or else Xavier uniform
        (Glorot and Bengio 2010) group by group."""
        weight = self._weight(groups, width)
        for name, rows in groups.items():
            self._draw(weight.rows(name), std, math.sqrt(6 / (rows + width)))
        return weight

    def _weight(self, groups: Mapping[str, int], width: int) -> Weight:
        if not self.storage:
            return Weight.pending(groups, width)
        return Weight.empty(self.device, groups, width, self.dtype)

    def _draw(self, view: Any, std: float | None, bound: float) -> None:
        if not self.init:
            return
        for start in range(0, view.shape[0], 1024):  # no second copy of a big weight
            part = view[start : start + 1024]
            if std is None:
                values = self.random.uniform(-bound, bound, part.shape)
            else:
                values = self.random.normal(0.0, std, part.shape)
            assign(part, values.astype(numpy.float32))


def megabytes(nbytes: int) -> float:
    """Bytes in MB (2**20 bytes)."""
    return nbytes / 2**20


def as_tensor(x: Any, like: Tensor | None) -> Tensor:
    """Return ``x`` as a Tensor beside ``like`` (None: the host); a Tensor stays where it is."""
    if isinstance(x, Tensor):
        return x
    return Tensor(x, device=None if like is None else like.device)
