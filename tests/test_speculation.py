"""Speculation: the same tokens as without, from fewer passes; honest about what it gained."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.generation import (
    Cache,
    DraftModel,
    Lookup,
    Speculation,
    prefill,
    speculative_run,
)
from tinytorch_gpu.generation.pace import Pace
from tinytorch_gpu.native import library

LLAMA: dict[str, Any] = {"norm": "rms", "position": "rotary", "activation": "swiglu",
                         "ffn_bias": False, "num_kv_heads": 2}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True},
    "window": LLAMA | {"sliding_window": 3},
    "qk norm": LLAMA | {"qk_norm": True},
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, penalty": {"temperature": 0, "repetition_penalty": 1.3},
    "drawn": {"temperature": 0.8, "seed": 3},
    "cut": {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "seed": 4},
    "penalty": {"temperature": 0.7, "top_k": 20, "repetition_penalty": 0.8, "seed": 5},
}
PROMPTS: dict[str, Any] = {
    "one": [[1, 2, 3, 1, 2, 3, 1]],
    "even": [[1, 2, 3], [4, 5, 6], [1, 2, 1]],
    "ragged": [[5, 6, 7, 8, 9, 5, 6], [1], [2, 3, 4]],
}


def make(family: str = "llama", place: str = "cpu", room: int = 80, seed: int = 4) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, room, **FAMILIES[family])
    return Transformer.from_config(config, device=place, seed=seed).eval()


def near(model: Transformer, by: float = 0.01) -> Transformer:
    """A model that mostly agrees."""
    random, other = np.random.default_rng(0), Transformer.from_config(model.config, device="cpu")
    for name, values in other.state_dict().items():
        source = model.state_dict()[name]
        source = source if isinstance(source, np.ndarray) else source.get()
        values[...] = source + random.normal(0, by, source.shape)
    return other.to(model.device).eval()


def guesses(kind: str, model: Transformer, **options: Any) -> Speculation:
    options = {"adaptive": False, **options}
    if kind == "lookup":
        return Lookup(ngrams=(2, 1), **options)
    by = {"itself": 0.0, "draft": 0.02, "far": 0.1}[kind]
    return DraftModel(near(model, by), **options)


def rows(result: Any) -> list[list[int]]:
    return [list(map(int, row.numpy())) for row in result]


# --- the same tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_not_one_token_changes(kind: str, sampling: str, prompts: str) -> None:
    model, options = make(), SAMPLINGS[sampling]
    expected = rows(model.generate(PROMPTS[prompts], 20, **options))
    guide = guesses(kind, model, most=5)
    assert rows(model.generate(PROMPTS[prompts], 20, speculate=guide, **options)) == expected
    assert guide.rounds and guide.drafted >= guide.accepted


@pytest.mark.parametrize("most", [1, 2, 11])
def test_nor_with_drafts_of_any_length(most: int) -> None:
    model, prompts, options = make(), PROMPTS["ragged"], SAMPLINGS["penalty"]
    expected = rows(model.generate(prompts, 20, **options))
    for kind in ("lookup", "draft"):
        guide = guesses(kind, model, most=most)
        assert rows(model.generate(prompts, 20, speculate=guide, **options)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = make(family)
    expected = rows(model.generate(PROMPTS["ragged"], 12, temperature=0))
    for kind in ("lookup", "draft"):
        guide = guesses(kind, model)
        found = rows(model.generate(PROMPTS["ragged"], 12, temperature=0, speculate=guide))
        assert found == expected


class Wild(Lookup):
    """Drafts that are never true, and from the third on no tokens at all."""

    def draft(self, count: int, limits: Any, sampler: Any) -> tuple[Any, Any]:
        token = 3 if self.rounds < 2 else 50
        return np.full((1, 2), token), np.minimum(limits, 2)


def test_a_draft_that_is_no_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="token 50"):
        make().generate([1, 2, 3], 20, temperature=0, speculate=Wild(adaptive=False))


@pytest.mark.parametrize("kind", ["lookup", "draft"])
@pytest.mark.parametrize("sampling", ["greedy", "penalty"])
@pytest.mark.parametrize("prompts", ["one", "ragged"])
def test_on_a_device(gpu: str, kind: str, sampling: str, prompts: str) -> None:
    model, host, options = make(place=gpu), make(), SAMPLINGS[sampling]
    expected = rows(host.generate(PROMPTS[prompts], 8, **options))
    guide = guesses(kind, model, most=3)
    assert rows(model.generate(PROMPTS[prompts], 8, speculate=guide, **options)) == expected
    assert guide.rounds


def test_a_draft_model_may_live_elsewhere(gpu: str) -> None:
    model, draft = make(), near(make(), 0.02).to(gpu)
    guide = DraftModel(draft, adaptive=False, most=3)
    options = SAMPLINGS["penalty"]
    found = rows(model.generate([[1, 2, 3]], 12, speculate=guide, **options))
    assert found == rows(model.generate([[1, 2, 3]], 12, **options)) and guide.accepted


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    model = make()
    for options in SAMPLINGS.values():
        guide = guesses("itself", model, most=4)
        model.generate([[1, 2, 3]], 31, speculate=guide, **options)
        assert guide.accepted == guide.drafted == 24 and guide.rounds == 6


@pytest.mark.parametrize("kind", ["lookup", "far"])
@pytest.mark.parametrize(
    "cuts",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3},
     {"repetition_penalty": 1.8}, {"top_k": 4, "top_p": 0.9, "repetition_penalty": 0.6}],
    ids=str,
)  # fmt: skip
def test_the_distribution_of_whole_texts_is_the_models(kind: str, cuts: dict[str, Any]) -> None:
    """Texts of four tokens from many draws against their exact probabilities, by chi-square."""
    config = TransformerConfig(5, 16, 2, 1, 16, 16, **LLAMA | {"num_kv_heads": 1})
    model = Transformer.from_config(config, device="cpu", seed=1).eval()
    model.final_norm.gamma.data[...] = 1.0  # so that the tokens differ in probability
    prompt, draws = [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1], 2000
    expected = {text: p * draws for text, p in _texts(model, prompt, 4, cuts)}
    guide = guesses(kind, model, most=3)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(2):
        out = model.generate([prompt] * 1000, 4, seed=seed, speculate=guide, **cuts).numpy()
        found.update(map(tuple, out[:, len(prompt) :].tolist()))
    assert guide.accepted and guide.accepted < guide.drafted
    assert set(found) <= set(expected), "a text that cannot come"
    large = [text for text, n in expected.items() if n >= 5]
    rest = sum(n for text, n in expected.items() if n < 5)
    pairs = [(found[t], expected[t]) for t in large]
    if rest >= 1:
        pairs.append((draws - sum(found[t] for t in large), rest))
    statistic, degrees = sum((a - b) ** 2 / b for a, b in pairs), len(pairs) - 1
    # Wilson and Hilferty (1931): the cube root is nearly normal; 4 deviations are 1 in 30000.
    spread = 2 / (9 * degrees)
    assert (statistic / degrees) ** (1 / 3) < 1 - spread + 4 * spread**0.5


def _texts(model: Transformer, ids: list[int], count: int, cuts: dict[str, Any]) -> Any:
    """Each text of so many tokens and its probability, in plain float64."""
    if count == 0:
        yield (), 1.0
        return
    logits = model([ids]).detach().numpy()[0, -1].astype(np.float64)
    for token in set(ids):
        penalty = cuts.get("repetition_penalty", 1.0)
        logits[token] *= penalty if logits[token] < 0 else 1 / penalty
    for token, p in enumerate(_allowed(logits, cuts)):
        if p > 0:
            for rest, q in _texts(model, [*ids, token], count - 1, cuts):
                yield (token, *rest), p * q


def _allowed(logits: Any, cuts: dict[str, Any]) -> Any:
    p = np.exp((logits - logits.max()) / cuts.get("temperature", 1.0))
    order = np.argsort(-p)[: cuts.get("top_k") or None]
    inside = p[order] / p[order].sum()
    order = order[np.cumsum(inside) - inside < (cuts.get("top_p") or 1.0)]
    kept = np.zeros_like(p)
    kept[order] = np.where(p[order] >= (cuts.get("min_p") or 0.0) * p.max(), p[order], 0)
    return kept / kept.sum()


# --- stopping, streams, caches ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lookup", "itself"])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_stop_tokens_streams_and_the_cache(kind: str, prompts: str) -> None:
    model, given = make(), PROMPTS[prompts]
    free = rows(model.generate(given, 30, temperature=0))
    for stop in ({free[0][len(given[0]) + n] for n in (9, 20)}, set()):
        options = {"temperature": 0, "stop_tokens": stop, "pad_id": 33, "stream": True}
        expected = list(model.generate(given, 30, **options))
        cache, guide = Cache.for_model(model, len(given)), guesses(kind, model)
        found = list(model.generate(given, 30, cache=cache, speculate=guide, **options))
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.finished, b.finished)
        held = _held(given, found)
        assert cache.lengths.tolist() == [len(ids) for ids in held]
        _check_cache(model, cache, held)


def _held(prompts: Any, steps: list[Any]) -> list[list[int]]:
    """Each row's tokens but the last."""
    made = [
        [int(s.tokens[row]) for i, s in enumerate(steps) if not i or not steps[i - 1].finished[row]]
        for row in range(len(prompts))
    ]
    return [[*prompt, *new][:-1] for prompt, new in zip(prompts, made, strict=True)]


