"""The emulated device itself: small kernels that are right, and ones with each fault it must find."""

from typing import Any

import numpy as np
import pytest
from emulated_device import emulated_device

from tinytorch_gpu import emulated
from tinytorch_gpu.cuda.compile import signatures

DEVICE = emulated_device()
xp = DEVICE.xp


def run(
    body: str, *arguments: Any, takes: str = "float* y, int n", grid: Any = 1, block: Any = 64,
    shared: int = 0, before: str = "",
) -> None:  # fmt: skip
    """Launch a kernel of this ``body``; ``arguments`` default to an output of 64 floats and 64."""
    text = f'{before}\nextern "C" __global__ void k({takes}) {{\n{body}\n}}\n'
    given = arguments or (xp.empty((64,), "float32"), np.int32(64))
    grid = (grid,) if isinstance(grid, int) else grid
    emulated.launch(
        "k.cu", '#line 1 "k.cu"\n' + text, (), "k", signatures(text)["k"], grid, (block,), given, shared
    )  # fmt: skip


def outputs(n: int = 64) -> Any:
    return xp.empty((n,), "float32")


def faulty(match: str, body: str, *arguments: Any, **options: Any) -> None:
    """The kernel must fail with this message, and name a line of the file."""
    with pytest.raises(emulated.KernelError, match=match) as caught:
        run(body, *arguments, **options)
    assert "k.cu:" in str(caught.value)


def test_threads_blocks_and_grids() -> None:
    y = xp.empty((2, 3, 4, 5), "float32")
    body = """int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    y[block * blockDim.x + threadIdx.x] = block * 100 + threadIdx.x;"""
    run(body, y, np.int32(0), grid=(4, 3, 2), block=5)
    expected = np.arange(24)[:, None] * 100 + np.arange(5)
    np.testing.assert_array_equal(y.get().reshape(24, 5), expected)


