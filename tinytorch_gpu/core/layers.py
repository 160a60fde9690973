"""Normalization, linear maps, dropout and the position-wise feed-forward part."""

from collections.abc import Iterator, Mapping
from typing import Any

from .. import ops
from ..config import GATED
from ..devices import Device
from ..rng import Generator
from .module import Builder, Module, as_tensor, megabytes
from .op import OPS
from .tensor import Tensor


class _Norm(Module):
    """What both normalizations share: ``gamma``, ``eps`` and the last axes they cover."""

    def __init__(self, normalized_shape: Any, eps: float, build: Builder | None):
        build = build or Builder()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        if not self.normalized_shape or min(self.normalized_shape) < 1:
            raise ValueError(f"normalized_shape must be positive sizes, not {normalized_shape!r}")
        self.eps, self.size = eps, 1
        for n in self.normalized_shape:
            self.size *= n
        self.gamma = build.vector(self.size, 1.0)

    def own_state(self) -> Iterator[tuple[str, Any]]:
        for name, array in super().own_state():
            yield name, array.reshape(self.normalized_shape)

    def _flat(self, x: Any) -> tuple[Tensor, tuple[int, ...]]:
        """``x`` with the normalized axes as one, and the shape to give the result."""
        x = as_tensor(x, self.gamma)
        if x.shape[-1:] == self.normalized_shape:
            return x, x.shape
        covered = len(self.normalized_shape)
        if x.shape[-covered:] != self.normalized_shape:
            raise ValueError(f"expected (..., {self.normalized_shape}), got shape {x.shape}")
        return x.reshape(*x.shape[:-covered], self.size), x.shape

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``total = x + residual`` and the norm of it, in one operation: both (..., C)."""
        raise NotImplementedError

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB."""
        count = self.count_parameters()
        return {
            "parameter_memory_mb": megabytes(self.nbytes),
            "total_parameters": count,
            "normalized_shape": self.normalized_shape,
        }


class LayerNorm(_Norm):
    """Mean 0 and variance 1 over the last ``normalized_shape`` axes, then ``gamma`` and ``beta``.

    Ba et al. 2016. The variance is the biased one.
    """

    def __init__(self, normalized_shape: Any, eps: float = 1e-5, *, build: Builder | None = None):
        super().__init__(normalized_shape, eps, build)
        self.beta = (build or Builder()).vector(self.size)

    def forward(self, x: Any) -> Tensor:
        """(..., *normalized_shape) -> the same shape."""
        flat, shape = self._flat(x)
        out = ops.layer_norm(flat, self.gamma, self.beta, eps=self.eps)
        return out if flat is x else out.reshape(shape)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_layer_norm(x, residual, self.gamma, self.beta, eps=self.eps)


class RMSNorm(_Norm):
    """Mean square 1 over the last axes, then ``gamma`` (Zhang and Sennrich 2019)."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-6, *, build: Builder | None = None):
        super().__init__(normalized_shape, eps, build)

    def forward(self, x: Any) -> Tensor:
        """(..., *normalized_shape) -> the same shape."""
        flat, shape = self._flat(x)
        out = ops.rms_norm(flat, self.gamma, eps=self.eps)
        return out if flat is x else out.reshape(shape)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.add_rms_norm(x, residual, self.gamma, eps=self.eps)


class NoNorm(Module):
    """In the place of a norm: nothing."""

    def __init__(self, normalized_shape: Any, eps: float = 0.0, *, build: Builder | None = None):
        pass

    def forward(self, x: Any) -> Tensor:
        """``x`` itself."""
        return as_tensor(x, None)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``x + residual``, twice."""
        total = x + residual
        return total, total


NORMS: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm, "none": NoNorm}


class Linear(Module):
    """``x @ weight.T + bias`` with weight (out, in); ``groups`` name the rows that belong together.

    An ``adapter`` (core/lora.py) adds a trained product of low rank beside the weight's.
    """

    adapter: Any = None

    def __init__(
        self,
        width: int,
        groups: Mapping[str, int],
        bias: bool = True,
        std: float | None = None,
        *,
        build: Builder | None = None,
    ):
        build = build or Builder()
        self.weight = build.weight(groups, width, std)
        self.bias = build.vector(self.weight.shape[0]) if bias else None

    def forward(
        self, x: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """(..., in) -> (..., out): ``activation`` of it, plus ``residual``, where given."""
        if self.adapter is None:
            return ops.linear(x, self.weight, self.bias, residual, activation=activation)
        if activation is None:
            return self.adapter(ops.linear(x, self.weight, self.bias, residual), x)
        out = OPS[activation](self.adapter(ops.linear(x, self.weight, self.bias), x))
        return out if residual is None else out + residual

    def group(self, name: str, x: Tensor) -> Tensor:
        """(..., in) -> (..., rows of one group)."""
        rows = self.weight._rows[name]
        if self.adapter is not None:
            return self(x)[..., rows]
        return ops.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])

    def own_state(self) -> Iterator[tuple[str, Any]]:
        return iter(())  # the module that owns it names its groups

    def bias_rows(self, name: str) -> Any:
        """The raw bias (rows,) of one group: a view."""
        if self.bias is None:
            raise AttributeError(f"no bias for {name}: this layer was built without")
        return self.bias.data[self.weight._rows[name]]