def _check_cache(model: Transformer, cache: Cache, held: list[list[int]]) -> None:
    found = model([[7]] * len(held), cache=cache).detach().numpy()[:, 0]
    for row, ids in zip(found, held, strict=True):
        expected = model([[*ids, 7]]).detach().numpy()[0, -1]
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("prompts", ["one", "ragged"])
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_stream_that_is_closed_early_leaves_what_was_read(prompts: str, taken: int) -> None:
    model, given = make(), PROMPTS[prompts]
    cache = Cache.for_model(model, len(given))
    steps = model.generate(given, 30, temperature=0, cache=cache, stream=True,
                           speculate=guesses("itself", model))  # fmt: skip
    found = [next(steps) for _ in range(taken)]
    steps.close()
    held = _held(given, found)
    assert cache.lengths.tolist() == [len(ids) for ids in held]
    _check_cache(model, cache, held)


@pytest.mark.parametrize("kind", ["lookup", "itself"])
def test_the_context_ends_it(kind: str) -> None:
    model = make(room=20)
    for prompts in ([[1, 2, 1, 2]], [[1] * 19, [2, 3]], [[1] * 20, [2, 3]]):
        expected = rows(model.generate(prompts, 50, temperature=0))
        guide = guesses(kind, model)
        assert rows(model.generate(prompts, 50, temperature=0, speculate=guide)) == expected


