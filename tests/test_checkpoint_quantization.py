"""Block formats against the gguf package, and the order of rotary rows."""

import importlib.util

import numpy as np
import pytest

from tinytorch_gpu.checkpoint.gguf import TENSOR_TYPES
from tinytorch_gpu.checkpoint.names import half_split, interleaved
from tinytorch_gpu.checkpoint.quantization import decoded_blocks
from tinytorch_gpu.quantized import FORMATS

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package, the oracle, is missing"
)


@needs_gguf
@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_decoding_equals_ggml_bit_for_bit(name):
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(0)
    array = random.normal(size=(37, 96)).astype(np.float32)
    array[0] = 0
    array[1] *= 1e-6
    raw = np.ascontiguousarray(gguf.quants.quantize(array, kind)).view(np.uint8).reshape(-1)
    want = gguf.quants.dequantize(raw.reshape(37, -1), kind)
    got = np.concatenate([rows for _, rows in decoded_blocks(raw, FORMATS[name], (37, 96))])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.reshape(37, 96).view(np.uint32))


@needs_gguf
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_decoding_random_bytes_equals_ggml(name):
    """Scales that no quantizer writes: subnormal, negative, huge."""
    import gguf

    form = FORMATS[name]
    raw = np.random.default_rng(1).integers(0, 256, 500 * form.nbytes, dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # some scales are NaN or infinite
        want = gguf.quants.dequantize(raw.reshape(500, -1), gguf.GGMLQuantizationType[name])
        got = form.decode(raw.reshape(500, -1))
    np.testing.assert_array_equal(got, want)


def test_rows_come_in_blocks_of_whole_heads():
    rows, columns, head = 1000, 1024, 48
    array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    blocks = list(
        decoded_blocks(array.view(np.uint8).reshape(-1), FORMATS["F32"], (rows, columns), head)
    )
    assert len(blocks) > 1
    assert all(first % head == 0 for first, _ in blocks)
    assert max(block.nbytes for _, block in blocks) <= 2 << 20
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array)


@needs_gguf
def test_tensor_types_are_ggmls():
    import gguf

    for number, (name, elements, nbytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (elements, nbytes)


def test_rotary_orders_are_inverse():
    rows = np.arange(24.0).reshape(12, 2)
    np.testing.assert_array_equal(half_split(interleaved(rows, 6), 6), rows)
    np.testing.assert_array_equal(
        interleaved(rows, 6)[:, 0], [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
    )
