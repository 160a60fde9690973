"""The real model: its text is that of Hugging Face's transformers, token for token."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinytorch_gpu import Transformer

REFERENCE = json.loads((Path(__file__).parent / "data/smollm2_greedy.json").read_text("utf-8"))
ROWS = REFERENCE["rows"]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Transformer:
    return Transformer.from_pretrained(smollm2, device="cpu", dtype="float32")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["prompt"][:20])
def test_greedy_text_is_that_of_transformers(model: Transformer, row: dict) -> None:
    # The recorded gap is how close the two best logits of any step came: were it within float
    # error (about 1e-4 here), another order of sums could rightly choose the other token.
    assert row["smallest_gap"] > 1e-3
    made = model.generate(row["prompt_ids"], 64, temperature=0).numpy()[0]
    assert made[len(row["prompt_ids"]) :].tolist() == row["generated_ids"]


def test_a_ragged_batch_makes_the_same_text(model: Transformer) -> None:
    made = model.generate([row["prompt_ids"] for row in ROWS], 64, temperature=0)
    for row, ids in zip(ROWS, made, strict=True):
        assert ids.numpy()[len(row["prompt_ids"]) :].tolist() == row["generated_ids"]


def test_cached_and_uncached_logits_agree_at_every_position(model: Transformer) -> None:
    from tinytorch_gpu.generation import Cache

    ids = np.array([ROWS[0]["prompt_ids"] + ROWS[0]["generated_ids"]])
    whole = model(ids).detach().numpy()
    cache = Cache.for_model(model, 1, ids.shape[1])
    steps = [model(ids[:, i : i + 1], cache=cache).detach().numpy() for i in range(ids.shape[1])]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-4, rtol=1e-5)


def test_recorded_ids_are_the_tokenizers(smollm2: Path) -> None:
    from tinytorch_gpu.checkpoint import open_model

    tokenizer = open_model(smollm2).tokenizer()
    for row in ROWS:
        assert tokenizer.encode(row["prompt"]) == row["prompt_ids"]


MEASURE = """
import json, sys, threading, time
import numpy

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("RssAnon"))

base, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
from tinytorch_gpu.checkpoint import open_model
from tinytorch_gpu.generation import Cache
file = open_model(sys.argv[1])
tokenizer = file.tokenizer()
model = file.load(device="cpu", dtype=sys.argv[2])
cache = Cache.for_model(model, 1, 320)
ids = tokenizer.encode("word " * 300)[:300]
model.generate(ids, 4, temperature=0.8, top_p=0.9, seed=1, cache=cache)
done.set()
thread.join()
weights = sum(p.data.nbytes for p in model.parameters())
print(json.dumps({"peak": peak[0] - base, "weights": weights, "cache": cache.nbytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_model_and_little_else(smollm2: Path, dtype: str) -> None:
    run = [sys.executable, "-c", MEASURE, str(smollm2), dtype]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert found["weights"] == 134515008 * (4 if dtype == "float32" else 2)
    bound = 1.15 * (found["weights"] + found["cache"] + 64 * 2**20)
    assert found["peak"] < bound
