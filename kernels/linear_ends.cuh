// What a linear map of a few rows takes along: the norm in front, bias, activation and residual behind.
#pragma once
#include "memory.cuh"
#include "reduce.cuh"

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU, SWIGLU, GEGLU };
enum Norm { NO_NORM, LAYER_NORM, RMS_NORM };

struct Shapes { int rows, width, outs, room; };  // room: elements of a row of x in shared memory
struct Before { const void *gain, *shift; int norm, kind; float eps; };
// What follows for outputs that are those from `first` on of the `made` in a row of results.
struct After {
    const void* bias;
    const REAL* residual;
    int kind, activation, first, made;

    __device__ long long place(int row, int j) const { return (long long)row * made + first + j; }
};

// Element i of an array of float, half or bfloat16 (kind 0, 1, 2).
__device__ inline float number_at(const void* p, int kind, int i) {
    if (kind == 1) return widen(((const half*)p)[i]);
    if (kind == 2) return widen(((const bfloat16*)p)[i]);
    return ((const float*)p)[i];
}

__device__ inline float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

__device__ inline float silu(float x) { return x * (0.5f * tanhf(0.5f * x) + 0.5f); }

__device__ inline float activate(float x, float up, int activation) {
    switch (activation) {
        case RELU: return x != x ? x : fmaxf(x, 0.0f);
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
        case GELU_TANH: return gelu_tanh(x);
        case SILU: return silu(x);
        case SWIGLU: return silu(x) * up;
        case GEGLU: return gelu_tanh(x) * up;
        default: return x;
    }
}

__device__ inline bool gated(int activation) { return activation >= SWIGLU; }

// x into shared memory, past its width zeros.
__device__ inline void stage_rows(REAL* xs, const REAL* x, Shapes s) {
    const int wide = 16 / (int)sizeof(REAL);
    if (s.width % wide == 0 && aligned(x, 16)) {
        int each = s.width / wide;
        for (int i = threadIdx.x; i < s.rows * each; i += blockDim.x) {
            int row = i / each, column = (i - row * each) * wide;
            *(uint4*)(xs + row * s.room + column) = *(const uint4*)(x + (long long)row * s.width + column);
        }
    } else {
        for (int i = threadIdx.x; i < s.rows * s.width; i += blockDim.x) {
            int row = i / s.width;
            xs[row * s.room + i - row * s.width] = x[i];
        }
    }
    int tail = s.room - s.width;
    for (int i = threadIdx.x; i < s.rows * tail; i += blockDim.x)
        xs[i / tail * s.room + s.width + i % tail] = narrow<REAL>(0.0f);
    __syncthreads();
}

// Normalize the rows in place, a warp each, rounded to REAL as a norm of its own would.
__device__ inline void normalize_rows(REAL* xs, Shapes s, Before before) {
    int lane = threadIdx.x & 31;
    for (int row = threadIdx.x >> 5; row < s.rows; row += blockDim.x >> 5) {
        REAL* of = xs + row * s.room;
        float mean = 0.0f, squares = 0.0f;
        if (before.norm == LAYER_NORM) {
            for (int i = lane; i < s.width; i += 32) mean += widen(of[i]);
            mean = warp_sum(mean) / s.width;
        }
        for (int i = lane; i < s.width; i += 32) {
            float centred = widen(of[i]) - mean;
            squares += centred * centred;
        }
        float scale = 1.0f / sqrtf(warp_sum(squares) / s.width + before.eps);
        for (int i = lane; i < s.width; i += 32) {
            float normed = (widen(of[i]) - mean) * scale * number_at(before.gain, before.kind, i);
            if (before.shift) normed += number_at(before.shift, before.kind, i);
            of[i] = narrow<REAL>(normed);
        }
    }
    __syncthreads();
}

// Output j of a row, from its sum: bias, activation, residual. `up` is what a gated one is multiplied by.
__device__ inline float finished(float sum, float up, int row, int j, After after) {
    if (after.bias) {
        sum += number_at(after.bias, after.kind, after.first + j);
        if (gated(after.activation)) up += number_at(after.bias, after.kind, after.first + j + after.made);
    }
    float y = activate(sum, up, after.activation);
    return after.residual ? y + widen(after.residual[after.place(row, j)]) : y;
}
