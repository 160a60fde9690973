// A linear map of one to sixteen rows: y = activation(norm(x) W^T + bias) + residual.
//
// A decode step multiplies each weight with a handful of numbers, so memory is the limit: every weight is
// read once, for all rows of x, by loads of 16 bytes; everything else of the layer (the norm in front,
// bias, activation and residual behind) rides along without a trip through memory.
//
// Layout: x (rows, width) in REAL; W in PARAM, outputs one after the other, each `pitch` bytes: dense numbers or
// GGUF's blocks (quantized.cuh). A block of eight warps holds x in shared memory. Each warp makes two
// outputs at a time: neighbours, or with a gated activation output j and its gate, so that they meet in
// registers. Its lanes split the width, eight weights each, and add up by shuffles in a fixed order.
//
// Bytes: outs * pitch + rows * (width + 2 outs) * sizeof(REAL), each once, but x once per block; the launcher
// starts as few blocks as fill the processors. Operations: 2 per weight and row, a hundredth of what the card
// could do meanwhile. Registers: two sums per row (32 for sixteen rows) and sixteen weights; the
// occupancy of two blocks a processor keeps 64 KB of loads under way. Shared memory: x, and for blocks two
// groups of a row for each warp.
#include "quantized.cuh"
#include "reduce.cuh"

#define WARPS 8

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU, SWIGLU, GEGLU };
enum Norm { NO_NORM, LAYER_NORM, RMS_NORM };

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

struct Shapes { int rows, width, outs, room; };  // room: elements of a row of x in shared memory
struct Before { const void *gain, *shift; int norm, kind; float eps; };
struct After { const void* bias; const REAL* residual; int kind, activation; };

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
    for (int row = threadIdx.x >> 5; row < s.rows; row += WARPS) {
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

// sums[output][row] += the products of eight weights of two outputs.
template <int ROWS> __device__ inline void multiply(
        float (&sums)[2][ROWS], const float (&a)[8], const float (&b)[8], const REAL* xs, int first, int second, int room) {
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        float x[8];
        if constexpr (Weights<PARAM>::TOGETHER) {
            load<8>(x, xs + row * room + first);
        } else {
            float low[4], high[4];
            load<4>(low, xs + row * room + first);
            load<4>(high, xs + row * room + second);
#pragma unroll
            for (int i = 0; i < 4; i++) { x[i] = low[i]; x[i + 4] = high[i]; }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[0][row] = fmaf(a[i], x[i], sums[0][row]);
            sums[1][row] = fmaf(b[i], x[i], sums[1][row]);
        }
    }
}

// The products of two outputs with all rows, this lane's part of the width.
template <int ROWS> __device__ inline void dot_two(
        float (&sums)[2][ROWS], const unsigned char* one, const unsigned char* two, const REAL* xs, unsigned char* stage, Shapes s) {
    typedef Weights<PARAM> W;
    int lane = threadIdx.x & 31;
    for (int start = 0; start < s.width; start += W::GROUP) {
        int packs = min(W::GROUP, s.width - start) / 8;
        long long offset = (long long)(start / W::BLOCK) * (long long)sizeof(PARAM);
        if (W::STAGE) {
            int bytes = packs / 4 * (int)sizeof(PARAM);
            __syncwarp();
            stage_bytes(stage, one + offset, bytes, lane);
            stage_bytes(stage + W::STAGE, two + offset, bytes, lane);
            __syncwarp();
        }
        for (int pack = lane; pack < packs; pack += 32) {
            float a[8], b[8];
            W::take(a, (const PARAM*)(one + offset), stage, pack, packs);
            W::take(b, (const PARAM*)(two + offset), stage + W::STAGE, pack, packs);
            multiply<ROWS>(sums, a, b, xs + start, W::first(pack), W::second(pack, packs), s.room);
        }
    }
}

// The same for dense rows whose width or address does not allow loads of eight.
template <int ROWS, class W> __device__ inline void dot_two_singly(
        float (&sums)[2][ROWS], const unsigned char* one, const unsigned char* two, const REAL* xs, Shapes s) {
    for (int i = threadIdx.x & 31; i < s.width; i += 32) {
        float a = widen(((const W*)one)[i]), b = widen(((const W*)two)[i]);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float x = widen(xs[row * s.room + i]);
            sums[0][row] = fmaf(a, x, sums[0][row]);
            sums[1][row] = fmaf(b, x, sums[1][row]);
        }
    }
}

