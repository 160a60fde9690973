"""Bad model files: each ends in one clear line, soon, and without memory for what a header says."""

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
from bad_folder_cases import BAD_CONFIG, BAD_SAFETENSORS, SINGLE, changed, own
from bad_gguf_cases import BAD_GGUF, raw_array
from model_file_makers import ARRAY, STRING, U32, U64

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


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path, case):
    content, expected = BAD_SAFETENSORS[case]
    folder = make.write_folder(tmp_path / "model", files=content())
    assert expected in refused(folder)


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
