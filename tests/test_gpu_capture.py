"""A captured decode step on a GPU: the logits of ordinary steps, five launches a layer, no new memory."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig, emulated
from tinytorch_gpu.emulated import CaptureError, Pool, traffic, using_pool
from tinytorch_gpu.emulated.arrays import capturing
from tinytorch_gpu.generation import Cache, engine
from tinytorch_gpu.generation.capture import CapturedStep, capture

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip
GPT2 = {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama tied, windowed": LLAMA | {"tie_embeddings": True, "sliding_window": 3},
    "exact gelu": GPT2 | {"activation": "gelu"},
}


def build(choices: dict[str, Any], gpu: str) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, 64, **choices)
    return Transformer.from_config(config, device=gpu, seed=1).eval()


def captured(model: Transformer, prompt: list[list[int]], token: list[int]) -> Any:
    """The logits of a captured step and what repeats it, after a prompt of equal rows."""
    cache = Cache.for_model(model, len(prompt), 12)
    model(prompt, cache=cache)
    run = engine._Run(model, [np.array([1])] * len(prompt), 1, None, (), 0, cache)  # type: ignore[arg-type]
    return cache, *capture(model, cache, model.device.asarray(token), run._step)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_sequence(gpu: str, family: str, batch: int) -> None:
    model = build(FAMILIES[family], gpu)
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (batch, 9))
    whole = model(ids).detach().cpu().numpy()
    cache, logits, step = captured(model, ids[:, :3].tolist(), ids[:, 3].tolist())
    assert isinstance(step, CapturedStep)
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
    model = build(LLAMA | {"qk_norm": True}, gpu)
    assert captured(model, [[1, 2]], [3])[2] is None


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
    around = ["embedding_forward", "advance_lengths", "rms_norm_forward", "linear_decode"]
    assert [names[0], *names[11:]] == around


def test_a_step_needs_neither_the_host_nor_memory() -> None:
    model = build(GPT2, "emulated")
    cache, _, step = captured(model, [[1, 2, 3]], [4])
    before = (traffic.syncs, traffic.uploads, traffic.allocations)
    shapes = []
    for _ in range(3):
        with emulated.recorded() as launches:
            step.replay()
        cache.count_step()
        shapes.append([(launch.kernel, launch.grid, launch.block) for launch in launches])
    assert (traffic.syncs, traffic.uploads, traffic.allocations) == before
    assert shapes[0] == shapes[1] == shapes[2]


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
