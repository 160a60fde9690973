"""GGUF files that are wrong, each with what its error must say."""

import struct

import model_file_makers as make
import numpy as np
from model_file_makers import ARRAY, BOOL, F32, F64, STRING, U8, U32, U64


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
