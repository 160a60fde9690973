"""Counted operations and bytes against independent counters: PyTorch's, and the emulated device's.

docs/accounting.md explains the differences that are asserted here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import backend, devices, ops
from tinytorch_gpu.config import TransformerConfig, preset
from tinytorch_gpu.core.op import record
from tinytorch_gpu.core.tensor import no_grad
from tinytorch_gpu.profiler import Setting, train_step
from tinytorch_gpu.profiler.account import BACKWARD, FORWARD
from tinytorch_gpu.profiler.recorded import cost_of

BATCH, TOKENS, LAYERS = 2, 64, 2


# --- PyTorch's counter, on models that hold no memory ---


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("transformers", reason="the models to count")
    return pytest.importorskip("torch", reason="its counter")


def gpt2(torch: Any) -> tuple[Any, TransformerConfig]:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, attn_implementation="eager"))
    return model, preset("gpt2", num_layers=LAYERS)


def llama(torch: Any) -> tuple[Any, TransformerConfig]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = preset("smollm2-135m", num_layers=LAYERS)
    sizes = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.embed_dim, num_hidden_layers=LAYERS,
        num_attention_heads=config.num_heads, num_key_value_heads=config.kv_heads,
        intermediate_size=config.hidden_dim, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(sizes), config


@pytest.mark.parametrize("family", [gpt2, llama])
def test_products_are_those_that_pytorch_counts(torch: Any, family: Callable[..., Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, config = family(torch)
    ids = torch.zeros((BATCH, TOKENS), dtype=torch.long, device="meta")
    found = {}
    for direction in (FORWARD, BACKWARD):
        with FlopCounterMode(display=False) as counter:
            if direction == FORWARD:
                logits = model(ids).logits
            else:
                logits.sum().backward()
        by_op = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        found[direction] = by_op["aten.mm"] + by_op.get("aten.addmm", 0), by_op["aten.bmm"]
    phase = train_step(Setting(config), BATCH, TOKENS)
    ours = {d: _products(phase, d) for d in found}
    # Linear maps: equal.
    assert {d: linear for d, (linear, _) in ours.items()} == {d: mm for d, (mm, _) in found.items()}
    # Attention: PyTorch multiplies what the mask hides too, and keeps the weights where we make them anew:
    # four products backwards to our five.
    causal = (TOKENS + 1) / (2 * TOKENS)
    assert ours[FORWARD][1] == found[FORWARD][1] * causal
    assert ours[BACKWARD][1] == found[BACKWARD][1] * causal * 5 / 4


def _products(phase: Any, direction: str) -> tuple[float, float]:
    rows = [row for row in phase.rows if row.direction == direction]
    attention = sum(row.cost.matrix for row in rows if row.role == "attention")
    return sum(row.cost.matrix for row in rows) - attention, attention


# --- the emulated device's counters ---


def array(*shape: int, dtype: str = "float32") -> Any:
    values = np.random.default_rng(0).standard_normal(shape).astype(backend.dtype(dtype))
    return devices.device("emulated").asarray(values)


def numbers(count: int) -> Any:
    return devices.device("emulated").asarray(np.arange(count))


# What runs, and the most that kernels may read over the least: they read weights once a block of rows, a
# number of its own for each row, and the keys once for each tile of queries.
CASES: dict[str, tuple[Callable[[], Any], float]] = {
    "rms norm": (lambda: ops.rms_norm(array(1024, 256), array(256)), 1.15),
    "swiglu": (lambda: ops.swiglu(array(64, 512)), 1.01),
    "gelu": (lambda: ops.gelu_tanh(array(64, 512)), 1.01),
    "embedding": (lambda: ops.embedding(numbers(64), array(100, 256)), 1.01),
    "rotary": (lambda: ops.rotary(array(1, 64, 4, 64), array(64, 32), array(64, 32), numbers(64)), 1.01),
    "loss": (lambda: ops.cross_entropy(array(64, 4096), numbers(64)), 1.01),
    "linear, one row": (lambda: ops.linear(array(1, 512), array(768, 512)), 1.05),
    "attention": (lambda: ops.attention(*(array(1, 128, n, 64, dtype="float16") for n in (2, 1, 1))), 1.6),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_that_kernels_move(gpu: str, name: str) -> None:
    if gpu != "emulated":
        pytest.skip("only the emulated device counts")
    from tinytorch_gpu import emulated

    run, most = CASES[name]
    with emulated.recorded() as launches, record() as made, no_grad():
        run()
    cost = cost_of(made[-1])
    read = sum(launch.counters.read_bytes for launch in launches)
    written = sum(launch.counters.written_bytes for launch in launches)
    assert cost.read <= read <= most * cost.read
    # Statistics of a row (its log-sum-exp, its root) are written though nothing asks for a gradient.
    rows = made[-1].arrays[0].size // made[-1].arrays[0].shape[-1]
    assert 0 <= written - cost.written <= 24 * rows
    if name == "attention":  # an instruction multiplies 16 x 16 by 16 x 8; nothing is hidden here
        assert sum(launch.counters.matrix for launch in launches) == cost.matrix / 4096
