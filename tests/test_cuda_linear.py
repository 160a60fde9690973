"""The decode kernel of linear maps, beyond the case table: quantized weights, a norm in front."""

from typing import Any

import numpy as np
import pytest
from running_ops import UNIT_ROUNDOFF, error, size

from tinytorch_gpu import backend, devices, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda import linear as cuda_linear
from tinytorch_gpu.cuda.linear import decode_linear, quantized_linear
from tinytorch_gpu.quantized import BLOCKED, Blocks, QuantizedMatrix, encode, format_named

NORMS = {
    "layer": lambda x, g, s, eps: OPS["layer_norm"].reference(x, g, s, eps=eps)[0],
    "rms": lambda x, g, s, eps: OPS["rms_norm"].reference(x, g, eps=eps)[0],
}


def blocks(quantization: str, outs: int, width: int, seed: int = 0) -> Any:
    """Random bytes as rows of blocks, with scales that are numbers of ordinary size."""
    random, form = np.random.default_rng(seed), format_named(quantization)
    made = random.integers(0, 256, (outs, width // form.elements, form.nbytes), dtype=np.uint8)
    for at in form.halves:
        most = 0.1 if form.elements == 32 else 0.003
        scales = random.uniform(-most, most, (*made.shape[:2], 1)).astype(np.float16)
        made[:, :, at : at + 2] = scales.view(np.uint8)
    return made.reshape(outs, -1)


def matrix(place: Any, raw: Any, quantization: str) -> QuantizedMatrix:
    return QuantizedMatrix(Blocks(quantization, place.asarray(raw)))


# Every format with x in float32; one of each kind of block is enough in 16 bits: every variant is a compilation.
_VARIANTS = [
    *((name, "float32") for name in BLOCKED),
    ("q8_0", "float16"), ("q4_0", "float16"), ("q4_1", "float16"), ("q5_k", "float16"), ("q6_k", "bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(("quantization", "dtype"), _VARIANTS)
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
    gpu: str,
    quantization: str,
    dtype: str,
    rows: int,
    width: int,
    outs: int,
    activation: str | None,
) -> None:
    place, random, form = devices.device(gpu), np.random.default_rng(1), format_named(quantization)
    width = -(-width // form.elements) * form.elements
    raw = blocks(quantization, outs, width)
    weight = form.decode(raw.reshape(-1, form.nbytes)).reshape(outs, width)
    bias = random.standard_normal(outs).astype(np.float32)
    made_width = outs // 2 if activation in ("swiglu", "geglu") else outs
    x, residual = (
        random.standard_normal((rows, n)).astype(backend.dtype(dtype)) for n in (width, made_width)
    )
    wide = [a.astype(np.float64) for a in (x, weight, bias, residual)]
    truth = OPS["linear"].reference(*wide, activation=activation)[0]
    made = quantized_linear(
        place.asarray(x), matrix(place, raw, quantization), place.asarray(bias), place.asarray(residual),
        activation=activation,
    ).get()  # fmt: skip
    scale = size(np.abs(wide[0]) @ np.abs(wide[1]).T)
    scale *= scale if activation in ("swiglu", "geglu") else 1  # a product of two sums
    assert backend.dtype_name(made.dtype) == dtype
    allowed = UNIT_ROUNDOFF[dtype] * size(truth) + 8 * UNIT_ROUNDOFF["float32"] * scale
    assert error(made, truth) <= allowed


@pytest.mark.parametrize(("rows", "activation"), [(1, None), (2, "relu"), (7, "gelu"), (16, None)])
def test_parts_of_several_formats(gpu: str, rows: int, activation: str | None) -> None:
    """One launch each; bias, residual and results of a part are where its outputs are."""
    place, random = devices.device(gpu), np.random.default_rng(8)
    parts = [("q4_k", 11), ("q6_k", 6), ("q8_0", 21)]
    weight = QuantizedMatrix(
        [
            Blocks(name, encode(random.standard_normal((n, 512)).astype("f4"), name))
            for name, n in parts
        ]
    )
    x, bias, residual = (
        random.standard_normal(s).astype(np.float32) for s in ((rows, 512), (38,), (rows, 38))
    )
    wide = [a.astype(np.float64) for a in (x, np.asarray(weight), bias, residual)]
    truth = OPS["linear"].reference(*wide, activation=activation)[0]
    given = (weight.moved_to(place), *map(place.asarray, (bias, residual)))
    made = quantized_linear(place.asarray(x), *given, activation=activation).get()
    scale = size(np.abs(wide[0]) @ np.abs(wide[1]).T)
    assert error(made, truth) <= 8 * UNIT_ROUNDOFF["float32"] * scale


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"])
def test_not_a_number_stays_one(gpu: str, activation: str) -> None:
    place, x = devices.device(gpu), np.ones((3, 16), np.float32)
    x[1, 5] = np.nan
    made = decode_linear(place.asarray(x), place.asarray(x[:1].repeat(6, 0)), activation=activation)
    assert np.isnan(made.get()).all(axis=1).tolist() == [False, True, False]


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
    moved = QuantizedMatrix(Blocks("q4_0", _moved(place, raw, by)))
    made = quantized_linear(place.asarray(x), moved)
    same = quantized_linear(place.asarray(x), matrix(place, raw, "q4_0"))
    np.testing.assert_array_equal(made.get(), same.get())


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_norm_in_front_of_blocks(gpu: str, quantization: str, rows: int) -> None:
    place, random = devices.device(gpu), np.random.default_rng(5)
    raw, form = blocks(quantization, 12, 96), format_named(quantization)
    weight = form.decode(raw.reshape(-1, form.nbytes))
    x, gain = (random.standard_normal(s).astype(np.float32) for s in ((rows, 96), (96,)))
    wide = [a.astype(np.float64) for a in (x, gain, weight.reshape(12, 96))]
    normed = NORMS["rms"](wide[0], wide[1], None, 1e-5)
    truth = OPS["linear"].reference(normed, wide[2], activation="swiglu")[0]
    made = quantized_linear(
        place.asarray(x), matrix(place, raw, quantization), activation="swiglu",
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
    weight = matrix(place, blocks("q8_0", 4, 64), "q8_0")
    plain = QuantizedMatrix([weight.parts[0], Blocks("float16", place.zeros((2, 128), "uint8"))])
    with pytest.raises(ValueError, match="does not multiply rows of 32"):
        quantized_linear(place.zeros((1, 32)), weight)
    with pytest.raises(ValueError, match="up to 16 rows"):
        quantized_linear(place.zeros((17, 64)), weight)
    with pytest.raises(ValueError, match="all in blocks"):
        quantized_linear(place.zeros((1, 64)), plain)
    two = QuantizedMatrix([weight.parts[0], Blocks("q4_0", place.zeros((4, 36), "uint8"))])
    with pytest.raises(ValueError, match="of one part only"):
        quantized_linear(place.zeros((1, 64)), two, activation="swiglu")
