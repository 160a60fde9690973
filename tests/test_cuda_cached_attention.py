"""Cached attention in pages, over narrower caches, and its counters: what the case table cannot say."""

import numpy as np
import pytest
from running_ops import error

from tinytorch_gpu import backend
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda.cached_attention import paged_attention


def _inputs(batch: int, tokens: int, capacity: int, heads: int = 4, kv: int = 2, width: int = 8):
    random = np.random.default_rng(3)
    packed = random.standard_normal((batch, tokens, heads + 2 * kv, width)).astype(np.float32)
    cache = [random.standard_normal((batch, capacity, kv, width)).astype(np.float32) for _ in "kv"]
    return packed, *cache


@pytest.mark.parametrize(("tokens", "starts"), [(1, [3, 250]), (4, [17, 290]), (8, [0, 63])])
def test_pages_hold_what_one_piece_holds(gpu: str, tokens: int, starts: list[int]) -> None:
    place, page = backend.device(gpu), 16
    packed, keys, values = _inputs(2, tokens, 304)
    lengths, first = np.array(starts) + tokens, np.array(starts)
    expected = [keys.copy(), values.copy()]
    out = OPS["cached_attention"].reference(packed, *expected, first, lengths, heads=4, stop=304)
    # The pages of both rows, in any order, and one that belongs to nobody.
    order = np.random.default_rng(0).permutation(2 * 304 // page + 1)[:-1]
    pools = []
    for whole in (keys, values):
        pool = np.zeros((len(order) + 1, page, *whole.shape[2:]), np.float32)
        pool[order] = whole.reshape(-1, page, *whole.shape[2:])
        pools.append(place.asarray(pool))
    table = place.asarray(order.reshape(2, -1).astype(np.int32))
    made = paged_attention(
        place.asarray(packed), *pools, table, place.asarray(first), place.asarray(lengths),
        heads=4, stop=304,
    )  # fmt: skip
    assert error(made.get(), out) < 1e-5
    for pool, whole in zip(pools, expected, strict=True):
        np.testing.assert_array_equal(pool.get()[order].reshape(whole.shape), whole)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_a_cache_may_be_narrower(gpu: str, storage: str) -> None:
    place = backend.device(gpu)
    packed, keys, values = _inputs(1, 1, 300)
    keys, values = (x.astype(backend.dtype(storage)) for x in (keys, values))
    there = [place.asarray(x) for x in (packed, keys, values)]
    out = OPS["cached_attention"].reference(packed, keys, values, 290, None, heads=4, stop=291)
    op = OPS["cached_attention"].makers["cuda"]
    assert op.accepts(*there, 290, None, heads=4, stop=291)
    made = op.forward(*there, 290, None, heads=4, stop=291)
    assert made.dtype == np.float32 and error(made.get(), out) < 1e-5
    np.testing.assert_array_equal(there[1].get().astype(float), keys.astype(float))


def test_a_launch_leaves_its_counters_as_it_found_them(gpu: str) -> None:
    place = backend.device(gpu)
    arrays = [place.asarray(x) for x in _inputs(1, 1, 600)]
    op = OPS["cached_attention"].makers["cuda"]
    first, second = (op.forward(*arrays, 580, None, heads=4, stop=581).get() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_too_many_tokens_for_pages_are_refused(gpu: str) -> None:
    place = backend.device(gpu)
    packed, keys, values = (place.asarray(x) for x in _inputs(1, 9, 16))
    with pytest.raises(ValueError, match="9 new tokens"):
        paged_attention(packed, keys, values, None, None, None, heads=4, stop=16)
