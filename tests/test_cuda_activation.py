"""The end of a linear map, whose arrays may differ in their types: launches of kernels/activation.cu."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import backend, devices
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda.activation import back, finish

PLACES = ("inner", "bias", "residual", "out")


def _normal(*shape: int, dtype: str) -> Any:
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    return values.astype(backend.dtype(dtype))


@pytest.mark.parametrize("width", [24, 9])
@pytest.mark.parametrize("activation", ["silu", "geglu"])
@pytest.mark.parametrize("wide", [(p,) for p in PLACES] + [PLACES[:2], PLACES[1:], ()], ids=str)
def test_each_array_may_be_wide(
    gpu: str, wide: tuple[str, ...], activation: str, width: int
) -> None:
    place, inner_width = devices.device(gpu), width * (2 if activation == "geglu" else 1)
    types = {name: "float32" if name in wide else "float16" for name in PLACES}
    inner, bias = (
        _normal(5, inner_width, dtype=types["inner"]),
        _normal(inner_width, dtype=types["bias"]),
    )
    residual = _normal(5, width, dtype=types["residual"])
    made = finish(*map(place.asarray, (inner, bias, residual)), activation, np.dtype(types["out"]))  # fmt: skip
    truth = OPS[activation].reference(inner.astype(float) + bias)[0] + residual
    rounding = 2.0**-11 if types["out"] == "float16" else 1e-6
    np.testing.assert_allclose(made.get(), truth, rtol=rounding, atol=4 * rounding)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("wide", [("inner",), ("dout",), ("dinner",), ("dout", "dinner")], ids=str)
def test_each_gradient_may_be_wide(gpu: str, wide: tuple[str, ...], activation: str) -> None:
    place, width = devices.device(gpu), 24
    types = {n: "float32" if n in wide else "float16" for n in ("inner", "dout", "dinner")}
    inner = _normal(5, width * (2 if activation == "swiglu" else 1), dtype=types["inner"])
    dout = _normal(5, width, dtype=types["dout"])
    made = back(place.asarray(inner), place.asarray(dout), activation, np.dtype(types["dinner"]))
    op = OPS[activation]
    truth = op.reference_backward(op.reference(inner.astype(float))[1], dout.astype(float))[0]
    rounding = 2.0**-11 if types["dinner"] == "float16" else 1e-6
    np.testing.assert_allclose(made.get(), truth, rtol=rounding, atol=4 * rounding)
