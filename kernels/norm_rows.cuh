// The threads of a row of a norm: who holds which chunks, and the sums over a row.
#pragma once
#include "chunk.cuh"
#include "reduce.cuh"

#define MOST_THREADS 512
#define MOST_WARPS (MOST_THREADS / 32)
#define WIDE_ELEMENTS 32  // of a row in a thread where rows are long
#define NEIGHBOURS (16 / (int)sizeof(REAL))

// Which row of a block and which of its chunks are this thread's. FIXED is the number of threads of a
// row where it is known, so that columns are a sum with a constant and need no registers.
template <int FIXED> struct Place {
    int group, lane, index, groups;  // threads of a row, this one's place, its row of the block's rows
    bool spare;                      // whether this thread is left over

    __device__ inline explicit Place(int threads)
        : group(FIXED ? FIXED : threads), lane(threadIdx.x % group), index(threadIdx.x / group),
          groups(blockDim.x / group), spare(index >= groups) {}

    __device__ inline int column(int chunk, int n) const { return (chunk * (FIXED ? FIXED : group) + lane) * n; }
};

// The sums over the threads of a row, in each of them. `scratch` holds MOST_WARPS floats for each of the
// K sums; behind it there is no barrier, so the next call needs another one.
template <int K, class P> __device__ inline void row_sums(float (&sums)[K], const P& place, float* scratch) {
    int span = place.group < 32 ? place.group : 32;
    for (int step = span >> 1; step > 0; step >>= 1) {
#pragma unroll
        for (int i = 0; i < K; i++) sums[i] += __shfl_xor_sync(FULL_WARP, sums[i], step);
    }
    if (place.group <= 32) return;
    int lane = threadIdx.x & 31, warps = place.group >> 5, first = place.index * warps;
#pragma unroll
    for (int i = 0; i < K; i++) {
        if (lane == 0) scratch[i * MOST_WARPS + (threadIdx.x >> 5)] = sums[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < K; i++) {
        bool part = lane < warps && !place.spare;
        sums[i] = warp_sum(part ? scratch[i * MOST_WARPS + first + lane] : 0.0f);
    }
}
