"""Native attention through caches of 16 and 8 bits, and what threads must not change."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import backend, no_grad, ops, processors
from tinytorch_gpu.host import attention as host
from tinytorch_gpu.native import cached_attention, library
from tinytorch_gpu.quantized.cache import EightBit

if library() is None:
    pytest.skip("there is no native library", allow_module_level=True)

BATCH, CAPACITY = 2, 700


def drawn(random: Any, *shape: int) -> Any:
    return random.standard_normal(shape).astype(np.float32)


def cache_of(numbers: Any, dtype: str) -> Any:
    if dtype != "q8_0":
        return numbers.astype(backend.dtype(dtype))
    made = EightBit.zeros(numbers.shape)
    made[...] = numbers
    return made


def contents(cache: Any) -> list[Any]:
    arrays = [cache.values, cache.scales] if isinstance(cache, EightBit) else [cache]
    return [array.view(f"u{array.itemsize}") for array in arrays]


def arguments(dtype: str, width: int, tokens: int = 3, kv_heads: int = 2) -> tuple[Any, ...]:
    random = np.random.default_rng(width)
    keys, values = (drawn(random, BATCH, CAPACITY, kv_heads, width) for _ in range(2))
    new = drawn(random, BATCH, tokens, 3 * kv_heads + 2 * kv_heads, width)
    new[0, 0, -1] = 0  # a head of nothing
    starts = np.array([611, 40])
    angles = np.arange(CAPACITY)[:, None] * 0.7 ** np.arange(width // 2)
    tables = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    places = starts[:, None] + np.arange(tokens)
    caches = (cache_of(keys, dtype), cache_of(values, dtype))
    return (new, *caches, starts, starts + tokens, *tables, places)


@pytest.mark.parametrize("width", [64, 6, 40, 128])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_narrow_caches(dtype: str, width: int) -> None:
    """The same numbers are put into the cache to the last bit, and read alike."""
    given, other = arguments(dtype, width), arguments(dtype, width)
    options = {"heads": 6, "stop": CAPACITY}
    assert cached_attention._accepts(*given, **options)
    with no_grad():
        made = ops.cached_attention(*given, **options).data
        expected = host.cached(*other, **options)
    for own, theirs in zip(given[1:3], other[1:3], strict=True):
        # Turned keys may differ in the last bit, and then be rounded another way.
        for a, b in zip(contents(own), contents(theirs), strict=True):
            differing = (a != b).sum()
            assert differing <= 4 if own is given[1] else differing == 0
    np.testing.assert_allclose(made, expected, atol=1e-3 if dtype != "q8_0" else 4e-3)


def test_numbers_that_16_and_8_bits_do_not_have() -> None:
    strange = np.array(
        [np.nan, np.inf, -np.inf, 65519, 65520, -1e30, 3e-8, 2.9e-8, -6e-8, 0, 1e-40, 1.0005]
    )
    for dtype in ("float16", "bfloat16", "q8_0"):
        given = arguments(dtype, 12, 1)
        new, keys, values, starts = given[:4]
        new[:, :, -2:] = strange.astype(np.float32)
        with no_grad(), np.errstate(all="ignore"):
            ops.cached_attention(new, keys, values, starts, starts + 1, heads=6, stop=CAPACITY)
            expected = cache_of(new[:, :, -2:], dtype)
        found = np.asarray(values.scales if dtype == "q8_0" else values)[np.arange(2), starts]
        wanted = np.asarray(expected.scales if dtype == "q8_0" else expected)[:, 0]
        np.testing.assert_array_equal(found.astype(float), wanted.astype(float))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for count in (threads, 1):
        monkeypatch.setattr(processors, "chosen", count)
        with no_grad():
            given = arguments("float32", 64, 1)
            made.append(ops.cached_attention(*given, heads=6, stop=CAPACITY).data)
    np.testing.assert_array_equal(*made)