def matrix_of(layer: str, group: str) -> property:
    """A property that shows a group of a Linear as the course's (in, out) matrix, writable."""

    def read(self: Any) -> Tensor:
        return getattr(self, layer).weight.matrix(group)

    def write(self: Any, values: Any) -> None:
        getattr(self, layer).weight.set_matrix(group, values)

    return property(read, write, doc=f"The matrix (in, out) of {group}: a view of {layer}.")


def bias_of(layer: str, group: str) -> property:
    """A property that shows the bias of a group of a Linear, writable."""

    def read(self: Any) -> Tensor:
        return Tensor(getattr(self, layer).bias_rows(group))

    def write(self: Any, values: Any) -> None:
        getattr(self, layer).bias_rows(group)[...] = Tensor(values).data

    return property(read, write, doc=f"The bias of {group}: a view of {layer}.")


class Dropout(Module):
    """Dropout while training, nothing otherwise (Srivastava et al. 2014)."""

    def __init__(self, p: float = 0.0, generator: Generator | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), not {p}")
        self.p, self.generator = p, generator

    def state(self, x: Tensor) -> Any:
        """The [seed, offset] array of the next draw, or None when nothing is dropped."""
        if not self.p or not self.training:
            return None
        if self.generator is None:
            self.generator = Generator(x.device)
        return self.generator.next()

    def moved(self, place: Device) -> None:
        if self.generator is not None:
            self.generator.device = place

    def add(self, layer: Linear, x: Tensor, residual: Tensor | None) -> Tensor:
        """``residual`` + dropout of ``layer(x)``: one operation when nothing is dropped."""
        if not self.p or not self.training:
            return layer(x, residual)
        dropped = self(layer(x))
        return dropped if residual is None else dropped + residual

    def forward(self, x: Tensor) -> Tensor:
        state = self.state(x)
        return x if state is None else ops.dropout(x, state, p=self.p)


class PositionwiseFeedForward(Module):
    """Two linear maps with a nonlinearity between, at each position alone (Vaswani et al. 2017).

    The gated activations (``swiglu``, ``geglu``) have a third matrix, ``w_gate``, stored and run
    together with ``w1``.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        dropout: float = 0.0,
        *,
        activation: str = "relu",
        bias: bool = True,
        std: tuple[float | None, float | None] = (None, None),
        build: Builder | None = None,
    ):
        if activation not in ("relu", "gelu", "gelu_tanh", "silu", *GATED):
            raise ValueError(f"unknown activation {activation!r}")
        self.embed_dim, self.hidden_dim, self.activation = embed_dim, hidden_dim, activation
        groups = (
            {"gate": hidden_dim, "up": hidden_dim} if activation in GATED else {"up": hidden_dim}
        )
        self.rise = Linear(embed_dim, groups, bias, std[0], build=build)
        self.fall = Linear(hidden_dim, {"down": embed_dim}, bias, std[1], build=build)
        self.dropout = Dropout(dropout)

    w1, b1 = matrix_of("rise", "up"), bias_of("rise", "up")
    w_gate, b_gate = matrix_of("rise", "gate"), bias_of("rise", "gate")
    w2, b2 = matrix_of("fall", "down"), bias_of("fall", "down")

    def forward(self, x: Any, residual: Tensor | None = None) -> Tensor:
        """(..., embed_dim) -> (..., embed_dim), plus ``residual`` where given."""
        hidden = self.rise(as_tensor(x, self.rise.weight), activation=self.activation)
        return self.dropout.add(self.fall, hidden, residual)

    def own_state(self) -> Iterator[tuple[str, Any]]:
        names = {"w1": (self.rise, "up"), "w2": (self.fall, "down")}
        if self.activation in GATED:
            names["w_gate"] = (self.rise, "gate")
        for name, (layer, group) in names.items():
            yield name, layer.weight.rows(group).T
            if layer.bias is not None:
                yield name.replace("w", "b", 1), layer.bias_rows(group)
