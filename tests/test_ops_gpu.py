"""Every case on CuPy, by its kernel or by its reference, against NumPy: needs an NVIDIA GPU."""

from typing import Any

import numpy as np
import pytest
from case_specs import Case
from cases import KERNEL_CASES
from maker_checks import check_maker
from running_ops import (
    UNIT_ROUNDOFF,
    backward,
    cotangents,
    differentiable,
    each,
    error,
    flat,
    forward,
    fresh,
    host,
    on,
    size,
)  # fmt: skip

from tinytorch_gpu import backend, devices
from tinytorch_gpu.core.op import OPS

pytestmark = pytest.mark.gpu


def _assert_same(there: Any, here: Any, dtype: str) -> None:
    there, here = flat(there), flat(here)
    assert len(there) == len(here)
    for a, b in zip(there, here, strict=True):
        if backend.is_array(b):
            assert backend.kind(a) == "cuda"
            assert a.dtype == b.dtype
            assert error(host(a), b) <= 32 * UNIT_ROUNDOFF[dtype] * max(1, size(b))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@each(more=KERNEL_CASES)
def test_the_gpu_does_what_the_cpu_does(case: Case, dtype: str) -> None:
    cupy: Any = devices.device("cuda").xp
    devices.load_makers("cuda")
    op, arguments = OPS[case.op], case.arguments(dtype)
    here, there = fresh(arguments), on(cupy, fresh(arguments))
    maker = next(iter(op.makers.get("cuda", ())), None)
    if maker and (not maker.accepts or maker.accepts(*there, **case.options_for(cupy))):
        check_maker(case, dtype, dtype, maker, devices.device("cuda"))
        return
    results, residuals = forward(case, here)
    gpu_results, gpu_residuals = forward(case, there, None, cupy)
    _assert_same(gpu_results, results, dtype)
    _assert_same(there, here, dtype)
    if differentiable(case):
        _assert_same(gpu_residuals, residuals, dtype)
        douts = cotangents(results)
        found = backward(case, gpu_residuals, on(cupy, douts), None, cupy)
        _assert_same(found, backward(case, residuals, douts), dtype)


def test_random_numbers_are_the_same() -> None:
    from tinytorch_gpu.rng import uniform

    cupy: Any = devices.device("cuda").xp
    state = np.array([2**63 + 5, 7], np.uint64)
    np.testing.assert_array_equal(
        uniform(cupy.asarray(state), 9, np.float32).get(), uniform(state, 9, np.float32)
    )
