"""Running one case of an operation: its reference or a maker, on any array module."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from case_specs import Case
from cases import CASES

from tinytorch_gpu import backend, ops  # noqa: F401 - the operations register themselves
from tinytorch_gpu.core.op import OPS, Maker
from tinytorch_gpu.quantized.cache import EightBit

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def each(keep: Callable[[Case], bool] = lambda case: True, more: Any = ()) -> Any:
    """Parametrize a test over the cases, and ``more``."""
    return pytest.mark.parametrize("case", [c for c in (*CASES, *more) if keep(c)], ids=str)


def differentiable(case: Case) -> bool:
    return OPS[case.op].differentiable


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """``function`` of every array in nested tuples and lists; the rest as it is."""
    if isinstance(x, tuple | list):
        return type(x)(mapped(function, item) for item in x)
    return function(x) if backend.is_array(x) else x


def on(xp: Any, x: Any) -> Any:
    """NumPy arrays as arrays of ``xp``."""

    def put(a: Any) -> Any:
        if isinstance(a, EightBit):
            return EightBit(xp.asarray(a.values), xp.asarray(a.scales))
        return xp.asarray(a)

    return x if xp is np else mapped(put, x)


def host(x: Any) -> Any:
    """Arrays of any module as NumPy arrays; those in 8 bit as the numbers that they stand for."""
    return mapped(
        lambda a: np.asarray(numbers(backend.to_numpy(a) if backend.kind(a) != "cpu" else a)), x
    )


def numbers(x: Any) -> Any:
    """What an array in 8 bit stands for; any other array as it is."""
    return x.dequantize() if isinstance(x, EightBit) else x


def flat(x: Any) -> list[Any]:
    """The leaves of nested tuples."""
    return [leaf for item in x for leaf in flat(item)] if isinstance(x, tuple | list) else [x]


def forward(
    case: Case, arguments: Any, maker: Maker | None = None, xp: Any = np
) -> tuple[Any, Any]:
    """The results as a tuple, and the residuals, of the reference or of ``maker``."""
    op = OPS[case.op]
    function = op.reference if maker is None else maker.forward
    made = function(*arguments, **case.options_for(xp))
    results, residuals = made if op.differentiable else (made, None)
    return (results if op.outputs > 1 else (results,)), residuals


def backward(
    case: Case, residuals: Any, douts: Any, maker: Maker | None = None, xp: Any = np
) -> Any:
    """The gradient of each argument."""
    function = OPS[case.op].reference_backward
    if maker is not None and maker.backward is not None:
        function = maker.backward
    assert function is not None, f"{case.op} has no backward"
    return function(residuals, *douts, **case.options_for(xp))


def cotangents(results: Any, seed: int = 1) -> tuple[Any, ...]:
    """A random gradient for each result, of its dtype."""
    random = np.random.default_rng(seed)
    return tuple(np.asarray(random.standard_normal(r.shape)).astype(r.dtype) for r in results)


def fresh(arguments: Any) -> Any:
    """A copy that an operation may write to."""
    return mapped(copy.copy, arguments)


def widened(x: Any) -> Any:
    """Floating arrays in float64."""
    return mapped(lambda a: a.astype(np.float64) if "float" in a.dtype.name else a, x)


def error(values: Any, truth: Any) -> float:
    """The largest |values - truth| where the truth is finite; elsewhere they must be equal."""
    values, truth = (np.asarray(numbers(x), dtype=np.float64) for x in (values, truth))
    assert values.shape == truth.shape
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(values[~finite], truth[~finite])
    return float(np.abs(values[finite] - truth[finite]).max(initial=0.0))


def size(truth: Any) -> float:
    """The largest finite |truth|."""
    values = np.abs(np.asarray(numbers(truth), dtype=np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))
