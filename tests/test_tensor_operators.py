"""A Tensor's operators and methods are NumPy's, with gradients."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Tensor


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


OPERATORS = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("other", ["number", "array", "scalar", "tensor"])
def test_both_sides(name: str, other: str) -> None:
    operator, x = OPERATORS[name], Tensor(np.array([[1.0, 2], [3, 4]]), requires_grad=True)
    raw: Any = np.array([2.0, 5.0])
    beside: Any = {"number": 2.0, "array": raw, "scalar": np.float64(2.0), "tensor": Tensor(raw)}[other]  # fmt: skip
    plain = np.asarray(beside.data if isinstance(beside, Tensor) else beside)
    for ours, expected in (
        (operator(x, beside), operator(x.data, plain)),
        (operator(beside, x), operator(plain, x.data)),
    ):
        assert type(ours) is Tensor and ours.requires_grad
        np.testing.assert_allclose(ours.data, expected)


def test_numbers_do_not_widen() -> None:
    x = Tensor([1.0])
    assert {(x * 2.5).dtype, (2 / x).dtype, (x**0.5).dtype, (1 - x).dtype} == {np.dtype("float32")}


def test_augmented_assignment_makes_a_new_tensor() -> None:
    x = leaf(1.0)
    y = x
    y += 1
    assert x.item() == 1 and y.item() == 2
    y.backward()
    assert x.grad.item() == 1


def test_comparisons() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    assert (x > 2).tolist() == [False, False, True]
    assert (x <= Tensor([1.0, 1, 3])).tolist() == [True, False, True]
    assert (x == 2.0).tolist() == [False, True, False] and (x != 2.0).tolist() == [
        True,
        False,
        True,
    ]
    assert (x >= 2).tolist() == [False, True, True] and (x < 2).tolist() == [True, False, False]
    assert {x: 1}[x] == 1  # by identity


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)),
     ((5, 1, 2, 3), (4, 3, 2))],
)  # fmt: skip
def test_matmul(left: Any, right: Any) -> None:
    a, b = np.random.default_rng(0).normal(size=left), np.random.default_rng(1).normal(size=right)
    np.testing.assert_allclose((Tensor(a) @ Tensor(b)).data, a @ b)
    np.testing.assert_allclose((Tensor(a) @ b).data, a @ b)
    np.testing.assert_allclose((a @ Tensor(b)).data, a @ b)


def test_indexing() -> None:
    x = Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True)
    rows = Tensor(np.array([0, 2, 0]))
    assert x[1, 2].item() == 6
    np.testing.assert_array_equal(x[:, 1:3].detach().numpy(), x.data[:, 1:3])
    np.testing.assert_array_equal(x[x > 5].detach().numpy(), x.data[x.data > 5])
    assert [row.shape for row in x] == [(4,)] * 3
    x[rows].sum().backward()
    np.testing.assert_array_equal(x.grad.data[:, 0], [2, 0, 1])
    with pytest.raises(IndexError):
        x[3]


def test_methods() -> None:
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 4)) ** 2 + 0.1)
    for name in ("exp", "log", "sqrt", "tanh", "abs"):
        np.testing.assert_allclose(getattr(x, name)().data, getattr(np, name)(x.data))
    for name in ("sum", "mean", "max", "min", "var"):
        for options in ({}, {"axis": 1}, {"axis": (0, 2), "keepdims": True}):
            expected = getattr(np, name)(x.data, **options)
            found = getattr(x, name)(**options)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.data, expected)
    assert x.argmax(1).shape == (2, 4)
    assert x.reshape(-1, 4).shape == x.view((6, 4)).shape == (6, 4)
    assert x.transpose().shape == (2, 4, 3) and x.transpose(0, 1).shape == (3, 2, 4)
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.T.shape == (4, 3, 2)
    with pytest.raises(ValueError):
        x.reshape(5, 5)
