"""The measured mode: ranges of a real run matched with what was counted for them."""

import json
from typing import Any

import pytest

from tinytorch_gpu import Transformer, nvtx
from tinytorch_gpu.config import FAMILIES, TransformerConfig
from tinytorch_gpu.devices import device
from tinytorch_gpu.profiler import (
    DeviceSpec,
    Setting,
    decode,
    measure_generation,
    measure_training,
    prefill,
    train_step,
)
from tinytorch_gpu.profiler.account import total
from tinytorch_gpu.profiler.recorder import recording
from tinytorch_gpu.profiler.runs import setting_of

SPEC = DeviceSpec("toy", "cpu", 1e9, 1e9, {"float32": 1e9}, 1e9, 1e8)
FAMILY = {"gpt2": FAMILIES["gpt2"], "llama": {**FAMILIES["llama"], "num_kv_heads": 2}}


@pytest.fixture(params=FAMILY)
def model(request: pytest.FixtureRequest) -> Transformer:
    config = TransformerConfig(60, 32, 4, 2, 64, 64, **FAMILY[request.param])
    return Transformer.from_config(config, device="cpu", seed=0)


def sums(rows: Any) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for row in rows:
        role = "up" if row.role in ("activation", "gate_up") else row.role
        if row.role != "accumulate":
            key = row.direction, role
            found[key] = found.get(key, 0.0) + row.cost.flops
    return {key: flops for key, flops in found.items() if flops}


def test_a_generation_is_matched_call_by_call(model: Transformer) -> None:
    run = measure_generation(model, SPEC, 2, 9, 3, memory=False)
    setting = Setting(model.config)
    first = sums(run.rows["prefill"])
    assert first.pop(("forward", "sampling"))  # the token after the prompt is chosen in its phase
    assert first == sums(prefill(setting, 2, 9).rows)
    steps = [decode(setting, 2, context) for context in (9, 10)]
    assert sums(run.rows["decode"]) == pytest.approx(sums([r for s in steps for r in s.rows]))
    assert len(run.phases["prefill"]) == 1 and len(run.phases["decode"]) == 2
    assert set(run.tokens_per_second) == {"prefill", "decode"}
    tree = run.tree.children
    assert set(tree["decode"].children) >= {"embed", "layer.00", "layer.01", "lm_head", "sample"}
    attention = tree["decode"].children["layer.01"].children["attention"]
    assert list(attention.children) == [
        "qkv (op.linear)",
        "attention (op.attention)",
        "out (op.linear)",
    ]
    whole = tree["decode"].cost
    assert whole is not None and whole.flops == pytest.approx(total(s.cost for s in steps).flops)
    assert 0 < attention.seconds < tree["decode"].seconds


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_is_matched_call_by_call(model: Transformer, recompute: bool) -> None:
    run = measure_training(model, SPEC, 2, 8, steps=2, recompute=recompute, memory=False)
    phase = train_step(Setting(model.config), 2, 8, recompute=recompute)
    twice = {key: 2 * flops for key, flops in sums(phase.rows).items()}
    found = sums(run.rows["train.step"])
    found.pop(("update", "clip_scale"), None)
    assert found == pytest.approx(twice)
    assert all(row.seconds > 0 for row in run.rows["train.step"])
    back = run.tree.children["train.step"].children["train.backward"]
    names = [
        n
        for layer in back.children.values()
        for part in layer.children.values()
        for n in part.children
    ]
    assert "down (op.linear.backward)" in str(names)


def test_memory_over_time_follows_the_prediction(model: Transformer) -> None:
    from tinytorch_gpu.profiler import training_memory

    config = model.config.replace(vocab_size=500, embed_dim=64, hidden_dim=256)
    large = Transformer.from_config(config, device="cpu", seed=0)
    run = measure_training(large, SPEC, 8, 64, steps=2)
    said = training_memory(Setting(config), 8, 64)
    assert run.peak == pytest.approx(said.peak, rel=0.08)
    times = [t for t, _, _ in run.timeline]
    assert times == sorted(times) and run.timeline[0][2] == "train.step"
    layers = run.tree.children["train.step"].children["train.forward"].children
    assert "layer.00" in layers


def test_a_run_as_plain_values(model: Transformer) -> None:
    run = measure_generation(model, SPEC, 1, 4, 2)
    values = json.loads(json.dumps(run.to_dict()))
    assert (
        values["rows"]["decode"]
        and values["timeline"]
        and values["peak_bytes"] > values["at_rest_bytes"]
    )


def test_weights_in_blocks(model: Transformer) -> None:
    model.to("q8_0")
    assert setting_of(model).dtype == "q8_0"
    run = measure_generation(model, SPEC, 1, 4, 2, memory=False)
    assert sums(run.rows["decode"]) == sums(decode(Setting(model.config, "q8_0"), 1, 4).rows)


def test_ranges_are_off_again_after_a_recording() -> None:
    with recording(device("cpu")) as found, nvtx.span("decode", "phase", 3):
        pass
    assert found.spans[0].name == "decode" and found.spans[0].payload == 3
    assert not nvtx.on


def test_what_does_not_fit_is_said(model: Transformer) -> None:
    with pytest.raises(ValueError, match="exceed"):
        measure_generation(model, SPEC, 1, 64, 8)
    with pytest.raises(ValueError, match="exceed"):
        measure_training(model, SPEC, 1, 65)
