"""The references: right gradients, portable code, 32-bit arithmetic, no undeclared writing."""

from typing import Any

import numpy as np
import pytest
from case_specs import Case
from cases import CASES
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
    mapped,
    on,
    size,
    widened,
)  # fmt: skip

from tinytorch_gpu import backend
from tinytorch_gpu.core.op import OPS

# Results that are not in the dtype of the first floating argument.
WIDER = {"cross_entropy", "penalize", "gradient_norm", "clip_scale"}


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPS)
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


def test_what_has_no_gradient_says_so() -> None:
    for op in OPS.values():
        assert (op.reference_backward is not None) == op.differentiable, op.name
        assert set(op.mutates) <= set(op._arrays), op.name
        assert not (op.mutates and op.differentiable), f"{op.name} writes over what it saved"


# --- gradients -------------------------------------------------------------------------------


@each(lambda case: differentiable(case) and case.smooth)
def test_gradients_are_those_of_difference_quotients(case: Case) -> None:
    arguments = case.arguments(np.float64)
    results, residuals = forward(case, arguments)
    douts = cotangents(results)
    found = backward(case, residuals, douts)
    for place in case.differentiable:
        expected = _quotients(case, arguments, place, douts)
        assert found[place].shape == arguments[place].shape
        assert found[place].dtype == arguments[place].dtype
        np.testing.assert_allclose(
            found[place], expected, rtol=1e-6, atol=1e-7 * max(1, size(expected))
        )
    for place, gradient in enumerate(found):
        if place not in case.differentiable:
            assert gradient is None


def _quotients(case: Case, arguments: Any, place: int, douts: Any) -> Any:
    """Central differences of the results along the cotangents, one element at a time."""

    def projected(step: float, index: Any) -> float:
        moved = list(arguments)
        moved[place] = moved[place].copy()
        moved[place][index] += step
        results, _ = forward(case, moved)
        return sum(float(np.sum(r * d)) for r, d in zip(results, douts, strict=True))

    expected = np.zeros_like(arguments[place])
    for index in np.ndindex(expected.shape):
        h = 1e-5 * max(1.0, abs(arguments[place][index]))
        expected[index] = (projected(h, index) - projected(-h, index)) / (2 * h)
    return expected


@each(lambda case: case.op.startswith("attention"))
def test_a_query_that_sees_nothing_gives_zeros(case: Case) -> None:
    results, residuals = forward(case, case.arguments(np.float64))
    blind = ~np.isfinite(residuals[2][..., 0])  # (B, H, T) of the log-sum-exp
    out = results[0].transpose(0, 2, 1, 3)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[blind], 0)
    dq, dk, dv, *_ = backward(case, residuals, cotangents(results))
    np.testing.assert_array_equal(dq.transpose(0, 2, 1, 3)[blind], 0)
    assert np.isfinite(dk).all() and np.isfinite(dv).all()
    if "sees nothing" in case.note or "at all" in case.note:
        assert blind.any()
    if "at all" in case.note:
        assert not dk.any() and not dv.any()


def test_the_padding_row_gets_no_gradient() -> None:
    case = next(c for c in CASES if c.op == "embedding" and c.note == "padding")
    results, residuals = forward(case, case.arguments(np.float64))
    gradient = backward(case, residuals, cotangents(results))[1]
    assert gradient[0].any() and not gradient[2].any()


# --- one code for every array module -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each()
def test_the_reference_runs_on_any_standard_array_module(case: Case, dtype: str) -> None:
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is the second module")
    arguments = case.arguments(dtype)
    here, there = fresh(arguments), on(strict, fresh(arguments))
    results, residuals = forward(case, here)
    strict_results, strict_residuals = forward(case, there, xp=strict)
    _assert_same(strict_results, results, dtype, strict)
    _assert_same(there, here, dtype, strict)  # also what was written in place
    if differentiable(case) and case.standard:
        _assert_same(strict_residuals, residuals, dtype)
        douts = cotangents(results)
        found = backward(case, strict_residuals, on(strict, douts), xp=strict)
        _assert_same(found, backward(case, residuals, douts), dtype)


