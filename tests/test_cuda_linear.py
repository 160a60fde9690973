"""The decode kernel of linear maps, beyond the case table: quantized weights, a norm in front."""

from typing import Any

import numpy as np
import pytest
from running_ops import UNIT_ROUNDOFF, error, size

from tinytorch_gpu import backend, devices, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda import linear as cuda_linear
from tinytorch_gpu.cuda.linear import decode_linear, quantized_linear
from tinytorch_gpu.quantized import FORMATS

NORMS = {
    "layer": lambda x, g, s, eps: OPS["layer_norm"].reference(x, g, s, eps=eps)[0],
    "rms": lambda x, g, s, eps: OPS["rms_norm"].reference(x, g, eps=eps)[0],
}


SIZES = {"q8_0": 34, "q4_0": 18, "q4_1": 20}


def blocks(quantization: str, outs: int, width: int, seed: int = 0) -> Any:
    """Random bytes as rows of blocks, with scales that are numbers of ordinary size."""
    random = np.random.default_rng(seed)
    made = random.integers(0, 256, (outs, width // 32, SIZES[quantization]), dtype=np.uint8)
    scales = random.uniform(-0.1, 0.1, (outs, width // 32, 2)).astype(np.float16)
    count = 4 if quantization == "q4_1" else 2
    made[:, :, :count] = scales.view(np.uint8)[:, :, :count]
    return made.reshape(outs, -1)


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize(
    ("rows", "width", "outs", "activation"),
    [
        (1, 32, 3, None), (1, 576, 33, None), (2, 64, 6, "swiglu"), (3, 1088, 5, "relu"),
        (5, 96, 40, "geglu"), (16, 160, 8, None), (1, 2048, 18, "swiglu"), (2, 4096, 5, None),
        (7, 1056, 300, "silu"),
        # More turns of the blocks than their sums are kept for.
        (1, 32, 3101, "relu"), (5, 32, 1100, "geglu"), (16, 64, 600, None),
    ],
)  # fmt: skip
def test_quantized_weights(
    gpu: str, quantization: str, rows: int, width: int, outs: int, activation: str | None
) -> None:
    place, random = devices.device(gpu), np.random.default_rng(1)
    raw = blocks(quantization, outs, width)
    weight = FORMATS[quantization.upper()].decode(raw.reshape(-1, SIZES[quantization]))
    weight = weight.reshape(outs, width)
    x = random.standard_normal((rows, width)).astype(np.float32)
    bias = random.standard_normal(outs).astype(np.float32)
    made_width = outs // 2 if activation in ("swiglu", "geglu") else outs
    residual = random.standard_normal((rows, made_width)).astype(np.float32)
    for dtype in ("float32", "float16"):
        wide = [a.astype(dtype).astype(np.float64) for a in (x, residual)]
        truth = OPS["linear"].reference(
            wide[0], weight.astype(np.float64), bias.astype(np.float64), wide[1],
            activation=activation,
        )[0]  # fmt: skip
        made = quantized_linear(
            place.asarray(x.astype(dtype)), place.asarray(raw), quantization, place.asarray(bias),
            place.asarray(residual.astype(dtype)), activation=activation,
        ).get()  # fmt: skip
        scale = size(np.abs(wide[0]) @ np.abs(weight.astype(np.float64)).T)
        scale *= scale if activation in ("swiglu", "geglu") else 1  # a product of two sums
        assert made.dtype == dtype
        allowed = UNIT_ROUNDOFF[dtype] * size(truth) + 8 * UNIT_ROUNDOFF["float32"] * scale
        assert error(made, truth) <= allowed


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("dtype", "storage"), [("float32", "float32"), ("float16", "float16"),
                                                ("bfloat16", "bfloat16"), ("float32", "float16")])  # fmt: skip
@pytest.mark.parametrize(
    ("rows", "width", "outs"), [(1, 7, 3), (2, 40, 5), (4, 32, 33), (9, 264, 17), (16, 96, 2)]
)
def test_a_norm_in_front(
    gpu: str, kind: str, dtype: str, storage: str, rows: int, width: int, outs: int
) -> None:
    place, random = devices.device(gpu), np.random.default_rng(2)
    x, weight, gain, shift, bias = (
        random.standard_normal(shape).astype(backend.dtype(kept))
        for shape, kept in (
            ((rows, width), dtype), ((outs, width), storage), (width, storage), (width, storage),
            (outs, storage),
        )
    )  # fmt: skip
    x[0] += 3  # a mean that matters
    x[1:] *= 1e-3  # and an epsilon
    shift_given = shift if kind == "layer" else None
    linear = OPS["linear"].reference

    def composed(*arrays: Any) -> Any:
        x, weight, gain, shift, bias = arrays
        return linear(NORMS[kind](x, gain, shift, 1e-5), weight, bias)[0]

    given = (x, weight, gain, shift, bias)
    truth = composed(*(a.astype(np.float64) for a in given))
    rounded = composed(*given)
    on_device = [
        None if a is None else place.asarray(a) for a in (x, weight, gain, shift_given, bias)
    ]
    made = decode_linear(
        on_device[0], on_device[1], on_device[4], norm=(kind, on_device[2], on_device[3], 1e-5)
    )
    allowed = 2 * error(rounded, truth) + 8 * UNIT_ROUNDOFF[dtype] * size(truth)
    assert error(made.get(), truth) <= allowed


def _moved(place: Any, x: Any, by: int) -> Any:
    """``x`` on the device, ``by`` elements after an address that suits any access."""
    flat = np.concatenate([np.zeros(by, x.dtype), x.ravel()])
    return place.asarray(flat)[by:].reshape(x.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 4, 13])
def test_arrays_at_any_address(gpu: str, dtype: str, rows: int) -> None:
    """Rows that 16-byte loads cannot start at, and parameters that do not lie side by side."""
    place, random = devices.device(gpu), np.random.default_rng(3)
    x, weight, bias = (
        random.standard_normal(shape).astype(backend.dtype(dtype))
        for shape in ((rows, 48), (21, 48), (42,))
    )
    bias = bias[::2]
    given = [a.astype(np.float64) for a in (x, weight, bias)]
    truth, rounded = (OPS["linear"].reference(*a)[0] for a in (given, (x, weight, bias)))
    allowed = 2 * error(rounded, truth) + 8 * UNIT_ROUNDOFF[dtype] * size(truth)
    shifted = place.asarray(np.repeat(bias, 2))[::2]
    for by_x, by_weight in ((1, 0), (0, 1), (3, 5)):
        made = decode_linear(_moved(place, x, by_x), _moved(place, weight, by_weight), shifted)
        assert error(made.get(), truth) <= allowed


@pytest.mark.parametrize("by", [1, 2, 4])
def test_blocks_at_any_address(gpu: str, by: int) -> None:
    place, raw = devices.device(gpu), blocks("q4_0", 9, 64)
    x = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    made = quantized_linear(place.asarray(x), _moved(place, raw, by), "q4_0")
    same = quantized_linear(place.asarray(x), place.asarray(raw), "q4_0")
    np.testing.assert_array_equal(made.get(), same.get())


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_norm_in_front_of_blocks(gpu: str, quantization: str, rows: int) -> None:
    place, random = devices.device(gpu), np.random.default_rng(5)
    raw = blocks(quantization, 12, 96)
    weight = FORMATS[quantization.upper()].decode(raw.reshape(-1, SIZES[quantization]))
    x, gain = (random.standard_normal(s).astype(np.float32) for s in ((rows, 96), (96,)))
    wide = [a.astype(np.float64) for a in (x, gain, weight.reshape(12, 96))]
    normed = NORMS["rms"](wide[0], wide[1], None, 1e-5)
    truth = OPS["linear"].reference(normed, wide[2], activation="swiglu")[0]
    made = quantized_linear(
        place.asarray(x), place.asarray(raw), quantization, activation="swiglu",
        norm=("rms", place.asarray(gain), None, 1e-5),
    ).get()  # fmt: skip
    scale = size(np.abs(normed) @ np.abs(wide[2]).T)
    assert error(made, truth) <= 8 * UNIT_ROUNDOFF["float32"] * scale * max(1.0, scale)


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_no_outputs(gpu: str, rows: int) -> None:
    place, maker = devices.device(gpu), OPS["linear"].makers["cuda"][0]
    x, weight = place.zeros((rows, 8)), place.zeros((0, 8))
    made, residuals = maker.forward(x, weight)
    assert made.shape == (rows, 0)
    dx, dweight, _, _ = maker.backward(residuals, made)
    assert dweight.shape == (0, 8)
    np.testing.assert_array_equal(dx.get(), np.zeros((rows, 8)))


@pytest.mark.parametrize("split", [1, 2, 4, 8])
def test_warps_that_share_outputs(monkeypatch: pytest.MonkeyPatch, split: int) -> None:
    """Every way of sharing a pair of outputs gives its sums, whatever the number of pairs."""
    place, random = _emulated(), np.random.default_rng(6)
    monkeypatch.setattr(cuda_linear, "_split", lambda *_: split)
    for rows, width, outs, activation in (
        (1, 600, 37, None),
        (2, 77, 6, "geglu"),
        (6, 72, 70, "silu"),
        (5, 264, 140, None),
    ):
        x, weight = (
            random.standard_normal(s).astype(np.float32) for s in ((rows, width), (outs, width))
        )
        wide = [a.astype(np.float64) for a in (x, weight)]
        truth = OPS["linear"].reference(*wide, activation=activation)[0]
        with emulated.using(seed=split):
            made = decode_linear(place.asarray(x), place.asarray(weight), activation=activation)
        scale = size(np.abs(wide[0]) @ np.abs(wide[1]).T)
        scale *= scale if activation == "geglu" else 1
        assert error(made.get(), truth) <= 8 * UNIT_ROUNDOFF["float32"] * scale


@pytest.mark.parametrize(
    ("capability", "dtype", "kernel"),
    [
        (75, "float16", "linear_decode_tensor"), (75, "bfloat16", "linear_decode_many"),
        (80, "float16", "linear_decode_tensor"), (80, "bfloat16", "linear_decode_tensor"),
        (90, "float32", "linear_decode_many"),
    ],
)  # fmt: skip
def test_tensor_cores_are_used_where_there_are_some(
    capability: int, dtype: str, kernel: str
) -> None:
    place, random = _emulated(), np.random.default_rng(7)
    x, weight = (
        random.standard_normal(s).astype(backend.dtype(dtype)) for s in ((11, 136), (50, 136))
    )
    truth = OPS["linear"].reference(x.astype(np.float64), weight.astype(np.float64))[0]
    with emulated.using(compute_capability=capability), emulated.recorded() as launches:
        made = decode_linear(place.asarray(x), place.asarray(weight))
    assert [launch.kernel for launch in launches] == [kernel]
    assert error(made.get(), truth) <= 8 * UNIT_ROUNDOFF[dtype] * size(truth)


def _emulated() -> Any:
    try:
        return devices.device("emulated")
    except devices.DeviceError as error:
        pytest.skip(str(error))


def test_wrong_shapes_are_refused(gpu: str) -> None:
    place = devices.device(gpu)
    x, raw = place.zeros((1, 64)), place.asarray(blocks("q8_0", 4, 64))
    with pytest.raises(ValueError, match="one of q8_0"):
        quantized_linear(x, raw, "q5_0")
    with pytest.raises(ValueError, match="68 bytes are not 32 weights"):
        quantized_linear(place.zeros((1, 32)), raw, "q8_0")
    with pytest.raises(ValueError, match="up to 16 rows"):
        quantized_linear(place.zeros((17, 64)), raw, "q8_0")
