"""Weights in blocks on a GPU: rows, products of any number of rows, whole models, captured steps."""

from typing import Any

import numpy as np
import pytest
from running_ops import UNIT_ROUNDOFF, error, size

from tinytorch_gpu import Tensor, Transformer, TransformerConfig, devices, emulated, no_grad, ops
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.generation import Cache, capture
from tinytorch_gpu.quantized import BLOCKED, Blocks, QuantizedMatrix, encode, format_named, quantize

LLAMA = {"num_kv_heads": 2, "norm": "rms", "position": "rotary", "activation": "swiglu",
         "ffn_bias": False}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# One format of each kind of block is enough in 16 bits: every variant is a compilation.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in BLOCKED), ("q4_1", "float16"), ("q6_k", "bfloat16")],
)
def test_rows_by_number(gpu: str, name: str, dtype: str) -> None:
    place = devices.device(gpu)
    weight = quantize(normal(9, 512), name)
    ids = np.array([[8, 0, 3], [3, 3, 7]])
    for kind in ("int32", "int64"):
        given = place.asarray(ids.astype(kind))
        made = ops.embedding(
            given, weight.moved_to(place), dtype=place.asarray([], dtype).dtype, scale=0.5
        )
        rows = np.asarray(weight)[ids] * 0.5
        assert str(made.dtype) == dtype and made.shape == (2, 3, 512)
        off = UNIT_ROUNDOFF[dtype] if dtype != "float32" else 3e-7
        np.testing.assert_allclose(made.data.get().astype(np.float32), rows, rtol=2 * off, atol=off)


@pytest.mark.parametrize("activation", [None, "swiglu"])
@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_1", "q6_k", "mixed"])
def test_products(gpu: str, name: str, rows: int, activation: Any) -> None:
    place, x = devices.device(gpu), normal(rows, 256, seed=2)
    if name == "mixed":
        parts = [("q4_k", normal(6, 256)), ("q6_k", normal(4, 256)), ("float16", normal(2, 256))]
        weight = QuantizedMatrix([Blocks(form, encode(w, form)) for form, w in parts])
    else:
        weight = quantize(normal(12, 256), name)
    bias, residual = normal(12, seed=3), normal(rows, 12 if activation is None else 6, seed=4)
    for dtype in ("float32", "float16") if name in ("q8_0", "q4_1", "q6_k") else ("float32",):
        given = [a.astype(dtype) for a in (x, bias, residual)]
        wide = [a.astype(np.float64) for a in given]
        dense = np.asarray(weight).astype(np.float64)
        truth = OPS["linear"].reference(
            wide[0], dense, wide[1], wide[2], activation=activation
        )[0]  # fmt: skip
        at = [place.asarray(a) for a in given]
        moved = weight.moved_to(place)
        with no_grad():
            made = ops.linear(at[0], moved, at[1], at[2], activation=activation)
        scale = size(np.abs(wide[0]) @ np.abs(dense).T) + size(wide[1])
        scale *= scale if activation else 1
        # Beyond sixteen rows the weight is decoded to the dtype of x, which rounds it once.
        allowed = 2 * UNIT_ROUNDOFF[dtype] * (size(truth) + scale / 4) + 1e-6 * scale
        assert made.data.dtype == dtype and error(made.data.get(), truth) <= allowed
    needs = Tensor(place.asarray(x), requires_grad=True)
    out = ops.linear(needs, moved, place.asarray(bias), None, activation=activation)
    dout = normal(*out.shape, seed=5)
    out.backward(place.asarray(dout))
    beside = Tensor(x, requires_grad=True)
    ops.linear(beside, np.asarray(weight), bias, None, activation=activation).backward(dout)
    np.testing.assert_allclose(needs.grad.data.get(), beside.grad.data, rtol=1e-4, atol=1e-3)


def tiny(gpu: str, name: str, embed_dim: int = 64, **choices: Any) -> Transformer:
    config = TransformerConfig(50, embed_dim, 4, 2, embed_dim, 32, **LLAMA, **choices)
    return Transformer.from_config(config, device="cpu", seed=1).eval().to(name).to(gpu)


def captured(model: Transformer, prompt: list[int], token: int) -> Any:
    cache = Cache.for_model(model, 1, 12)
    model([prompt], cache=cache)
    step = capture(model, 1, cache)
    return step([token]), step


@pytest.mark.parametrize("name", ["q8_0", "q4_1", "q5_0"])
def test_a_model_generates_and_its_step_is_captured(gpu: str, name: str) -> None:
    model = tiny(gpu, name, tie_embeddings=name == "q8_0")
    assert model.device.kind == gpu and model.transformer_blocks[0].ffn.rise.weight.quantized
    host = tiny("cpu", name, tie_embeddings=name == "q8_0")
    ids = np.random.default_rng(0).integers(0, 50, 8)
    whole = host(ids).detach().numpy()[0]
    np.testing.assert_allclose(model(ids).detach().cpu().numpy()[0], whole, atol=1e-4)
    logits, step = captured(model, ids[:3].tolist(), int(ids[3]))
    assert step.form == ("graph" if gpu == "cuda" else "checked list")
    np.testing.assert_allclose(logits.cpu().numpy()[0], whole[3], atol=1e-4)
    for i in range(4, 8):
        found = step(model.device.asarray(ids[i : i + 1])).cpu().numpy()[0]
        np.testing.assert_allclose(found, whole[i], atol=1e-4)
    made = model.generate(ids[:3], 5, temperature=0).cpu().numpy()[0]
    with no_grad():  # token by token, without a cache or a captured step
        for i in range(3, 8):
            assert made[i] == int(model(made[:i]).cpu().numpy()[0, -1].argmax())


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q4_k"])
def test_a_step_is_five_launches_a_layer(name: str) -> None:
    model = tiny("emulated", name, **({"embed_dim": 256} if name == "q4_k" else {}))
    assert str(model.transformer_blocks[0].ffn.rise.weight.dtype) == name
    _, step = captured(model, [1, 2, 3], 4)
    with emulated.recorded() as launches:
        step(model.device.asarray([5]))
    names = [launch.kernel for launch in launches]
    layer = ["linear_decode", "attend_cached", "linear_decode", "linear_decode", "linear_decode"]
    assert names[1:6] == layer and names[6:11] == layer and names[0] == "dequantize_rows"
    assert len(names) == 5 * model.config.num_layers + 4


def test_another_format_within_a_layer_is_one_launch_more() -> None:
    model = tiny("emulated", "q4_0")
    for block in model.transformer_blocks:
        weight = block.attention.qkv.weight
        raw = np.asarray(weight.data)
        parts = [Blocks("q4_0", encode(raw[:64], "q4_0")), Blocks("q8_0", encode(raw[64:], "q8_0"))]
        weight.data = QuantizedMatrix(parts).moved_to(model.device)
    _, step = captured(model, [1, 2, 3], 4)
    with emulated.recorded() as launches:
        step(model.device.asarray([5]))
    assert len(launches) == 6 * model.config.num_layers + 4


def test_a_model_moves_with_its_blocks(gpu: str) -> None:
    host = tiny("cpu", "q4_0")
    state = {name: np.asarray(a) for name, a in host.state_dict().items()}
    model = tiny("cpu", "q4_0").to(gpu)
    weight = model.transformer_blocks[0].ffn.rise.weight
    assert weight.data.device.kind == gpu and format_named("q4_0") == weight.dtype
    for name, array in model.to("cpu").state_dict().items():
        np.testing.assert_array_equal(np.asarray(array), state[name])
