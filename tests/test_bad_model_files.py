"""Bad model files: each ends in one clear line, soon, and without memory for what a header says."""

import copy
import json
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import model_file_makers as make
import numpy as np
import pytest
from model_file_makers import ARRAY, BOOL, F32, F64, STRING, U8, U32, U64

from tinytorch_gpu.checkpoint import ModelFileError, open_model

MEMORY = 4 << 20  # bytes that handling a bad file of some kilobytes may take
SECONDS = 2.0


def refused(path: Path, *, may_load: bool = False) -> str:
    """Load a bad file; return the message of its ModelFileError. Time and memory are bounded."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        open_model(path).load("cpu")
        message = ""
    except ModelFileError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - start < SECONDS
    assert peak < MEMORY
    assert "\n" not in message
    assert len(message) < 600
    assert message or may_load, "a bad file was loaded"
    return message


def test_the_good_files_load(tmp_path):
    (tmp_path / "m.gguf").write_bytes(make.gguf())
    made = open_model(tmp_path / "m.gguf").load("cpu").state_dict()
    folder = make.write_folder(tmp_path / "hf")
    other = open_model(folder).load("cpu").state_dict()
    assert set(made) == set(other)
    same = "transformer_blocks.0.ffn.w1"
    np.testing.assert_array_equal(made[same], other[same])
    np.testing.assert_array_equal(made[same].T, make.weights()["blk.0.ffn_up.weight"])


# --- GGUF -----------------------------------------------------------------------------------


def with_metadata(**changes):
    values = dict(make.GGUF_METADATA)
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del values[name]
        else:
            values[name] = value
    return make.gguf(values)


def with_tensor(index=4, **changes):
    tensors = make.gguf_tensors()
    tensors[index].update(changes)
    return make.gguf(tensors=tensors)


def without_tensor(index):
    tensors = make.gguf_tensors()
    del tensors[index]
    return make.gguf(tensors=tensors)


def with_extra_tensor(name):
    tensors = make.gguf_tensors()
    last = tensors[-1]
    offset = -(-(last["offset"] + len(last["data"])) // 32) * 32
    tensors.append({"name": name, "dims": (4,), "type": 0, "offset": offset, "data": bytes(16)})
    return make.gguf(tensors=tensors)


def with_value(index, value):
    tensors = make.gguf_tensors()
    array = np.frombuffer(tensors[index]["data"], np.float32).copy()
    array[-1] = value
    tensors[index]["data"] = array.tobytes()
    return make.gguf(tensors=tensors)


def repeated_key():
    good = make.gguf({"general.architecture": (STRING, "llama"), "general.architecturf": (U8, 1)})
    return good.replace(b"general.architecturf", b"general.architecture")


def nested(depth):
    value = (U8, [1])
    for _ in range(depth):
        value = (ARRAY, [value])
    return make.gguf(make.GGUF_METADATA | {"deep": (ARRAY, value)})


def raw_array(kind, count, rest=b""):
    return {"x": (ARRAY, struct.pack("<IQ", kind, count) + rest)}


BAD_GGUF = {
    "empty": (lambda: b"", "is empty"),
    "three bytes": (lambda: b"GGU", "not a GGUF file"),
    "only the magic": (lambda: b"GGUF", "truncated or damaged: version needs 4"),
    "another format": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "not a GGUF file: it starts with"),
    "zip": (lambda: b"PK\x03\x04" + bytes(99), "zip archive"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (lambda: b"<!DOCTYPE html><html>", "HTML page"),
    "old ggml": (lambda: b"tjgg" + bytes(99), "older ggml format"),
    "version 1": (lambda: make.gguf(version=1), "version 1 is not supported"),
    "version 99": (lambda: make.gguf(version=99), "version 99 is not supported"),
    "big-endian": (lambda: make.gguf(version=0x03000000), "big-endian"),
    "2^64-1 metadata": (lambda: make.gguf(metadata_count=2**64 - 1), "a metadata table of 1844"),
    "2^40 metadata": (lambda: make.gguf(metadata_count=2**40), "a metadata table of"),
    "one metadata too many": (lambda: make.gguf(metadata_count=11), "needs"),
    "one metadata too few": (lambda: make.gguf(metadata_count=9), "tensor"),
    "2^64-1 tensors": (lambda: make.gguf(tensor_count=2**64 - 1), "a tensor table of 1844"),
    "one tensor too many": (lambda: make.gguf(tensor_count=12), "tensor"),
    "no tensors": (lambda: make.gguf(tensors=[]), "token_embd.weight"),
    "key of 2^63 bytes": (
        lambda: b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(64),
        "metadata key 0 needs 9223372036854775808",
    ),
    "key not UTF-8": (lambda: make.gguf({b"\xff\xfe": (U8, 1)}), "not valid UTF-8"),
    "string not UTF-8": (
        lambda: make.gguf({"general.architecture": (STRING, b"\xc3\x28")}),
        "'general.architecture' is not valid UTF-8",
    ),
    "token not UTF-8": (
        lambda: with_metadata(tokenizer__ggml__tokens=(ARRAY, (STRING, ["a", b"\xff"]))),
        "string 1 is not valid UTF-8",
    ),
    "repeated key": (repeated_key, "'general.architecture' occurs twice"),
    "unknown value type": (lambda: make.gguf({"x": (99, b"")}), "'x' has unknown type 99"),
    "bool of 2": (lambda: make.gguf({"x": (BOOL, 2)}), "must be 0 or 1"),
    "array of bools of 2": (lambda: make.gguf({"x": (ARRAY, (BOOL, [2]))}), "only 0 and 1"),
    "array of 2^62 strings": (lambda: make.gguf(raw_array(STRING, 2**62)), "array 'x' of 46116"),
    "array of 2^61 numbers": (lambda: make.gguf(raw_array(U64, 2**61)), "array 'x' needs 1844"),
    "array of 2^60 arrays": (lambda: make.gguf(raw_array(ARRAY, 2**60)), "array 'x' of 11529"),
    "array of unknown type": (lambda: make.gguf(raw_array(77, 1)), "unknown element type 77"),
    "array of lying strings": (
        lambda: make.gguf(raw_array(STRING, 2, struct.pack("<Q", 2**63))),
        "array 'x' of 2 ends in string 0",
    ),
    "arrays 9 deep": (lambda: nested(9), "nested more than 4 deep"),
    "alignment 0": (lambda: with_metadata(general__alignment=(U32, 0)), "power of two"),
    "alignment 24": (lambda: with_metadata(general__alignment=(U32, 24)), "power of two"),
    "alignment 2^31": (lambda: with_metadata(general__alignment=(U32, 2**31)), "power of two"),
    "alignment is text": (lambda: with_metadata(general__alignment=(STRING, "x")), "power of two"),
    "0 dimensions": (lambda: with_tensor(dims=()), "0 dimensions"),
    "5 dimensions": (lambda: with_tensor(dims=(1, 1, 1, 8, 8)), "5 dimensions"),
    "2^32-1 dimensions": (
        lambda: make.gguf(tensors=[], tensor_count=1)
        + struct.pack("<QI", 0, 2**32 - 1)
        + bytes(64),
        "dimensions",
    ),
    "empty tensor": (lambda: with_tensor(dims=(8, 0)), "is empty"),
    "sizes that overflow": (lambda: with_tensor(dims=(2**63, 2**63)), "truncated: tensor"),
    "sizes that wrap to 64": (lambda: with_tensor(dims=(2**62, 4)), "truncated: tensor"),
    "transposed shape": (lambda: with_tensor(8, dims=(12, 8)), "has shape (8, 12)"),
    "unknown tensor type": (lambda: with_tensor(type=1234), "unknown type 1234"),
    "removed tensor type": (lambda: with_tensor(type=4), "unknown type 4"),
    "rows of part of a block": (lambda: with_tensor(type=8), "must be a multiple of 32, not 8"),
    "integer weights": (lambda: with_tensor(type=26), "is stored as I32; supported are F32"),
    "offset not aligned": (lambda: with_tensor(offset=1), "not a multiple of 32"),
    "offset of 2^64-32": (lambda: with_tensor(offset=2**64 - 32), "truncated: tensor"),
    "overlap": (lambda: with_tensor(offset=0, data=b""), "overlap"),
    "tensor name twice": (lambda: with_tensor(name="token_embd.weight"), "occurs twice"),
    "tensor name not UTF-8": (lambda: with_tensor(name=b"\xff"), "not valid UTF-8"),
    "tensor missing": (lambda: without_tensor(4), "missing tensors: 'blk.0.attn_q.weight'"),
    "tensor unexpected": (
        lambda: with_extra_tensor("blk.0.extra\n\x1b[31m"),
        r"unexpected tensors: 'blk.0.extra\n\x1b[31m'",
    ),
    "last byte missing": (lambda: make.gguf()[:-1], "truncated: tensor 'blk.0.ffn_down.weight'"),
    "NaN": (lambda: with_value(4, np.nan), "'blk.0.attn_q.weight' has NaN or infinite"),
    "infinity": (lambda: with_value(0, np.inf), "'token_embd.weight' has NaN or infinite"),
    "minus infinity in a norm": (lambda: with_value(1, -np.inf), "'output_norm.weight' has NaN"),
    "no architecture": (lambda: make.gguf({"a": (U8, 1)}), "'general.architecture' is missing"),
    "architecture unknown": (
        lambda: with_metadata(general__architecture=(STRING, "mamba")),
        "'mamba' is not one of gpt2, llama",
    ),
    "architecture a number": (
        lambda: with_metadata(general__architecture=(U32, 1)),
        "must be a string",
    ),
    "one part of several": (lambda: with_metadata(split__count=(U32, 3)), "one part of several"),
    "mixture of experts": (
        lambda: with_metadata(llama__expert_count=(U32, 8)),
        "'expert_count' is 8, which is not supported",
    ),
    "unknown feature": (
        lambda: with_metadata(llama__attention__softcap=(F32, 30.0)),
        "'llama.attention.softcap'",
    ),
    "yarn": (
        lambda: with_metadata(llama__rope__scaling__type=(STRING, "yarn")),
        "'yarn' is not supported",
    ),
    "heads missing": (lambda: with_metadata(llama__attention__head_count=None), "is missing"),
    "0 heads": (lambda: with_metadata(llama__attention__head_count=(U32, 0)), "whole number of 1"),
    "3 heads": (lambda: with_metadata(llama__attention__head_count=(U32, 3)), "multiple of"),
    "heads per layer": (
        lambda: with_metadata(llama__attention__head_count=(ARRAY, (U32, [2, 2]))),
        "must be a whole number of 1 to 2147483647, not a list of 2",
    ),
    "layers 2^31-1": (
        lambda: with_metadata(llama__block_count=(U32, 2**31 - 1)),
        "2147483647 layers, but only 11 tensors",
    ),
    "width 2^31-1": (
        lambda: with_metadata(llama__embedding_length=(U32, 2**31 - 8)),
        "has shape",
    ),
    "hidden is text": (
        lambda: with_metadata(llama__feed_forward_length=(STRING, "big")),
        "must be a whole number",
    ),
    "context 2^40": (lambda: with_metadata(llama__context_length=(U64, 2**40)), "context_length"),
    "epsilon NaN": (
        lambda: with_metadata(llama__attention__layer_norm_rms_epsilon=(F32, float("nan"))),
        "finite number",
    ),
    "theta infinite": (
        lambda: with_metadata(llama__rope__freq_base=(F64, float("inf"))),
        "finite number",
    ),
    "more tokens than rows": (
        lambda: with_metadata(tokenizer__ggml__tokens=(ARRAY, (STRING, ["x"] * 8))),
        "list of at most 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GGUF)
def test_bad_gguf(tmp_path, case):
    content, expected = BAD_GGUF[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content())
    assert expected in refused(path)


def test_a_huge_sparse_file_is_not_read(tmp_path):
    """A header that goes on and on costs neither time nor memory."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(make.gguf(raw_array(U64, 2**36), metadata_count=1))
    os.truncate(path, 1 << 34)
    assert "header is larger than 64 MB" in refused(path)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(make.gguf())
    opened = open_model(path)
    os.truncate(path, 700)
    with pytest.raises(ModelFileError, match="became shorter"):
        opened.load("cpu")


