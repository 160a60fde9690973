"""Saving: the old files stay until the new ones are complete."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tinytorch_gpu import PRESETS, Transformer
from tinytorch_gpu.checkpoint import load, open_model, save
from tinytorch_gpu.tokenizers import CharTokenizer, Tokenizer

safetensors = pytest.importorskip("safetensors.numpy", reason="saving needs safetensors")
SMALL = {"vocab_size": 11, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "hidden_dim": 12}


def tiny(preset="llama-3.2-1b", seed=0, **choices):
    kv = {"num_kv_heads": 1} if "llama" in preset else {}
    config = PRESETS[preset].replace(**SMALL, **kv, max_seq_length=16, **choices)
    return Transformer.from_config(config, device="cpu", seed=seed)


def same(model, other):
    assert model.config == other.config
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[key])


@pytest.mark.parametrize("preset", ["gpt2", "llama-3.2-1b", "course", "shakespeare-char"])
def test_round_trip(tmp_path, preset):
    model = tiny(preset)
    assert save(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    same(load(tmp_path / "a" / "b", "cpu"), model)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]


def test_a_newer_model_replaces_the_older(tmp_path):
    save(tiny(seed=0), tmp_path)
    save(tiny(seed=1), tmp_path)
    same(load(tmp_path, "cpu"), tiny(seed=1))


def test_files_have_ordinary_permissions(tmp_path):
    save(tiny(), tmp_path)
    (tmp_path / "plain").write_text("")
    wanted = os.stat(tmp_path / "plain").st_mode
    for name in ("config.json", "model.safetensors"):
        assert os.stat(tmp_path / name).st_mode == wanted


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch, error):
    save(tiny(seed=0), tmp_path)

    def broken(tensors, path, **options):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors, "save_file", broken)
    with pytest.raises(error):
        save(tiny(seed=1), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    same(load(tmp_path, "cpu"), tiny(seed=0))


FULL = """
import resource, sys
from tinytorch_gpu import PRESETS, Transformer
from tinytorch_gpu.checkpoint import save
config = PRESETS["gpt2"].replace(vocab_size=5000, embed_dim=8, num_heads=2, num_layers=1,
                                 hidden_dim=12, max_seq_length=16)
model = Transformer.from_config(config, device="cpu")
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    save(model, sys.argv[1])
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits file sizes as only Unix can")
def test_a_full_disk_leaves_the_old_model(tmp_path):
    save(tiny(), tmp_path)
    run = [sys.executable, "-c", FULL, str(tmp_path)]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("refused: could not write")
    assert found.stdout.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    same(load(tmp_path, "cpu"), tiny())


def test_without_the_library_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        save(tiny(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_config_names_the_dtype(tmp_path):
    save(tiny(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["torch_dtype"] == "float32"


def test_the_tokenizer_is_saved_with_the_model(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers are read by the tokenizers library")
    letters = [*"abcdefghi", "ab"]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 10 + [3], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 10, "tokenizer.ggml.eos_token_id": 10,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ messages }}é",
    }  # fmt: skip
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("abc") == [10, 9, 2]
    save(tiny(), tmp_path, tokenizer)
    file = open_model(tmp_path)
    again = file.tokenizer()
    for text in ("abc", "", "ii<|end|>a"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.encode(text, False) == tokenizer.encode(text, False)
    assert (again.bos_id, again.eos_ids, again.pad_id) == (10, (10,), None)
    assert file.chat_template == "{{ messages }}é"
    transformers = pytest.importorskip("transformers", reason="the peer is transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("abc").input_ids == [10, 9, 2]
    assert theirs.eos_token_id == 10


def test_only_tokenizers_of_model_files_are_saved(tmp_path):
    with pytest.raises(ValueError, match="a CharTokenizer has no"):
        save(tiny(), tmp_path, CharTokenizer())
    assert os.listdir(tmp_path) == []
