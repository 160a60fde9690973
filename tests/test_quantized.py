"""Blocks of a few bits: decoding and encoding against the gguf package, the matrix, the weight, products."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from running_ops import UNIT_ROUNDOFF, error, size

from tinytorch_gpu import Tensor, Transformer, TransformerConfig, backend, devices, no_grad, ops
from tinytorch_gpu.core.op import OPS, reference_only
from tinytorch_gpu.core.tensor import enable_grad
from tinytorch_gpu.generation import Cache
from tinytorch_gpu.native import library
from tinytorch_gpu.quantized import (
    BLOCKED,
    Blocks,
    EncodeError,
    QuantizedMatrix,
    encode,
    encode_into,
    fitting,
    format_named,
    quantize,
)
from tinytorch_gpu.quantized.cache import EightBit
from tinytorch_gpu.weight import Weight

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package, the oracle, is missing"
)
each_format = pytest.mark.parametrize("name", BLOCKED)
# Root of the mean square error over that of normal numbers: what the number of bits allows.
ERRORS = {"q8_0": 0.006, "q4_0": 0.09, "q4_1": 0.08, "q5_0": 0.045, "q5_1": 0.04, "q4_k": 0.075,
          "q5_k": 0.038, "q6_k": 0.019}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def corners(width: int = 512) -> Any:
    """Rows that are ordinary, zero, tiny, huge, of one sign, of one value, with few far values."""
    x = normal(12, width) * 0.05
    x[1], x[2], x[4] = 0, x[2] * 1e-6, np.abs(x[4])
    x[3] *= 1e3
    x[5], x[6], x[7, ::9] = -np.abs(x[5]), 0.25, 3
    x[8, :32], x[9] = 0, 1e-42
    return x


def bytes_of(name: str, count: int, seed: int = 1) -> Any:
    form = format_named(name)
    return np.random.default_rng(seed).integers(0, 256, (count, form.nbytes), dtype=np.uint8)


@needs_gguf
@each_format
def test_any_bytes_decode_as_ggmls(name: str) -> None:
    """Also scales that no quantizer writes: subnormal, negative, huge, NaN."""
    import gguf

    form, raw = format_named(name), bytes_of(name, 400)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[form.file_name])
        got = form.decode(raw)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    broken = ~np.isfinite(want).all(axis=1)
    assert broken.any()
    for row, bad in zip(raw, broken, strict=True):
        assert form.finite(row[None]) != bad


@needs_gguf
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_encoding_equals_ggmls_bit_for_bit(name: str) -> None:
    import gguf

    x = corners()
    kind = gguf.GGMLQuantizationType[format_named(name).file_name]
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(x, kind)
    np.testing.assert_array_equal(encode(x, name), want)


@each_format
def test_encoding_keeps_what_its_bits_allow(name: str) -> None:
    form, x = format_named(name), normal(64, 1024) * 0.03
    made = form.decode(encode(x, form).reshape(-1, form.nbytes)).reshape(x.shape)
    assert np.sqrt(np.mean((made - x) ** 2) / np.mean(x**2)) < ERRORS[name]
    x = corners()
    made = form.decode(encode(x, form).reshape(-1, form.nbytes)).reshape(x.shape)
    assert np.isfinite(made).all() and not made[1].any()
    blocks = np.abs(x).reshape(12, -1, form.elements)
    allowed = 0.2 * blocks.max(axis=2, keepdims=True) + 2**-7  # far below, a float16 scale is 0
    assert (np.abs(made - x).reshape(blocks.shape) <= allowed).all()


@each_format
def test_what_cannot_be_encoded(name: str) -> None:
    for bad in (np.nan, np.inf, -1e30):
        x = normal(2, 256)
        x[1, 3] = bad
        with pytest.raises(EncodeError, match=name):
            encode(x, name)
    with pytest.raises(ValueError, match="multiple of"):
        encode(normal(2, 48), name)


def mixed(place: str = "cpu") -> tuple[QuantizedMatrix, Any]:
    """A matrix of three formats, and its values."""
    x = normal(23, 256)
    parts = [("q4_0", x[:7]), ("q6_k", x[7:12]), ("float16", x[12:])]
    at = devices.device(place)
    blocks = [Blocks(name, at.asarray(encode(rows, name))) for name, rows in parts]
    values = [
        format_named(n).decode(encode(r, n).reshape(-1, format_named(n).nbytes)).reshape(r.shape)
        for n, r in parts
    ]
    return QuantizedMatrix(blocks), np.concatenate(values)


def test_a_matrix_looks_like_an_array() -> None:
    matrix, values = mixed()
    assert matrix.shape == (23, 256) and matrix.T.shape == (256, 23) and len(matrix) == 23
    assert matrix.size == values.size and matrix.ndim == 2
    assert str(matrix.dtype) == "q4_0+q6_k+float16" and matrix.format is None
    assert matrix.nbytes == 7 * 144 + 5 * 210 + 11 * 512
    assert backend.is_array(matrix) and backend.kind(matrix) == "cpu"
    np.testing.assert_array_equal(np.asarray(matrix), values)
    np.testing.assert_array_equal(np.asarray(matrix.T), values.T)
    np.testing.assert_array_equal(matrix.astype(np.float64), values)
    for rows in (slice(None), slice(3, 9), slice(8, 20), slice(22, 23), slice(5, 5)):
        np.testing.assert_array_equal(np.asarray(matrix[rows]), values[rows])
        np.testing.assert_array_equal(matrix.dequantize(rows), values[rows])
    np.testing.assert_array_equal(matrix.take(np.array([22, 0, 9, 9])), values[[22, 0, 9, 9]])
    assert matrix[1:3].blocks.base is not None  # a view


def test_a_matrix_refuses_what_it_cannot_do() -> None:
    matrix, values = mixed()
    with pytest.raises(TypeError, match="cannot be written"):
        matrix[...] = values
    with pytest.raises(TypeError, match="cannot be written"):
        matrix[2:3] = values[2:3]
    with pytest.raises(TypeError, match="by slice only"):
        matrix[3]
    with pytest.raises(ValueError, match="several formats"):
        matrix.blocks
    with pytest.raises(ValueError, match="one width"):
        QuantizedMatrix([Blocks("q8_0", np.zeros((2, 34), np.uint8)),
                         Blocks("q8_0", np.zeros((2, 68), np.uint8))])  # fmt: skip
    with pytest.raises(ValueError, match="uint8"):
        Blocks("q8_0", np.zeros((2, 34), np.int8))
    with pytest.raises(ValueError, match="has 34 bytes, not 36"):
        Blocks("q8_0", np.zeros((2, 36), np.uint8), 32)
    with pytest.raises(ValueError, match="unknown format"):
        Blocks("q3_z", np.zeros((2, 36), np.uint8))


def test_a_maker_may_keep_another_layout() -> None:
    """Reversed rows stand for a layout in which nothing lies where it lay."""
    matrix, values = quantize(normal(10, 64), "q4_1"), None
    values, raw = np.asarray(matrix), matrix.blocks.copy()
    part = matrix.parts[0]
    part.repack("reversed", raw[::-1].copy(), lambda data, rows: data[::-1][rows])
    assert part.layout == "reversed"
    np.testing.assert_array_equal(np.asarray(matrix), values)
    np.testing.assert_array_equal(np.asarray(matrix[2:7]), values[2:7])
    np.testing.assert_array_equal(matrix.take(np.array([9, 1])), values[[9, 1]])
    np.testing.assert_array_equal(matrix.blocks, raw)
    assert matrix[2:7].parts[0].layout == matrix.copy().parts[0].layout == "rows"


def test_columns_are_encoded_a_few_blocks_at_a_time() -> None:
    x = normal(5, 128)
    matrix = QuantizedMatrix.empty(devices.device("cpu"), [(format_named("q5_1"), 5)], 128)
    for start in (0, 64):
        encode_into(matrix, x[:, start : start + 64], start)
    np.testing.assert_array_equal(matrix.blocks, encode(x, "q5_1"))


def test_a_weight_in_blocks_is_frozen() -> None:
    x = normal(10, 64)
    weight = Weight(quantize(x, "q8_0"), {"a": 4, "b": 6})
    assert not weight.requires_grad and weight.quantized and weight.size == 640
    assert str(weight.dtype) == "q8_0"
    with pytest.raises(ValueError, match="frozen"):
        weight.requires_grad_()
    with pytest.raises(ValueError, match="frozen"):
        Weight(weight.data, requires_grad=True)
    shown = weight.matrix("b")
    assert shown.shape == (64, 6)
    np.testing.assert_array_equal(shown.numpy(), np.asarray(weight.data)[4:].T)
    with pytest.raises(ValueError, match="read-only"):
        shown.data[0, 0] = 1
    with pytest.raises(TypeError, match="cannot be written"):
        weight.set_matrix("a", np.zeros((64, 4)))


@pytest.mark.parametrize("activation", [None, "relu", "swiglu"])
@pytest.mark.parametrize("name", [*BLOCKED, "mixed"])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_a_product_is_that_of_the_decoded_weight(name: str, rows: int, activation: Any) -> None:
    matrix = mixed()[0][:22] if name == "mixed" else quantize(normal(22, 512), name)
    width = matrix.shape[1]
    x, bias = Tensor(normal(2, rows, width, seed=2), requires_grad=True), normal(22, seed=3)
    residual = normal(2, rows, 11 if activation == "swiglu" else 22, seed=4)
    dense = np.asarray(matrix)
    truth = OPS["linear"].reference(
        *(a.astype(np.float64) for a in (x.data, dense, bias, residual)), activation=activation
    )[0]
    for way in (reference_only, no_grad, enable_grad):
        with way():
            made = ops.linear(x, Weight(matrix), bias, residual, activation=activation)
        # Native code rounds x to 8 bits where nothing is recorded: tests/test_native_blocks.py.
        off = 3e-2 if way is no_grad and library() else 2e-5
        np.testing.assert_allclose(made.data, truth, atol=off * np.abs(truth).max())
    douts, beside = normal(*truth.shape, seed=5), Tensor(x.data, requires_grad=True)
    made.backward(douts)
    exact = Tensor(x.data.astype(np.float64), requires_grad=True)
    given = (a.astype(np.float64) for a in (dense, bias, residual))
    with reference_only():
        ops.linear(beside, dense, bias, residual, activation=activation).backward(douts)
        ops.linear(exact, *given, activation=activation).backward(douts.astype(np.float64))
    true = exact.grad.data
    allowed = 2 * error(beside.grad.data, true) + 8 * UNIT_ROUNDOFF["float32"] * size(true)
    assert error(x.grad.data, true) <= allowed


def tiny(**choices: Any) -> Transformer:
    config = TransformerConfig(70, 64, 4, 2, 96, 32, **choices)
    return Transformer.from_config(config, device="cpu", seed=3).eval()


LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
GPT2 = {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True}


@pytest.mark.parametrize("choices", [LLAMA, LLAMA | {"tie_embeddings": True}, GPT2])
@pytest.mark.parametrize("name", BLOCKED)
def test_a_model_in_blocks_is_the_decoded_one(
    name: str, choices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = OPS["linear"].makers  # the last one is exact
    monkeypatch.setitem(makers, "cpu", makers["cpu"][-1:])
    model = tiny(**choices).to(name)
    dense = tiny(**choices)
    dense.load_state_dict({n: np.asarray(a) for n, a in model.state_dict().items()})
    ids = np.random.default_rng(0).integers(0, 70, (2, 9))
    np.testing.assert_allclose(model(ids).detach().numpy(), dense(ids).detach().numpy(), atol=1e-4)
    made, wanted = (m.generate(ids, 6, temperature=0).numpy() for m in (model, dense))
    np.testing.assert_array_equal(made, wanted)
    one, other = (m.generate(ids[0], 6, temperature=0).numpy() for m in (model, dense))
    np.testing.assert_array_equal(one, other)  # by a captured step
    assert model.count_parameters() == dense.count_parameters()
    assert model.nbytes < 0.45 * dense.nbytes
    assert model.get_memory_usage()["total_memory_mb"] == pytest.approx(model.nbytes / 2**20)
    wide = model.to("float32")
    np.testing.assert_array_equal(wide(ids).detach().numpy(), dense(ids).detach().numpy())
    assert all(p.requires_grad for p in wide.parameters())


def test_a_state_in_blocks_is_read_lazily_and_copied_by_bytes() -> None:
    model, other = tiny(**LLAMA).to("q4_0"), tiny(**LLAMA).to("q4_0")
    other.to("float32")
    state = model.state_dict()
    assert isinstance(state["transformer_blocks.0.attention.w_k"], QuantizedMatrix)
    assert state["transformer_blocks.0.attention.w_k"].shape == (64, 32)
    with pytest.raises(TypeError, match="cannot be written"):
        model.load_state_dict(other.state_dict())
    fresh = Transformer.from_config(model.config, device="cpu", seed=9).to("q4_0")
    fresh.load_state_dict(state)
    np.testing.assert_array_equal(
        fresh([1, 2, 3]).detach().numpy(), model([1, 2, 3]).detach().numpy()
    )


def test_what_is_not_in_blocks_still_trains() -> None:
    model = tiny(**GPT2).to("q8_0").train()
    logits = model(np.array([[1, 2, 3]]))
    logits.sum().backward()
    assert model.final_norm.gamma.grad is not None
    assert model.transformer_blocks[0].attention.qkv.weight.grad is None
    assert model.transformer_blocks[0].attention.qkv.bias.grad is not None


def test_finer_formats_stand_in_where_rows_are_no_whole_blocks() -> None:
    def name(wanted: str, width: int, head: bool = False) -> str:
        return fitting(format_named(wanted), width, head).name

    assert name("q4_k", 512) == "q4_k" and name("q4_k", 576) == "q5_0"
    assert name("q5_k", 576) == "q5_1" and name("q6_k", 576) == "q8_0"
    assert name("q4_0", 48) == "float16"
    assert name("q4_0", 512, True) == "q6_k" and name("q4_0", 576, True) == "q8_0"
    assert name("q8_0", 512, True) == "q8_0"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("choices", [LLAMA, GPT2])
def test_keys_and_values_in_16_bits(choices: Any, dtype: str) -> None:
    model = tiny(**choices)
    ids = np.random.default_rng(0).integers(0, 70, (2, 9))
    caches = [Cache.for_model(model, 2, 20, kind) for kind in ("float32", dtype)]
    assert 2 * caches[1].nbytes == caches[0].nbytes
    with no_grad():
        for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
            whole, short = (model(part, cache=cache).data for cache in caches)
            assert short.dtype == np.float32
            np.testing.assert_allclose(short, whole, atol=0.02 if dtype == "float16" else 0.1)
    for prompt in (ids[0], ids):  # by a captured step, and without
        assert model.generate(prompt, 6, temperature=0, cache_dtype=dtype).shape[-1] == 15


def test_numbers_in_a_cache_of_8_bits() -> None:
    held = EightBit.zeros((2, 5, 3, 64))
    rows = normal(2, 2, 3, 64)
    rows[0, 0, 0] = 0
    held[:, 1:3] = rows
    wide = held.dequantize()
    assert held.nbytes * 32 == 34 * wide.size and not wide[:, 0].any() and not wide[:, 3:].any()
    largest = np.abs(rows).reshape(2, 2, 3, 2, 32).max(axis=-1).repeat(32, axis=-1)
    assert (np.abs(wide[:, 1:3] - rows) <= largest * (0.5 / 127 + 2**-10)).all()
    copied = held[:, :3].copy()
    held[:, :3] = np.zeros((2, 3, 3, 64), np.float32)
    assert copied.dequantize().any() and not held.dequantize().any()
    held[:, :3] = copied
    np.testing.assert_array_equal(held.dequantize()[:, :3], wide[:, :3])
    held[0, 0] = np.full((3, 64), np.nan)
    assert np.isnan(held.dequantize()[0, 0]).all()
    assert EightBit.zeros((1, 2, 1, 24)).scales.shape == (1, 2, 1, 1)


@pytest.mark.parametrize("choices", [LLAMA, LLAMA | {"qk_norm": True}, GPT2])
def test_keys_and_values_in_8_bits(choices: Any) -> None:
    model = tiny(**choices)
    ids = np.random.default_rng(0).integers(0, 70, (2, 9))
    caches = [Cache.for_model(model, 2, 20, kind) for kind in ("float32", "q8_0")]
    assert caches[1].nbytes < 0.29 * caches[0].nbytes
    with no_grad():
        for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
            whole, short = (model(part, cache=cache).data for cache in caches)
            np.testing.assert_allclose(short, whole, atol=0.05)
            with reference_only():
                plain = model(part, cache=_rolled_back(caches[1], part.shape[1]))
            np.testing.assert_allclose(plain.data, short, atol=1e-5)
    saved = caches[1].save()
    caches[1].reset()
    caches[1].restore(saved)
    for prompt in (ids[0], ids, [[1, 2, 3], [4, 5]]):
        made = model.generate(prompt, 6, temperature=0, cache_dtype="q8_0")
        assert len(made) == len(prompt) or made.shape[-1] == 15


def _rolled_back(cache: Cache, count: int) -> Cache:
    cache.rollback(count)
    return cache
