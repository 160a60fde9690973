"""What is counted without a run: the calls of a model, its parameters, operations and bytes."""

import itertools
import math
from typing import Any

import pytest

from tinytorch_gpu import Transformer
from tinytorch_gpu.config import FAMILIES, PRESETS, TransformerConfig, preset
from tinytorch_gpu.core.op import record
from tinytorch_gpu.core.tensor import no_grad
from tinytorch_gpu.devices import DeviceError, device
from tinytorch_gpu.generation.cache import Cache
from tinytorch_gpu.generation.encoder import read
from tinytorch_gpu.profiler import (
    Pass,
    Setting,
    decode,
    encode,
    forward_calls,
    inference_memory,
    prefill,
    train_step,
    training_memory,
)
from tinytorch_gpu.profiler.account import FORWARD, UPDATE
from tinytorch_gpu.profiler.costs import visible_pairs
from tinytorch_gpu.profiler.parameters import count_parameters, parameters
from tinytorch_gpu.profiler.recorded import forward_cost
from tinytorch_gpu.profiler.walk import loss_calls
from tinytorch_gpu.training import CrossEntropyLoss
from tinytorch_gpu.training.pace import flops_per_token

VARIANTS: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": FAMILIES["gpt2"],
    "llama": {**FAMILIES["llama"], "num_kv_heads": 2},
    "post-norm": {"pre_norm": False, "norm": "rms", "position": "none"},
    "qk norm": {**FAMILIES["llama"], "qk_norm": True, "activation": "geglu", "sliding_window": 5},
    "dropout": {**FAMILIES["gpt2"], "dropout": 0.1},
    "post-norm dropout": {"pre_norm": False, "dropout": 0.1, "activation": "silu"},
    "no norm": {"norm": "none"},
    "no norm, post": {"norm": "none", "pre_norm": False, "residual": False},
    "no residual": {"residual": False, "dropout": 0.1},
    "no residual, post-norm": {"residual": False, "pre_norm": False},
    "relative": {"position": "relative", "attention_scale": 1.0},
    "t5": {**FAMILIES["t5"], "encoder_layers": 3, "tie_embeddings": True, "head_scale": 0.25},
    "flan-t5": {
        **FAMILIES["t5"],
        "encoder_layers": 2,
        "num_kv_heads": 2,
        "qk_norm": True,
        "dropout": 0.1,
    },
    "vaswani": {"pre_norm": False, "encoder_layers": 2, "qkv_bias": True, "out_bias": True},
    "gpt2 with an encoder": {**FAMILIES["gpt2"], "encoder_layers": 2},
    "both ways": {"causal": False, "head_bias": True, "activation": "gelu"},
}


def config(name: str, **changes: Any) -> TransformerConfig:
    sizes = dict(vocab_size=30, embed_dim=24, num_heads=4, num_layers=2, hidden_dim=40, max_seq_length=32)  # fmt: skip
    return TransformerConfig(**{**sizes, **VARIANTS[name], **changes})


def seen(calls: Any) -> list[Any]:
    """Name and results' shapes of recorded calls."""
    made = []
    for call in calls:
        results = call.result if isinstance(call.result, tuple) else (call.result,)
        made.append((call.op.name, [tuple(r.shape) for r in results]))
    return made


def told(calls: Any) -> list[Any]:
    return [(call.op, [a.shape for a in call.outputs]) for call in calls]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_calls_of_a_training_forward_are_those_that_are_made(name: str) -> None:
    model = Transformer.from_config(config(name), device="cpu", seed=0)
    ids = [[i % 30 for i in range(7)], [i % 11 for i in range(7)]]
    about = {} if model.encoder is None else {"source": [[1] * 5] * 2}
    with record() as made:
        CrossEntropyLoss()(model(ids, **about), [i % 30 for i in range(14)])
    run = Pass(2, 7, gradients=True, repeat=False, source=5)
    setting = Setting(model.config)
    calls = forward_calls(setting, run)
    calls += loss_calls(setting, run, calls[-1].outputs[0])
    assert told(calls) == seen(made)
    sizes = [tuple(x.shape) for x in model.parameters()]
    weights = {id(w): w.shape for call in calls for w in call.weights}
    assert sorted(weights.values()) == sorted(sizes)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "both ways"])
def test_the_calls_of_a_step_through_the_cache_are_those_that_are_made(name: str) -> None:
    model = Transformer.from_config(config(name), device="cpu", seed=0).eval()
    cache = Cache.for_model(model, 2, 16)
    if model.encoder is not None:
        cache.memory = read(model, [[1] * 5] * 2)
    for tokens, past in ((6, 0), (1, 6)):
        with record() as made, no_grad():
            model([[1] * tokens] * 2, cache=cache)
        run = Pass(2, tokens, past, cached=True, repeat=False, source=5)
        assert told(forward_calls(Setting(model.config), run)) == seen(made)


