"""Optimizers: they change parameters in place, from their gradients.

What changes from step to step (rate, step count, what gradients are multiplied by) is in arrays on the
device, so that nothing waits for the host. On a GPU all tensors of a group are stepped in one launch.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .. import nvtx, ops
from ..backend import assign as copy_into
from ..backend import dtype as named_dtype
from ..backend import dtype_name, is_half, kind, namespace, to_numpy
from ..core.tensor import Parameter, Tensor
from .groups import Group, Params, groups_of


def clip_grad_norm(params: Iterable[Any], max_norm: float = math.inf) -> tuple[Tensor, Tensor]:
    """Return (norm, scale) as scalars on the device: the length of all gradients together, and what
    ``step(scale)`` multiplies them by to make it ``max_norm`` at most (0 if it is not finite)."""
    found = [p[1] if isinstance(p, tuple) else p for p in params]
    grads = [p.grad.data for p in found if p.grad is not None]
    if not grads:
        raise ValueError("no parameter has a gradient: call backward() first")
    norm = ops.gradient_norm(*grads)
    return norm, ops.clip_scale(norm, max_norm=max_norm)


class _Optimizer:
    """What the optimizers share: groups, the state of each parameter, and the numbers on the device."""

    slots: tuple[str, ...] = ()

    def __init__(self, params: Params, lr: float, weight_decay: float):
        if not lr >= 0:
            raise ValueError(f"lr must not be negative, not {lr}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, not {weight_decay}")
        self.lr, self.groups = lr, groups_of(params, weight_decay)
        self.state: dict[str, dict[str, Any]] = {}
        first = self.groups[0].params[0][1]
        self.device = first.device
        self.count = self.device.zeros((), "int64")  # steps taken, not those that were skipped
        for group in self.groups:
            for name, parameter in group.params:
                self.state[name] = self._fresh(parameter)

    def _fresh(self, parameter: Parameter) -> dict[str, Any]:
        """Zeros for each slot, and for 16-bit weights the float32 ones that they are rounded from."""
        wide = "float64" if dtype_name(parameter.dtype) == "float64" else "float32"
        # They lie in memory as the parameter does, so that a step goes through all of them at once.
        xp, kind_of = self.device.xp, named_dtype(wide)
        made = {slot: xp.zeros_like(parameter.data, dtype=kind_of) for slot in self.slots}
        if is_half(parameter.data):
            made["master"] = namespace(parameter.data).astype(
                parameter.data, self.device.xp.float32
            )
        return made

    def parameters(self) -> list[Parameter]:
        """All parameters, group by group."""
        return [parameter for group in self.groups for _, parameter in group.params]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def step(self, scale: Any = None) -> None:
        """Change every parameter that has a gradient, which is multiplied by ``scale`` (a number, best one on the
        device; 0 skips the step)."""
        xp = self.device.xp
        scale = scale.data if isinstance(scale, Tensor) else 1.0 if scale is None else scale
        scale = self.device.asarray(scale, "float32") if isinstance(scale, (int, float)) else scale
        self.count = self.count + xp.astype(scale != 0, xp.int64)
        for group in self.groups:
            given = [(n, p) for n, p in group.params if p.grad is not None]
            for same in _alike(given):
                self._step(same, group, scale)

    def _step(self, given: list[tuple[str, Parameter]], group: Group, scale: Any) -> None:
        raise NotImplementedError

    def number(self, value: float, parameter: Parameter) -> Any:
        """A scalar on the device, as wide as the arithmetic of the parameter."""
        wide = "float64" if dtype_name(parameter.dtype) == "float64" else "float32"
        return self.device.asarray(value, wide)

    def state_dict(self) -> dict[str, Any]:
        """``{"step": count, "name/slot": array}``: all that a resumed run needs."""
        made = {f"{n}/{slot}": x for n, slots in self.state.items() for slot, x in slots.items()}
        return {"step": int(to_numpy(self.count)), **made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; other names or shapes are a ValueError, and nothing
        has changed then."""
        own = {f"{n}/{slot}": x for n, slots in self.state.items() for slot, x in slots.items()}
        missing, unknown = set(own) - set(state), set(state) - set(own) - {"step"}
        if missing or unknown or "step" not in state:
            raise ValueError(
                f"optimizer state does not fit: missing {sorted(missing)[:3]}, unexpected {sorted(unknown)[:3]}"
            )
        for name, array in own.items():
            if tuple(array.shape) != tuple(state[name].shape):
                raise ValueError(
                    f"{name} has shape {tuple(array.shape)}, the state {tuple(state[name].shape)}"
                )
        for name, array in own.items():
            copy_into(array, state[name])
        self.count = self.device.asarray(int(state["step"]), "int64")


