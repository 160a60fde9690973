"""Each maker of the CPU against its reference, and what the case table cannot say of them."""

import numpy as np
import pytest
from case_specs import Case
from maker_checks import accepted, check_maker, check_unrecorded

from tinytorch_gpu import Tensor, devices, ops
from tinytorch_gpu.core.op import Maker, reference_only

CPU = devices.device("cpu")
ACCEPTED = accepted(CPU)


def test_there_are_makers() -> None:
    assert {"linear", "attention", "rms_norm"} <= {p.values[0].op for p in ACCEPTED}


@pytest.mark.parametrize(("case", "floats", "weights", "maker"), ACCEPTED)
def test_a_maker_does_what_its_reference_does(
    case: Case, floats: str, weights: str, maker: Maker
) -> None:
    check_maker(case, floats, weights, maker, CPU)


@pytest.mark.parametrize(("case", "floats", "weights", "maker"), ACCEPTED)
def test_a_maker_gives_the_same_when_nothing_is_recorded(
    case: Case, floats: str, weights: str, maker: Maker
) -> None:
    check_unrecorded(case, floats, weights, maker, CPU)


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
