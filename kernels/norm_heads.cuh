// The RMS norm of queries and keys where they lie, packed beside the values: see norm.cu.
#pragma once
#include "chunk.cuh"
#include "reduce.cuh"

// What the kernel reads and writes: x and out are (tokens, heads + 2 kv_heads, width).
struct PackedHeads {
    const REAL* x;
    const PARAM* q_weight;
    const PARAM* k_weight;
    REAL* out;
    float* rstd;  // (tokens, heads + kv_heads)
    int heads, kv_heads, width;
    float eps;
};

#define HELD 2  // accesses of a head that a thread keeps in registers: 256 floats of a head, or 512 numbers of 16 bits

// Scaled in place, where it is a query's or a key's number.
template <int N> __device__ inline void scale_some(float (&values)[N], const PARAM* weight, float rstd) {
    float scales[N];
    load<N>(scales, weight);
#pragma unroll
    for (int n = 0; n < N; n++) values[n] = values[n] * rstd * scales[n];
}

template <int N> __device__ inline float squares(const float (&values)[N]) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) sum += values[n] * values[n];
    return sum;
}

// `lanes` neighbouring threads take a head, N elements in an access; what is not held is read again, from the
// cache. All threads of a warp come round equally often, since they add up together.
template <int N> __device__ inline void norm_heads(const PackedHeads& a, long long rows, int lanes) {
    const int total = a.heads + 2 * a.kv_heads, normed = a.heads + a.kv_heads, pitch = lanes * N;
    const int from = (threadIdx.x & (lanes - 1)) * N, own = threadIdx.x / lanes, groups = blockDim.x / lanes;
    for (long long first = (long long)blockIdx.x * groups; first < rows; first += (long long)gridDim.x * groups) {
        const long long row = first + own, token = row / total;
        const int head = (int)(row - token * total), width = row < rows ? a.width : 0;
        const REAL* x = a.x + row * a.width;
        REAL* out = a.out + row * a.width;
        float held[HELD][N], sum = 0.0f;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (from + k * pitch >= width) continue;
            load<N>(held[k], x + from + k * pitch);
            sum += squares<N>(held[k]);
        }
        for (int i = from + HELD * pitch; i < width; i += pitch) {
            float values[N];
            load<N>(values, x + i);
            sum += squares<N>(values);
        }
        for (int apart = lanes >> 1; apart > 0; apart >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, apart);
        const bool scaled = head < normed;
        const float rstd = 1.0f / sqrtf(sum / (float)a.width + a.eps);
        const PARAM* weight = head < a.heads ? a.q_weight : a.k_weight;
        if (from == 0 && width && scaled) a.rstd[token * normed + head] = rstd;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (from + k * pitch >= width) continue;
            if (scaled) scale_some<N>(held[k], weight + from + k * pitch, rstd);
            store<N>(out + from + k * pitch, held[k]);
        }
        for (int i = from + HELD * pitch; i < width; i += pitch) {
            float values[N];
            load<N>(values, x + i);
            if (scaled) scale_some<N>(values, weight + i, rstd);
            store<N>(out + i, values);
        }
    }
}
