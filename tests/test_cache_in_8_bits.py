"""A cache in 8 bit on a GPU: whole models write what they write on the CPU, by ordinary and by captured steps."""

from typing import Any

import numpy as np
import pytest
from emulated_device import emulated_device, kernels_of_replays

from tinytorch_gpu import Transformer, TransformerConfig, devices, no_grad
from tinytorch_gpu.cli.main import main
from tinytorch_gpu.generation import (
    Cache,
    DraftModel,
    PrefixCache,
    Sampler,
    Sampling,
    capture,
)
from tinytorch_gpu.generation.prefill import prefill
from tinytorch_gpu.quantized.cache import EightBit, rounded

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
GPT2 = {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, windowed": LLAMA | {"sliding_window": 5},
    "llama, keys normed": LLAMA | {"qk_norm": True},
    "gpt2": GPT2,
}
# The second is long enough for the kernels of a prompt.
PROMPTS = {"one": [[7, 3, 9]], "rows apart": [list(range(1, 15)), [5], [9, 8, 7, 6]]}


def make(place: str, heads: int = 4, seed: int = 1, **choices: Any) -> Transformer:
    config = TransformerConfig(50, 128, heads, 2, 96, 64, **LLAMA | choices)
    return Transformer.from_config(config, device=place, seed=seed).eval()


def rows(result: Any) -> list[list[int]]:
    return [np.ravel(row.numpy()).tolist() for row in result]


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_the_cpu_s(
    gpu: str, family: str, prompt: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not captured:
        monkeypatch.setitem(capture.__globals__, "why_not", lambda model: "not asked for")
    options = {"temperature": 0, "cache_dtype": "q8_0"}
    there, here = (
        rows(make(place, **FAMILIES[family]).generate(PROMPTS[prompt], 12, **options))
        for place in (gpu, "cpu")
    )
    assert there == here


@pytest.mark.parametrize("heads", [2, 4, 16], ids=["two groups", "one group", "a head a group"])
def test_both_hold_the_same(gpu: str, heads: int) -> None:
    """A prompt, a few tokens, one: the logits are near, and of the cache all but what lay between two steps."""
    ids = np.random.default_rng(0).integers(0, 50, (2, 14))
    models = [make(place, heads) for place in (gpu, "cpu")]
    caches = [Cache.for_model(model, 2, 20, "q8_0") for model in models]
    assert caches[0].nbytes == caches[1].nbytes
    with no_grad():
        for part in (ids[:, :10], ids[:, 10:13], ids[:, 13:]):
            there, own = (m(part, cache=c) for m, c in zip(models, caches, strict=True))
            np.testing.assert_allclose(there.cpu().numpy(), own.numpy(), atol=0.02)
    for a, b in zip(
        caches[0].keys + caches[0].values, caches[1].keys + caches[1].values, strict=True
    ):
        apart = np.abs(a.get().values.astype(int) - b.values)
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_a_model_in_16_bits(gpu: str) -> None:
    model = make("cpu").to("float16").to(gpu)
    caches = [Cache.for_model(model, 1, 20, kind) for kind in (None, "q8_0")]
    with no_grad():
        for part in ([[1, 2, 3, 4, 5, 6, 7, 8, 9]], [[10]], [[11]]):
            whole, short = (model(part, cache=c).cpu().numpy().astype(float) for c in caches)
            np.testing.assert_allclose(short, whole, atol=0.05)
    assert 0.5 < caches[1].nbytes / caches[0].nbytes < 0.54
    assert model.generate([1, 2, 3], 5, temperature=0, cache_dtype="q8_0").shape[-1] == 8


def test_a_captured_step_neither_waits_nor_asks_for_memory() -> None:
    model = make(emulated_device().name)
    sampler = Sampler(Sampling(0.8, 5), 2, 50, model.device, 1)
    cache = Cache.for_model(model, 2, 12, "q8_0")
    prefill(model, [[1, 2, 3], [4]], cache)
    step = capture(model, 2, cache, sampler)
    step([1, 2])
    assert step.form == "checked list"
    names = kernels_of_replays(step)
    layer = ["linear_decode", "attend_cached", "linear_decode", "linear_decode", "linear_decode"]
    assert names[1:11] == layer * 2


def test_a_captured_graph_replays_on_the_same_memory(gpu: str) -> None:
    model, host = make(gpu), make("cpu")
    cache = Cache.for_model(model, 1, 12, "q8_0")
    with no_grad():
        model([[1, 2]], cache=cache)
    step = capture(model, 1, cache)
    made = [step([token]).cpu().numpy().argmax() for token in (3, 4)]
    assert step.form == ("graph" if gpu == "cuda" else "checked list")
    cache.rollback(1)
    assert step([4]).cpu().numpy().argmax() == made[1]
    saved = cache.save()
    after = step([5]).cpu().numpy().copy()
    step([6])
    cache.restore(saved)
    np.testing.assert_array_equal(step([5]).cpu().numpy(), after)
    other = Cache.for_model(host, 1, 12, "q8_0")
    with no_grad():
        host([[1, 2, 3, 4]], cache=other)
        expected = host([[5]], cache=other).numpy()[0]
    np.testing.assert_allclose(after, expected, atol=0.02)


def test_saved_and_restored_across_devices(gpu: str) -> None:
    model, host = make(gpu), make("cpu")
    cache, beside = (Cache.for_model(m, 1, 20, "q8_0") for m in (model, host))
    prefill(model, [[1, 2, 3, 4, 5]], cache)
    beside.restore(cache.save())
    back = Cache.for_model(model, 3, 16, "q8_0")
    back.restore(beside.save())
    assert back.lengths.tolist() == [5] * 3 and beside.lengths.tolist() == [5]
    for own, there in zip(beside.keys + beside.values, back.keys + back.values, strict=True):
        for a, b in ((own.values, there.get().values), (own.scales, there.get().scales)):
            np.testing.assert_array_equal(np.broadcast_to(a[:, :5], b[:, :5].shape), b[:, :5])
    moved = beside.keys[0].moved_to(devices.device(gpu))
    assert isinstance(moved, EightBit) and moved.device_kind == gpu and moved.dtype.name == "q8_0"
    assert moved.moved_to(devices.device(gpu)) is moved
    np.testing.assert_array_equal(
        moved.moved_to(devices.device("cpu")).values, beside.keys[0].values
    )


def test_numbers_are_rounded_alike_by_array_code(gpu: str) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 2, 64)).astype(np.float32)
    numbers[0, 0, 3], numbers[1, 1, 40], numbers[2, 0] = np.nan, 1e30, 0
    for groups in (1, 2):
        here = rounded(numbers, groups)
        there = rounded(devices.device(gpu).asarray(numbers), groups).get()
        np.testing.assert_array_equal(there.values, here.values)
        np.testing.assert_array_equal(there.scales, here.scales)


