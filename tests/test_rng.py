"""Philox against Random123's known answers, and what is made of it."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu.devices import device
from tinytorch_gpu.rng import Generator, philox, uniform

ONES = 0xFFFFFFFF
# kat_vectors of Random123: counter, key, answer of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


def state(seed: int, offset: int) -> Any:
    return np.array([seed, offset], np.uint64)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: Any, key: Any, answer: Any) -> None:
    words = philox(
        tuple(np.array([c], np.uint64) for c in counter), tuple(np.array([k], np.uint64) for k in key)
    )  # fmt: skip
    assert tuple(int(w[0]) for w in words) == answer


def test_element_i_is_word_i_mod_4_of_group_i_div_4() -> None:
    seed, offset = 0x299F31D0A4093822, 0x0370734413198A2E
    draws = uniform(state(seed, offset), 7, np.float64)
    words = philox(
        tuple(np.array([c], np.uint64) for c in (1, 0, 0x13198A2E, 0x03707344)),
        tuple(np.array([k], np.uint64) for k in (0xA4093822, 0x299F31D0)),
    )  # fmt: skip
    expected = [(int(w[0] >> np.uint64(9)) + 0.5) / 2**23 for w in words]
    np.testing.assert_array_equal(draws[4:7], expected[:3])


def test_a_count_is_the_start_of_a_longer_one() -> None:
    np.testing.assert_array_equal(
        uniform(state(1, 2), 5, np.float32), uniform(state(1, 2), 100, np.float32)[:5]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers(dtype: str) -> None:
    draws = uniform(state(3, 0), 200_000, np.dtype(dtype))
    assert draws.dtype == dtype
    assert 0 < draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    assert np.sum((counts - 2000.0) ** 2) / 2000 < 150  # chi-square, 99 degrees: 0.1 % is 148


def test_float32_has_the_numbers_of_float64() -> None:
    np.testing.assert_array_equal(
        uniform(state(9, 9), 1000, np.float32), uniform(state(9, 9), 1000, np.float64)
    )


@pytest.mark.parametrize("other", [(5, 1), (6, 0), (5 + 2**32, 0), (5, 2**32)])
def test_offsets_and_seeds_are_independent(other: tuple[int, int]) -> None:
    a, b = (uniform(state(*s), 20_000, np.float64) for s in ((5, 0), other))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert not np.isin(a[:100], b[:100]).all()
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.03


def test_a_generator_counts() -> None:
    generator = Generator(device("cpu"), 2**64 - 1)
    first, second = generator.next(), generator.next()
    assert [int(x) for x in first] == [2**64 - 1, 0] and int(second[1]) == 1
    assert first.dtype == np.uint64


def test_no_seed_is_another_each_time() -> None:
    assert Generator(device("cpu")).seed != Generator(device("cpu")).seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "1"])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        Generator(device("cpu"), seed)
