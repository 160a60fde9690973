"""GGUF files: headers, and whole tiny models in every format."""

import importlib.util

import model_file_makers as make
import numpy as np
import pytest
from model_file_makers import ARRAY, BOOL, F32, F64, I8, I64, STRING, U16, U32

from tinytorch_gpu.checkpoint import ModelFileError, load, open_model
from tinytorch_gpu.checkpoint.gguf import read_gguf
from tinytorch_gpu.checkpoint.gguf_config import llama3_divisors
from tinytorch_gpu.checkpoint.names import half_split
from tinytorch_gpu.config import RopeScaling

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package, the oracle, is missing"
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
    state = file.load("cpu", "float32").state_dict()
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
    state = file.load("cpu", "float32").state_dict()
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
    state = file.load("cpu", "float32").state_dict()
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
    state = file.load("cpu", "float32").state_dict()
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
