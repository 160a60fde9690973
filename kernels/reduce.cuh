// Sums and maxima over a warp and over a block, in an order that never changes.
#pragma once
#include "numbers.cuh"

#define FULL_WARP 0xffffffffu

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

// A NaN in any lane gives NaN: fmaxf would drop it.
__device__ inline float nan_max(float a, float b) { return a != a || a > b ? a : b; }

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x = nan_max(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// The sum over a block of whole warps, in every thread. `scratch` holds a float per warp and may be
// used again at once: both barriers are inside.
__device__ inline float block_sum(float x, float* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    x = warp_sum(x);
    if (warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return x;
}

__device__ inline float block_max(float x, float* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    x = warp_max(x);
    if (warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_max(lane < warps ? scratch[lane] : -INFINITE);
    __syncthreads();
    return x;
}
