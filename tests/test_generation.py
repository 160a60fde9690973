"""Generation: the cache changes nothing but the time, rows do not see each other."""

import itertools
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.generation import Cache, Step, prefill

LLAMA = {"norm": "rms", "position": "rotary", "activation": "swiglu", "ffn_bias": False,
         "num_kv_heads": 2}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True,
             "tie_embeddings": True},
    "llama": LLAMA,
    "part of a head turned": {**LLAMA, "rotary_dim": 4},
    "course": {},
    "post-norm": {"pre_norm": False},
    "sliding window": {**LLAMA, "sliding_window": 3},
    "qk norm": {**LLAMA, "qk_norm": True},
    "no positions": {"position": "none"},
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9], [1], [2, 3, 4]]


def make(family: str = "llama", room: int = 40, **options: Any) -> Transformer:
    config = TransformerConfig(50, 32, 4, 2, 48, room, **{**FAMILIES[family], **options})
    return Transformer.from_config(config, device="cpu", seed=4)


@pytest.fixture(params=FAMILIES)
def model(request: Any) -> Transformer:
    return make(request.param)


def rows(result: Any) -> list[list[int]]:
    return [list(map(int, row.numpy())) for row in result]


def logits(model: Transformer, ids: Any, cache: Any = None) -> Any:
    return model(ids, cache=cache).detach().numpy()


# --- the cache against none ------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(1,) * 12, (12,), (5, 1, 1, 5), (1, 11)], ids=str)
def test_cached_logits_at_every_position(model: Transformer, parts: tuple[int, ...]) -> None:
    ids = np.random.default_rng(0).integers(0, 50, (2, 12))
    expected = logits(model, ids)
    cache, start, found = Cache.for_model(model, 2), 0, []
    for count in parts:
        found.append(logits(model, ids[:, start : start + count], cache))
        start += count
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-4)
    assert cache.lengths.tolist() == [12, 12]


def test_greedy_is_the_likeliest_without_a_cache(model: Transformer) -> None:
    ids = [1, 2, 3]
    out = rows(model.generate([ids], 8, temperature=0))[0]
    for _ in range(8):
        ids = [*ids, int(logits(model, ids)[0, -1].argmax())]
    assert out == ids


def test_rows_of_a_ragged_batch_are_the_prompts_alone(model: Transformer) -> None:
    together = rows(model.generate(PROMPTS, 10, temperature=0))
    assert together == [rows(model.generate([p], 10, temperature=0))[0] for p in PROMPTS]


def test_rows_of_an_even_batch_are_the_prompts_alone(model: Transformer) -> None:
    prompts = [[1, 2, 3], [4, 5, 6]]
    together = rows(model.generate(prompts, 10, temperature=0))
    assert together == [rows(model.generate([p], 10, temperature=0))[0] for p in prompts]


@pytest.mark.parametrize("prompts", [[[1] * 23, [2] * 23], [[1] * 23, [2, 3], [4] * 9], [[7] * 23]])
def test_long_prompts_are_read_in_parts(
    model: Transformer, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows(model.generate(prompts, 6, temperature=0))
    for part in (1, 4, 8):
        monkeypatch.setattr(prefill, "PREFILL_CHUNK", part)
        assert rows(model.generate(prompts, 6, temperature=0)) == whole


def test_prompts_over_the_real_part_size() -> None:
    model = make(room=prefill.PREFILL_CHUNK + 40)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 50, n).tolist() for n in (prefill.PREFILL_CHUNK + 20, 30)]
    together = rows(model.generate(prompts, 4, temperature=0))
    assert together == [rows(model.generate([p], 4, temperature=0))[0] for p in prompts]
    last = int(logits(model, prompts[0])[0, -1].argmax())
    assert together[0][len(prompts[0])] == last


# --- stopping --------------------------------------------------------------------------------


def _free(model: Transformer, count: int = 10) -> list[list[int]]:
    return rows(model.generate([[1, 2, 3], [4, 5, 6]], count, temperature=0))


def test_stop_tokens_and_pads() -> None:
    model = make()
    free = _free(model)
    stop = free[0][5]
    out = rows(
        model.generate([[1, 2, 3], [4, 5, 6]], 10, temperature=0, stop_tokens=[stop], pad_id=33)
    )
    for row, unstopped in zip(out, free, strict=True):
        new = unstopped[3:]
        end = 3 + (new.index(stop) + 1 if stop in new else len(new))
        assert row[:end] == unstopped[:end]
        assert set(row[end:]) <= {33}
    assert out[0][5] == stop or stop in free[0][3:5]


def test_all_rows_stopped_ends_it() -> None:
    model = make()
    first = _free(model)[0][3]
    assert len(rows(model.generate([[1, 2, 3]], 10, temperature=0, stop_tokens=[first]))[0]) == 4


def test_ragged_rows_that_stop_are_shorter() -> None:
    model = make()
    free = rows(model.generate(PROMPTS, 10, temperature=0))
    stop = free[1][1 + 2]
    out = rows(model.generate(PROMPTS, 10, temperature=0, stop_tokens={stop}))
    for row, unstopped, prompt in zip(out, free, PROMPTS, strict=True):
        new = unstopped[len(prompt) :]
        end = len(prompt) + (new.index(stop) + 1 if stop in new else len(new))
        assert row == unstopped[:end]


