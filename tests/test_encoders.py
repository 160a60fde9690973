"""Encoders and encoder-decoders: the same block by configuration."""

from typing import Any

import numpy as np
import pytest
from encoder_models import KINDS, config, model

from tinytorch_gpu import Transformer, no_grad, ops
from tinytorch_gpu.core.lora import LoraConfig, add_lora, merge_lora
from tinytorch_gpu.core.op import reference_only
from tinytorch_gpu.core.positions import Positions, distance_buckets
from tinytorch_gpu.generation import Cache

WRITERS = [kind for kind in KINDS if config(kind).encoder_layers]
SOURCES = [[5, 6, 7, 8, 9, 2], [3, 4, 1], [11]]
TARGET = np.array([[0, 4, 5, 6, 7], [0, 9, 8, 7, 6], [0, 1, 1, 2, 3]])


def padded() -> tuple[Any, list[int]]:
    ids = np.zeros((3, 6), dtype=int)
    for row, source in enumerate(SOURCES):
        ids[row, : len(source)] = source
    return ids, [len(s) for s in SOURCES]


def run(made: Transformer) -> Any:
    """The model's result for padded rows: states, or logits about them."""
    ids, lengths = padded()
    if made.encoder is not None:
        return made(TARGET, source=made.encode(ids, lengths))
    return made(ids, lengths=lengths)


