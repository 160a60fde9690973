"""Quantized weights in native products: the bytes come back, and the product is that of rounded rows.

The rule of tolerance for such a format: in inference the library rounds x, to 8 bits for each 32 values. With x
so rounded by NumPy the product must be the same but for float32's own rounding. A gradient's product is exact.
"""

import weakref
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor, no_grad, ops
from tinytorch_gpu.native import blocks, library
from tinytorch_gpu.quantized import Blocks, QuantizedMatrix, format_named

if library() is None:
    pytest.skip("there is no native library", allow_module_level=True)

NAMES = ("q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k")


def drawn(name: str, outs: int, width: int = 512) -> QuantizedMatrix:
    """Any bytes at all, but for scales that are ordinary numbers."""
    random, form = np.random.default_rng(outs), format_named(name)
    raw = random.integers(0, 256, (outs, form.row_bytes(width)), np.uint8)
    each = raw.reshape(-1, form.nbytes)
    for at in form.halves:
        scales = random.uniform(-0.01, 0.01, (len(each), 1)).astype("<f2")
        each[:, at : at + 2] = scales.view(np.uint8)
    return QuantizedMatrix(Blocks(name, raw))


def rounded(x: Any) -> Any:
    """x (..., C) in 8 bits, 32 values to a scale, in float64."""
    parts = x.astype(np.float64).reshape(*x.shape[:-1], -1, 32)
    top = np.abs(parts).max(-1, keepdims=True)
    scale = np.where(top > 0, top, 1) / 127
    return (np.rint(parts / scale) * scale).reshape(x.shape)


@pytest.mark.parametrize("outs", [1, 8, 21])
@pytest.mark.parametrize("name", NAMES)
def test_every_byte_comes_back(name: str, outs: int) -> None:
    raw = drawn(name, outs).blocks
    packed = blocks.pack(raw, name, 512)
    assert packed.nbytes == raw.shape[1] * -(-outs // 8) * 8
    found = blocks.unpack(packed, name, 512, raw.shape[1], np.arange(outs)[::-1])
    np.testing.assert_array_equal(found, raw[::-1])


def test_packed_weights_lie_together_and_are_freed_together() -> None:
    together = blocks._Together()
    first, second = together.room(1000), together.room(70)
    first[...], second[...] = 1, 2
    assert second.base is first.base and first.sum() == 1000
    assert together.room(together.PIECE + 1).size == together.PIECE + 1
    gone = weakref.ref(first.base)
    del first
    assert gone() is not None
    del second
    assert gone() is None


@pytest.mark.parametrize("layout", ["rows", blocks.LAYOUT])
@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_reads_either_layout(name: str, layout: str) -> None:
    weight, ids = drawn(name, 21), np.array([[20, 0, 7], [8, 7, 13]])
    truth = np.asarray(weight)[ids] * np.float32(3)
    if layout != "rows":
        blocks.interleaved(weight.parts[0])
    made = ops.embedding(ids, weight, scale=3.0).data
    assert weight.parts[0].layout == layout
    np.testing.assert_allclose(made, truth, rtol=1e-6, atol=1e-6 * np.abs(truth).max())
    for wrong in (-1, 21):
        with pytest.raises(IndexError, match="21 rows"):
            ops.embedding(np.array([wrong]), weight)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 23, 150])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_that_of_rows_in_8_bits(name: str, rows: int) -> None:
    for outs in (16, 21):
        weight = drawn(name, outs, 768)
        x = np.random.default_rng(rows).standard_normal((rows, 768)).astype(np.float32)
        x[0, :32] = 0
        truth = rounded(x) @ np.asarray(weight).astype(np.float64).T
        with no_grad():
            made = ops.linear(x, weight).data
        assert weight.parts[0].layout == blocks.LAYOUT
        np.testing.assert_allclose(made, truth, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    """Steps that check guesses, and prompts in pieces, give what a token at a time gives. 1792 values are more than
    a panel holds, 200 rows more than stay in cache."""
    weight = drawn(name, 37, 1792)
    x = np.random.default_rng(0).standard_normal((200, 1792)).astype(np.float32)
    with no_grad():
        whole = ops.linear(x, weight).data
        for first, count in ((0, 1), (5, 2), (7, 3), (11, 5), (100, 11), (20, 64), (199, 1)):
            some = ops.linear(x[first : first + count], weight).data
            np.testing.assert_array_equal(some, whole[first : first + count])
    truth = rounded(x) @ np.asarray(weight).astype(np.float64).T
    np.testing.assert_allclose(whole, truth, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_with_a_gradient_is_exact(name: str, rows: int) -> None:
    weight = drawn(name, 21)
    x = np.random.default_rng(rows).standard_normal((rows, 512)).astype(np.float32)
    given = Tensor(x, requires_grad=True)
    made, exact = ops.linear(given, weight), np.asarray(weight).astype(np.float64)
    truth = x.astype(np.float64) @ exact.T
    np.testing.assert_allclose(made.data, truth, atol=3e-6 * np.abs(truth).max())
    made.sum().backward()
    slope = np.broadcast_to(exact.sum(0), x.shape)
    np.testing.assert_allclose(given.grad, slope, atol=3e-6 * np.abs(slope).max())


@pytest.mark.parametrize(
    "activation", [None, "relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"]
)
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_what_is_put_on_a_product(activation: Any, rows: int) -> None:
    weight, random = drawn("q4_0", 176), np.random.default_rng(0)
    made = 88 if activation in ("swiglu", "geglu") else 176
    x = random.standard_normal((rows, 512)).astype(np.float32)
    bias, residual = (random.standard_normal(s).astype(np.float32) for s in (176, (rows, made)))
    exact = (
        rounded(x),
        np.asarray(weight).astype(np.float64),
        bias.astype(np.float64),
        residual,
    )
    truth = ops.linear.reference(*exact, activation=activation)[0]
    with no_grad():
        found = ops.linear(x, weight, bias, residual, activation=activation).data
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.abs(truth).max())


def test_rows_of_several_formats() -> None:
    parts = [drawn(name, outs).parts[0] for name, outs in (("q4_k", 13), ("q6_k", 24))]
    weight, random = QuantizedMatrix(parts), np.random.default_rng(0)
    for rows in (1, 6):
        x = random.standard_normal((rows, 512)).astype(np.float32)
        bias = random.standard_normal(37).astype(np.float32)
        residual = random.standard_normal((rows, 37)).astype(np.float32)
        truth = rounded(x) @ np.asarray(weight).astype(np.float64).T + bias + residual
        with no_grad():
            found = ops.linear(x, weight, bias, residual).data
        np.testing.assert_allclose(found, truth, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_lost(strange: float) -> None:
    x = np.ones((3, 512), np.float32)
    x[1, 100] = strange
    with no_grad():
        made = ops.linear(x, drawn("q8_0", 8)).data
    assert np.isfinite(made[[0, 2]]).all() and np.isnan(made[1]).all()


@pytest.mark.parametrize("rows", [1, 4])
def test_shapes_that_do_not_fit_are_an_error(rows: int) -> None:
    """Native code would read beyond the end of an array."""
    x, weight = np.ones((rows, 24), np.float32), np.ones((16, 24), np.float32)
    for arrays in (
        (x, weight[:, :5].copy()),
        (x, weight, np.ones(5, np.float32)),
        (x, weight, None, np.ones((rows, 5), np.float32)),
    ):
        with pytest.raises(ValueError):
            ops.linear(*arrays)