// Lane r finishes row r: bias, activation, residual.
__device__ inline void finish(float one, float two, int row, int j, int other, REAL* out, Shapes s, After after) {
    bool gated = after.activation >= SWIGLU;
    int outs = gated ? s.outs / 2 : s.outs;
    if (after.bias) {
        one += number_at(after.bias, after.kind, j);
        if (other < s.outs) two += number_at(after.bias, after.kind, other);
    }
    for (int k = 0; k < 2; k++) {
        int to = k ? other : j;
        if (k && (gated || other >= s.outs)) break;
        float y = activate(k ? two : one, two, after.activation);
        long long at = (long long)row * outs + to;
        if (after.residual) y += widen(after.residual[at]);
        out[at] = narrow<REAL>(y);
    }
}

template <int ROWS, class W> __device__ inline void all_outputs(
        const REAL* xs, const unsigned char* weight, unsigned char* stage, REAL* out, long long pitch, Shapes s, After after, bool wide) {
    bool gated = after.activation >= SWIGLU;
    int lane = threadIdx.x & 31, pairs = (s.outs + 1) / 2;
    for (int pair = blockIdx.x * WARPS + (threadIdx.x >> 5); pair < pairs; pair += gridDim.x * WARPS) {
        int j = gated ? pair : 2 * pair, other = gated ? pair + s.outs / 2 : 2 * pair + 1;
        const unsigned char* one = weight + j * pitch;
        const unsigned char* two = other < s.outs ? weight + other * pitch : one;  // a last one alone
        float sums[2][ROWS] = {};
        if (wide) dot_two<ROWS>(sums, one, two, xs, stage, s);
        else if constexpr (Weights<W>::STAGE == 0) dot_two_singly<ROWS, W>(sums, one, two, xs, s);
        float mine[2] = {0.0f, 0.0f};
#pragma unroll
        for (int row = 0; row < ROWS; row++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float sum = warp_sum(sums[k][row]);
                if (lane == row) mine[k] = sum;
            }
        if (lane < s.rows) finish(mine[0], mine[1], lane, j, other, out, s, after);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) linear_decode(
        const REAL* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias,
        const REAL* __restrict__ residual, REAL* __restrict__ out, const void* __restrict__ gain,
        const void* __restrict__ shift, float eps, int rows, int width, int outs, long long pitch,
        int norm, int norm_kind, int bias_kind, int activation) {
    extern __shared__ unsigned char memory[];
    Shapes s = {rows, width, outs, (width + 7) / 8 * 8};
    int padded = rows <= 2 ? rows : rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
    REAL* xs = (REAL*)memory;
    unsigned char* stage = memory + (long long)padded * s.room * sizeof(REAL) + (threadIdx.x >> 5) * 2 * Weights<PARAM>::STAGE;
    stage_rows(xs, x, s);
    for (int i = rows * s.room + threadIdx.x; i < padded * s.room; i += blockDim.x) xs[i] = narrow<REAL>(0.0f);
    if (padded > rows) __syncthreads();
    if (norm) normalize_rows(xs, s, {gain, shift, norm, norm_kind, eps});
    bool wide = Weights<PARAM>::STAGE || (width % 8 == 0 && aligned(weight, 16) && pitch % 16 == 0);
    const unsigned char* w = (const unsigned char*)weight;
    After after = {bias, residual, bias_kind, activation};
    if (padded == 1) all_outputs<1, PARAM>(xs, w, stage, out, pitch, s, after, wide);
    else if (padded == 2) all_outputs<2, PARAM>(xs, w, stage, out, pitch, s, after, wide);
    else if (padded == 4) all_outputs<4, PARAM>(xs, w, stage, out, pitch, s, after, wide);
    else if (padded == 8) all_outputs<8, PARAM>(xs, w, stage, out, pitch, s, after, wide);
    else all_outputs<16, PARAM>(xs, w, stage, out, pitch, s, after, wide);
}