def loss_of(made: Transformer) -> Any:
    if made.config.head:
        out = run(made)
        logits = out.reshape(-1, made.config.vocab_size)
        return ops.cross_entropy(logits, made.device.asarray(np.arange(logits.shape[0]) % 30))
    out = made.embed(SOURCES)
    weights = np.linspace(-1, 1, out.size).reshape(out.shape).astype(str(out.dtype))
    return (out * made.device.asarray(weights)).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_is_the_difference_quotient(kind: str) -> None:
    made = model(kind, dtype="float64")
    loss_of(made).backward()
    random = np.random.default_rng(1)
    for name, weight in made.named_parameters():
        assert weight.grad is not None, name
        direction = random.standard_normal(weight.shape)
        before, found = weight.data.copy(), []
        for step in (1e-5, -1e-5):
            weight.data[...] = before + step * direction
            with no_grad():
                found.append(float(loss_of(made).item()))
        weight.data[...] = before
        slope = (found[0] - found[1]) / 2e-5
        told = float((weight.grad.data * direction).sum())
        assert told == pytest.approx(slope, rel=2e-5, abs=2e-7), name


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    made = model(kind).eval()
    with no_grad():
        together = run(made).numpy()
        for row, source in enumerate(SOURCES):
            if made.encoder is not None:
                alone = made(TARGET[row], source=source).numpy()[0]
                np.testing.assert_allclose(together[row], alone, atol=2e-5)
            else:
                alone = made(source).numpy()[0]
                np.testing.assert_allclose(together[row, : len(source)], alone, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_makers_give_what_the_references_give(kind: str) -> None:
    made = model(kind)
    loss_of(made).backward()
    gradients = {name: weight.grad.numpy() for name, weight in made.named_parameters()}
    made.zero_grad()
    with reference_only():
        loss_of(made).backward()
    for name, weight in made.named_parameters():
        np.testing.assert_allclose(gradients[name], weight.grad.numpy(), atol=3e-5, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputation_changes_no_gradient(kind: str, dropout: float) -> None:
    found = []
    for again in (False, True):
        made = model(kind, dropout=dropout)
        made.recompute = again
        loss_of(made).backward()
        found.append({name: weight.grad.numpy() for name, weight in made.named_parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", [*WRITERS, "relative decoder"])
def test_the_cache_changes_nothing(kind: str) -> None:
    made = model(kind).eval()
    written = made.generate(SOURCES, 7, temperature=0)
    if made.encoder is None:
        for row, source in enumerate(SOURCES):
            ids = list(source)
            for _ in range(7):
                with no_grad():
                    ids.append(int(made(ids).numpy()[0, -1].argmax()))
            assert written[row].numpy().tolist() == ids
        return
    ids = np.zeros((3, 1), dtype=int)
    with no_grad():
        memory = made.encode(*padded())
        for _ in range(7):
            chosen = made(ids, source=memory).numpy()[:, -1].argmax(-1)
            ids = np.hstack((ids, chosen[:, None]))
    assert written.numpy().tolist() == ids.tolist()
    looked_up = made.generate(SOURCES, 7, temperature=0, speculate="lookup")
    assert looked_up.numpy().tolist() == ids.tolist()


@pytest.mark.parametrize("kind", WRITERS)
def test_sampling_repeats_with_a_seed_and_stops(kind: str) -> None:
    made = model(kind)
    one, other = (made.generate(SOURCES, 6, seed=3).numpy() for _ in range(2))
    assert (one == other).all() and (one[:, 0] == 0).all() and one.shape == (3, 7)
    assert made.training
    stop = int(one[0, 1])
    stopped = made.generate(SOURCES, 6, seed=3, stop_tokens=[stop], pad_id=29).numpy()
    assert stopped[0, 1] == stop and (stopped[0, 2:] == 29).all()
    steps = list(made.generate(SOURCES[0], 3, seed=3, stream=True))
    assert [int(s.tokens[0]) for s in steps] == made.generate(SOURCES[0], 3, seed=3).numpy()[0, 1:].tolist()  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_the_keys_may_be_narrower(dtype: str) -> None:
    made = model("t5", embed_dim=64).eval()
    written = made.generate(SOURCES, 5, temperature=0, cache_dtype=dtype)
    assert written.shape == (3, 6)


def test_the_encoders_keys_and_values_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinytorch_gpu.core.cross_attention import CrossAttention

    made, calls = model("t5"), []
    keys_values = CrossAttention.keys_values
    monkeypatch.setattr(
        CrossAttention, "keys_values", lambda self, x: calls.append(0) or keys_values(self, x)
    )
    made.generate(SOURCES, 6, temperature=0)
    assert len(calls) == made.config.num_layers


@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_of_distances(both_ways: bool) -> None:
    found = distance_buckets(32, 128, both_ways)
    middle, half = 128, 16 if both_ways else 32
    assert found[middle] == 0 and found[0] == half - 1
    near = half // 2
    assert found[middle - near + 1 : middle + 1].tolist() == list(range(near))[::-1]
    assert (np.diff(found[:middle]) <= 0).all()
    if both_ways:
        assert found[-1] == 31 and (found[middle + 1 :] == found[:middle][::-1] + 16).all()
    else:
        assert (found[middle:] == 0).all()


def test_a_bias_depends_on_the_distance_alone() -> None:
    made = model("relative decoder")
    with no_grad():
        near = made.relative(Positions(0, 5), 5).numpy()
        later = made.relative(Positions(3, 2), 5).numpy()
        apart = made.relative(Positions(0, 1, np.array([2, 4]), 4), 5).numpy()
    assert near.shape == (1, 4, 5, 5)
    assert near[0, :, 4, 1].tolist() == near[0, :, 3, 0].tolist()
    np.testing.assert_array_equal(later[0], near[0, :, 3:])
    np.testing.assert_array_equal(apart[:, :, 0], near[0, :, [2, 4]])


def test_embeddings_of_texts() -> None:
    made = model("bert").eval()
    with no_grad():
        vectors = made.embed(SOURCES).numpy()
        for row, source in enumerate(SOURCES):
            states = made(source).numpy()[0]
            mean = states.mean(axis=0)
            np.testing.assert_allclose(vectors[row], mean / np.linalg.norm(mean), atol=1e-5)
            first = made.embed(source, pooling="first", normalize=False).numpy()[0]
            np.testing.assert_allclose(first, states[0], atol=1e-5)
        of_t5 = model("t5").eval().embed(SOURCES).numpy()
    np.testing.assert_allclose(np.linalg.norm(of_t5, axis=1), 1, atol=1e-5)


def test_kinds_of_tokens() -> None:
    made = model("bert").eval()
    with no_grad():
        plain, zeros = made([1, 2, 3]).numpy(), made([1, 2, 3], token_types=[0, 0, 0]).numpy()
        other = made([1, 2, 3], token_types=[0, 0, 1]).numpy()
    np.testing.assert_array_equal(plain, zeros)
    assert np.abs(other - plain).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_tiny_one_learns(kind: str) -> None:
    from tinytorch_gpu.training.optim import AdamW

    made = model(kind)
    optimizer = AdamW(made.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(made)
        losses.append(float(loss.item()))
        made.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_adapters_reach_every_layer(kind: str) -> None:
    made = model(kind)
    with no_grad():
        before = run(made).numpy()
    add_lora(made, LoraConfig(rank=2, targets=("all",)))
    with no_grad():
        np.testing.assert_allclose(run(made).numpy(), before, atol=1e-6)
    loss_of(made).backward()
    trained = [p for p in made.parameters() if p.requires_grad]
    blocks = made.config.num_layers + made.config.encoder_layers
    matrices = 6 * blocks + 4 * (made.config.num_layers if kind == "t5" else 0)
    assert len(trained) == 2 * matrices and all(p.grad is not None for p in trained)
    for p in trained:
        p.data[...] += 0.05
    with no_grad():
        adapted = run(made).numpy()
        merge_lora(made)
        np.testing.assert_allclose(run(made).numpy(), adapted, atol=1e-4)


@pytest.mark.parametrize("form", ["float16", "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["bert", "flan-t5"])
def test_narrower_weights_are_near(kind: str, form: str) -> None:
    made = model(kind, embed_dim=64, hidden_dim=64, num_heads=4, head_dim=16).eval()
    with no_grad():
        exact = run(made).numpy()
        made.to(form)
        near = run(made).numpy()
    scale = np.abs(exact).max()
    assert np.abs(near - exact).max() < {"float16": 0.01, "q8_0": 0.1, "q4_0": 1.0}[form] * scale
    if made.relative is not None:
        assert not made.relative.weight.quantized


# --- what is refused, in words ---

BAD_CONFIGS = [
    (dict(kind="bert", tie_embeddings=True), "need a head"),
    (dict(kind="t5", causal=False), "an encoder alone is num_layers with causal=False"),
    (dict(kind="t5", token_types=2), "token_types belong to an encoder alone"),
    (dict(kind="t5", relative_buckets=10), "relative_buckets \\(10\\)"),
    (dict(kind="t5", relative_distance=16), "relative_distance \\(16\\)"),
    (dict(kind="t5", start_token=30), "start_token \\(30\\) must be below vocab_size"),
    (dict(kind="t5", head_scale=0.0), "head_scale must be above 0"),
    (dict(kind="t5", attention_scale=-1.0), "attention_scale must be above 0"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_CONFIGS, ids=[w for _, w in BAD_CONFIGS])
def test_a_configuration_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**changes)


def bad_calls() -> list[tuple[Any, str]]:
    bert, t5, gpt = model("bert"), model("t5"), model("relative decoder")
    memory = t5.encode([[1, 2]])
    return [
        (lambda: bert.generate([1]), "no head, so it does not write"),
        (lambda: bert.logits(bert([1])), "no head"),
        (lambda: bert([1], source=[2]), "no encoder: it takes no source"),
        (lambda: bert.encode([1]), "no encoder: encoder_layers is 0"),
        (lambda: bert([1, 2], lengths=[3]), "lengths must be from 1 to 2"),
        (lambda: bert([1, 2], lengths=[1, 1]), "lengths must be 1 whole numbers"),
        (lambda: bert([1, 2], lengths=[1.5]), "whole numbers"),
        (lambda: bert([1, 2], token_types=[0]), "token_types"),
        (lambda: bert([1, 2], token_types=[0, 2]), "token id 2 is outside"),
        (lambda: bert.embed([[]]), "a prompt is empty"),
        (lambda: bert.embed([1], pooling="max"), "pooling must be one of mean, first"),
        (lambda: t5([1]), "needs the source that it reads"),
        (lambda: t5([[1], [2], [3]], source=memory), "a memory of 1 rows does not fit 3 rows"),
        (lambda: t5([1] * 25, source=[1]), "25 tokens exceed max_seq_length"),
        (lambda: t5([1], source=[1] * 25), "25 tokens exceed max_seq_length"),
        (lambda: t5.generate([1], cache=Cache.for_model(t5)), "it takes no cache"),
        (lambda: t5.generate([1], 3, speculate=t5), "a draft model must be a decoder alone"),
        (lambda: gpt([1], token_types=[0]), "no token types"),
        (lambda: gpt([1], cache=Cache.for_model(gpt), lengths=[1]), "a pass without a cache"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(19))
def test_a_call_that_cannot_be(number: int) -> None:
    call, words = bad_calls()[number]
    with pytest.raises(ValueError, match=words):
        call()
