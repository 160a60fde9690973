"""Attention by its kernels where the case table runs only one of their branches: other capabilities, other
orders of blocks and warps, and what they move between memory, shared memory and registers."""

from typing import Any

import numpy as np
import pytest
from attention_cases import ATTENTION
from cached_attention_cases import CACHED
from emulated_device import emulated_device
from flash_cases import FLASH
from maker_checks import check_maker, makers_of

from tinytorch_gpu import backend, emulated
from tinytorch_gpu.core.op import OPS
from tinytorch_gpu.quantized.cache import EightBit

EMULATED = emulated_device()
# Attention that returns its weights has no kernel, and some notes in common with the one that has.
CASES = {
    case.note: case for case in (*ATTENTION, *FLASH, *CACHED) if case.op != "attention_with_weights"
}
SHORT = [
    "one key head, odd width",  # grouped, causal, nothing aligned
    "three heads to a key head, in tiles",
    "tiles both ways",
    "more queries than keys, in tiles",
    "starts in tiles",  # with lengths and a window
    "mask over tiles",
    "bias over tiles",
    "dropout over tiles",
]
WIDE = ["dropout of a wide head", "tiles of a wide head"]  # split over warps


def _run(note: str, dtype: str) -> None:
    case = CASES[note]
    check_maker(case, dtype, dtype, *makers_of(case, EMULATED), EMULATED)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("note", [*SHORT, *WIDE])
def test_compute_capability_7_5(note: str, dtype: str) -> None:
    """Products of 8 columns for float16, none on tensor cores for bfloat16, copies at once."""
    with emulated.using(compute_capability=75):
        _run(note, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("note", SHORT)
def test_compute_capability_9_0(note: str, dtype: str) -> None:
    with emulated.using(compute_capability=90):
        _run(note, dtype)


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize("note", ["three splits", "new tokens over two splits"])
def test_cached_attention_of_other_capabilities(note: str, capability: int) -> None:
    with emulated.using(compute_capability=capability):
        _run(note, "float16")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("capability", [75, 80])
def test_any_order_of_blocks_and_warps(capability: int, seed: int) -> None:
    with emulated.using(compute_capability=capability, seed=seed):
        _run("tiles both ways", "float16")
        _run("dropout over tiles", "float16")
        _run("three splits", "float16")


def _draw(*shape: int, dtype: str) -> Any:
    values = np.random.default_rng(len(shape)).standard_normal(shape)
    return EMULATED.asarray(values.astype(backend.dtype(dtype)))


def _conflicts(launch: Any) -> list[str]:
    """The instructions of a launch whose accesses to shared memory take more than twice the fewest turns."""
    return [
        f"{launch.kernel} {emulated.runtime.source_line(site['library'], site['pc'])}: "
        f"{site['wavefronts']} turns of shared memory, {site['ideal']} at best"
        for site in launch.sites
        if site["shared"] and site["wavefronts"] > 2 * site["ideal"]
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "kv", "width", "keys"),
    [(9, 3, 64, 1024), (14, 2, 64, 1024), (32, 8, 128, 512), (8, 4, 256, 512), (12, 12, 64, 512)],
    ids=["SmolLM2 135M", "Qwen2.5 0.5B", "Llama 3 8B", "Gemma 2 2B", "GPT-2"],
)
def test_decoding_moves_little_more_than_the_cache(
    heads: int, kv: int, width: int, keys: int, dtype: str
) -> None:
    """Old keys and values in, the new ones in and appended, the queries in and the results out."""
    packed = _draw(1, 1, heads + 2 * kv, width, dtype=dtype)
    eight = EightBit.zeros((1, keys, kv, width), EMULATED)
    maker = OPS["cached_attention"].makers["cuda"][0]
    for cache in (_draw(1, keys, kv, width, dtype=dtype), eight):
        with emulated.recorded() as launches:
            maker.forward(packed, cache, cache.copy(), keys - 1, None, heads=heads, stop=keys)
        (launch,) = launches
        count = launch.counters
        least = 2 * cache.nbytes + packed.itemsize * width * 2 * (heads + kv)
        assert count.read_bytes + count.written_bytes <= 1.1 * least
        assert count.read_sectors + count.written_sectors <= 1.1 * count.ideal_sectors
        assert not _conflicts(launch)


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [32, 128])
def test_tiles_lie_in_different_banks(width: int, dtype: str, capability: int) -> None:
    q, k, v, dout = (_draw(1, 64, 1, width, dtype=dtype) for _ in range(4))
    maker = OPS["attention"].makers["cuda"][0]
    with emulated.using(compute_capability=capability), emulated.recorded() as launches:
        _, residuals = maker.forward(q, k, v)
        maker.backward(residuals, dout)
    assert not [conflict for launch in launches for conflict in _conflicts(launch)]
