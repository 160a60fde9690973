"""Op: one operation with one meaning and several makers.

The meaning is a reference in plain array code with its backward. A maker (a CUDA kernel, native CPU
code, NumPy in blocks) registers itself for the arrays of one device and keeps the same residuals, so
that a test compares each half of one with the same half of the other. Of several makers for a device the
first one that accepts a call does it.
"""

import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import nvtx
from ..backend import DEVICES, kind, kind_of_type, kinds
from ..devices import load_makers, loaded_makers
from .deferred import ready, waiting
from .graph import Node, tokens
from .operators import operators
from .tensor import Tensor, grad_enabled, wrap

OPS: dict[str, "Op"] = {}
_reference_only = False


@dataclass(frozen=True)
class Maker:
    """A fast way to do an operation on one device, for the arguments that ``accepts`` takes.

    ``plan(result, *arrays, **options)`` prepares a call to be repeated: it returns a function, or
    native ``Record``s, that read the same arrays anew and write the same result in place; or None.
    ``joins(*arrays, **options)`` says whether ``forward`` may be called while arrays it is given are not there yet
    (``deferred.py``): without it, all are.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    accepts: Callable[..., bool] | None
    plan: Callable[..., Any] | None = None
    joins: Callable[..., bool] | None = None


@dataclass(frozen=True)
class Call:
    """One call of an operation, as ``record`` saw it."""

    op: "Op"
    maker: Maker | None
    arrays: list[Any]
    options: dict[str, Any]
    result: Any


class _Recording(threading.local):
    calls: list[Call] | None = None


_recording = _Recording()


class Op:
    """An operation on arrays, called with Tensors or arrays; returns Tensors.

    ``reference(*arrays, **options)`` returns (result, residuals), or only the result when not
    ``differentiable``; with ``outputs`` above 1 the result is a tuple. ``mutates`` names the
    arguments that it writes in place. A ``view`` looks at the memory of its argument in another way
    where it can, so that it is no fallback to have no kernel for it. Its NVTX ``range`` is called ``op.`` and ``shown_as``, by
    default the reference's name. A reference that takes ``needs`` is told by it, forward and backward,
    which arguments want a gradient where some do not (None: all do).
    """

    def __init__(
        self,
        reference: Callable[..., Any],
        outputs: int = 1,
        mutates: tuple[str, ...] = (),
        differentiable: bool = True,
        shown_as: str | None = None,
        view: bool = False,
    ):
        self.name, self.__doc__ = reference.__name__, reference.__doc__
        self.reference, self.outputs = reference, outputs
        self.mutates, self.differentiable, self.view = mutates, differentiable, view
        self.reference_backward: Callable[..., Any] | None = None
        self.makers: dict[str, list[Maker]] = {}
        self.range = f"op.{shown_as or self.name}"
        self.backward_range = f"{self.range}.backward"
        parameters = inspect.signature(reference).parameters.values()
        self._arrays = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        self._selective = "needs" in self._options
        OPS[self.name] = operators[self.name] = self

    def backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the gradient (a decorator): (residuals, *douts, **options) -> one gradient or
        None per argument."""
        self.reference_backward = function
        return function

    def differentiate(self, residuals: Any, *douts: Any, **options: Any) -> Any:
        """The reference backward on plain arrays; an operation without one is a TypeError."""
        if self.reference_backward is None:
            raise TypeError(f"{self.name} has no gradient")
        return self.reference_backward(residuals, *douts, **options)

    def maker(
        self,
        where: str,
        forward: Callable[..., Any],
        backward: Callable[..., Any] | None = None,
        accepts: Callable[..., bool] | None = None,
        plan: Callable[..., Any] | None = None,
        joins: Callable[..., bool] | None = None,
        *,
        ahead: bool = False,
    ) -> None:
        """Register a fast version for the arrays of device kind ``where``, behind or ``ahead`` of those
        it has: the first that accepts a call does it."""
        makers = self.makers.setdefault(where, [])
        makers.insert(0 if ahead else len(makers), Maker(forward, backward, accepts, plan, joins))

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self._options.issuperset(options):
            args = self._positional(args, options)
        arrays, wanted, spared = [], False, False
        for a in args:
            if isinstance(a, Tensor):
                wanted, spared = wanted or a.requires_grad, spared or not a.requires_grad
                a = a._data
            else:
                spared = spared or a is not None
            arrays.append(a)
        recorded = wanted and grad_enabled()
        if recorded and spared and self._selective:
            needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
            options = {**options, "needs": needs}
        where = self._place(arrays)
        maker = self._maker(where, arrays, options)
        made = self._run(maker, where, arrays, options)
        calls = _recording.calls
        if calls is not None:
            ready()
            result = made[0] if self.differentiable else made
            calls.append(Call(self, maker, arrays, options, result))
        if not self.differentiable:
            return wrap(made) if self.outputs == 1 else tuple(map(wrap, made))
        result, residuals = made
        if self.outputs == 1 and not recorded:
            return wrap(result)
        tensors = [wrap(result)] if self.outputs == 1 else [wrap(r) for r in result]
        if recorded:
            self._record(maker, args, residuals, options, tensors)
        return tensors[0] if self.outputs == 1 else tuple(tensors)

    def _run(self, maker: Maker | None, where: str, arrays: list[Any], options: Any) -> Any:
        """The forward of a maker, or the reference, in its range; what it reads is there, unless it joins what waits."""
        forward = self.reference if maker is None else maker.forward
        if waiting() and not (maker and maker.joins and maker.joins(*arrays, **options)):
            ready()
        if not nvtx.on:
            return forward(*arrays, **options)
        fell_back = maker is None and where in DEVICES and not self.view
        name = self.range + " (reference)" if fell_back else self.range
        with nvtx.span(name, "op", tokens(arrays)):
            made = forward(*arrays, **options)
            ready()  # a range shows all of an operation
        return made

    def _positional(self, args: Any, options: dict[str, Any]) -> Any:
        """Take array arguments given by name out of ``options`` and into their places."""
        named = {name: options.pop(name) for name in list(options) if name not in self._options}
        unknown = [n for n in named if n not in self._arrays[len(args) :]]
        if unknown:
            raise TypeError(f"{self.name}() got an unexpected or repeated argument {unknown[0]!r}")
        last = max(self._arrays.index(name) for name in named) + 1
        return (*args, *(named.get(name) for name in self._arrays[len(args) : last]))

    def _place(self, arrays: list[Any]) -> str:
        """The device kind of the arrays; two kinds in one call are an error."""
        where = None
        for array in arrays:
            found = kinds.get(type(array))
            if found is None:
                found = kind_of_type(array)
            if found and found != where:
                if where is not None:
                    raise ValueError(
                        f"{self.name} got arrays on {where} and on {found}: "
                        "move them to one device with .to(...)"
                    )
                where = found
        return where or "cpu"

    def _maker(self, where: str, arrays: list[Any], options: dict[str, Any]) -> Maker | None:
        if where not in loaded_makers:
            load_makers(where)
        # The emulated device runs the GPU's kernels.
        makers = self.makers.get("cuda" if where == "emulated" else where)
        if makers is not None and not _reference_only:
            for maker in makers:
                if maker.accepts is None or maker.accepts(*arrays, **options):
                    return maker
        if where in DEVICES and not self.view and os.environ.get("TINYTORCH_STRICT") == "1":
            raise RuntimeError(f"TINYTORCH_STRICT=1: {self.name} has no kernel for these arguments")
        return None

    def _record(
        self, maker: Any, args: Any, residuals: Any, options: Any, tensors: list[Tensor]
    ) -> None:
        backward, name = self.reference_backward, self.backward_range
        if maker is not None and maker.backward is not None:
            backward = maker.backward
        elif nvtx.on and kind(tensors[0]._data) in DEVICES:
            name += " (reference)"
        parents = [a if isinstance(a, Tensor) and a.requires_grad else None for a in args]
        node = Node(self.name, backward, parents, residuals, options, name)
        for i, tensor in enumerate(tensors):
            data = tensor._data
            node.outputs.append((data.shape, data.dtype))
            tensor.node, tensor.output, tensor.requires_grad = node, i, True

    def __repr__(self) -> str:
        return f"<op {self.name}: reference, {', '.join(self.makers) or 'no makers'}>"


def needed(needs: Any, argument: int) -> bool:
    """Whether ``needs`` (see ``Op``) asks for the gradient of an argument; one left out has none."""
    return needs is None or (argument < len(needs) and needs[argument])


def op(reference: Any = None, **declared: Any) -> Any:
    """Make an Op of a reference function: ``@op`` or ``@op(outputs=2, differentiable=False)``."""
    if reference is None:
        return lambda function: Op(function, **declared)
    return Op(reference, **declared)


@contextlib.contextmanager
def reference_only() -> Iterator[None]:
    """Use no maker inside: the plain meaning of every operation, for comparison."""
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


@contextlib.contextmanager
def record(calls: list[Call] | None = None) -> Iterator[list[Call]]:
    """Collect this thread's calls of operations inside, in order, while they run as always; each is
    appended to ``calls`` as soon as it is done."""
    calls = [] if calls is None else calls
    before, _recording.calls = _recording.calls, calls
    try:
        yield calls
    finally:
        _recording.calls = before
