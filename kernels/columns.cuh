// Sums over rows, for the gradient of what was added to or multiplied with every row.
//
// In two stages: blocks leave partial rows in float32, and this adds them up in a fixed order. Float
// atomics would be one launch less, and another result each time.
#pragma once
#include "numbers.cuh"
#include "reduce.cuh"

#define SUM_LANES 8  // threads that share a column; a warp reads 32 columns of a row

// out[c] = the sum over `count` rows of rows[., c]. A block of 32 x SUM_LANES threads has 32 columns.
template <class T>
__device__ inline void sum_partial_rows(const float* rows, int count, int width, T* out) {
    __shared__ float sums[32 * SUM_LANES];
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 4
        for (int row = threadIdx.y; row < count; row += SUM_LANES) sum += rows[(long long)row * width + column];
    }
    sums[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (int i = 1; i < SUM_LANES; i++) sum += sums[i * 32 + threadIdx.x];
        out[column] = narrow<T>(sum);
    }
}