def test_turns_of_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache goes on, and a draft model takes along what it has of the turn before."""
    model = make()
    fed, real = [], prefill.prefill

    def counted(of: Any, todo: Any, cache: Any) -> Any:
        fed.append(sum(map(len, todo)))
        return real(of, todo, cache)

    monkeypatch.setattr("tinytorch_gpu.generation.speculation.prefill", counted)
    guide, cache, ids = guesses("itself", model, capacity=80), Cache.for_model(model), [1, 2, 3]
    for turn in range(3):
        held = int(cache.lengths[0])
        guide.before = [ids[:held]]  # type: ignore[attr-defined]
        out = model.generate([ids[held:]], 8, temperature=0, cache=cache, speculate=guide)
        ids = ids[:held] + rows(out)[0]
        assert ids[-8:] == rows(model.generate([ids[:-8]], 8, temperature=0))[0][-8:]
        ids = [*ids, 5 + turn, 6]
    assert guide.accepted == guide.drafted and max(fed) <= 6


# --- lookup ----------------------------------------------------------------------------------


def _drafted(lookup: Lookup, ids: list[int], count: int) -> list[int]:
    lookup.begin([ids], None, 100)  # type: ignore[arg-type]
    found, counts = lookup.draft(count, np.array([count]), None)  # type: ignore[arg-type]
    return found[0, : counts[0]].tolist()


def test_what_is_looked_up() -> None:
    look = Lookup(ngrams=(3, 2))
    assert _drafted(look, [1, 2, 3, 4, 5, 1, 2, 3], 3) == [4, 5, 1]
    assert _drafted(look, [1, 2, 3, 4], 3) == [], "nothing came before"
    assert _drafted(look, [9, 2, 3, 7, 1, 2, 3, 8, 9, 2, 3], 1) == [7], "the longest decides"
    assert _drafted(look, [2, 3, 7, 2, 3, 8, 2, 3], 1) == [8], "then the last"
    assert _drafted(look, [5, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1], "what repeats goes on"
    look.before = [[1, 2, 3, 4]]
    assert _drafted(look, [6, 2, 3], 2) == [4, 6], "what a cache holds counts"


def test_nothing_found_is_an_ordinary_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = make(), Lookup(adaptive=False, ngrams=(30,))
    widths = []
    real = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, **more: widths.append(ids.shape[1]) or real(ids, **more)
    )
    model.generate([[1, 2, 3]], 10, temperature=0, speculate=guide)
    assert (guide.rounds, guide.drafted) == (0, 0) and widths == [3, 1], "captured from then on"


def test_passes_over_drafts_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the usual widths, and the draft model's two tokens: then nothing goes through the modules any more."""
    if not library():
        pytest.skip("without native code attention of several tokens is not repeated")
    model, widths = make(), list[int]()
    draft = near(model, 0.0)
    for of in (model, draft):
        real = of.hidden
        monkeypatch.setattr(
            of, "hidden",
            lambda ids, real=real, **more: widths.append(ids.shape[1]) or real(ids, **more),
        )  # fmt: skip
    guide = DraftModel(draft, adaptive=False, most=3)
    model.generate([[1, 2, 3]], 41, temperature=0, speculate=guide)
    assert guide.accepted == guide.drafted == 30 and guide.rounds == 10
    # The prompt, and the draft model's; its step; the pass over a draft; the draft model's two tokens.
    assert sorted(widths) == [1, 2, 3, 3, 4]