def test_shuffles_votes_and_atomics() -> None:
    y, counts = outputs(32), xp.zeros((3,), "int32")
    body = """int lane = threadIdx.x;
    int up = __shfl_up_sync(~0u, lane, 1), down = __shfl_down_sync(~0u, lane, 2, 16);
    int swapped = __shfl_xor_sync(~0u, lane, 8), first = __shfl_sync(~0u, lane, 3, 8);
    unsigned odd = __ballot_sync(~0u, lane & 1);
    y[lane] = up + 100 * down + 10000 * swapped + first * 1e6f;
    if (odd == 0xaaaaaaaau && __any_sync(~0u, lane == 7) && !__all_sync(~0u, lane == 7)) atomicAdd(n, 1);
    atomicMax(n + 1, lane);
    atomicCAS(n + 2, 0, lane + 1);"""
    # The last thread's sum shows that all had voted alike; a sum of the lanes' places the rest.
    run(body, y, counts, takes="float* y, int* n", block=32)
    lane = np.arange(32)
    up, down = np.maximum(lane - 1, 0), np.where(lane % 16 + 2 < 16, lane + 2, lane)
    expected = up + 100 * down + 10000 * (lane ^ 8) + (lane // 8 * 8 + 3) * np.float32(1e6)
    np.testing.assert_array_equal(y.get(), expected.astype(np.float32))
    assert counts.get().tolist() == [32, 31, 1]


def test_a_loop_without_end_is_found() -> None:
    faulty("does not end", "for (int i = threadIdx.x; i < n; i = threadIdx.x) y[i] = i;")


def test_shared_memory_static_and_dynamic() -> None:
    y = outputs()
    body = """__shared__ float tile[4][17];
    extern __shared__ float more[];
    int t = threadIdx.x;
    tile[t / 16][t % 16] = t;
    more[t] = 2 * t;
    __syncthreads();
    y[t] = tile[3 - t / 16][t % 16] + more[63 - t];"""
    run(body, y, np.int32(64), shared=256)
    t = np.arange(64)
    np.testing.assert_array_equal(y.get(), (3 - t // 16) * 16 + t % 16 + 2 * (63 - t))


def test_the_last_block_may_combine() -> None:
    partial, counter, y = outputs(8), xp.zeros((1,), "int32"), outputs(1)
    body = """__shared__ int last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x + 1;
        FENCE
        last = atomicAdd(counter, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < gridDim.x; i++) sum += partial[i];
        *y = sum;
    }"""
    takes = "float* partial, int* counter, float* y"
    run(body.replace("FENCE", "__threadfence();"), partial, counter, y, takes=takes, grid=8)
    assert y.get()[0] == 36
    counter.fill(0)
    faulty("of another block", body.replace("FENCE", ""), partial, counter, y, takes=takes, grid=8)


@pytest.mark.parametrize(
    ("match", "body"),
    [
        ("read of 4 bytes, 0 bytes outside argument x", "y[threadIdx.x] = x[threadIdx.x + 1];"),
        ("write of 4 bytes, 0 bytes outside argument y", "y[threadIdx.x + 1] = x[0];"),
        ("multiple of 8", "float2 pair = *(const float2*)(x + 1); y[threadIdx.x] = pair.x + pair.y;"),
        ("multiple of 16", "float4 four = *(const float4*)(x + 2); y[threadIdx.x] = four.x;"),
        ("const", "((float*)x)[threadIdx.x] = 1; y[0] = 0;"),
        ("where nothing has been written", "y[threadIdx.x] += x[threadIdx.x];"),
        ("no argument's", "y[threadIdx.x] = *(float*)(64 + 4 * threadIdx.x);"),
        (r"element 4 of a 'float ?\[4\]'", "float own[4] = {}; own[(int)x[0] + 3] = 1; y[threadIdx.x] = own[0];"),
    ],
)  # fmt: skip
def test_wrong_addresses_are_found(match: str, body: str) -> None:
    x = xp.asarray(np.ones(64, np.float32))
    faulty(match, body, x, outputs(), takes="const float* x, float* y")


@pytest.mark.parametrize(
    ("match", "body"),
    [
        ("has not written", "__shared__ float s[64]; if (n) s[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = s[0] + s[63];"),
        ("race: read|has not written", "__shared__ float s[64]; s[threadIdx.x] = 1; y[threadIdx.x] = s[63 - threadIdx.x];"),
        ("race: write", "__shared__ float s[2]; s[threadIdx.x & 1] = 1; __syncthreads(); y[threadIdx.x] = s[0];"),
        ("race: (write|read) of shared memory after a",
         "__shared__ float s[64]; s[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = s[(threadIdx.x + 1) % 64];\ns[threadIdx.x] = 2;"),
        ("race|has not written", "__shared__ float s[32]; if (threadIdx.x < 32) { s[threadIdx.x] = 1; y[threadIdx.x] = s[31 - threadIdx.x]; }"),
        ("outside every shared", "__shared__ float s[64]; float* p = s; p[threadIdx.x + 1] = 1; y[threadIdx.x] = 0;"),
        ("race: write of argument y", "y[0] = threadIdx.x;"),
        ("race: read of argument y|nothing has been written", "y[threadIdx.x] = 1; y[threadIdx.x] = y[63 - threadIdx.x];"),
        ("after a write by thread .* of another block", "if (threadIdx.x == 0) y[0] = 1;"),
    ],
)  # fmt: skip
def test_races_are_found(match: str, body: str) -> None:
    argument = np.int32(0 if match == "has not written" else 64)
    with pytest.raises(emulated.KernelError, match=match):
        run(body, outputs(), argument, grid=2 if "another" in match else 1)


def test_a_warp_barrier_orders_a_warp() -> None:
    body = """__shared__ float s[64];
    int t = threadIdx.x;
    s[t] = t;
    SYNC
    y[t] = s[t ^ 1];"""
    y = outputs()
    run(body.replace("SYNC", "__syncwarp();"), y, np.int32(64))
    np.testing.assert_array_equal(y.get(), np.arange(64) ^ 1)
    faulty("race|has not written", body.replace("SYNC", ""))


@pytest.mark.parametrize(
    ("match", "body"),
    [
        ("returned before", "if (threadIdx.x == 5) return;\n__syncthreads(); y[threadIdx.x] = 1;"),
        ("returned", "if (threadIdx.x == 5) return;\ny[threadIdx.x] = __shfl_xor_sync(~0u, n, 1);"),
        ("different __syncthreads",
         "if (threadIdx.x < 32) __syncthreads();\nelse\n__syncthreads();\ny[threadIdx.x] = 1;"),
        ("elsewhere|returned", "if (threadIdx.x & 1)\ny[threadIdx.x] = __shfl_xor_sync(~0u, n, 2);\n__syncthreads();"),
        ("not in its mask", "y[threadIdx.x] = __shfl_sync(0xffu, n, 0);"),
        ("reads lane", "if (threadIdx.x < 8) y[threadIdx.x] = __shfl_sync(0xffu, n, 9);"),
    ],
)  # fmt: skip
def test_meetings_that_fail_are_found(match: str, body: str) -> None:
    faulty(match, body)


COPY = """__shared__ __align__(16) float s[256];
    int t = threadIdx.x;
    emulated::copy_async(s + 4 * t, x + 4 * t, true);
    emulated::copy_commit();
    WAIT
    BARRIER
    y[t] = s[255 - 4 * t];"""


@pytest.mark.parametrize(
    ("wait", "barrier", "match"),
    [
        ("emulated::copy_wait(0);", "__syncthreads();", None),
        ("", "__syncthreads();", "asynchronous copy"),
        ("emulated::copy_wait(1);", "__syncthreads();", "asynchronous copy"),
        ("emulated::copy_wait(0);", "", "race|asynchronous|has not written"),
    ],
)
def test_asynchronous_copies(wait: str, barrier: str, match: str | None) -> None:
    x, y = xp.asarray(np.arange(256, dtype=np.float32)), outputs()
    body = COPY.replace("WAIT", wait).replace("BARRIER", barrier)
    if match is None:
        run(body, x, y, takes="const float* x, float* y")
        np.testing.assert_array_equal(y.get(), 255 - 4 * np.arange(64))
    else:
        faulty(match, body, x, y, takes="const float* x, float* y")


def test_counts_of_memory() -> None:
    """Coalesced, strided and broadcast reads, and conflicts of shared memory, by hand."""
    x, y = xp.asarray(np.ones(32 * 32, np.float32)), outputs(32)
    takes = "const float* x, float* y"
    with emulated.recorded() as launches:
        run("y[threadIdx.x] = x[threadIdx.x];", x, y, takes=takes, block=32)
        run("y[threadIdx.x] = x[32 * threadIdx.x];", x, y, takes=takes, block=32)
        run("y[threadIdx.x] = x[7];", x, y, takes=takes, block=32)
        conflict = "__shared__ float s[1024]; s[STRIDE * threadIdx.x] = 1; y[threadIdx.x] = x[0];"
        for stride in (1, 2, 32):
            run(conflict.replace("STRIDE", str(min(stride, 31))), x, y, takes=takes, block=32)
            run(conflict.replace("STRIDE", str(stride)), x, y, takes=takes, block=32)
    near, far, one, *banks = [launch.counters for launch in launches]
    assert (near.read_bytes, near.read_sectors) == (128, 4)
    assert (far.read_bytes, far.read_sectors) == (128, 32)
    assert (one.read_bytes, one.read_sectors) == (4, 1)
    assert near.written_bytes == 128 and near.written_sectors == 4
    assert [b.worst_conflict for b in banks] == [1, 1, 2, 2, 1, 32]


def test_a_wide_access_is_one_request() -> None:
    x, y = xp.asarray(np.arange(128, dtype=np.float32)), outputs(128)
    takes = "const float* x, float* y"
    with emulated.recorded() as launches:
        run(
            "((float4*)y)[threadIdx.x] = ((const float4*)x)[threadIdx.x];",
            x,
            y,
            takes=takes,
            block=32,
        )
    reads = [s for s in launches[0].sites if not s["writes"]]
    assert [(s["requests"], s["bytes"], s["wavefronts"]) for s in reads] == [(1, 512, 16)]
    np.testing.assert_array_equal(y.get(), x.get())


def test_order_of_blocks_is_shuffled_by_the_seed() -> None:
    found = set()
    for seed in range(4):
        y, turn = outputs(16), xp.zeros((1,), "int32")
        with emulated.using(seed=seed):
            run("if (threadIdx.x == 0) y[blockIdx.x] = atomicAdd(n, 1);", y, turn,
                takes="float* y, int* n", grid=16, block=32)  # fmt: skip
        found.add(tuple(y.get()))
        assert sorted(y.get()) == list(range(16))
    assert len(found) > 1


def test_numbers_are_rounded_as_on_a_gpu() -> None:
    """Half and bfloat16 by every bit pattern, against NumPy and ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from tinytorch_gpu.cuda.compile import source

    before = source("numbers.cuh")
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32),
        np.float32([0, -0.0, np.inf, -np.inf, 65504, 65520, 6e-8, 2.98e-8, 1 + 2**-9, 1 + 3 * 2**-9]),
    ])  # fmt: skip
    n = x.size - x.size % 64
    for name, dtype in (("half", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        h, back = xp.empty((n,), dtype), outputs(n)
        body = f"int i = blockIdx.x * 64 + threadIdx.x; h[i] = narrow<{name}>(x[i]); y[i] = widen(h[i]);"
        takes = f"const float* x, {name}* h, float* y"
        run(body, xp.asarray(x[:n]), h, back, takes=takes, before=before, grid=n // 64)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = x[:n].astype(dtype)
        np.testing.assert_array_equal(h.get().astype(np.float64), expected.astype(np.float64))
        np.testing.assert_array_equal(back.get().astype(np.float64), expected.astype(np.float64))


def test_launch_errors_are_clear() -> None:
    with pytest.raises(emulated.CompilerError, match="no_such_thing"):
        run("no_such_thing(y);")
    with pytest.raises(emulated.CompilerError, match="one shared variable"):
        run("__shared__ float a[2], b[2];")
    with pytest.raises(emulated.KernelError, match="2000 threads"):
        run("y[0] = 0;", block=2000)


def test_unwritten_memory_is_not_read_on_the_host() -> None:
    y = outputs()
    with pytest.raises(ValueError, match="not been written"):
        y.get()
    run("if (threadIdx.x < 63) y[threadIdx.x] = 0;", y, np.int32(0))
    with pytest.raises(ValueError, match="not been written"):
        y.get()
    assert y[:63].get().sum() == 0