@pytest.mark.parametrize("place", ["cpu", "emulated"])
def test_a_step_through_a_cache_in_8_bits(place: str) -> None:
    """What is recorded costs what is foreseen; a scale of 16 bits is shared by 32 numbers."""
    try:
        device(place)
    except DeviceError as error:
        pytest.skip(str(error))
    model = Transformer.from_config(config("llama", embed_dim=128), device=place, seed=0).eval()
    cache, past = Cache.for_model(model, 2, 16, "q8_0"), 9
    with no_grad():
        model([[1] * past] * 2, cache=cache)
    cost = forward_cost(lambda: model([[1]] * 2, cache=cache))
    width = 2 * (past + 1) * model.config.kv_heads * model.config.head_size
    assert cost.of_cache == model.config.num_layers * 2 * width * 34 // 32
    setting = Setting(model.config, cache_dtype="q8_0")
    assert decode(setting, 2, past).cost.of_cache == cost.of_cache
    assert inference_memory(setting, 2, 16).cache == cache.nbytes


@pytest.mark.parametrize("name", VARIANTS)
def test_one_block_counts_for_all(name: str) -> None:
    setting = Setting(config(name, num_layers=3))
    runs = [Pass(2, 5, gradients=True, repeat=repeat) for repeat in (True, False)]
    from tinytorch_gpu.profiler.costs import forward_costs

    sums = [
        sum(cost.flops * call.times for call in forward_calls(setting, run) for _, cost in forward_costs(call))
        for run in runs
    ]  # fmt: skip
    assert sums[0] == pytest.approx(sums[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_by_component(name: str) -> None:
    model = Transformer.from_config(config(name), device="cpu", seed=0)
    parts = {part.name: part for part in parameters(Setting(model.config))}
    assert count_parameters(Setting(model.config)) == model.count_parameters()
    block = model.transformer_blocks[0]
    stacks = 1 if model.encoder is None else 2
    assert parts["attention"].per_layer == stacks * block.attention.count_parameters()
    blocks = 2 + model.config.encoder_layers
    assert parts["feed_forward"].count == blocks * block.ffn.count_parameters()
    if model.encoder is not None:
        assert parts["cross_attention"].per_layer == block.cross_attention.count_parameters()
    assert sum(p.nbytes for p in parts.values()) == 4 * model.count_parameters()


def test_sizes_that_are_known() -> None:
    assert count_parameters(Setting(preset("gpt2"))) == 124_439_808
    assert count_parameters(Setting(preset("course"))) == 29_143_040
    assert count_parameters(Setting(preset("llama-3.1-8b"))) == 8_030_261_248


def test_products_of_a_forward_are_two_for_each_weight_and_token() -> None:
    found = preset("gpt2")
    cost = train_step(Setting(found), 1, 64).by("direction")[FORWARD]
    matrices = 12 * (3 * 768**2 + 768**2 + 2 * 768 * 3072) + 50257 * 768
    attention = 12 * 12 * visible_pairs(64, 64, 0, True, None) * 4 * 64
    assert cost.matrix == 2 * 64 * matrices + attention


@pytest.mark.parametrize("name", ["gpt2", "smollm2-135m", "course"])
def test_a_training_step_costs_about_six_operations_a_weight_and_token(name: str) -> None:
    found = preset(name)
    phase = train_step(Setting(found), 2, 256)
    rule = flops_per_token(found, count_parameters(Setting(found)), 256)
    assert phase.cost.matrix / phase.tokens == pytest.approx(rule, rel=0.03)
    assert phase.by("direction")[UPDATE].matrix == 0


@pytest.mark.parametrize(
    "tokens, past, causal, window",
    list(itertools.product((1, 5), (0, 3), (True, False), (None, 2, 20))),
)
def test_pairs_that_attention_sees(
    tokens: int, past: int, causal: bool, window: int | None
) -> None:
    keys = past + tokens
    looked = sum(
        (not causal or k <= past + q) and (window is None or past + q - k < window)
        for q in range(tokens) for k in range(keys)
    )  # fmt: skip
    assert visible_pairs(tokens, keys, past, causal, window) == looked


def test_a_decode_step_reads_every_weight_and_the_cache_once() -> None:
    for dtype, each in (("float32", 4), ("float16", 2)):
        setting = Setting(preset("smollm2-135m"), dtype)
        cost = decode(setting, 1, 100).cost
        row = 576 * each  # that of the embedding is looked up beside
        assert cost.of_weights == count_parameters(setting) * each + row
        assert cost.of_cache == 30 * 101 * 2 * 3 * 64 * 4
    on_gpu = decode(Setting(preset("smollm2-135m"), "float16", "cuda"), 1, 100).cost
    assert on_gpu.of_cache == 30 * 101 * 2 * 3 * 64 * 2


@pytest.mark.parametrize("dtype", ["q4_0", "q4_k", "q8_0"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bytes_of_a_model_in_blocks_are_those_it_has(name: str, dtype: str) -> None:
    sizes = dict(vocab_size=64, embed_dim=256, num_heads=4, hidden_dim=320)
    model = Transformer.from_config(config(name, **sizes), device="cpu", seed=0).to(dtype)
    stored = sum(part.nbytes for part in parameters(Setting(model.config, dtype)))
    assert stored == sum(int(p.data.nbytes) for p in model.parameters())


def test_a_long_prompt_is_read_in_parts() -> None:
    setting = Setting(preset("llama-3.2-1b"), "float16", "cuda")
    one, three = prefill(setting, 1, 512), prefill(setting, 1, 1536)
    head = one.by("role")["head"]
    assert three.by("role")["head"] == head
    blocks = one.cost.of_weights - head.of_weights
    assert three.cost.of_weights - head.of_weights == pytest.approx(3 * blocks)
    whole = forward_calls(setting, Pass(1, 1536, cached=True, last=True))
    from tinytorch_gpu.profiler.costs import forward_costs

    at_once = sum(c.matrix * call.times for call in whole for _, c in forward_costs(call))
    assert three.cost.matrix == pytest.approx(at_once)


def test_recomputation_is_another_forward_of_the_blocks() -> None:
    setting = Setting(preset("gpt2"))
    plain, again = (train_step(setting, 1, 128, recompute=r) for r in (False, True))
    more = again.cost.matrix - plain.cost.matrix
    inside = sum(r.cost.matrix for r in plain.rows if r.direction == FORWARD and r.layers)
    assert more == inside
    assert train_step(setting, 1, 128, accumulate=3).tokens == 3 * plain.tokens


def test_phases_as_plain_values_add_up() -> None:
    phase = train_step(Setting(preset("shakespeare-char")), 12, 64)
    values = phase.to_dict()
    assert sum(row["flops"] for row in values["rows"]) == pytest.approx(values["total"]["flops"])
    for row in phase.rows:
        assert math.isclose(row.per_layer.bytes * max(row.layers, 1), row.cost.bytes)


@pytest.mark.parametrize("name", [n for n, c in PRESETS.items() if c.head])
def test_every_preset_can_be_counted(name: str) -> None:
    for dtype in ("float32", "bfloat16", "q4_k"):
        assert decode(Setting(preset(name), dtype), 4, 100).cost.flops > 0


def test_what_cannot_be_counted_is_said() -> None:
    with pytest.raises(ValueError, match="unknown format 'int3'"):
        Setting(preset("gpt2"), "int3")
    bert = Setting(preset("minilm-l6"))
    for count in (decode, prefill):
        with pytest.raises(ValueError, match="does not write"):
            count(bert)
    with pytest.raises(ValueError, match="has no cache"):
        inference_memory(bert, 1, 100)
    with pytest.raises(ValueError, match="memory of recomputation is not predicted"):
        training_memory(Setting(preset("t5-small")), 1, 100, recompute=True)


def test_the_calls_of_an_encoder_are_those_that_are_made() -> None:
    made_of = config("course", **FAMILIES["bert"])
    model = Transformer.from_config(made_of, device="cpu", seed=0)
    with record() as made:
        model([[1] * 7] * 2, lengths=[7, 3])
    run = Pass(2, 7, gradients=True, repeat=False)
    assert told(forward_calls(Setting(made_of), run)) == seen(made)


def test_what_an_encoder_costs() -> None:
    bert = preset("minilm-l6")
    assert count_parameters(Setting(bert)) == 22_565_376
    weights = 6 * (4 * 384**2 + 2 * 384 * 1536)
    scores = 6 * 12 * 4 * 32 * 100**2
    assert encode(Setting(bert), 2, 100).cost.matrix == 2 * (2 * 100 * weights + scores)
    trained = train_step(Setting(bert), 2, 100).cost.matrix
    assert trained == pytest.approx(2 * (6 * 100 * weights + 3.5 * scores), rel=1e-6)


def test_what_an_encoder_decoder_costs() -> None:
    flan = preset("flan-t5-small")
    assert count_parameters(Setting(flan)) == 76_961_152
    inner, width, hidden = 384, 512, 1024
    block, cross = 4 * inner * width + 3 * width * hidden, 2 * inner * width
    scores = 8 * 6 * 4 * 64 * 50**2
    read = encode(Setting(flan), 1, 50).cost.matrix
    assert read == 2 * 50 * (8 * block + 8 * cross) + scores
    first = prefill(Setting(flan), 1, 50).cost.matrix
    step = 2 * 8 * (block + cross) + 2 * 32128 * width
    assert first == read + step + 8 * 6 * 4 * 64 * (1 + 50)
    later = decode(Setting(flan), 1, 50).cost
    assert later.matrix == step + 8 * 6 * 4 * 64 * (51 + 51)
    assert later.of_cache == 4 * 8 * 2 * inner * (51 + 51)
    memory = inference_memory(Setting(flan), 1, 50)
    assert memory.cache == 4 * 8 * 2 * inner * 100