# --- when it pays ----------------------------------------------------------------------------


class Text:
    """What a pace chooses, and gains, on a text where a round with k drafted tokens takes ``cost(k)``."""

    def __init__(self, cost: Any, most: int = 7, watched: bool = False):
        self.cost, self.most, self.watched = cost, most, watched
        self.pace, self.random = Pace(most, watched), np.random.default_rng(0)
        self.chosen: list[int] = []

    def write(self, tokens: int, share: float) -> float:
        """So many tokens of which drafts are right by ``share``: how much faster than without drafts."""
        made, seconds, begun = 0, 0.0, len(self.chosen)
        while made < tokens:
            k = self.pace.choose(self.most, tokens - made - 1)
            self.chosen.append(k)
            right = int(np.argmin([*(self.random.random(k) < share), False]))
            took = self.cost(k)
            seconds += took
            made += right + 1
            if k:
                self.pace.round(k, min(right + 1, k), right, took)
                continue
            self.pace.step(took)
            if self.watched:
                self.pace.seen(1, int(self.random.random() < share))
        self.last = self.chosen[begun:]
        return tokens * self.cost(0) / seconds


@pytest.mark.parametrize("watched", [True, False])
def test_long_drafts_where_they_are_right_and_cheap(watched: bool) -> None:
    text = Text(lambda k: 1 + 0.05 * k, watched=watched)
    assert text.write(400, 0.95) > 3 and text.chosen[:3] == [0, 0, 0]
    assert np.mean(text.chosen[20:]) > 5 and text.pace.acceptance > 0.8


@pytest.mark.parametrize("watched", [True, False])
def test_short_drafts_where_they_are_often_wrong(watched: bool) -> None:
    text = Text(lambda k: 1 + 0.2 * k, watched=watched)
    assert text.write(400, 0.6) > 1.1
    assert 0.5 < np.mean(text.chosen[40:]) < 3.5


@pytest.mark.parametrize("fixed", [1.0, 3.0])
@pytest.mark.parametrize(("slope", "share"), [(1.1, 1.0), (0.3, 0.05), (0.05, 0.0)])
def test_none_where_they_do_not_pay(slope: float, share: float, fixed: float) -> None:
    """A round may cost the more the more it drafts, or as much for any: little is lost."""
    text = Text(lambda k: fixed + slope * k if k else 1)
    assert text.write(80, share) > 0.85, "the first trials are a large part of a short text"
    assert text.write(1000, share) > 0.97


@pytest.mark.parametrize("cost", [lambda k: 1 + 0.05 * k, lambda k: 4 + 0.2 * k if k else 1])
def test_no_trial_of_what_was_seen_to_be_wrong(cost: Any) -> None:
    text = Text(cost, watched=True)
    assert text.write(80, 0.0) == 1 and text.write(2000, 0.05) > 0.99


def test_a_price_above_what_drafts_give_is_learnt_by_two_rounds() -> None:
    """Half of the drafted tokens come true, and a round takes four steps."""
    text = Text(lambda k: 4 + 0.2 * k if k else 1, watched=True)
    assert text.write(80, 0.5) > 0.85 and sum(k > 0 for k in text.chosen) <= 3


@pytest.mark.parametrize("watched", [True, False])
def test_it_begins_again_when_the_text_becomes_easy(watched: bool) -> None:
    text = Text(lambda k: 1 + 0.2 * k, watched=watched)
    assert text.write(400, 0.0) > 0.95
    assert text.write(600, 1.0) > 1.6 and np.mean(text.chosen[-20:]) > 5


