"""Views that start at an odd place in memory: every kernel takes them, at each argument in turn, or its
launcher makes a copy. A test that moved all at once would miss the argument that nobody looked at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from case_specs import Case
from emulated_device import emulated_device
from maker_checks import accepted
from running_ops import UNIT_ROUNDOFF, backward, cotangents, error, flat, forward, fresh, host, size

from tinytorch_gpu import backend
from tinytorch_gpu.core.op import OPS, Maker
from tinytorch_gpu.quantized.cache import EightBit

EMULATED = emulated_device()


def _aligned_rows(case: Case) -> bool:
    """Whether 16-byte accesses come into question: a last axis that is a multiple of 8."""
    shapes = [
        a.shape for a in case.arguments("float32") if backend.is_array(a) and a.dtype == np.float32
    ]
    rows = [s for s in shapes if len(s) > 1]
    return bool(rows) and all(s[-1] % 8 == 0 and s[-1] for s in rows)


def _cases() -> list[Any]:
    """Of each operation and set of options the first case of aligned rows, in float32 and float16."""
    found: dict[Any, Any] = {}
    for parameter in accepted(EMULATED):
        case, floats, weights, _ = parameter.values
        if floats == weights and floats in ("float32", "float16") and _aligned_rows(case):
            found.setdefault((case.op, str(case.options), floats), parameter)
    return list(found.values())


def _moved(x: Any) -> Any:
    """``x`` on the device, one element after an address that suits any access."""
    if isinstance(x, EightBit):
        return EightBit(_moved(x.values), _moved(x.scales))
    flat_ = np.concatenate([np.zeros(1, x.dtype), x.ravel()])
    return EMULATED.asarray(flat_)[1:].reshape(x.shape)


def _placed(arrays: Any, odd: int) -> list[Any]:
    """The arrays on the device, number ``odd`` of them at an odd place."""
    place: Callable[[Any, int], Any] = lambda x, i: _moved(x) if i == odd else EMULATED.asarray(x)  # noqa: E731
    return [place(x, i) if backend.is_array(x) else x for i, x in enumerate(arrays)]


def _run(case: Case, maker: Maker, arguments: Any, douts: Any, odd: int) -> list[Any]:
    """Everything that comes out when the array ``odd`` (arguments, then gradients) is an odd one."""
    given = _placed(fresh(arguments), odd)
    results, residuals = forward(case, given, maker, EMULATED.xp)
    out = [*results, *given]
    if OPS[case.op].differentiable:
        shifted = _placed(douts, odd - len(arguments))
        out += [*flat(residuals), *flat(backward(case, residuals, shifted, maker, EMULATED.xp))]
    return [host(x) for x in out if backend.is_array(x)]


@pytest.mark.parametrize(("case", "floats", "weights", "maker"), _cases())
def test_any_argument_may_lie_at_an_odd_address(
    case: Case, floats: str, weights: str, maker: Maker
) -> None:
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    results, _ = forward(case, fresh(arguments))
    douts = cotangents(results) if OPS[case.op].differentiable else ()
    expected = _run(case, maker, arguments, douts, -1)
    for odd, moved in enumerate((*arguments, *douts)):
        if not backend.is_array(moved) or not moved.size:
            continue
        for made, same in zip(_run(case, maker, arguments, douts, odd), expected, strict=True):
            if "float" in same.dtype.name:
                allowed = 16 * UNIT_ROUNDOFF[same.dtype.name] * size(same)
                assert error(made, same) <= allowed, f"argument {odd} at an odd address"
            else:
                np.testing.assert_array_equal(made, same)
