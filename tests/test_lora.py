"""LoRA: what adapters compute, that only they are trained, and that merging them changes nothing."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from emulated_device import kernels_of_replays

from tinytorch_gpu import Transformer, TransformerConfig, ops
from tinytorch_gpu.config import FAMILIES
from tinytorch_gpu.core.lora import (
    LoraConfig,
    adapters,
    add_lora,
    merge_lora,
    mergeable,
)
from tinytorch_gpu.core.tensor import no_grad
from tinytorch_gpu.generation import Cache, capture
from tinytorch_gpu.native import library
from tinytorch_gpu.training import AdamW, CrossEntropyLoss, decay_groups

CHOICES: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": FAMILIES["gpt2"],
    "llama": {**FAMILIES["llama"], "num_kv_heads": 2, "tie_embeddings": True},
    "post-norm": {"pre_norm": False, "qk_norm": True},
    "llama, q/k norm": {**FAMILIES["llama"], "num_kv_heads": 2, "qk_norm": True},
}
IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11]])


def model_of(name: str = "llama", device: str = "cpu", dtype: str = "float32") -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 64, 64, **CHOICES[name])
    return Transformer.from_config(config, device, dtype, seed=1)


def adapted(name: str = "llama", targets: Any = "all", **where: Any) -> Transformer:
    """A model with adapters that do something."""
    model = model_of(name, **where)
    add_lora(model, LoraConfig(3, 6.0, targets=targets), seed=2)
    random = np.random.default_rng(3)
    for n, p in model.named_parameters():
        if n.endswith(".b"):
            p.data[...] = model.device.asarray(random.normal(0, 0.1, p.shape), p.dtype)
    return model


def logits(model: Transformer) -> Any:
    with no_grad():
        return model(IDS).cpu().numpy()


def learn(model: Transformer) -> float:
    loss = CrossEntropyLoss()(model(IDS[:, :-1]), IDS[:, 1:])
    loss.backward()
    return loss.item()


# --- what it computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_fresh_adapters_change_nothing(name: str) -> None:
    model = model_of(name)
    before = logits(model)
    add_lora(model, LoraConfig(targets="all"))
    # The activation comes apart from the linear map then, by another maker: a rounding.
    np.testing.assert_allclose(logits(model), before, atol=1e-6)
    groups = {g for place, adapter in adapters(model) for g in adapter.groups}
    wanted = {"q", "k", "v", "o", "up", "down"} | ({"gate"} if "llama" in name else set())
    assert groups == wanted and len(adapters(model)) == 8


@pytest.mark.parametrize("name", CHOICES)
def test_merging_gives_the_same_logits_and_can_be_undone(name: str) -> None:
    model = adapted(name)
    beside, weights = logits(model), {n: p.data.copy() for n, p in model.named_parameters()}
    merged = merge_lora(model, keep=True)
    assert merged is not None and not adapters(model)
    np.testing.assert_allclose(logits(model), beside, atol=2e-6)
    merged.undo()
    np.testing.assert_array_equal(logits(model), beside)
    for n, p in model.named_parameters():
        np.testing.assert_array_equal(p.data, weights[n])
        assert p.requires_grad == (".adapter." in n)
    with pytest.raises(ValueError, match="undone already"):
        merged.undo()


def test_only_the_chosen_rows_change() -> None:
    model = adapted(targets=("k", "up"))
    before = {n: np.array(a) for n, a in model.state_dict().items()}
    merge_lora(model)
    changed = {
        n.rpartition(".")[2]
        for n, a in model.state_dict().items()
        if not np.array_equal(a, before[n])
    }
    assert changed == {"w_k", "w1"}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_are_difference_quotients(name: str) -> None:
    model = adapted(name, dtype="float64")
    learn(model)
    random = np.random.default_rng(0)
    for n, p in model.named_parameters():
        if ".adapter." not in n:
            assert p.grad is None
            continue
        direction = random.standard_normal(p.shape)
        direction /= np.linalg.norm(direction)
        with no_grad():
            found = []
            for step in (1e-5, -1e-5):
                p.data[...] += step * direction
                found.append(CrossEntropyLoss()(model(IDS[:, :-1]), IDS[:, 1:]).item())
                p.data[...] -= step * direction
        assert p.grad is not None
        expected = (found[0] - found[1]) / 2e-5
        assert (p.grad.numpy() * direction).sum() == pytest.approx(expected, abs=1e-8), n


def test_queries_and_keys_from_other_inputs_have_adapters_too() -> None:
    model = adapted("course", "all")
    attention = model.transformer_blocks[0].attention
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    with no_grad():
        apart, together = attention(x, x, x, causal=True), attention(x, causal=True)
    np.testing.assert_allclose(apart.numpy(), together.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llama, q/k norm"])
def test_decoding_with_adapters_beside_is_captured(name: str, batch: int) -> None:
    """By native code at any batch, by prepared NumPy calls one sequence at a time."""
    tokens = np.array([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]])[:batch]
    model = adapted(name).eval()
    step, whole = capture(model, batch), model(tokens).detach().numpy()
    for i in range(4):
        np.testing.assert_allclose(step(tokens[:, i]).numpy(), whole[:, i], atol=1e-5)
    assert step.form == ("list" if batch == 1 or library() else "steps"), step.reason


@pytest.mark.skipif(library() is None, reason="there is no native library")
@pytest.mark.parametrize("base", ["float32", "float16", "q8_0"])
def test_a_step_with_adapters_is_one_native_call(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(dtype="float16" if base == "float16" else "float32").eval()
    model = model.to(base) if base == "q8_0" else model
    code, calls = library(), []
    assert code is not None
    run = code.run
    monkeypatch.setattr(code, "run", lambda *given: calls.append(given) or run(*given))
    step = capture(model, 2)
    step([3, 1])
    for n in range(3):
        step([n, n + 1])
    assert step.form == "list" and len(calls) == 3


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llama, q/k norm"])
def test_decoding_with_adapters_beside_is_captured_on_a_gpu(
    gpu: str, name: str, batch: int
) -> None:
    model, tokens = adapted(name, device=gpu).eval(), np.arange(4 * batch).reshape(batch, 4) % 50
    step = capture(model, batch)
    whole = model(tokens).detach().cpu().numpy()
    for i in range(4):
        found = step(model.device.asarray(tokens[:, i])).cpu().numpy()
        np.testing.assert_allclose(found, whole[:, i], atol=2e-5)
    assert step.form == ("graph" if gpu == "cuda" else "checked list"), step.reason


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_beside_16_bits_are_captured_on_a_gpu(gpu: str, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    model = adapted(device=gpu, dtype=dtype).eval()
    cache, step = Cache.for_model(model, 1, 16), capture(model)
    for token in (3, 1, 4):
        found = step(model.device.asarray([token])).cpu().numpy().astype(np.float32)
        with no_grad():
            expected = model([[token]], cache=cache).cpu().numpy()[0, -1].astype(np.float32)
        # The step norms within the linear map, which rounds once less.
        np.testing.assert_allclose(
            found[0], expected, atol=2.0**-5 if dtype == "bfloat16" else 2.0**-8
        )
    assert step.form in ("graph", "checked list"), step.reason


@pytest.mark.parametrize(("targets", "launches"), [(("q", "v"), 8), ("all", 16)])
def test_launches_of_a_step_with_adapters(targets: Any, launches: int) -> None:
    """Two for each linear map with adapters, and a norm or an activation next to one is its own."""
    model = adapted(targets=targets, device="emulated").eval()
    step = capture(model)
    step(model.device.asarray([3]))
    names = kernels_of_replays(lambda: step(None))
    layer = names[1 : 1 + launches]
    assert names[1 + launches : 1 + 2 * launches] == layer
    assert len(names) == 2 * launches + 4
    adapters_of_layer = layer.count("lora_lower"), layer.count("lora_raise")
    assert adapters_of_layer == ((1, 1) if launches == 8 else (4, 4))


# --- what is trained ------------------------------------------------------------------------------


def test_recomputation_and_dropout_of_adapters() -> None:
    found = []
    for again in (False, True):
        model = model_of()
        add_lora(model, LoraConfig(4, dropout=0.3, targets="all"), seed=5)
        model.recompute = again
        losses = [learn(model), learn(model)]
        found.append((losses, [p.grad.numpy() for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == found[1][0] and found[0][0][0] == found[0][0][0]
    assert len(found[0][1]) == len(found[1][1]) == 2 * 7 * 2
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_stay_and_adapters_are_float32(dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    model = adapted(dtype=dtype)
    before = {n: p.data.copy() for n, p in model.named_parameters() if ".adapter." not in n}
    optimizer = AdamW(decay_groups(model, 0.1), lr=1e-2)
    first = learn(model)
    for _ in range(10):
        optimizer.step()
        optimizer.zero_grad()
        last = learn(model)
    assert last < first - 0.2
    for n, p in model.named_parameters():
        assert p.dtype == ("float32" if ".adapter." in n else dtype)
        if n in before:
            np.testing.assert_array_equal(p.data, before[n])
    assert all("master" not in slots for slots in optimizer.state.values())


def test_a_base_in_blocks_of_a_few_bits_is_tuned_and_not_merged() -> None:
    model = model_of().to("q8_0")
    add_lora(model, LoraConfig(4, targets="all"))
    optimizer = AdamW(decay_groups(model, 0.0), lr=1e-2)
    first = learn(model)
    for _ in range(10):
        optimizer.step()
        optimizer.zero_grad()
        last = learn(model)
    assert last < first - 0.2 and not mergeable(model)
    with pytest.raises(ValueError, match=r"attention\.qkv is quantized"):
        merge_lora(model)
    assert model.generate(IDS[:1], 4, temperature=0).shape == (1, 10)


def test_training_adapters_takes_less_memory_than_training_all() -> None:
    peaks, states = [], []
    for lora in (False, True):
        config = TransformerConfig(300, 96, 4, 6, 384, 64, **CHOICES["llama"])
        model = Transformer.from_config(config, "cpu", seed=1)
        if lora:
            add_lora(model, LoraConfig(4))
        ids = np.arange(120).reshape(2, 60)
        CrossEntropyLoss()(model(ids), ids).backward()  # makers are loaded, buffers made
        model.zero_grad()
        tracemalloc.start()
        optimizer = AdamW(decay_groups(model, 0.1))
        CrossEntropyLoss()(model(ids), ids).backward()
        optimizer.step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        states.append(sum(x.nbytes for slots in optimizer.state.values() for x in slots.values()))
        assert all(p.grad is not None for p in optimizer.parameters())
        trained = sum(p.size for p in model.parameters() if p.requires_grad)
        assert states[-1] == 8 * trained
    # Gradients and moments of 0.9 million weights (11 MB) are gone; what blocks keep is less too.
    assert peaks[1] < 0.6 * peaks[0] and states[1] < 0.03 * states[0]


def test_a_step_on_a_gpu_is_the_cpus(gpu: str) -> None:
    found = []
    for place in ("cpu", gpu):
        model = adapted(device=place)
        optimizer = AdamW(decay_groups(model, 0.1), lr=1e-2)
        losses = [learn(model)]
        gradients = {
            n: p.grad.cpu().numpy() for n, p in model.named_parameters() if p.grad is not None
        }
        optimizer.step()
        optimizer.zero_grad()
        losses.append(learn(model))
        found.append((losses, gradients, model))
    (here, wanted, one), (there, gradients, other) = found
    np.testing.assert_allclose(there, here, rtol=1e-5)
    assert set(gradients) == set(wanted) and all(".adapter." in n for n in wanted)
    for n, gradient in wanted.items():
        np.testing.assert_allclose(gradients[n], gradient, atol=1e-5, err_msg=n)
    beside = other.generate(IDS[:1], 4, temperature=0).cpu().numpy()
    np.testing.assert_array_equal(beside, one.generate(IDS[:1], 4, temperature=0).numpy())
    merge_lora(other)
    np.testing.assert_array_equal(other.generate(IDS[:1], 4, temperature=0).cpu().numpy(), beside)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_on_a_gpu(gpu: str, dtype: str) -> None:
    pytest.importorskip("ml_dtypes")
    found = []
    for place in ("cpu", gpu):
        model = adapted(device=place, dtype=dtype)
        loss = learn(model)
        gradients = {
            n: p.grad.cpu().numpy() for n, p in model.named_parameters() if p.grad is not None
        }
        found.append((loss, gradients))
    allowed = 8 * (2.0**-11 if dtype == "float16" else 2.0**-8)
    assert found[1][0] == pytest.approx(found[0][0], rel=allowed)
    for n, gradient in found[0][1].items():
        assert found[1][1][n].dtype == np.float32
        scale = max(0.1, np.abs(gradient).max())
        np.testing.assert_allclose(found[1][1][n], gradient, atol=allowed * scale, err_msg=n)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 0}, "rank of LoRA must be a whole number of at least 1, not 0"),
        ({"rank": 2.5}, "not 2.5"),
        ({"alpha": 0}, "alpha must be a number above 0, not 0"),
        ({"alpha": float("inf")}, "not inf"),
        ({"dropout": 1}, r"must be in \[0, 1\), not 1"),
        ({"targets": "q,w"}, "unknown LoRA target 'w': choose from q, k, v, o"),
        ({"targets": ()}, "at least one target"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LoraConfig(**values)


def test_what_a_model_refuses() -> None:
    model = model_of("gpt2")
    with pytest.raises(
        ValueError, match="nothing called gate to adapt: it has q, k, v, o, up, down"
    ):
        add_lora(model, LoraConfig(targets=("q", "gate")))
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="no adapters: they are merged already"):
        merge_lora(model)
    add_lora(model, LoraConfig())
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, LoraConfig())
    merge_lora(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="merged already"):
        merge_lora(model)


def test_a_sum_that_float16_cannot_hold_changes_nothing() -> None:
    model = adapted(dtype="float16")
    model.transformer_blocks[1].ffn.fall.adapter.down.b.data[...] = 1e6
    before = {n: p.data.copy() for n, p in model.named_parameters()}
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match=r"1\.ffn\.fall.*float16 cannot hold"),
    ):
        merge_lora(model)
    for n, p in model.named_parameters():
        np.testing.assert_array_equal(p.data, before[n])


def test_operations_are_told_what_is_frozen() -> None:
    """A frozen weight makes no gradient, and its input is not kept."""
    from tinytorch_gpu import Parameter, Tensor

    x = Tensor(np.ones((3, 4), np.float32), requires_grad=True)
    frozen = Parameter(np.ones((2, 4), np.float32), requires_grad=False)
    out = ops.linear(x, frozen)
    assert out.node is not None and out.node.residuals[0] is None
    out.sum().backward()
    assert frozen.grad is None and x.grad.tolist() == [[2.0] * 4] * 3
    assert ops.linear(x, Parameter(frozen.data)).node.residuals[0] is x.data