# --- safetensors ----------------------------------------------------------------------------


def with_entry(index=4, **changes):
    header = make.safetensors_header()
    header[list(header)[index]].update(changes)
    return {"model.safetensors": make.safetensors(header)}


def renamed(old, new):
    raw = json.dumps(make.safetensors_header()).replace(old, new).encode()
    return {"model.safetensors": make.safetensors(raw)}


def raw_header(raw, **options):
    return {"model.safetensors": make.safetensors(raw, **options)}


def with_bytes(value):
    arrays = make.weights()
    arrays["blk.0.attn_v.weight"][0, 0] = value
    data = b"".join(array.tobytes() for array in arrays.values())
    return {"model.safetensors": make.safetensors(data=data)}


def with_unexpected():
    header = make.safetensors_header()
    end = max(entry["data_offsets"][1] for entry in header.values())
    header["model.extra"] = {"dtype": "F32", "shape": [], "data_offsets": [end, end + 4]}
    data = b"".join(array.tobytes() for array in make.weights().values()) + bytes(4)
    return {"model.safetensors": make.safetensors(header, data)}


def twice_with_prefix():
    return renamed("model.norm.weight", "embed_tokens.weight")


def index(weight_map):
    return {
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "a.safetensors": make.safetensors(),
    }


SINGLE = "model.safetensors"
BAD_SAFETENSORS = {
    "empty": (lambda: {SINGLE: b""}, "is empty"),
    "seven bytes": (lambda: {SINGLE: bytes(7)}, "truncated or not a safetensors file"),
    "header of 2^64-1": (lambda: raw_header(b"{}", length=2**64 - 1), "a header of 1844"),
    "header longer than the file": (lambda: raw_header(b"{}", length=10**6), "a header of 1000000"),
    "header empty": (lambda: {SINGLE: bytes(8)}, "not valid JSON"),
    "header not JSON": (lambda: raw_header(b"{'a'}"), "not valid JSON"),
    "header not UTF-8": (lambda: raw_header(b'{"\xff":1}'), "not valid JSON"),
    "header a list": (lambda: raw_header(b"[]"), "must hold a JSON object"),
    "header 10^5 deep": (lambda: raw_header(b"[" * 100_000), "not valid JSON"),
    "number of 5000 digits": (lambda: raw_header(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "tensor name twice": (lambda: raw_header(b'{"a":1,"a":2}'), "the name 'a' occurs twice"),
    "entry a number": (lambda: raw_header(b'{"a":1}'), "must have dtype, shape"),
    "entry without shape": (lambda: raw_header(b'{"a":{"dtype":"F32"}}'), "must have dtype, shape"),
    "dtype unknown": (lambda: with_entry(dtype="F12"), "unknown dtype 'F12'"),
    "dtype a list": (lambda: with_entry(dtype=["F32"]), "unknown dtype"),
    "integer weights": (lambda: with_entry(dtype="I32"), "is stored as I32; supported are"),
    "shape negative": (lambda: with_entry(shape=[-8, -8]), "must have a shape"),
    "shape of fractions": (lambda: with_entry(shape=[8.0, 8]), "must have a shape"),
    "shape of true": (lambda: with_entry(shape=[True, 64]), "must have a shape"),
    "shape null": (lambda: with_entry(shape=None), "must have a shape"),
    "shape of 9 dimensions": (lambda: with_entry(shape=[1] * 7 + [8, 8]), "at most 8"),
    "shape too large": (lambda: with_entry(shape=[2**62, 2**62]), "by its shape"),
    "shape transposed": (lambda: with_entry(8, shape=[8, 12]), "has shape (8, 12)"),
    "shape flat": (lambda: with_entry(shape=[64]), "has shape (64,); the configuration asks"),
    "offsets backwards": (lambda: with_entry(data_offsets=[9, 8]), "two data_offsets in order"),
    "offsets three": (lambda: with_entry(data_offsets=[1, 2, 3]), "two data_offsets in order"),
    "offsets negative": (lambda: with_entry(data_offsets=[-1, 255]), "two data_offsets in order"),
    "offsets overlap": (lambda: with_entry(data_offsets=[0, 256]), "starts at 0 where"),
    "offsets beyond the end": (
        lambda: with_entry(data_offsets=[2**60, 2**60 + 256]),
        "starts at",
    ),
    "last byte missing": (lambda: {SINGLE: make.safetensors()[:-1]}, "truncated or damaged"),
    "bytes left over": (lambda: {SINGLE: make.safetensors() + b"x"}, "truncated or damaged"),
    "tensor missing": (
        lambda: renamed("q_proj", "p_proj"),
        "missing tensors: 'layers.0.self_attn.q_proj.weight'",
    ),
    "tensor unexpected": (with_unexpected, "unexpected tensors: 'extra'"),
    "tensor with and without prefix": (twice_with_prefix, "occurs twice"),
    "NaN": (lambda: with_bytes(np.nan), "'model.layers.0.self_attn.v_proj.weight' has NaN"),
    "infinity": (lambda: with_bytes(-np.inf), "v_proj.weight' has NaN or infinite"),
    "no weights": (dict, "has neither model.safetensors nor"),
    "pickle": (lambda: {"pytorch_model.bin": b"PK"}, "pytorch_model.bin is a pickle"),
    "index without map": (
        lambda: {"model.safetensors.index.json": b"{}"},
        "has no weight_map",
    ),
    "index not JSON": (lambda: {"model.safetensors.index.json": b"\0"}, "not valid JSON"),
    "shard outside": (lambda: index({"w": "../a.safetensors"}), "is outside the folder"),
    "shard absolute": (lambda: index({"w": "/etc/a.safetensors"}), "is outside the folder"),
    "shard a number": (lambda: index({"w": 3}), "not a shard"),
    "shard with NUL": (lambda: index({"w": "a\0.safetensors"}), "not a shard"),
    "shard missing": (lambda: index({"w": "b.safetensors"}), "cannot open"),
    "tensor not in its shard": (lambda: index({"w": "a.safetensors"}), "'w' is not in a.safetens"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path, case):
    content, expected = BAD_SAFETENSORS[case]
    folder = make.write_folder(tmp_path / "model", files=content())
    assert expected in refused(folder)


def changed(**changes):
    values = copy.deepcopy(make.HF_CONFIG) | changes
    return {key: value for key, value in values.items() if value != "remove"}


def own(**changes):
    return {
        "model_type": "tinytorch_gpu", "vocab_size": 7, "embed_dim": 8, "num_heads": 2,
        "num_layers": 1, "hidden_dim": 12, "max_seq_length": 16,
    } | changes  # fmt: skip


BAD_CONFIG = {
    "empty": (b"", "not valid JSON"),
    "a list": (b"[1]", "must hold a JSON object"),
    "not UTF-8": (b"\xff\xfe{}", "not valid JSON"),
    "deep": (b'{"a":' * 50_000, "not valid JSON"),
    "key twice": (b'{"model_type":"llama","model_type":"gpt2"}', "occurs twice"),
    "no model_type": ({}, "'model_type' is missing"),
    "model_type unknown": (changed(model_type="bert"), "'bert' is not one of gpt2, llama"),
    "model_type a number": (changed(model_type=3), "must be a string"),
    "vocab missing": (changed(vocab_size="remove"), "'vocab_size' is missing"),
    "vocab 0": (changed(vocab_size=0), "whole number"),
    "vocab wrong": (changed(vocab_size=8), "the configuration asks for (8, 8)"),
    "vocab 2^31-1": (changed(vocab_size=2**31 - 1), "the configuration asks for (2147483647, 8)"),
    "vocab 10^100": (changed(vocab_size=10**100), "more than 30 digits"),
    "width a string": (changed(hidden_size="8"), "whole number"),
    "width a fraction": (changed(hidden_size=8.5), "whole number"),
    "width true": (changed(hidden_size=True), "whole number"),
    "layers 10^9": (changed(num_hidden_layers=10**9), "layers, but only 11 tensors"),
    "layers 2": (changed(num_hidden_layers=2), "missing tensors: 'layers.1.input_layernorm"),
    "heads 3": (changed(num_attention_heads=3), "multiple of"),
    "kv heads 2^30": (changed(num_key_value_heads=2**30), "must be a multiple of"),
    "head_dim odd": (changed(head_dim=3), "must be even"),
    "context 2^30": (changed(max_position_embeddings=2**30), "max_position_embeddings"),
    "epsilon a list": (changed(rms_norm_eps=[]), "must be a number"),
    "epsilon infinite": (b'{"model_type":"llama","rms_norm_eps":1e999}', "missing"),
    "epsilon negative": (changed(rms_norm_eps=-1.0), "norm_eps must not be below 0"),
    "activation other": (changed(hidden_act="relu"), "'hidden_act' is 'relu'"),
    "mlp biases": (changed(mlp_bias=True), "'mlp_bias' is True"),
    "quantized": (changed(quantization_config={"bits": 4}), "quantization_config"),
    "rope yarn": (changed(rope_scaling={"rope_type": "yarn", "factor": 4}), "'yarn'"),
    "rope a string": (changed(rope_scaling="linear"), "must be an object"),
    "rope linear without factor": (changed(rope_scaling={"type": "linear"}), "'factor' is missing"),
    "rope factor 0": (changed(rope_scaling={"type": "linear", "factor": 0}), "factor must be"),
    "rope llama3 upside down": (
        changed(rope_scaling={"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                              "high_freq_factor": 1, "original_max_position_embeddings": 8}),
        "must be above low_freq_factor",
    ),
    "rope partial": (changed(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "rope theta 0": (changed(rope_theta=0), "rope_theta must be above 0"),
    "encoder-decoder": (changed(is_encoder_decoder=True), "only decoders"),
    "tie a number": (changed(tie_word_embeddings=1), "true or false"),
    "own: unknown field": (own(colour="red"), "unknown config fields ['colour']"),
    "own: field missing": ({"model_type": "tinytorch_gpu", "max_seq_length": 4}, "is missing"),
    "own: sinusoids of 2^24": (own(max_seq_length=2**24), "too large a table"),
    "own: norm a list": (own(norm=["rms"]), "must be a string"),
    "own: scaling unknown": (
        own(rope_scaling={"kind": "yarn", "factor": 2}),
        "rope scaling kind",
    ),
    "own: relative": (own(position="relative"), ""),
    "own: encoder": (own(encoder_layers=10**9), ""),
    "own: dropout text": (own(dropout="x"), ""),
    "own: heads null": (own(num_heads=None), ""),
    "own: tie text": (own(tie_embeddings="yes"), ""),
    "own: layers -1": (own(num_layers=-1), "whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_config(tmp_path, case):
    content, expected = BAD_CONFIG[case]
    assert expected in refused(make.write_folder(tmp_path / "model", content))


# --- every truncation, and bytes changed at random ------------------------------------------


def test_gguf_cut_anywhere(tmp_path):
    good, path = make.gguf(), tmp_path / "cut.gguf"
    header = make.header_bytes(good)
    for size in [*range(header + 1), *range(header, len(good), 97)]:
        path.write_bytes(good[:size])
        with pytest.raises(ModelFileError):
            open_model(path)


def test_safetensors_cut_anywhere(tmp_path):
    good, folder = make.safetensors(), make.write_folder(tmp_path / "cut")
    header = 8 + int.from_bytes(good[:8], "little")
    for size in [*range(0, header + 1, 3), *range(header, len(good), 97)]:
        (folder / SINGLE).write_bytes(good[:size])
        with pytest.raises(ModelFileError):
            open_model(folder)


def fuzzed(good: bytes, limit: int, seed: int) -> bytes:
    """Return ``good`` with a few of its first ``limit`` bytes changed, as a fuzzer would."""
    dice, data = random.Random(seed), bytearray(good)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(limit)
        match dice.randrange(5):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                value = dice.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                data[at : at + 8] = struct.pack("<Q", value)
            case 3:
                del data[at : at + dice.randrange(1, 9)]
            case 4:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_fuzzed_gguf(tmp_path, seed):
    good, path = make.gguf(), tmp_path / "fuzz.gguf"
    limit = make.header_bytes(good) + (300 if seed % 2 else 0)
    for step in range(100):
        path.write_bytes(fuzzed(good, limit, 1000 * seed + step))
        refused(path, may_load=True)


@pytest.mark.parametrize("seed", range(8))
def test_fuzzed_safetensors(tmp_path, seed):
    good, folder = make.safetensors(), make.write_folder(tmp_path / "fuzz")
    limit = 8 + int.from_bytes(good[:8], "little") + (300 if seed % 2 else 0)
    for step in range(100):
        (folder / SINGLE).write_bytes(fuzzed(good, limit, 1000 * seed + step))
        refused(folder, may_load=True)


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_config(tmp_path, seed):
    folder = make.write_folder(tmp_path / "fuzz")
    bases = [json.dumps(make.HF_CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}}),
             json.dumps(own(position="rotary"))]  # fmt: skip
    good = bases[seed % 2].encode()
    for step in range(100):
        (folder / "config.json").write_bytes(fuzzed(good, len(good), 1000 * seed + step))
        refused(folder, may_load=True)


@pytest.mark.parametrize("seed", range(2))
def test_configs_with_values_of_every_type(tmp_path, seed):
    dice, folder = random.Random(seed), make.write_folder(tmp_path / "types")
    values = [None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**400, 0.5, -1e308, "", "x", "rms",
              [], [1], {}, {"a": 1}]  # fmt: skip
    for base in (changed(head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5), own(position="none"),
                 own(norm="layer", activation="relu", rope_scaling=None, dropout=0.0,
                     num_kv_heads=1, rotary_dim=None, encoder_layers=0, init_std=None)):  # fmt: skip
        for key in base:
            for value in dice.sample(values, 10):
                (folder / "config.json").write_text(json.dumps(base | {key: value}))
                refused(folder, may_load=True)


def test_paths_that_are_no_models(tmp_path):
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(make.gguf())
    for path, expected in [
        (pipe, "not a regular file"),
        (tmp_path / "none.gguf", "no model"),
        (tmp_path / "empty", "neither config.json nor a GGUF file"),
        (tmp_path / "two", "2 GGUF files"),
        ("", "is not a model"),
        ("a\0b", "is not a model"),
        ("x" * 5000, ""),
        ("../../nowhere/at/all", "no model"),
    ]:
        assert expected in refused(path)


# --- tokenizers -----------------------------------------------------------------------------

TOKENIZER = {
    "tokenizer.ggml.model": (STRING, "gpt2"), "tokenizer.ggml.pre": (STRING, "gpt-2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "ab", "<e>"])),
    "tokenizer.ggml.token_type": (ARRAY, (U32, [1, 1, 1, 3])),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
    "tokenizer.ggml.eos_token_id": (U32, 3),
}  # fmt: skip
BAD_TOKENIZER = {
    "no model": {"tokenizer.ggml.model": None},
    "model unknown": {"tokenizer.ggml.model": (STRING, "bert")},
    "model a number": {"tokenizer.ggml.model": (U32, 1)},
    "no tokens": {"tokenizer.ggml.tokens": None},
    "tokens of numbers": {"tokenizer.ggml.tokens": (ARRAY, (U32, [1, 2, 3, 4]))},
    "types too few": {"tokenizer.ggml.token_type": (ARRAY, (U32, [1]))},
    "merge of one": {"tokenizer.ggml.merges": (ARRAY, (STRING, ["ab"]))},
    "merge unknown": {"tokenizer.ggml.merges": (ARRAY, (STRING, ["a z"]))},
    "end outside": {"tokenizer.ggml.eos_token_id": (U32, 99)},
    "end is text": {"tokenizer.ggml.eos_token_id": (STRING, "x")},
}


@pytest.mark.parametrize("case", [None, *BAD_TOKENIZER])
def test_bad_gguf_tokenizer(tmp_path, case):
    pytest.importorskip("tokenizers", reason="tokenizers are read by the tokenizers library")
    values = make.GGUF_METADATA | TOKENIZER | BAD_TOKENIZER.get(case, {})
    path = tmp_path / "m.gguf"
    path.write_bytes(make.gguf({key: value for key, value in values.items() if value}))
    if case is None:
        assert open_model(path).tokenizer().encode("ab<e>") == [2, 3]
        return
    with pytest.raises(ModelFileError) as caught:
        open_model(path).tokenizer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"{}", b'{"model":{"type":"BPE","vocab":{"a":-1}}}', None]
)
def test_bad_tokenizer_json(tmp_path, content):
    pytest.importorskip("tokenizers", reason="tokenizers are read by the tokenizers library")
    folder = make.write_folder(tmp_path / "m")
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        open_model(folder).tokenizer()
    assert "\n" not in str(caught.value)