def _alike(given: list[tuple[str, Parameter]]) -> list[list[tuple[str, Parameter]]]:
    """Parameters by their dtype and their gradient's, which a launch for many takes together."""
    kinds: dict[Any, list[tuple[str, Parameter]]] = {}
    for name, parameter in given:
        assert parameter.grad is not None
        key = parameter.dtype, parameter.grad.dtype
        kinds.setdefault(key, []).append((name, parameter))
    return list(kinds.values())


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019).

    ``params`` are Parameters, (name, Parameter) pairs, or dicts ``{"params": ..., "weight_decay": ...,
    "lr": factor}``. Moments are float32 (float64 for such parameters); 16-bit parameters have float32
    masters. ``lr`` may be set before each step.
    """

    slots = ("first", "second")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas must be in [0, 1), not {betas}")
        super().__init__(params, lr, weight_decay)
        self.betas, self.eps = betas, eps
        self._tables: dict[Any, Any] = {}

    def _step(self, given: list[tuple[str, Parameter]], group: Group, scale: Any) -> None:
        rate = self.number(self.lr * group.rate, given[0][1])
        options = {
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": group.decay,
        }
        if self._many(given, group, rate, scale, options):
            return
        for name, parameter in given:
            slots, gradient = self.state[name], parameter.grad
            assert gradient is not None  # step() gives none without
            ops.adamw(parameter.data, gradient.data, slots["first"], slots["second"], slots.get("master"),
                      rate, self.count, scale, **options)  # fmt: skip

    def _many(self, given: Any, group: Group, rate: Any, scale: Any, options: Any) -> bool:
        """All at once, where there is a maker for it."""
        arrays = [(p.data, p.grad.data, s["first"], s["second"], s.get("master"))
                  for p, s in ((p, self.state[n]) for n, p in given)]  # fmt: skip
        if kind(arrays[0][0]) == "cpu":
            return self._many_on_cpu(arrays, rate, scale, options)
        if dtype_name(given[0][1].dtype) == "float64":
            return False
        from ..cuda.optimizer import TensorTable, adamw_many

        if not all(x.flags.c_contiguous for five in arrays for x in five if x is not None):
            return False
        # Addresses that are the same as before need no new table.
        places = tuple(x.data.ptr for five in arrays for x in five if x is not None)
        key = (id(group), dtype_name(arrays[0][0].dtype), dtype_name(arrays[0][1].dtype))
        if self._tables.get(key, (None, None))[0] != places:
            params, grads, firsts, seconds, masters = (
                list(column) for column in zip(*arrays, strict=True)
            )
            held = None if masters[0] is None else masters
            self._tables[key] = places, TensorTable(params, grads, firsts, seconds, held)
        adamw_many(self._tables[key][1], rate, self.count, scale, **options)
        return True

    def _many_on_cpu(self, arrays: list[Any], rate: Any, scale: Any, options: Any) -> bool:
        from ..host.optimizer import flat_tensors
        from ..native.optimizer import adamw_many

        flat = flat_tensors(arrays)
        if flat is None:
            return False
        with nvtx.span("op.adamw", "op", len(flat)):
            adamw_many(flat, rate, self.count, scale, **options)
        return True


class SGD(_Optimizer):
    """Stochastic gradient descent, with momentum (Polyak 1964; ``nesterov``: Sutskever et al. 2013).

    ``params`` as for AdamW. The decay is added to the gradient, as in PyTorch.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov
        self.slots = ("velocity",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def _step(self, given: list[tuple[str, Parameter]], group: Group, scale: Any) -> None:
        rate = self.number(self.lr * group.rate, given[0][1])
        options = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": group.decay,
        }
        for name, parameter in given:
            slots, gradient = self.state[name], parameter.grad
            assert gradient is not None  # step() gives none without
            ops.sgd(parameter.data, gradient.data, slots.get("velocity"), slots.get("master"), rate,
                    scale, **options)  # fmt: skip


class LossScaler:
    """The factor that keeps small float16 gradients above 0 (Micikevicius et al. 2018): halved after
    a step whose gradients are not finite, doubled after ``patience`` good ones in a row."""

    def __init__(self, scale: float = 2.0**15, patience: int = 1000, least: float = 1.0):
        self.scale, self.patience, self.least, self.good = scale, patience, least, 0

    def update(self, finite: bool) -> None:
        """Tell it how the step went. No factor left to try is a FloatingPointError."""
        if finite:
            self.good += 1
            if self.good == self.patience:
                self.scale, self.good = self.scale * 2, 0
            return
        if self.scale <= self.least:
            raise FloatingPointError(
                f"gradients are not finite even with a loss scale of {self.scale:g}"
            )
        self.scale, self.good = self.scale / 2, 0

    def state_dict(self) -> dict[str, float]:
        """Its two numbers."""
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what ``state_dict`` gave."""
        self.scale, self.good = float(state["scale"]), int(state["good"])
