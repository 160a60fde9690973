"""Rows copied into a wider or narrower matrix, and the products that are padded by it, beyond the case table."""

import math
from typing import Any

import numpy as np
import pytest
from running_ops import UNIT_ROUNDOFF, error, size

from tinytorch_gpu import backend, devices
from tinytorch_gpu.cuda import products
from tinytorch_gpu.cuda.shape import copy_rows

DTYPES = ("float32", "float16", "bfloat16")
UNTOUCHED = 77.0


def normal(*shape: int, dtype: str) -> Any:
    values = np.random.default_rng(math.prod(shape)).standard_normal(shape)
    return values.astype(backend.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width", "filled"),
    [
        (1, 1, 1), (3, 1, 8), (5, 7, 8), (2, 8, 8), (9, 16, 40), (4, 33, 40), (2, 255, 257), (3, 264, 264),
        (1, 2047, 2048), (1, 2049, 2056), (2, 4104, 4120), (257, 3, 5), (300, 8, 16), (0, 5, 8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("apart", [0, 1, 8])
def test_rows_are_copied_and_the_rest_is_zeros(
    gpu: str, dtype: str, rows: int, width: int, filled: int, apart: int
) -> None:
    """Out of a matrix and into one whose rows lie ``apart`` elements further than they are long."""
    place = devices.device(gpu)
    x = normal(rows, width + apart, dtype=dtype)
    out = place.asarray(np.full((rows, filled + 2 * apart), UNTOUCHED, x.dtype))
    copy_rows(place.asarray(x)[:, :width], out[:, apart : apart + filled])
    expected = np.full(out.shape, UNTOUCHED, x.dtype)
    expected[:, apart : apart + filled] = 0
    expected[:, apart : apart + width] = x[:, :width]
    np.testing.assert_array_equal(out.get(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [(0, 8), (8, 8), (1, 8), (4, 8), (8, 4)])
def test_a_place_that_16_bytes_do_not_divide_goes_by_elements(
    gpu: str, dtype: str, columns: tuple[int, int]
) -> None:
    place, x = devices.device(gpu), normal(5, 32, dtype=dtype)
    out = place.asarray(np.full((5, 32), UNTOUCHED, x.dtype))
    source, target = columns
    copy_rows(place.asarray(x)[:, source : source + 16], out[:, target : target + 16])
    expected = np.full((5, 32), UNTOUCHED, x.dtype)
    expected[:, target : target + 16] = x[:, source : source + 16]
    np.testing.assert_array_equal(out.get(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["float32", "the same"])
@pytest.mark.parametrize("outs", [1, 7, 8, 33, 257])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (19, 24), (5, 12), (3, 9), (0, 16)])
def test_products_of_odd_outputs(
    gpu: str, dtype: str, weights: str, outs: int, rows: int, width: int
) -> None:
    """Filled up or not, they and their gradients are the plain ones, in shape, dtype and value."""
    place = devices.device(gpu)
    x, dy = normal(rows, width, dtype=dtype), normal(rows, outs, dtype=dtype)
    weight = normal(outs, width, dtype=dtype if weights == "the same" else weights)
    on_device = [place.asarray(a) for a in (x, weight, dy)]
    made = products.outputs(*on_device[:2])
    dx, dweight = products.gradients(on_device[2], on_device[1], on_device[0])
    # What the product takes are numbers of its dtype.
    exact_x, exact_weight, exact_dy = (a.astype(x.dtype).astype(float) for a in (x, weight, dy))
    for found, a, b, of in (
        (made, exact_x, exact_weight.T, x), (dx, exact_dy, exact_weight, x), (dweight, exact_dy.T, exact_x, weight),
    ):  # fmt: skip
        assert found.dtype == of.dtype
        assert error(found.get(), a @ b) <= 4 * UNIT_ROUNDOFF[dtype] * size(abs(a) @ abs(b))
    alone, none = products.gradients(on_device[2], on_device[1], None)
    np.testing.assert_array_equal(alone.get(), dx.get())
    assert none is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_are_filled_up_where_that_alone_is_odd(
    gpu: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of whole 16 bytes that cuBLAS's fast kernels read: in 16 bits, where the width has them."""
    place, taken = devices.device(gpu), []
    plain = products.product

    def spied(a: Any, b: Any, dtype: Any) -> Any:
        taken.append((a.shape, b.shape))
        return plain(a, b, dtype)

    monkeypatch.setattr(products, "product", spied)
    for outs, width, filled in ((33, 16, 40), (40, 16, 40), (33, 12, 33)):
        filled, taken[:] = filled if dtype != "float32" else outs, []
        x, weight, dy = (
            place.asarray(normal(*shape, dtype=dtype))
            for shape in ((5, width), (outs, width), (5, outs))
        )
        products.outputs(x, weight)
        products.gradients(dy, weight, x)
        assert taken == [
            ((5, width), (width, filled)), ((5, filled), (filled, width)), ((filled, 5), (5, width))
        ]  # fmt: skip
