"""Each maker of the CPU against its reference, forward and backward halves and what they save.

Truth ``t`` is the reference in float64; a maker ``k`` may be off by twice what the reference ``r`` in
the dtype under test is off by, and a few roundings. In 16 bits that is one; where everything is
summed in the dtype under test, ``r`` can be right by luck and a different order of summing is some.
"""

from typing import Any

import numpy as np
import pytest
from case_specs import Case
from cases import CASES
from running_ops import (
    UNIT_ROUNDOFF,
    backward,
    cotangents,
    error,
    flat,
    forward,
    fresh,
    size,
    widened,
)  # fmt: skip

from tinytorch_gpu import Tensor, backend, no_grad, ops
from tinytorch_gpu.core.op import OPS, reference_only

backend.load_makers("cpu")
# (floating arguments, weights): a weight may be stored narrower than what it is multiplied with.
STORAGES = [
    ("float32", "float32"), ("float64", "float64"), ("float16", "float16"),
    ("bfloat16", "bfloat16"), ("float32", "float16"), ("float32", "bfloat16"),
]  # fmt: skip


def _accepted() -> list[Any]:
    """Every (case, storage) that some maker of the CPU takes."""
    found = []
    for case in CASES:
        maker = OPS[case.op].makers.get("cpu")
        for floats, weights in STORAGES if maker else []:
            if floats != weights and not any(getattr(s, "weight", False) for s in case.specs):
                continue
            try:
                arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
            except ValueError:  # ml_dtypes is missing
                continue
            options = case.options_for(np)
            if maker.accepts is None or maker.accepts(*arguments, **options):
                names = floats if floats == weights else f"{floats} by {weights}"
                found.append(pytest.param(case, floats, weights, id=f"{case}, {names}"))
    return found


def test_there_are_makers() -> None:
    assert {"linear", "attention", "rms_norm"} <= {p.values[0].op for p in _accepted()}


def _close(made: Any, rounded: Any, truth: Any, u: float) -> None:
    """The rule of tolerance, by the largest error of an array."""
    few = 1 if u > 1e-6 else 8 if u > 1e-12 else 64
    allowed = 2 * error(rounded, truth) + few * u * size(truth)
    assert error(made, truth) <= allowed, f"{error(made, truth)} is above {allowed}"


@pytest.mark.parametrize(("case", "floats", "weights"), _accepted())
def test_a_maker_does_what_its_reference_does(case: Case, floats: str, weights: str) -> None:
    maker = OPS[case.op].makers["cpu"]
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    runs = [fresh(arguments), fresh(arguments), fresh(widened(arguments))]
    makers = (maker, None, None)
    (made, saved), (rounded, kept), (truth, true_kept) = (
        forward(case, run, m) for run, m in zip(runs, makers, strict=True)
    )
    u = UNIT_ROUNDOFF[floats]
    # The results, and what was written in place.
    for a, b, t in zip((*made, *runs[0]), (*rounded, *runs[1]), (*truth, *runs[2]), strict=True):
        if not backend.is_array(b):
            continue
        assert a.dtype == b.dtype
        if "float" in b.dtype.name:
            _close(a, b, t, u)
        else:
            np.testing.assert_array_equal(a, b)
    if OPS[case.op].differentiable:
        _check_backward(case, (made, saved), (rounded, kept), (truth, true_kept), u)


def _check_backward(case: Case, made: Any, rounded: Any, truth: Any, u: float) -> None:
    """The residuals, and the gradients that come from them, on each side."""
    saved, kept, true_kept = (flat(x[1]) for x in (made, rounded, truth))
    assert len(saved) == len(kept)
    for a, b, t in zip(saved, kept, true_kept, strict=True):
        if not backend.is_array(b):
            assert a == b
            continue
        assert a.dtype == b.dtype
        _close(a, b, t, u)
    douts = cotangents(rounded[0])
    maker = OPS[case.op].makers["cpu"]
    own = backward(case, made[1], fresh(douts), maker)
    reference = backward(case, rounded[1], fresh(douts))
    exact = backward(case, truth[1], widened(douts))
    for place in case.differentiable:
        assert own[place].dtype == reference[place].dtype
        _close(own[place], reference[place], exact[place], u)


@pytest.mark.parametrize(("case", "floats", "weights"), _accepted())
def test_a_maker_gives_the_same_when_nothing_is_recorded(
    case: Case, floats: str, weights: str
) -> None:
    """Without gradients a maker may take another way."""
    op, options = OPS[case.op], case.options_for(np)
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    with no_grad():
        made = op(*fresh(arguments), **options)
        with reference_only():
            expected = op(*fresh(arguments), **options)
    made, expected = (x if isinstance(x, tuple) else (x,) for x in (made, expected))
    for a, b in zip(made, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, size(b.data))
        np.testing.assert_allclose(
            a.data.astype(float), b.data.astype(float), atol=64 * UNIT_ROUNDOFF[floats] * scale
        )


@pytest.mark.parametrize("rows", [1, 130, 300])
@pytest.mark.parametrize("window", [None, 40])
def test_attention_over_several_blocks(rows: int, window: int | None) -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, n, h, 8)) for n, h in ((rows, 4), (310, 2), (310, 2)))
    options = {"causal": True, "window": window}
    lengths = np.array([310, 305])
    made = ops.attention(q, k, v, lengths=lengths, **options)
    with reference_only():
        expected = ops.attention(q, k, v, lengths=lengths, **options)
    np.testing.assert_allclose(made.data, expected.data, atol=1e-12)


def test_wide_rows_take_several_blocks() -> None:
    random = np.random.default_rng(0)
    x, gamma = random.standard_normal((9, 1 << 14)), random.standard_normal(1 << 14)
    for made, args in (
        (ops.rms_norm, (gamma,)),
        (ops.layer_norm, (gamma, gamma)),
        (ops.swiglu, ()),
    ):
        out = made(x, *args)
        with reference_only():
            np.testing.assert_allclose(out.data, made(x, *args).data, atol=1e-11)


def test_rotary_takes_new_tables_and_positions() -> None:
    """What is kept from the last call must not be taken for another."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 2, 3, 4))
    cos, sin = random.standard_normal((5, 2)), random.standard_normal((5, 2))
    positions = np.array([0, 3])
    for tables in ((cos, sin), (cos, -sin), (sin, cos)):
        out = ops.rotary(x, *tables, positions)
        with reference_only():
            np.testing.assert_allclose(out.data, ops.rotary(x, *tables, positions).data)


def test_a_16_bit_weight_gets_gradients() -> None:
    random = np.random.default_rng(0)
    x = Tensor(random.standard_normal((3, 4)).astype(np.float32), requires_grad=True)
    w = Tensor(random.standard_normal((5, 4)).astype(np.float16), requires_grad=True)
    ops.linear(x, w).sum().backward()
    assert x.grad.dtype == np.float32 and w.grad.dtype == np.float16
    np.testing.assert_allclose(w.grad.data[0], x.data.sum(0), rtol=1e-3)
