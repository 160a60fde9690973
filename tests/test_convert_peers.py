"""What is written is what others read: llama.cpp a GGUF file, transformers a folder. In processes of their own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_convert import tiny
from tokenizer_vocabularies import BYTE_LEVEL

from tinytorch_gpu.checkpoint import load, save_gguf
from tinytorch_gpu.cli.main import main

LLAMA_CPP = """
import json, sys
import llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=32, n_threads=1, logits_all=True, verbose=False)
ids = json.loads(sys.argv[2])
model.eval(ids)
text = "the 12 things<|im_end|>"
found = model.tokenize(text.encode(), add_bos=False, special=True)
print(json.dumps([model.scores[: len(ids)].tolist(), found]))
"""
TRANSFORMERS = """
import json, sys
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = json.loads(sys.argv[2])
with torch.inference_mode():
    logits = model(torch.tensor([ids])).logits[0].tolist()
print(json.dumps([logits, tokenizer("the 12 things<|im_end|>", add_special_tokens=False).input_ids]))
"""
IDS = [5, 88, 17, 140, 9, 201, 33]


def asked(program: str, path: Path) -> tuple[np.ndarray, list[int]]:
    """What a peer answers: the logits (T, V) of ``IDS``, and a text as ids."""
    command = [sys.executable, "-c", program, str(path), json.dumps(IDS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, ids = json.loads(done.stdout.splitlines()[-1])
    return np.array(logits), ids


def written(family: str, folder: Path, dtype: str = "float32") -> Path:
    model = tiny(family).to(dtype)
    return save_gguf(model, folder / "m.gguf", BYTE_LEVEL)


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is missing"
)
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "q8_0"), ("llama, scaled", "float32"), ("qwen2", "q4_1"), ("qwen3", "float32"),
     ("gpt2", "q4_0"), ("llama tied", "float16")],
)  # fmt: skip
def test_llama_cpp_reads_the_file(tmp_path: Path, family: str, dtype: str) -> None:
    path = written(family, tmp_path, dtype)
    logits, ids = asked(LLAMA_CPP, path)
    own = load(path, "cpu", "float32")([IDS]).detach().numpy()[0]
    # llama.cpp keeps keys and values in float16, and rounds activations to 8 bit before blocks.
    scale = np.abs(own).max()
    np.testing.assert_allclose(logits, own, atol=scale * (2e-3 if dtype == "float32" else 0.05))
    assert ids == BYTE_LEVEL.encode("the 12 things<|im_end|>")


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="transformers or PyTorch is missing",
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_reads_the_folder(tmp_path: Path, family: str) -> None:
    path = written(family, tmp_path, "q8_0")
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    logits, ids = asked(TRANSFORMERS, tmp_path / "folder")
    own = load(path, "cpu", "stored")([IDS]).detach().numpy()[0]
    np.testing.assert_allclose(logits, own, atol=1e-4)
    assert ids == BYTE_LEVEL.encode("the 12 things<|im_end|>")