def test_max_seq_length_ends_it() -> None:
    model = make(room=8)
    assert len(rows(model.generate([[1, 2, 3]], 50, temperature=0))[0]) == 8
    out = rows(model.generate([[1, 2, 3, 4, 5, 6], [1]], 50, temperature=0))
    assert [len(row) for row in out] == [8, 8]
    assert out[1] == rows(model.generate([[1]], 50, temperature=0))[0]
    assert rows(model.generate([[1] * 8], 5)) == [[1] * 8]
    with pytest.raises(ValueError, match=r"9 .*8"):
        model.generate([[1] * 9], 5)


def test_nothing_more_is_the_prompt() -> None:
    assert rows(make().generate([[1, 2]], 0)) == [[1, 2]]
    assert rows(make().generate([[1, 2], [3]], 0)) == [[1, 2], [3]]
    assert list(make().generate([[1, 2]], 0, stream=True)) == []


# --- streams and seeds -----------------------------------------------------------------------


def test_a_stream_is_the_same_tokens() -> None:
    model = make()
    options = {"seed": 5, "top_k": 20, "stop_tokens": (7, 8)}
    whole = rows(model.generate([[1, 2], [3, 4]], 12, **options))
    steps = model.generate([[1, 2], [3, 4]], 12, stream=True, **options)
    assert iter(steps) is steps
    found = list(steps)
    assert all(isinstance(step, Step) and step.tokens.shape == (2,) for step in found)
    assert np.stack([s.tokens for s in found], axis=1).tolist() == [row[2:] for row in whole]
    for before, after in itertools.pairwise(found):
        assert (after.finished >= before.finished).all()
    assert found[-1].finished.all()


def test_bad_arguments_of_a_stream_raise_at_once() -> None:
    with pytest.raises(ValueError):
        make().generate([[1]], 5, temperature=-1, stream=True)


def test_a_seed_repeats() -> None:
    model = make()
    one, two, other, free = (
        rows(model.generate([[1, 2, 3]], 30, seed=seed)) for seed in (1, 1, 2, None)
    )
    assert one == two != other and free != one


def test_the_mode_is_put_back() -> None:
    model = make(dropout=0.5)
    first, second = (rows(model.generate([[1, 2]], 5, temperature=0)) for _ in range(2))
    assert first == second, "dropout is off"
    assert all(module.training for module in model.modules())
    steps = model.generate([[1, 2]], 5, stream=True)
    next(steps)
    steps.close()
    assert all(module.training for module in model.modules())
    model.eval()
    model.generate([[1, 2]], 2)
    assert not any(module.training for module in model.modules())


def test_nothing_is_recorded_and_a_streams_reader_may_record() -> None:
    from tinytorch_gpu.core.tensor import grad_enabled

    model = make()
    for _ in model.generate([[1, 2]], 3, stream=True):
        assert grad_enabled()
    assert all(p.grad is None for p in model.parameters())


def test_broken_weights_are_said() -> None:
    model = make()
    model.final_norm.gamma.data[...] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.generate([[1, 2]], 3)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.5}, "temperature.*-0.5"), ({"temperature": float("nan")}, "temperature.*nan"),
    ({"temperature": float("inf")}, "temperature.*inf"), ({"temperature": "hot"}, "temperature.*hot"),
    ({"top_k": -1}, "top_k.*-1"), ({"top_k": 2.5}, r"top_k.*2\.5"), ({"top_p": 0.0}, r"top_p.*0\.0"),
    ({"top_p": 1.5}, r"top_p.*1\.5"), ({"top_p": float("nan")}, "top_p.*nan"),
    ({"min_p": -0.1}, r"min_p.*-0\.1"), ({"min_p": 2}, "min_p.*2"),
    ({"repetition_penalty": 0}, "repetition_penalty.*0"),
    ({"repetition_penalty": -1.0}, r"repetition_penalty.*-1"),
    ({"max_new_tokens": -1}, "max_new_tokens.*-1"), ({"max_new_tokens": 1.5}, r"max_new_tokens.*1\.5"),
    ({"max_new_tokens": True}, "max_new_tokens.*True"), ({"max_new_tokens": "x"}, "max_new_tokens.*x"),
    ({"max_new_tokens": None}, "max_new_tokens.*None"),
    ({"seed": -1}, "seed.*-1"), ({"seed": 0.5}, r"seed.*0\.5"), ({"seed": 2**64}, "seed"),
    ({"stop_tokens": 5}, "stop_tokens.*5"), ({"stop_tokens": ["a"]}, "stop_tokens.*a"),
    ({"stop_tokens": "ab"}, "stop_tokens.*ab"), ({"pad_id": "x"}, "pad_id.*x"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), BAD, ids=str)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().generate([[1, 2]], **options)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "empty"), ([[]], "empty"), ([[1], []], "empty"), ([[50]], "50"), ([[1], [2, -3]], "-3"),
     ([[1.5]], "integers"), ([["a"]], "integers"), (np.ones((1, 1, 1), int), r"\(1, 1, 1\)"),
     ([[1, [2]], [3]], "prompt|integers|shape"), (7, r"\(\)"), ("text", "integers|prompt")],
    ids=str,
)  # fmt: skip
def test_bad_prompts_are_named(prompt: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().generate(prompt, 3)
