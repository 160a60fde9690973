"""A captured decode step: the same tokens and logits as ordinary steps."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.generation import Cache, capture
from tinytorch_gpu.native import library

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
GPT2 = {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True}
CAPTURED: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_embeddings": True},
    "llama biased": LLAMA | {"qkv_bias": True, "ffn_bias": True, "head_bias": True},
    "geglu": LLAMA | {"activation": "geglu"},
    "silu": {"activation": "silu"},
}
# What falls back to ordinary steps: an operation that cannot be repeated is no error.
ORDINARY: dict[str, dict[str, Any]] = {
    "exact gelu": GPT2 | {"activation": "gelu"},
    "window": LLAMA | {"sliding_window": 4},
    "q/k norm": LLAMA | {"qk_norm": True},
    "post-norm": GPT2 | {"pre_norm": False},
}
if library():  # native linear maps end in any activation, native norms add
    CAPTURED |= {name: ORDINARY.pop(name) for name in ("exact gelu", "post-norm")}


def build(choices: dict[str, Any], **options: Any) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, **choices)
    return Transformer.from_config(config, device="cpu", seed=1, **options).eval()


def captured_step(model: Transformer, cache: Cache, token: int) -> Any:
    """The logits of the first step, and the step."""
    step = capture(model, 1, cache)
    return step([token]), step


@pytest.mark.parametrize("choices", CAPTURED.values(), ids=CAPTURED.keys())
def test_logits_are_those_of_ordinary_steps(choices: dict[str, Any]) -> None:
    model, ids = build(choices), [3, 1, 4, 1, 5, 9, 2, 6]
    whole = model([ids]).detach().numpy()[0]
    cache = Cache.for_model(model, 1, 16)
    model([ids[:2]], cache=cache)
    logits, step = captured_step(model, cache, ids[2])
    assert step.form == "list"
    np.testing.assert_allclose(logits.numpy()[0], whole[2], atol=1e-5)
    for i in range(3, len(ids)):
        np.testing.assert_allclose(step([ids[i]]).numpy()[0], whole[i], atol=1e-5)
    assert cache.lengths.tolist() == [len(ids)]


@pytest.mark.parametrize(
    "choices", (CAPTURED | ORDINARY).values(), ids=(CAPTURED | ORDINARY).keys()
)
def test_generated_ids_are_the_same(
    choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(choices)
    options = {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2, "seed": 5}
    found = model.generate([3, 1, 4], 40, **options).numpy()
    monkeypatch.setitem(capture.__globals__, "can_capture", lambda model: False)
    np.testing.assert_array_equal(model.generate([3, 1, 4], 40, **options).numpy(), found)


@pytest.mark.parametrize("choices", ORDINARY.values(), ids=ORDINARY.keys())
def test_what_cannot_be_repeated_is_left_alone(choices: dict[str, Any]) -> None:
    model = build(choices)
    cache = Cache.for_model(model, 1, 16)
    model([[1, 2]], cache=cache)
    logits, step = captured_step(model, cache, 3)
    assert step.form == "steps" and logits.shape == (1, 50) and cache.lengths.tolist() == [3]
    expected = model([[1, 2, 3, 4]]).detach().numpy()[0, -1]
    np.testing.assert_allclose(step([4]).numpy()[0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_are_repeated_by_native_code(dtype: str) -> None:
    model = build(LLAMA | {"tie_embeddings": True}, dtype=dtype)
    cache = Cache.for_model(model, 1, 16)
    model([[1, 2]], cache=cache)
    logits, step = captured_step(model, cache, 3)
    assert step.form == ("list" if library() else "steps")
    expected = model([[1, 2, 3, 4]]).detach().numpy()[0]
    np.testing.assert_allclose(logits.numpy()[0], expected[2], atol=1e-5)
    np.testing.assert_allclose(step([4]).numpy()[0], expected[3], atol=1e-5)


def test_a_step_follows_a_rollback_and_ends_at_the_capacity() -> None:
    model = build(LLAMA)
    cache = Cache.for_model(model, 1, 5)
    model([[1, 2]], cache=cache)
    _, step = captured_step(model, cache, 3)
    first = step([4]).numpy().copy()
    cache.rollback(1)
    np.testing.assert_array_equal(step([4]).numpy(), first)
    step([5])
    with pytest.raises(ValueError, match="do not fit"):
        step([6])
    assert cache.lengths.tolist() == [5]


def test_changed_weights_are_seen() -> None:
    model = build(LLAMA)
    cache = Cache.for_model(model, 1, 16)
    model([[1, 2]], cache=cache)
    _, step = captured_step(model, cache, 3)
    model.state_dict()["transformer_blocks.1.ffn.w2"][...] *= -2
    expected = model([[4]], cache=cache).detach().numpy()[0]
    cache.rollback(1)
    np.testing.assert_allclose(step([4]).numpy(), expected, atol=1e-5)


def test_threads_do_not_disturb_each_other() -> None:
    models = [build(LLAMA), build(LLAMA | {"rope_theta": 500.0})]
    alone = [model.generate([3, 1, 4], 40, temperature=0).numpy().tolist() for model in models]
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            (i % 2, pool.submit(models[i % 2].generate, [3, 1, 4], 40, temperature=0))
            for i in range(16)
        ]
        for which, task in tasks:
            assert task.result().numpy().tolist() == alone[which]
