"""Which tokens may be chosen and how often, against a plain float64 account of the rules."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, ops
from tinytorch_gpu.core.op import reference_only
from tinytorch_gpu.core.tensor import Tensor
from tinytorch_gpu.devices import device
from tinytorch_gpu.generation import Sampler, Sampling

DRAWS = 20_000


def allowed(
    logits: Any, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Any:
    """The probabilities of one row after all cuts, in plain float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: top_k or None]
    inside = p[kept] / p[kept].sum()
    before = np.cumsum(inside) - inside
    kept = kept[before < top_p]
    kept = kept[p[kept] >= min_p * p.max()]
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


def drawn(logits: Any, seed: int = 0, draws: int = DRAWS, **options: Any) -> Any:
    """How often each token is drawn, in one big batch."""
    sampler = Sampler(Sampling(**options), draws, len(logits), device("cpu"), seed)
    rows = np.broadcast_to(np.asarray(logits, np.float32), (draws, len(logits)))
    return np.bincount(sampler(Tensor(rows)), minlength=len(logits))


LOGITS = np.random.default_rng(2).normal(0, 1.5, 12)
OPTIONS: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 5}, {"top_k": 100},
    {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 1e-6}, {"top_p": 1.0}, {"min_p": 0.1}, {"min_p": 1.0},
    {"top_k": 6, "top_p": 0.7}, {"top_p": 0.95, "min_p": 0.2, "temperature": 1.7},
    {"top_k": 4, "top_p": 0.8, "min_p": 0.05, "temperature": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("plain", [False, True], ids=["maker", "reference"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_come_as_often_as_their_probability(options: dict[str, Any], plain: bool) -> None:
    expected = allowed(LOGITS, **options) * DRAWS
    if plain:
        with reference_only():
            counts = drawn(LOGITS, **options)
    else:
        counts = drawn(LOGITS, **options)
    inside = expected > 0
    assert not counts[~inside].any(), "outside what may be chosen"
    assert (counts[expected > 30] > 0).all(), "all that may be chosen is"
    statistic = np.sum((counts - expected)[inside] ** 2 / expected[inside])
    assert statistic < 2 * inside.sum() + 20  # chi-square, the seed fixed


def test_equal_logits_at_the_edge_stay_together() -> None:
    counts = drawn([2.0, 1.0, 1.0, 0.0], top_k=2)
    assert (counts > 0).tolist() == [True, True, True, False]


def test_minus_infinity_is_never_drawn() -> None:
    counts = drawn([0.0, -np.inf, 1.0, -np.inf])
    assert (counts > 0).tolist() == [True, False, True, False]


def test_a_wide_vocabulary() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 5000)
    for options in ({"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.5}):
        expected = allowed(logits, **options)
        counts = drawn(logits, draws=2000, **options)
        assert not counts[expected == 0].any(), options


def test_rows_have_their_own_parameters() -> None:
    rows, n = 3, 4000
    logits = np.tile(LOGITS.astype(np.float32), (rows * n, 1))
    per_row = [np.repeat(np.array(v, t), n) for v, t in (
        ([0.0, 1.0, 0.5], np.float32), ([0, 2, 0], np.int64), ([1.0, 1.0, 0.5], np.float32),
        ([0.0, 0.0, 0.0], np.float32))]  # fmt: skip
    ids = ops.sample(logits, *per_row, np.array([1, 0], np.uint64)).data.reshape(rows, n)
    assert set(ids[0]) == {LOGITS.argmax()}
    assert set(ids[1]) == set(np.argsort(-LOGITS)[:2])
    assert set(ids[2]) == set(np.nonzero(allowed(LOGITS, 0.5, 0, 0.5))[0])


def test_each_step_draws_anew() -> None:
    sampler = Sampler(Sampling(), 200, 12, device("cpu"), 3)
    rows = Tensor(np.zeros((200, 12), np.float32))
    first, second = sampler(rows), sampler(rows)
    assert 1 / 12 - 0.07 < np.mean(first == second) < 1 / 12 + 0.07
    again = Sampler(Sampling(), 200, 12, device("cpu"), 3)
    np.testing.assert_array_equal(again(rows), first)
    np.testing.assert_array_equal(again(rows), second)


def _model() -> Transformer:
    return Transformer(50, 32, 4, 2, 48, 64, device="cpu", seed=4)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}]
)
def test_ways_to_be_greedy(options: dict[str, Any]) -> None:
    model, prompt = _model(), [[1, 2, 3], [4, 5, 6]]
    expected = model.generate(prompt, 20, temperature=0).numpy()
    np.testing.assert_array_equal(model.generate(prompt, 20, seed=1, **options).numpy(), expected)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0},
                                     {"repetition_penalty": 1.0}])  # fmt: skip
def test_ways_to_cut_nothing(options: dict[str, Any]) -> None:
    model = _model()
    expected = model.generate([[1, 2]], 20, seed=1).numpy()
    np.testing.assert_array_equal(model.generate([[1, 2]], 20, seed=1, **options).numpy(), expected)


# --- the repetition penalty ------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.3, 0.7, 5.0])
def test_the_penalty_is_hugging_faces(penalty: float) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch runs transformers")
    transformers = pytest.importorskip("transformers", reason="the rule is compared with theirs")
    rule = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    random = np.random.default_rng(0)
    ids, logits = random.integers(0, 20, (3, 7)), random.normal(size=(3, 20)).astype(np.float32)
    expected = rule(torch.tensor(ids), torch.tensor(logits)).numpy()
    seen = np.zeros((3, 20), bool)
    ops.mark_seen(seen, ids)
    found = ops.penalize(logits, seen, np.full(3, penalty, np.float32))
    np.testing.assert_allclose(found.data, expected, rtol=1e-6)


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3], [4]]], ids=str)
def test_the_penalty_counts_prompt_and_answer(prompts: list[list[int]]) -> None:
    model = _model()
    out = model.generate(prompts, 12, temperature=0, repetition_penalty=1.5)
    for prompt, row in zip(prompts, out, strict=True):
        ids = list(prompt)
        for _ in range(12):
            logits = model(ids).detach().numpy()[0, -1].astype(np.float64)
            for token in set(ids):
                logits[token] *= 1.5 if logits[token] < 0 else 1 / 1.5
            ids.append(int(logits.argmax()))
        assert row.numpy().tolist() == ids


def test_a_strong_penalty_never_repeats() -> None:
    ids = _model().generate([[1]], 40, temperature=0, repetition_penalty=1e9).numpy()[0]
    positive = 25  # while logits above 0 are left, one not yet seen is taken
    assert len(set(ids[:positive].tolist())) > 10