@pytest.mark.parametrize("speculate", ["lookup", "draft"])
def test_speculation_rewinds_it(gpu: str, speculate: str) -> None:
    model = make(gpu)
    prompt = [[5, 6, 7, 5, 6, 7, 5, 6], [9, 9, 9]]
    options = {"temperature": 0, "cache_dtype": "q8_0"}
    plain = rows(model.generate(prompt, 10, **options))
    how: Any = DraftModel(make(gpu, seed=2)) if speculate == "draft" else "lookup"
    assert rows(model.generate(prompt, 10, speculate=how, **options)) == plain


def test_prompts_share_a_prefix(gpu: str) -> None:
    model, system = make(gpu), [7, 3, 9, 9, 4, 1, 30, 31, 2, 11]
    prefix = PrefixCache(model, dtype="q8_0")
    for prompts in ([[*system, 5]], [[*system, 6, 2]], [[*system, 1], [*system, 4, 4]]):
        expected = rows(model.generate(prompts, 5, temperature=0, cache_dtype="q8_0"))
        assert rows(prefix.generate(prompts, 5, temperature=0)) == expected
    assert prefix.saved >= 2 * len(system)


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    from tinytorch_gpu.checkpoint import save

    folder, place = tmp_path / "model", emulated_device().name
    save(make("cpu"), folder)
    common = ["bench", "-m", str(folder), "-p", "9", "-n", "2", "-r", "1", "-o", "json"]
    assert main([*common, "--device", place, "--cache-dtype", "q8_0"]) == 0
    assert "q8_0" in capsys.readouterr().out
