"""The cache of keys and values between passes: continuing, taking back, saving."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer
from tinytorch_gpu.generation import Cache

LLAMA: dict[str, Any] = {"norm": "rms", "position": "rotary", "activation": "swiglu",
                         "num_kv_heads": 2}  # fmt: skip


@pytest.fixture(
    params=[{}, LLAMA, {**LLAMA, "sliding_window": 4}], ids=["course", "llama", "window"]
)
def model(request: Any) -> Transformer:
    return Transformer(50, 32, 4, 2, 48, 64, device="cpu", seed=4, **request.param)


def logits(model: Transformer, ids: Any, cache: Any = None) -> Any:
    return model(ids, cache=cache).detach().numpy()


def test_what_it_is(model: Transformer) -> None:
    cache = Cache.for_model(model, 3)
    heads = model.config.kv_heads
    assert cache.keys[0].shape == cache.values[1].shape == (3, 64, heads, 8)
    assert cache.nbytes == 2 * 2 * 3 * 64 * heads * 8 * 4
    assert Cache.for_model(model, capacity=10).capacity == 10
    assert Cache.for_model(model, capacity=1000).capacity == 64
    for bad in ({"batch": 0}, {"capacity": 0}):
        with pytest.raises(ValueError, match="must be at least 1, not 0"):
            Cache.for_model(model, **bad)


def test_a_continued_cache_is_the_whole(model: Transformer) -> None:
    cache = Cache.for_model(model)
    first = model.generate([[1, 2, 3]], 5, temperature=0, cache=cache).numpy()[0]
    assert cache.lengths.tolist() == [7], "all tokens but the last one"
    # The last token and the new ones continue what is held.
    new = [int(first[-1]), 9, 8]
    continued = model.generate([new], 6, temperature=0, cache=cache).numpy()[0]
    whole = model.generate([[*first[:-1].tolist(), *new]], 6, temperature=0).numpy()[0]
    assert continued[3:].tolist() == whole[-6:].tolist()


def test_a_continued_ragged_batch_is_the_whole(model: Transformer) -> None:
    prompts, more = [[1, 2, 3, 4], [5]], [[6], [7, 8, 9]]
    cache = Cache.for_model(model, 2)
    model.generate(prompts, 1, temperature=0, cache=cache)
    assert cache.lengths.tolist() == [4, 1]
    continued = model.generate(more, 6, temperature=0, cache=cache)
    for prompt, new, row in zip(prompts, more, continued, strict=True):
        whole = model.generate([[*prompt, *new]], 6, temperature=0).numpy()[0]
        assert row.numpy()[len(new) :].tolist() == whole[-6:].tolist()


def test_rollback(model: Transformer) -> None:
    cache = Cache.for_model(model, 2)
    expected = logits(model, [[1, 2, 3, 4]] * 2)
    logits(model, [[1, 2, 30, 31]] * 2, cache)
    cache.rollback(2)
    np.testing.assert_allclose(logits(model, [[3, 4]] * 2, cache), expected[:, 2:], atol=1e-5)
    cache.rollback(1, row=1)
    assert cache.lengths.tolist() == [4, 3]
    found = logits(model, [[5], [4]], cache)
    np.testing.assert_allclose(found[1], expected[1, 3:], atol=1e-5)
    np.testing.assert_allclose(found[0, -1], logits(model, [1, 2, 3, 4, 5])[0, -1], atol=1e-5)
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=str(bad)):
            cache.rollback(bad)


def test_reset(model: Transformer) -> None:
    cache = Cache.for_model(model, 2)
    logits(model, [[1, 2, 3], [4, 5, 6]], cache)
    cache.reset(0)
    assert cache.lengths.tolist() == [0, 3]
    found = logits(model, [[7], [8]], cache)
    np.testing.assert_allclose(found[0], logits(model, [7])[0], atol=1e-5)
    np.testing.assert_allclose(found[1, -1], logits(model, [4, 5, 6, 8])[0, -1], atol=1e-5)
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]


def test_save_and_restore(model: Transformer) -> None:
    cache = Cache.for_model(model, 1)
    logits(model, [[1, 2, 3]], cache)
    saved = cache.save()
    first = logits(model, [[4, 5]], cache)
    logits(model, [[9, 9, 9]], cache)
    cache.restore(saved)
    assert cache.lengths.tolist() == [3]
    np.testing.assert_array_equal(logits(model, [[4, 5]], cache), first)
    other = Cache.for_model(model, 1)
    other.restore(saved)
    np.testing.assert_array_equal(logits(model, [[4, 5]], other), first)
    with pytest.raises(ValueError, match=r"3 tokens .* 2 tokens"):
        Cache.for_model(model, 1, capacity=2).restore(saved)


def test_overflow_changes_nothing(model: Transformer) -> None:
    cache = Cache.for_model(model, 1, capacity=5)
    logits(model, [[1, 2, 3, 4]], cache)
    with pytest.raises(ValueError, match=r"2 more .* 4 of 5"):
        logits(model, [[5, 6]], cache)
    assert cache.lengths.tolist() == [4]
    np.testing.assert_allclose(
        logits(model, [[5]], cache)[0, -1], logits(model, [1, 2, 3, 4, 5])[0, -1], atol=1e-5
    )
    with pytest.raises(ValueError, match="batch of 1, not 2"):
        logits(model, [[1], [2]], cache)
    with pytest.raises(ValueError, match="batch of 1, not 2"):
        model.generate([[1], [2]], 3, cache=cache)
    with pytest.raises(ValueError, match=r"6 .*5"):
        model.generate([[1]], 3, cache=cache)


def test_a_failed_pass_counts_nothing(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache.for_model(model, 1)
    logits(model, [[1, 2]], cache)
    block = model.transformer_blocks[1]
    with monkeypatch.context() as patch:
        patch.setattr(block, "ffn", None)
        with pytest.raises(TypeError):
            logits(model, [[3, 4, 5]], cache)
    assert cache.lengths.tolist() == [2]
    expected = logits(model, [1, 2, 3])[0, -1]
    np.testing.assert_allclose(logits(model, [[3]], cache)[0, -1], expected, atol=1e-5)


def test_a_mask_and_weights_through_the_cache(model: Transformer) -> None:
    cache = Cache.for_model(model, 1)
    logits(model, [[1, 2, 3]], cache)
    out, weights = model([[4]], cache=cache, return_attention_weights=True)
    _, whole = model([[1, 2, 3, 4]], return_attention_weights=True)
    assert weights[0].shape == (1, 4, 1, 4) and out.shape == (1, 1, 50)
    np.testing.assert_allclose(weights[1].data[:, :, 0], whole[1].data[:, :, 3], atol=1e-5)


def test_a_mask_of_another_length_through_the_cache(model: Transformer) -> None:
    cache = Cache.for_model(model, 1)
    logits(model, [[1, 2, 3]], cache)
    mask = np.array([[1, 0, 1, 1]])
    found = model([[4]], mask=mask, cache=cache).detach().numpy()
    full = np.ones((4, 4))
    full[3] = mask[0]
    expected = model([[1, 2, 3, 4]], mask=full).detach().numpy()
    np.testing.assert_allclose(found[0, -1], expected[0, -1], atol=1e-5)