def _assert_same(there: Any, here: Any, dtype: str, strict: Any = None) -> None:
    there, here = flat(there), flat(here)
    assert len(there) == len(here)
    u = UNIT_ROUNDOFF[dtype]
    for a, b in zip(there, here, strict=True):
        if not backend.is_array(b):
            assert type(a) is type(b) or hasattr(a, "_np_dtype"), (a, b)
            continue
        assert strict is None or isinstance(a, type(strict.asarray(0)))
        assert backend.dtype_name(a.dtype) == backend.dtype_name(b.dtype)
        # The same steps: only the order of summation may differ.
        assert error(host(a), b) <= 16 * u * max(1, size(b))


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each(lambda case: case.op not in ("sample", "argmax", "mark_seen", "advance", "feed"))
def test_16_bit_references_compute_in_float32(case: Case, dtype: str) -> None:
    """Only what is stored is rounded: a result is off by its own rounding, no more."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 is ml_dtypes'")
    arguments = case.arguments(backend.dtype(dtype))
    results, residuals = forward(case, fresh(arguments))
    truth, true_residuals = forward(case, fresh(widened(arguments)))
    u = UNIT_ROUNDOFF[dtype]
    for result, true in zip(results, truth, strict=True):
        if case.op in WIDER:
            assert result.dtype == np.float32
        elif "dtype" not in case.options:
            assert result.dtype.name == dtype
        rounding = (max(case.roundings, 1) * u if result.dtype.itemsize == 2 else 0) + 1e-6
        # What lies beyond float16's range is infinity there.
        kept = np.where(
            np.isfinite(np.asarray(result, dtype=float)), true, np.asarray(result, float)
        )
        assert error(result, kept) <= rounding * max(size(kept), 2.0**-14)
    if not differentiable(case):
        return
    douts = cotangents(results)
    found = backward(case, residuals, douts)
    expected = backward(case, true_residuals, widened(douts))
    for place in case.differentiable:
        assert found[place].dtype == arguments[place].dtype
        assert error(found[place], expected[place]) <= 4 * u * max(size(expected[place]), 1e-2)


@each(differentiable)
def test_float32_stays_float32(case: Case) -> None:
    results, residuals = forward(case, case.arguments(np.float32))
    if "dtype" not in case.options:
        assert {r.dtype.name for r in results} == {"float32"}
    found = backward(case, residuals, cotangents(results))
    for place in case.differentiable:
        assert found[place].dtype == np.float32


# --- writing in place ----------------------------------------------------------------------------


@each()
def test_only_declared_arguments_are_written_to(case: Case) -> None:
    op, arguments = OPS[case.op], case.arguments(np.float32)
    used = fresh(arguments)
    results, residuals = forward(case, used)
    if op.differentiable:
        backward(case, residuals, mapped(_frozen, cotangents(results)))
    changed = set()
    for name, before, after in zip(op._arrays, arguments, used, strict=False):
        if backend.is_array(before) and not np.array_equal(before, after):
            changed.add(name)
    assert changed <= set(op.mutates)


def _frozen(x: Any) -> Any:
    x.flags.writeable = False
    return x


@each(lambda case: case.op == "cached_attention")
def test_cached_attention_writes_the_new_keys_and_values(case: Case) -> None:
    arguments = case.arguments(np.float32)
    packed, keys, values, starts = arguments[:4]
    expected = [keys.copy(), values.copy()]
    kv_heads, count = keys.shape[2], packed.shape[1]
    for row, start in enumerate(np.broadcast_to(starts, 2)):
        if len(arguments) < 6:  # not turned
            expected[0][row, start : start + count] = packed[row, :, 4 : 4 + kv_heads]
        expected[1][row, start : start + count] = packed[row, :, 4 + kv_heads :]
    forward(case, arguments)
    if len(arguments) < 6:
        np.testing.assert_array_equal(keys, expected[0])
    np.testing.assert_array_equal(values, expected[1])


def test_mark_seen_marks() -> None:
    seen = np.zeros((2, 4), bool)
    OPS["mark_seen"](seen, np.array([[1, 1, 3], [0, -1, -1]]))
    assert seen.tolist() == [[False, True, False, True], [True, False, False, False]]
