"""Cached attention in pages, over narrower or odd caches, and what lies between two launches: what the
case table cannot say."""

from typing import Any

import numpy as np
import pytest
from cached_attention_cases import in_eight_bits
from emulated_device import emulated_device
from running_ops import error

from tinytorch_gpu import backend, devices, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.cuda import cached_attention as makers
from tinytorch_gpu.cuda.cached_attention import paged_attention
from tinytorch_gpu.quantized.cache import EightBit

REFERENCE = OPS["cached_attention"].reference


def _forward(*arguments: Any, **options: Any) -> Any:
    maker = OPS["cached_attention"].makers["cuda"][0]
    assert maker.accepts is not None and maker.accepts(*arguments, **options)
    return maker.forward(*arguments, **options)


def _inputs(
    batch: int, tokens: int, capacity: int, heads: int = 4, kv: int = 2, width: int = 8
) -> tuple[Any, ...]:
    random = np.random.default_rng(3)
    packed = random.standard_normal((batch, tokens, heads + 2 * kv, width)).astype(np.float32)
    cache = [random.standard_normal((batch, capacity, kv, width)).astype(np.float32) for _ in "kv"]
    return packed, *cache


def _turned(first: Any, tokens: int, width: int, places: int) -> list[Any]:
    """Tables of cos and sin, and the positions of new tokens."""
    angles = np.arange(places)[:, None] * 0.7 ** np.arange(width // 2)
    tables = [f(angles).astype(np.float32) for f in (np.cos, np.sin)]
    return [*tables, first[:, None] + np.arange(tokens)]


def _paged(place: Any, whole: Any, order: Any, page: int) -> Any:
    """Rows (B, capacity, K, D) as pages in the order given, and one page that belongs to nobody."""
    pool = np.full((len(order) + 1, page, *whole.shape[2:]), 9, whole.dtype)
    pool[order] = whole.reshape(-1, page, *whole.shape[2:])
    return place.asarray(pool)


@pytest.mark.parametrize("page", [1, 16, 19])
@pytest.mark.parametrize(
    ("tokens", "starts", "window"),
    [(1, [3, 250], None), (4, [17, 290], 100), (8, [0, 63], None), (11, [5, 200], None)],
)
def test_pages_hold_what_one_piece_holds(
    gpu: str, page: int, tokens: int, starts: list[int], window: int | None
) -> None:
    place = devices.device(gpu)
    packed, keys, values = _inputs(2, tokens, 304)
    first = np.array(starts)
    lengths, turned = first + tokens, _turned(first, tokens, 8, 304)
    expected = [keys.copy(), values.copy()]
    options = {"heads": 4, "stop": 304, "window": window}
    out = REFERENCE(packed, *expected, first, lengths, *turned, **options)
    order = np.random.default_rng(0).permutation(2 * 304 // page + 1)[:-1]
    pools = [_paged(place, whole, order, page) for whole in (keys, values)]
    table = place.asarray(order.reshape(2, -1).astype(np.int32))
    rest = [place.asarray(x) for x in (first, lengths, *turned)]
    made = paged_attention(place.asarray(packed), *pools, table, *rest, heads=4, window=window)
    assert error(made.get(), out) < 1e-5
    for pool, whole in zip(pools, expected, strict=True):
        np.testing.assert_allclose(pool.get()[order].reshape(whole.shape), whole, atol=1e-6)
        assert (np.delete(pool.get(), order, axis=0) == 9).all()


def test_wrong_pages_are_refused(gpu: str) -> None:
    place = devices.device(gpu)
    packed, keys, values = (place.asarray(x) for x in _inputs(1, 1, 16))
    starts, table = place.asarray(np.array([3])), place.asarray(np.zeros((1, 4), np.int32))
    with pytest.raises(ValueError, match="table must be int32"):
        wrong = place.asarray(np.zeros((1, 4)))
        paged_attention(packed, keys, values, wrong, starts, None, heads=4)
    with pytest.raises(ValueError, match="cannot take"):
        paged_attention(packed, keys, values, table, starts, None, heads=3)
    with pytest.raises(ValueError, match="stop 65"):
        paged_attention(packed, keys, values, table, starts, None, heads=4, stop=65)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_a_cache_may_be_narrower(gpu: str, storage: str, tokens: int) -> None:
    place = devices.device(gpu)
    packed, keys, values = _inputs(1, tokens, 300)
    keys, values = (x.astype(backend.dtype(storage)) for x in (keys, values))
    turned = _turned(np.array([290]), tokens, 8, 300)
    there = [place.asarray(x) for x in (packed, keys, values, *turned)]
    options = {"heads": 4, "stop": 290 + tokens}
    out = REFERENCE(packed, keys, values, 290, None, *turned, **options)
    made = _forward(*there[:3], 290, None, *there[3:], **options)
    assert made.dtype == np.float32 and error(made.get(), out) < 1e-5
    for a, b in zip(there[1:3], (keys, values), strict=True):
        np.testing.assert_array_equal(a.get().astype(float), b.astype(float))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [7, 32, 40, 64, 128])
@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_a_cache_in_8_bits_is_the_cpu_s_to_the_last_bit(
    gpu: str, tokens: int, width: int, dtype: str
) -> None:
    """What is not turned is rounded by one rule; a turned key may differ in a few last bits, by a step."""
    place = devices.device(gpu)
    packed, *cache = _inputs(2, tokens, 200, width=width)
    packed[0, 0, -1], packed[1, 0, -2, 0] = 0, np.nan
    packed[1, 0, -1, width // 2], packed[1, -1, -3, 0] = 3e7, np.inf
    packed = packed.astype(dtype)
    first, turned = np.array([5, 180]), _turned(np.array([5, 180]), tokens, width, 200)
    for tables in ((), turned):
        here = [in_eight_bits(x) for x in cache]
        there = [x.copy().moved_to(place) for x in here]
        rest = [first, first + tokens, *tables]
        with np.errstate(all="ignore"):
            out = REFERENCE(packed, *here, *rest, heads=4, stop=200)
        given = [place.asarray(x) for x in rest]
        made = _forward(place.asarray(packed), *there, *given, heads=4, stop=200)
        for keys, (a, b) in zip((True, False), zip(there, here, strict=True), strict=True):
            a = a.get()
            few = 4 if keys and tables else 0
            apart = np.abs(a.values.astype(int) - b.values)
            assert (apart > 0).sum() <= few and apart.max() <= 1
            numbers = ~(
                np.isnan(a.scales) & np.isnan(b.scales)
            )  # NaN has other bits on each device
            assert ((a.scales.view("u2") != b.scales.view("u2")) & numbers).sum() <= few
        assert error(made.get(), out) < (1e-5 if dtype == "float32" and not tables else 8e-3)


@pytest.mark.parametrize("tokens", [1, 8, 11])
@pytest.mark.parametrize(("page", "width"), [(1, 64), (19, 24), (16, 64)])
def test_pages_in_8_bits(gpu: str, page: int, width: int, tokens: int) -> None:
    place = devices.device(gpu)
    packed, *cache = _inputs(2, tokens, 304, width=width)
    first = np.array([17, 250])
    here = [in_eight_bits(x) for x in cache]
    order = np.random.default_rng(0).permutation(2 * 304 // page + 1)[:-1]
    pools = [
        EightBit(_paged(place, x.values, order, page), _paged(place, x.scales, order, page))
        for x in here
    ]
    out = REFERENCE(packed, *here, first, first + tokens, heads=4, stop=304)
    table = place.asarray(order.reshape(2, -1).astype(np.int32))
    rest = [place.asarray(x) for x in (first, first + tokens)]
    made = paged_attention(place.asarray(packed), *pools, table, *rest, heads=4)
    assert error(made.get(), out) < 1e-5
    for pool, whole in zip(pools, here, strict=True):
        for a, b in ((pool.values, whole.values), (pool.scales, whole.scales)):
            np.testing.assert_array_equal(a.get()[order].reshape(b.shape), b)
            assert (np.delete(a.get(), order, axis=0) == 9).all()


def test_keys_and_values_that_do_not_belong_together_are_left_alone(gpu: str) -> None:
    place = devices.device(gpu)
    packed, *cache = (place.asarray(x) for x in _inputs(1, 1, 16, width=64))
    eight = [in_eight_bits(x, gpu) for x in _inputs(1, 1, 16, width=64)[1:]]
    maker = OPS["cached_attention"].makers["cuda"][0]
    assert maker.accepts is not None
    thin = EightBit(eight[1].values, eight[1].scales[..., :1])
    for keys, values in (
        (eight[0], cache[1]),
        (cache[0], eight[1]),
        (eight[0], thin),
        (thin, thin),
    ):
        assert not maker.accepts(packed, keys, values, 3, None, heads=4, stop=4)
    with pytest.raises(ValueError, match="paged attention cannot take"):
        table = place.asarray(np.zeros((1, 1), np.int32))
        paged_attention(packed, thin, thin, table, place.asarray(np.array([3])), None, heads=4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tokens", [2, 9])
def test_a_cache_may_lie_at_odd_places(gpu: str, dtype: str, tokens: int) -> None:
    place = devices.device(gpu)
    packed, *cache = (x.astype(dtype) for x in _inputs(2, tokens, 90, width=16))
    wide = [np.zeros((2, 90, 2, 19), dtype) for _ in "kv"]
    for room, x in zip(wide, cache, strict=True):
        room[..., 3:] = x
    views = [place.asarray(x)[..., 3:] for x in wide]
    out = REFERENCE(packed, *cache, 70, None, heads=4, stop=70 + tokens)
    made = _forward(place.asarray(packed), *views, 70, None, heads=4, stop=70 + tokens)
    assert error(made.get(), out) < (1e-5 if dtype == "float32" else 4e-3)
    for view, x in zip(views, cache, strict=True):
        np.testing.assert_array_equal(view.get(), x)


@pytest.mark.parametrize("keys", [1500, 4300])
def test_more_splits_than_half_a_warp_and_than_a_warp(keys: int) -> None:
    """Scores that grow along the row: every split has another maximum."""
    place = emulated_device()
    packed, *cache = _inputs(1, 1, keys, heads=2, kv=1)
    cache[0] *= np.linspace(0, 60, keys, dtype=np.float32)[:, None, None]
    out = REFERENCE(packed, *cache, keys - 1, None, heads=2, stop=keys)
    with emulated.using(processors=132), emulated.recorded() as launches:
        made = _forward(*map(place.asarray, (packed, *cache)), keys - 1, None, heads=2, stop=keys)
    assert launches[0].grid[0] > (32 if keys > 4000 else 16)
    assert error(made.get(), out) < 1e-5


def test_one_launch_fits_itself_to_the_lengths(gpu: str) -> None:
    """Of a captured step only the contents of arrays change: how many splits there are, too."""
    place = devices.device(gpu)
    packed, keys, values = _inputs(2, 1, 400)
    there = [place.asarray(x) for x in (packed, keys, values)]
    starts, ends = (place.asarray(np.zeros(2, np.int64)) for _ in "se")
    for first in ([0, 0], [1, 390], [399, 70], [64, 63], [399, 399], [0, 5]):
        now = np.array(first)
        starts[...], ends[...] = place.asarray(now), place.asarray(now + 1)
        out = REFERENCE(packed, keys, values, now, now + 1, heads=4, stop=400)
        made = _forward(*there, starts, ends, heads=4, stop=400)
        assert error(made.get(), out) < 1e-5
        again = _forward(*there, starts, ends, heads=4, stop=400)
        np.testing.assert_array_equal(made.get(), again.get())
    assert not any(x.get().any() for k, x in makers._COUNTERS.items() if k[0] == gpu)


def test_a_row_that_sees_no_key_appends_all_the_same(gpu: str) -> None:
    place = devices.device(gpu)
    packed, keys, values = _inputs(2, 3, 200)
    there = [place.asarray(x) for x in (packed, keys, values)]
    starts, lengths = np.array([5, 190]), np.array([0, 193])
    out = REFERENCE(packed, keys, values, starts, lengths, heads=4, stop=200)
    made = _forward(*there, place.asarray(starts), place.asarray(lengths), heads=4, stop=200)
    assert error(made.get(), out) < 1e-5 and not made.get()[0].any()
    np.testing.assert_array_equal(there[1].get(), keys)
    np.testing.assert_array_equal(there[2].get(), values)


def test_numbers_that_are_none_stay_visible(gpu: str) -> None:
    place = devices.device(gpu)
    packed, keys, values = _inputs(1, 1, 200)
    for bad in (np.nan, np.inf):
        spoilt = keys.copy()
        spoilt[0, 150, 0, 3] = bad
        there = [place.asarray(x) for x in (packed, spoilt, values)]
        made = _forward(*there, 190, None, heads=4, stop=191).get()
        out = REFERENCE(packed, spoilt, values.copy(), 190, None, heads=4, stop=191)
        np.testing.assert_array_equal(np.isnan(made), np.isnan(out))
        np.testing.assert_allclose(made, out, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv", "width", "dtype"),
    [
        (9, 3, 64, "float32"),
        (9, 3, 64, "float16"),
        (16, 4, 128, "float16"),
        (12, 12, 64, "float32"),
    ],
)
def test_the_cache_is_read_about_once(heads: int, kv: int, width: int, dtype: str) -> None:
    """Bytes moved, parts of the splits and all, against the least there could be."""
    from tinytorch_gpu import emulated

    try:
        place = devices.device("emulated")
    except devices.DeviceError as error_:
        pytest.skip(str(error_))
    packed, *cache = (x.astype(dtype) for x in _inputs(1, 1, 2048, heads, kv, width))
    for keys, values in (cache, [in_eight_bits(x) for x in cache]):
        there = [place.asarray(x) for x in (packed, keys, values)]
        with emulated.using(processors=132), emulated.recorded() as launches:
            out = _forward(*there, 2047, None, heads=heads, stop=2048)
        (launch,) = launches
        moved = launch.counters.read_bytes + launch.counters.written_bytes
        # The last place is not read but written.
        assert moved <= 1.1 * (packed.nbytes + keys.nbytes + values.nbytes + out.nbytes)
        assert launch.grid[0] > (8 if keys.dtype == dtype else 4)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("cache", ["as it is", "narrower", "8 bit"])
@pytest.mark.parametrize(
    ("heads", "kv", "width", "tokens", "starts"),
    [(4, 2, 8, 1, [3, 290]), (6, 2, 64, 1, [0, 150]), (3, 1, 100, 3, [7, 40]), (9, 1, 32, 8, [0, 66])],
)  # fmt: skip
def test_queries_and_keys_are_normed_in_the_same_launch(
    gpu: str, heads: int, kv: int, width: int, tokens: int, starts: list[int], cache: str, rotated: bool
) -> None:  # fmt: skip
    place, capacity = devices.device(gpu), 304
    packed, keys, values = _inputs(2, tokens, capacity, heads, kv, width)
    random, first = np.random.default_rng(5), np.array(starts)
    weights = [random.normal(1, 0.3, width).astype(np.float32) for _ in "qk"]
    rest = [first, first + tokens]
    rest += _turned(first, tokens, width, capacity) if rotated else []
    normed, _ = OPS["norm_heads"].reference(packed, *weights, heads=heads, eps=1e-3)
    if cache == "narrower":
        keys, values = (x.astype(np.float16) for x in (keys, values))
    expected = [in_eight_bits(x) if cache == "8 bit" else x.copy() for x in (keys, values)]
    options = {"heads": heads, "stop": capacity, "window": 250}
    out = REFERENCE(normed, *expected, *rest, **options)
    own = [in_eight_bits(x, gpu) if cache == "8 bit" else place.asarray(x) for x in (keys, values)]
    given = [place.asarray(x) for x in (packed, *weights)]
    forward = makers.after_norm_heads(given, 1e-3)
    assert forward is not None
    made = forward(given[0], *own, *(place.asarray(x) for x in rest), **options)
    # What is rounded for the cache may fall to the other side.
    allowed = {"as it is": 1e-5, "narrower": 2.0**-10, "8 bit": 1 / 60}[cache]
    assert error(made.get(), out) < allowed
    for one, wanted in zip(own, expected, strict=True):
        there = np.asarray(one[:].get() if cache != "8 bit" else backend.widen(one).get())
        np.testing.assert_allclose(there, np.asarray(backend.widen(wanted)), atol=4 * allowed)


def test_more_tokens_than_a_launch_has_are_normed_before(gpu: str) -> None:
    place = devices.device(gpu)
    x, weight = (
        place.asarray(np.ones((1, 9, 4, 8), np.float32)),
        place.asarray(np.ones(8, np.float32)),
    )
    assert makers.after_norm_heads([x, weight, weight], 1e-6) is None
    assert makers.after_norm_heads([x[:, :8], weight, weight.astype("float16")], 1e-6) is None
    assert makers.after_norm_heads([x[:, :8], weight, weight], 1e-6) is not None
