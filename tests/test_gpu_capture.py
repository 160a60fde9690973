"""A captured decode step on a GPU: the logits of ordinary steps, five launches a layer, no new memory."""

import re
from typing import Any

import numpy as np
import pytest
from emulated_device import kernels_of_replays

from tinytorch_gpu import Transformer, TransformerConfig, emulated
from tinytorch_gpu.core.lora import LoraConfig, add_lora
from tinytorch_gpu.cuda.copies import CudaReader, EmulatedReader
from tinytorch_gpu.cuda.graph import CudaGraph, EmulatedGraph
from tinytorch_gpu.emulated import CaptureError, Pool, traffic, using_pool
from tinytorch_gpu.emulated.arrays import capturing
from tinytorch_gpu.generation import Cache, Sampler, Sampling, capture

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
GPT2 = {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama tied, windowed": LLAMA | {"tie_embeddings": True, "sliding_window": 3},
    "exact gelu": GPT2 | {"activation": "gelu"},
    "q/k norm": LLAMA | {"qk_norm": True},
    "q/k norm, biased": LLAMA | {"qk_norm": True, "qkv_bias": True, "head_dim": 16},
    "a scale of its own": LLAMA | {"attention_scale": 0.7},
}


def build(choices: dict[str, Any], gpu: str) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, **choices)
    return Transformer.from_config(config, device=gpu, seed=1).eval()


def captured(model: Transformer, prompt: list[list[int]], token: list[int]) -> Any:
    """The cache, the logits of the first step after a prompt of equal rows, and the step."""
    cache = Cache.for_model(model, len(prompt), 12)
    model(prompt, cache=cache)
    step = capture(model, len(prompt), cache)
    return cache, step(token), step


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_sequence(gpu: str, family: str, batch: int) -> None:
    model = build(FAMILIES[family], gpu)
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (batch, 9))
    whole = model(ids).detach().cpu().numpy()
    cache, logits, step = captured(model, ids[:, :3].tolist(), ids[:, 3].tolist())
    assert step.form == ("graph" if gpu == "cuda" else "checked list")
    np.testing.assert_allclose(logits.cpu().numpy(), whole[:, 3], atol=2e-5)
    for i in range(4, 9):
        found = step(model.device.asarray(ids[:, i])).cpu().numpy()
        np.testing.assert_allclose(found, whole[:, i], atol=2e-5)
    assert cache.lengths.tolist() == [9] * batch


def test_a_rollback_is_seen_and_the_capacity_is_kept(gpu: str) -> None:
    model = build(LLAMA, gpu)
    token = model.device.asarray([7])
    cache, _, step = captured(model, [[1, 2, 3]], [4])
    first = step(token).cpu().numpy().copy()
    cache.rollback(1)
    np.testing.assert_array_equal(step(token).cpu().numpy(), first)
    for _ in range(7):
        step(token)
    with pytest.raises(ValueError, match="do not fit"):
        step(token)


def test_a_longer_pass_may_come_between(gpu: str) -> None:
    model = build(LLAMA, gpu)
    cache, _, step = captured(model, [[1, 2]], [3])
    model([[4, 5]], cache=cache)
    found = step(model.device.asarray([6])).cpu().numpy()
    expected = model([[1, 2, 3, 4, 5, 6]]).detach().cpu().numpy()[:, -1]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_appends_by_array_code_is_not_captured(gpu: str) -> None:
    model = build(LLAMA | {"position": "relative"}, gpu)
    step = captured(model, [[1, 2]], [3])[2]
    assert step.form == "steps" and "relative positions make the bias" in step.reason


def test_an_operation_without_a_kernel_is_named(gpu: str) -> None:
    model = Transformer.from_config(
        TransformerConfig(50, 32, 4, 2, 48, 64, **LLAMA), device=gpu, dtype="float64"
    )
    step = captured(model.eval(), [[1, 2]], [3])[2]
    assert step.form == "steps" and step.reason.endswith("has no kernel")
    assert "float64" in step.reason


def test_a_step_is_five_launches_a_layer() -> None:
    """And the embedding, the count of the tokens, the final norm and the head around them."""
    model = build(LLAMA, "emulated")
    _, _, step = captured(model, [[1, 2, 3]], [4])
    with emulated.recorded() as launches:
        step(model.device.asarray([5]))
    names = [launch.kernel for launch in launches]
    layer = ["linear_decode", "attend_cached", "linear_decode", "linear_decode", "linear_decode"]
    assert len(names) == 5 * model.config.num_layers + 4
    assert names[1:6] == layer and names[6:11] == layer
    around = ["embedding_forward", "rms_norm_forward", "advance_lengths", "linear_decode"]
    assert [names[0], *names[11:]] == around


@pytest.mark.parametrize("lora", [False, True])
def test_more_rows_than_the_kernels_take_are_ordinary_steps(gpu: str, lora: bool) -> None:
    """Their products are cuBLAS's, which refuses to be captured."""
    model, tokens = build(LLAMA, gpu), np.arange(17 * 3).reshape(17, 3) % 50
    if lora:
        add_lora(model, LoraConfig(2))
    whole = model(tokens).detach().cpu().numpy()
    step = capture(model, 17)
    for i in range(3):
        found = step(model.device.asarray(tokens[:, i])).cpu().numpy()
        np.testing.assert_allclose(found, whole[:, i], atol=2e-5)
    assert step.form == "steps"
    assert re.search(r"linear of float32 \(17, .* is done by cuBLAS", step.reason)


