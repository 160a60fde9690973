"""Folders in Hugging Face layout that are wrong, each with what its error must say."""

import copy
import json

import model_file_makers as make
import numpy as np


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
    "model_type unknown": (changed(model_type="mamba"), "'mamba' is not one of bert, gpt2, llama"),
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
    "encoder-decoder": (changed(is_encoder_decoder=True), "only T5 is loaded"),
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