def test_what_is_paid_once_is_no_price() -> None:
    """The first round of a length compiles: a hundred steps long."""
    seen: set[int] = {0}

    def cost(k: int) -> float:
        first = k not in seen
        seen.add(k)
        return 1 + 0.1 * k + 100 * first

    text = Text(cost)
    text.write(300, 0.95)
    assert len(seen) <= 6 and np.mean(text.last[20:]) > 5
    assert Text(lambda k: 1 + 0.1 * k).write(300, 0.95) > 2


def test_a_dear_preparation_makes_rests_longer() -> None:
    """What a draft model must read first costs too, though the next round does not have to pay it."""
    rests = []
    for once in (0.0, 10.0):
        pace = Pace(7)
        for _ in range(3):
            pace.step(1.0)
        while (k := pace.choose(7, 400)) > 0:
            pace.round(k, 1, 0, 3.0, once)
        rests.append(1)
        while pace.choose(7, 400) == 0:
            rests[-1] += 1
    assert rests[0] >= 32 and rests[1] >= 3 * rests[0]


def test_a_pause_of_the_machine_is_forgiven() -> None:
    text = Text(lambda k: 1 + 0.1 * k)
    text.write(80, 0.9)
    text.pace.round(7, 7, 7, 1000.0)
    assert text.pace.choose(7, 400) > 2


def test_lengths_that_were_not_tried_are_told_from_those_that_were() -> None:
    pace = Pace(11)
    for _ in range(3):
        pace.step(1.0)
    pace.seen(200, 190)
    assert pace.choose(11, 400) == 11 and pace.choose(5, 400) == 5 and pace.choose(0, 400) == 0
    assert pace.choose(7, 2) == 0, "too few are left to pay for the first round of a length"
    for k, seconds in ((3, 2.0), (11, 4.0)):
        pace.round(k, k, k, 99.0)  # not believed
        pace.round(k, k, k, seconds)
    prices = [pace._price(k) for k in (1, 3, 7, 11)]
    assert prices == pytest.approx([1 + 1 / 2 + 1 / 6, 2, 3, 4])
    assert pace._price(15) == pytest.approx(4.8)


def test_guesses_are_compared_with_ordinary_steps() -> None:
    look = Lookup(ngrams=(2,))
    look.begin([[1, 2, 3, 4, 5, 1, 2], [9, 8]], None, 100)  # type: ignore[arg-type]
    before = look.pace.acceptance
    for token in (3, 4, 5):
        look.learn(0, [token], 0)
        look.learn(1, [token], 0)
    assert look.pace.acceptance > max(before, 0.6)
    look.learn(0, [30], 0)
    assert look.pace.acceptance < 0.6
    look.learn(0, [1, 2], 0)
    look.draft(2, np.array([2, 2]), None)  # type: ignore[arg-type]
    known = look.pace.acceptance
    look.learn(0, [3, 4], 2)
    assert look.pace.acceptance == known, "the pass has counted them"


def test_generate_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which a pass takes as long as its tokens: drafts cannot pay."""
    model, now = make(), [0.0]
    real = speculative_run.SpeculativeRun._check

    def slow(self: Any, drafts: Any, counts: Any) -> Any:
        now[0] += drafts.shape[1] + 1
        return real(self, drafts, counts)

    monkeypatch.setattr(speculative_run.SpeculativeRun, "_check", slow)

    def clock() -> float:  # a second by itself, for an ordinary step
        now[0] += 1
        return now[0]

    monkeypatch.setattr(speculative_run, "clock", clock)
    guide = Lookup(ngrams=(1,))
    model.generate([[1, 2, 1, 2]], 60, temperature=0, speculate=guide)
    assert guide.rounds <= 5


# --- mistakes --------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    model = make()
    for bad in ("draft", 3, object()):
        with pytest.raises(ValueError, match="speculate must be"):
            model.generate([[1]], 3, speculate=bad, stream=True)
    other = Transformer(60, 32, 4, 2, 48, device="cpu")
    with pytest.raises(ValueError, match=r"60 tokens.* 50"):
        model.generate([[1]], 3, speculate=other)
    with pytest.raises(ValueError, match=r"most.*0"):
        Lookup(most=0)
    with pytest.raises(ValueError, match="ngrams"):
        Lookup(ngrams=(0,))
