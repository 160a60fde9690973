"""Every case on the emulated device: the CUDA kernels where there is one, else the reference on its
strict arrays. Needs a C++ compiler."""

from typing import Any

import numpy as np
import pytest
from case_specs import Case
from emulated_device import emulated_device
from maker_checks import accepted, check_maker, check_unrecorded, makers_of
from running_ops import (
    UNIT_ROUNDOFF,
    backward,
    cotangents,
    each,
    error,
    flat,
    forward,
    fresh,
    host,
    on,
    size,
)  # fmt: skip

from tinytorch_gpu import backend
from tinytorch_gpu.core.op import OPS, Maker

EMULATED = emulated_device()
ACCEPTED = accepted(EMULATED)


@pytest.mark.parametrize(("case", "floats", "weights", "maker"), ACCEPTED)
def test_a_kernel_does_what_its_reference_does(
    case: Case, floats: str, weights: str, maker: Maker
) -> None:
    check_maker(case, floats, weights, maker, EMULATED)


@pytest.mark.parametrize(("case", "floats", "weights", "maker"), ACCEPTED)
def test_a_kernel_gives_the_same_when_nothing_is_recorded(
    case: Case, floats: str, weights: str, maker: Maker
) -> None:
    check_unrecorded(case, floats, weights, maker, EMULATED)


def _same(there: Any, here: Any) -> None:
    there, here = flat(there), flat(here)
    assert len(there) == len(here)
    for a, b in zip(there, here, strict=True):
        if backend.is_array(b):
            assert backend.kind(a) == "emulated" and a.dtype == b.dtype
            assert error(host(a), b) <= 32 * UNIT_ROUNDOFF["float32"] * max(1, size(b))


@each(lambda case: not makers_of(case, EMULATED))
def test_a_reference_runs_on_its_arrays(case: Case) -> None:
    op, arguments, xp = OPS[case.op], case.arguments("float32"), EMULATED.xp
    here, there = fresh(arguments), on(xp, fresh(arguments))
    results, residuals = forward(case, here)
    found, found_residuals = forward(case, there, None, xp)
    _same(found, results)
    _same(there, here)
    if op.differentiable:
        douts = cotangents(results)
        _same(
            backward(case, found_residuals, on(xp, douts), None, xp),
            backward(case, residuals, douts),
        )


def test_host_arrays_are_refused() -> None:
    x, xp = EMULATED.asarray([1.0, 2.0]), EMULATED.xp
    for attempt in (
        lambda: x + np.ones(2), lambda: np.ones(2) + x, lambda: xp.add(x, np.ones(2)),
        lambda: x[np.array([0])], lambda: float(x[0]), lambda: bool(x[0]), lambda: list(x),
        lambda: np.asarray(x), lambda: memoryview(x), lambda: np.exp(x),
        lambda: np.from_dlpack(x), lambda: x.__setitem__(0, np.ones(1)), lambda: x.tolist(),
        lambda: np.ones(2).__setitem__(slice(None), x),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            attempt()