@pytest.mark.parametrize("batch", [1, 3])
def test_norms_of_queries_and_keys_are_no_launch_more(batch: int) -> None:
    model = build(LLAMA | {"qk_norm": True}, "emulated")
    _, _, step = captured(model, [[1, 2, 3]] * batch, [4] * batch)
    names = kernels_of_replays(lambda: step(None))
    linear = "linear_decode" if batch == 1 else "linear_decode_many"
    layer = [linear, "attend_cached", linear, linear, linear]
    assert names[1:11] == layer * 2 and len(names) == 14


def test_norms_of_another_dtype_are_a_launch_of_their_own() -> None:
    model = build(LLAMA | {"qk_norm": True}, "emulated")
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            parameter.data = parameter.data.astype("float16")
    _, _, step = captured(model, [[1, 2, 3]], [4])
    names = kernels_of_replays(lambda: step(None))
    assert names[1:4] == ["linear_decode", "norm_heads_forward", "attend_cached"]
    assert len(names) == 16


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "seed": 3},
    "penalty": {"temperature": 1.2, "repetition_penalty": 1.4, "min_p": 0.01, "seed": 3},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_choice_is_part_of_the_step(gpu: str, sampling: str, batch: int) -> None:
    """The ids are those of ordinary steps and of the CPU, one replay for each."""
    options = dict(SAMPLINGS[sampling])
    model, host = build(LLAMA, gpu), build(LLAMA, "cpu")
    seed = options.pop("seed", 0)
    sampler = Sampler(Sampling(**options), batch, 50, model.device, seed)
    cache = Cache.for_model(model, batch, 20)
    step, found = capture(model, batch, cache, sampler), []
    sampler.see(model.device.asarray(np.full((batch, 1), 7)))
    for i in range(12):
        found.append(step([7] * batch if i == 0 else None).get().tolist())
    assert step.form == ("graph" if gpu == "cuda" else "checked list")
    expected = host.generate([[7]] * batch, 12, seed=seed, **options).numpy()[:, 1:]
    np.testing.assert_array_equal(np.array(found).T, expected)


def test_a_step_with_a_choice_needs_neither_the_host_nor_memory() -> None:
    model = build(GPT2, "emulated")
    sampler = Sampler(Sampling(0.8, 5, repetition_penalty=1.2), 2, 50, model.device, 1)
    step = capture(model, 2, Cache.for_model(model, 2, 12), sampler)
    step([1, 2])
    assert kernels_of_replays(step)[-4:] == [
        "penalize_logits",
        "sample_tokens",
        "mark_seen_tokens",
        "feed_tokens",
    ]


def test_the_next_step_is_under_way_before_tokens_are_read(
    gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, events = build(LLAMA, gpu), []
    graph = CudaGraph if gpu == "cuda" else EmulatedGraph
    read = CudaReader if gpu == "cuda" else EmulatedReader
    for owner, name in ((graph, "replay"), (read, "start"), (read, "wait")):
        real = getattr(owner, name)

        def noted(self: Any, *args: Any, real: Any = real, name: str = name) -> Any:
            events.append(name)
            return real(self, *args)

        monkeypatch.setattr(owner, name, noted)
    steps = model.generate([[1, 2, 3]], 6, temperature=0, stream=True)
    next(steps)
    next(steps)
    events.clear()
    syncs = traffic.syncs, traffic.uploads
    for _ in range(3):
        next(steps)
    assert events == ["start", "replay", "wait"] * 3
    if gpu == "emulated":
        assert (traffic.syncs - syncs[0], traffic.uploads - syncs[1]) == (3, 0)
    events.clear()
    next(steps)
    assert events == ["start", "wait"], "nothing is launched after the last token"


@pytest.mark.parametrize("stop", [True, False])
def test_a_token_launched_too_much_is_taken_back(gpu: str, stop: bool) -> None:
    model, host = build(LLAMA, gpu), build(LLAMA, "cpu")
    prompts = [[1, 2, 3], [9, 8]]
    free = host.generate(prompts, 12, temperature=0)
    stops = [int(free[0].numpy()[6])] if stop else []
    expected = host.generate(prompts, 12, temperature=0, stop_tokens=stops)
    cache = Cache.for_model(model, 2, 32)
    steps = model.generate(prompts, 12, temperature=0, stop_tokens=stops, cache=cache, stream=True)
    found = list(steps) if stop else [next(steps) for _ in range(4)]
    steps.close()
    counts = []
    for row, prompt in enumerate(prompts):
        own = [int(s.tokens[row]) for i, s in enumerate(found)
               if not i or not found[i - 1].finished[row]]  # fmt: skip
        assert own == expected[row].numpy()[len(prompt) :][: len(own)].tolist()
        counts.append(len(prompt) + len(own) - 1)
    assert cache.lengths.tolist() == counts
    more = model.generate([[5], [6]], 3, temperature=0, cache=cache)
    for row in range(2):
        whole = [*expected[row].numpy()[: counts[row]].tolist(), 5 + row]
        again = host.generate([whole], 3, temperature=0).numpy()[0, -3:]
        assert more[row].numpy()[1:].tolist() == again.tolist()


def test_a_capture_refuses_what_a_graph_cannot_hold() -> None:
    device = build(LLAMA, "emulated").device
    x = device.zeros((2, 2))
    with capturing():
        for attempt in (
            lambda: x.get(), lambda: device.asarray([1.0]), lambda: x + x,
            lambda: device.empty((3,)), lambda: x.__setitem__(0, 1.0),
        ):  # fmt: skip
            with pytest.raises(CaptureError):
                attempt()
    with using_pool(Pool()) as pool:
        device.empty((4,), "float32")  # freed at once
        pool.sealed = True
        with capturing():
            device.empty((2, 2), "float32")
            with pytest.raises(CaptureError, match="warm up"):
                device.empty((5,), "float32")
