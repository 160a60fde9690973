// Low-rank adapters (Hu et al. 2021, "LoRA") beside a linear map, for the few rows of a decode step:
//
//     low[p] = scale[p] x a[p]^T,   out = base + low[p] b[p]^T in the columns of part p, base elsewhere
//
// in two launches, since each number of the second needs all of the first. Layout: x (rows, width), a (rank, width) and
// b (columns, rank) of each of up to three parts (query, key and value, the most that lie side by side in one weight),
// base and out (rows, outs), all packed; low is (rows, rank) of one part behind the other.
//
// lora_lower: a block is one row of an `a` for up to ROWS rows of x, so that each a is read once, 16 bytes a
// thread; x comes from the cache. lora_raise: a warp makes 32 neighbouring columns;
// the ranks of a column lie over `lanes` threads, so that rows of b are read as they lie. Bytes: the factors, base and
// out once (x and low are small); operations: two for each number of a factor and row. Everything is small: rank 8
// beside 4096 x 4096 floats is half a percent of the weight, and a launch costs more than its bytes. 28 to 60 registers,
// 16 bytes of shared memory; 128 threads.
#include "memory.cuh"
#include "reduce.cuh"

#define ROWS 4
#define WIDE (16 / (int)sizeof(PARAM))
#define WARPS 4

// The rows of x that a block takes: ROWS of them from `first` on, or as many as there are.
struct Rows {
    long long first;
    int count;

    __device__ inline explicit Rows(int rows) : first((long long)blockIdx.y * ROWS), count(min(ROWS, rows - (int)first)) {}
};

// This thread's part of the products of a row of `a` with rows of x, N numbers in an access.
template <int N>
__device__ inline void multiply(float (&sums)[ROWS], const REAL* x, const PARAM* a, const Rows& rows, int width) {
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        float weights[N];
        load<N>(weights, a + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows.count) break;
            float numbers[N];
            load<N>(numbers, x + (rows.first + r) * width + i);
#pragma unroll
            for (int n = 0; n < N; n++) sums[r] += weights[n] * numbers[n];
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) lora_lower(
        const REAL* x, const PARAM* a0, const PARAM* a1, const PARAM* a2, REAL* low, int rows, int width, int rank0,
        int rank1, int rank2, float scale0, float scale1, float scale2) {
    __shared__ float scratch[WARPS];
    int index = blockIdx.x, rank = rank0;
    const PARAM* a = a0;
    float scale = scale0;
    if (index >= rank0) {
        const bool last = index >= rank0 + rank1;
        low += (long long)rows * (last ? rank0 + rank1 : rank0);
        index -= last ? rank0 + rank1 : rank0;
        a = last ? a2 : a1, rank = last ? rank2 : rank1, scale = last ? scale2 : scale1;
    }
    a += (long long)index * width;
    const Rows own(rows);
    float sums[ROWS] = {};
    if (width % WIDE == 0 && aligned(x, 16) && aligned(a, 16)) multiply<WIDE>(sums, x, a, own, width);
    else multiply<1>(sums, x, a, own, width);
    for (int r = 0; r < own.count; r++) {
        const float sum = block_sum(sums[r], scratch);
        if (threadIdx.x == 0) low[(own.first + r) * rank + index] = narrow<REAL>(scale * sum);
    }
}

// The part that a column belongs to, if any.
struct Part {
    const PARAM* b;
    const REAL* low;
    int first, rank;  // its first column; rank 0: none
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) lora_raise(
        const REAL* base, const PARAM* b0, const PARAM* b1, const PARAM* b2, const REAL* low, REAL* out, int rows, int outs,
        int rank0, int rank1, int rank2, int first0, int first1, int first2, int last0, int last1, int last2, int lanes) {
    const int lane = threadIdx.x & 31, along = lane & lanes - 1, columns = 32 / lanes;
    const int from = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * 32;
    const Rows own(rows);
    float kept[ROWS] = {};
    for (int at = 0; at < 32; at += columns) {
        const int column = from + at + lane / lanes;
        Part part = {nullptr, low, 0, 0};
        if (column >= first0 && column < last0) part = {b0, low, first0, rank0};
        if (column >= first1 && column < last1) part = {b1, low + (long long)rows * rank0, first1, rank1};
        if (column >= first2 && column < last2) part = {b2, low + (long long)rows * (rank0 + rank1), first2, rank2};
        float sums[ROWS] = {};
        for (int i = along; i < part.rank; i += lanes) {
            const float weight = widen(part.b[(long long)(column - part.first) * part.rank + i]);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (r < own.count) sums[r] += weight * widen(part.low[(own.first + r) * part.rank + i]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            for (int apart = lanes >> 1; apart > 0; apart >>= 1) sums[r] += __shfl_xor_sync(FULL_WARP, sums[r], apart);
            const float sum = __shfl_sync(FULL_WARP, sums[r], (lane - at) * lanes & 31);
            if (lane >= at && lane < at + columns) kept[r] = sum;  // of the column that this lane writes
        }
    }
    for (int r = 0; r < own.count; r++) {
        const long long place = (own.first + r) * outs + from + lane;
        if (from + lane < outs) out[place] = narrow<REAL>(widen(base[place]) + kept[r]);
    }
}
