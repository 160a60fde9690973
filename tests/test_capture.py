"""A captured decode step: the same tokens and logits as ordinary steps."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.core.op import Op, reference_only
from tinytorch_gpu.generation import Cache, capture
from tinytorch_gpu.generation.capture import CapturedPass
from tinytorch_gpu.generation.prefill import prefill
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
    "q/k norm": LLAMA | {"qk_norm": True},
    "q/k norm, biased": LLAMA | {"qk_norm": True, "qkv_bias": True, "head_dim": 16},
    "a scale of its own": LLAMA | {"attention_scale": 0.7},
}
# What falls back to ordinary steps: an operation that cannot be repeated is no error.
ORDINARY: dict[str, dict[str, Any]] = {
    "exact gelu": GPT2 | {"activation": "gelu"},
    "window": LLAMA | {"sliding_window": 4},
    "relative": {"position": "relative"},
    "post-norm": GPT2 | {"pre_norm": False},
}
if library():  # native code also has all activations, norms that add, attention in a window
    CAPTURED |= {name: ORDINARY.pop(name) for name in ("exact gelu", "post-norm", "window")}


def build(choices: dict[str, Any], **options: Any) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, **choices)
    return Transformer.from_config(config, device="cpu", seed=1, **options).eval()


def captured_step(model: Transformer, cache: Cache, token: Any) -> Any:
    """The logits of the first step, of one token or one of each row, and the step."""
    step = capture(model, cache.batch, cache)
    return step([token] if isinstance(token, int) else token), step


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


@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("choices", (CAPTURED | ORDINARY).values(), ids=(CAPTURED | ORDINARY).keys())  # fmt: skip
def test_a_pass_of_several_tokens(choices: dict[str, Any], cache_dtype: str) -> None:
    """Between steps, other passes and rollbacks, from places that differ: as an ordinary pass."""
    model, random = build(choices), np.random.default_rng(0)
    caches = [Cache.for_model(model, 2, 30, cache_dtype) for _ in range(2)]
    for cache in caches:
        prefill(model, [[3, 1, 4], [1, 5, 9, 2, 6]], cache)
    step, steps = (
        capture(model, 2, caches[0]),
        {n: CapturedPass(model, caches[0], n) for n in (2, 5)},
    )
    for count in (5, 2, 1, 5, 5, 2, 3, 5):
        ids = random.integers(0, 50, (2, count))
        expected = model(ids, cache=caches[1]).detach().numpy()
        if count == 1:
            found = step(ids[:, 0]).numpy()[:, None]
        elif count in steps:
            found = steps[count](ids).numpy()
        else:
            found = model(ids, cache=caches[0]).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3 if cache_dtype == "q8_0" else 1e-5)
        back = random.integers(0, count + 1, 2)
        for cache in caches:
            cache.rollback(back)
        assert caches[0].lengths.tolist() == caches[1].lengths.tolist()
    if library() and model.config.position != "relative":
        assert all(one.form == "list" for one in steps.values())
    for one in steps.values():
        assert (one.form == "list") == (not one.reason)
    caches[0].rollback(caches[0].lengths)
    for _ in range(6):
        steps[5](random.integers(0, 50, (2, 5)))
    before = caches[0].lengths
    with pytest.raises(ValueError, match="5 more tokens do not fit"):
        steps[5](random.integers(0, 50, (2, 5)))
    assert caches[0].lengths.tolist() == before.tolist() == [30, 30]


@pytest.mark.parametrize(
    "choices", (CAPTURED | ORDINARY).values(), ids=(CAPTURED | ORDINARY).keys()
)
def test_generated_ids_are_the_same(
    choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(choices)
    options = {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2, "seed": 5}
    found = model.generate([3, 1, 4], 40, **options).numpy()
    monkeypatch.setitem(capture.__globals__, "why_not", lambda model: "not asked for")
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


@pytest.mark.parametrize("choices", ORDINARY.values(), ids=ORDINARY.keys())
def test_it_is_said_why(choices: dict[str, Any]) -> None:
    step = capture(build(choices))
    assert not step.reason
    step([3])
    if choices.get("position") == "relative":
        assert "relative positions make the bias" in step.reason
    else:
        assert re.search(r"^\w+ of float32 \(1, 1, \d+.* cannot be repeated", step.reason)
    once = step.reason
    step([4])
    assert step.reason == once and step.form == "steps"


def test_a_captured_step_has_no_reason_against_it() -> None:
    step = capture(build(LLAMA))
    step([3])
    assert step.form == "list" and not step.reason


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


ONE_CALL: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"tie_embeddings": True},
    "gpt2": GPT2,
    "q/k norm": LLAMA | {"qk_norm": True},
}


@pytest.mark.skipif(library() is None, reason="there is no native library")
@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("choices", ONE_CALL.values(), ids=ONE_CALL.keys())
def test_a_step_is_one_native_call(
    choices: dict[str, Any], dtype: str, cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TransformerConfig(64, 64, 4, 2, 96, 64, **choices)
    model = Transformer.from_config(config, device="cpu", seed=1).to(dtype).eval()
    code, calls = library(), []
    assert code is not None
    run = code.run
    monkeypatch.setattr(code, "run", lambda *given: calls.append(given) or run(*given))
    prompts = [[3, 1, 4, 1], [5, 9], [2, 6, 5]]
    cache, other = (Cache.for_model(model, 3, 16, cache_dtype) for _ in range(2))
    for each in (cache, other):
        prefill(model, prompts, each)
    logits, step = captured_step(model, cache, [7, 8, 9])
    assert step.form == "list" and not calls
    model([[7], [8], [9]], cache=other)
    for token in range(3):
        logits = step([token] * 3)
        expected = model([[token]] * 3, cache=other).numpy()[:, 0]
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)
    assert len(calls) == 3


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, penalty": {"temperature": 0, "repetition_penalty": 1.3},
    "all": {"temperature": 1.0},
    "top k": {"temperature": 0.8, "top_k": 7},
    "nucleus": {"temperature": 1.2, "top_p": 0.9, "min_p": 0.02},
    "all of them": {"top_k": 20, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1},
}


@pytest.mark.skipif(library() is None, reason="there is no native library")
@pytest.mark.parametrize("options", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_the_choice_is_part_of_the_call(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operation is asked for between the first step and the last."""
    model, asked = build(LLAMA), []
    options = {"seed": 3, "stream": True, **options}
    ordinary, called = Op.__call__, asked.append
    monkeypatch.setattr(Op, "__call__", lambda op, *a, **k: called(op) or ordinary(op, *a, **k))
    steps = model.generate([[3, 1, 4], [1, 5]], 20, **options)
    found = [next(steps).tokens.tolist() for _ in range(2)]
    asked.clear()
    found += [step.tokens.tolist() for step in steps]
    assert len(found) == 20 and not asked
    monkeypatch.setitem(capture.__globals__, "why_not", lambda model: "not asked for")
    with reference_only():
        expected = [s.tokens.tolist() for s in model.generate([[3, 1, 4], [1, 5]], 20, **options)]
    assert found == expected


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
