"""What a Tensor's operators and methods stand for: operations, looked up by name.

The operations are in ``ops/``, a higher floor, which enters each of them into ``operators``.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tensor import Tensor


class _Operators(dict[str, Callable[..., Any]]):
    """Operations by name; the first one asked for brings them all."""

    def __missing__(self, name: str) -> Callable[..., Any]:
        importlib.import_module("tinytorch_gpu.ops")
        if name not in self:
            raise KeyError(name)
        return self[name]


operators = _Operators()


class Operators:
    """The part of ``Tensor`` that is one operation each."""

    __slots__ = ()

    def __add__(self, other: Any) -> "Tensor":
        return operators["add"](self, other)

    def __sub__(self, other: Any) -> "Tensor":
        return operators["subtract"](self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return operators["subtract"](other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return operators["multiply"](self, other)

    def __truediv__(self, other: Any) -> "Tensor":
        return operators["divide"](self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return operators["divide"](other, self)

    def __pow__(self, exponent: float) -> "Tensor":
        return operators["power"](self, exponent=exponent)

    def __neg__(self) -> "Tensor":
        return operators["negative"](self)

    def __matmul__(self, other: Any) -> "Tensor":
        return operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return operators["matmul"](other, self)

    __radd__, __rmul__ = __add__, __mul__

    def exp(self) -> "Tensor":
        return operators["exp"](self)

    def log(self) -> "Tensor":
        return operators["log"](self)

    def sqrt(self) -> "Tensor":
        return operators["sqrt"](self)

    def tanh(self) -> "Tensor":
        return operators["tanh"](self)

    def sigmoid(self) -> "Tensor":
        return operators["sigmoid"](self)

    def abs(self) -> "Tensor":
        return operators["absolute"](self)

    def relu(self) -> "Tensor":
        return operators["relu"](self)

    def softmax(self, axis: int = -1) -> "Tensor":
        return operators["softmax"](self, axis=axis)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return operators["sum"](self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return operators["mean"](self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return operators["max"](self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        return -operators["max"](-self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The biased variance (divided by n), as layer norm uses it."""
        centred = self - self.mean(axis, keepdims=True)
        return (centred * centred).mean(axis, keepdims)

    def permute(self, *axes: Any) -> "Tensor":
        wanted = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return operators["permute"](self, axes=tuple(wanted))
