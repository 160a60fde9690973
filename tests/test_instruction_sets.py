"""Every native operation on every instruction set, emulated where this machine lacks it: the shared cases
against the references, by the same rule of tolerance."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from case_specs import Case
from instruction_sets import MissingError, Runner
from maker_checks import accepted, check_maker, check_unrecorded, folder
from running_ops import fresh, mapped, numbers
from test_native_blocks import NAMES, drawn, rounded

from tinytorch_gpu import backend, devices, native, no_grad, ops
from tinytorch_gpu.core.op import OPS as ALL
from tinytorch_gpu.core.op import Maker
from tinytorch_gpu.devices import Device

CASES = [p.values for p in accepted(devices.device("cpu")) if folder(p.values[-1]) == "native"]
OPS = sorted({case.op for case, *_ in CASES})
SETS = ("portable", "avx2", "avx512", "neon")


@pytest.fixture(scope="module", params=SETS)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A process with the operations of an instruction set; in CI there is one for each."""
    own = native.library()
    if own is not None and request.param == own.isa:
        pytest.skip("every other test runs this one")
    try:
        made = Runner(request.param)
    except MissingError as missing:
        if os.environ.get("CI") and request.param != "avx2":
            raise
        pytest.skip(str(missing))
    yield made
    made.close()


def test_the_processor_that_is_emulated_says_so(runner: Runner) -> None:
    assert "portable" in runner.processor


def check_plan(case: Case, floats: str, weights: str, maker: Maker, place: Device) -> None:
    """What is recorded to be repeated does what the call has done."""
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    once, again = fresh(arguments), fresh(arguments)
    with no_grad():
        made = maker.forward(*once, **case.options)
        made = made[0] if ALL[case.op].differentiable else made
        same = [i for i, x in enumerate(once) if x is made]  # written in place
        result = again[same[0]] if same else mapped(np.zeros_like, made)
        steps = maker.plan(result, *again, **case.options) if maker.plan else None
    for step in steps if isinstance(steps, list) else [steps] if steps else []:
        step()
    for a, b in zip((result, *again), (made, *once), strict=True):
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (a, b)), strict=True):
            if steps and backend.is_array(one):
                np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_an_operation_does_what_its_reference_does(
    runner: Runner, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sum(runner.calls.values())
    for case, floats, weights, maker in CASES:
        if case.op != op:
            continue
        for check in (check_maker, check_unrecorded, check_plan):
            with monkeypatch.context() as patch:
                runner.enter(patch)
                try:
                    check(case, floats, weights, maker, devices.device("cpu"))
                except AssertionError as error:
                    raise AssertionError(f"{case}, {floats} by {weights}: {error}") from error
    assert sum(runner.calls.values()) > before


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 11])
@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_product(
    runner: Runner, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.enter(monkeypatch)
    weight: Any = drawn(name, 21, 768)
    x = np.random.default_rng(rows).standard_normal((rows, 768)).astype(np.float32)
    truth = rounded(x) @ np.asarray(weight).astype(np.float64).T
    with no_grad():
        made = ops.linear(x, weight).data
    np.testing.assert_allclose(made, truth, atol=3e-6 * np.abs(truth).max())
