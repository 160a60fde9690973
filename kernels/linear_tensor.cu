// A linear map of three to sixteen rows in 16 bits, on the tensor cores.
//
// Every weight is still read once, so memory ought to stay the limit. But multiplied by sixteen rows one by one, a
// KB of weights costs some 440 instructions of a warp (counted in the machine code of linear.cu), 110 clocks of a
// processor, and arrives in 70. Here it costs 2 loads, 2 reads of x and 4 matrix instructions, each of which
// multiplies 16 outputs by 16 columns with 8 rows of x.
//
// Layout: a block of eight warps makes 16 outputs at a time (8 and their gates where the activation is gated)
// and keeps x in shared memory. Warp w takes columns 32 w .. 32 w + 31 of every 256. The order of the columns in a
// sum is free, so nothing is rearranged: a lane loads 16 bytes of a weight row and of a row of x at the same eight
// columns, and calls the first four columns 2t, 2t + 1, 2t + 8, 2t + 9 of one instruction, the others of the
// next (the fragments are drawn in tensor_core.cuh). The warps' sums meet in shared memory and are added up in order.
//
// Bytes: outs * width * 2 + rows * (width + 2 outs) * 2, each once, but x once per block. A load of a warp is 64
// whole bytes of each of eight rows; eight loads are under way in each lane, 32 KB a block. Registers:
// those loads take 32, the sums 4 or 8. Shared memory: x, its rows 64 bytes past a multiple of 128, so that the
// eight lanes of a 16-byte access meet no bank twice, and 80 bytes a warp and row for the sums, likewise.
#include "linear_ends.cuh"
#include "tensor_core.cuh"

#define WARPS 8
#define AHEAD 4      // steps of a warp whose weights are under way together
#define SUMS 20      // floats from a row's 16 sums to the next one's
#define STEP 32      // columns of a warp's step

// c += eight columns of 16 outputs times eight columns of 8 rows of x, in each lane.
__device__ inline void multiply(float (&c)[4], uint4 low, uint4 high, uint4 x) {
#if __CUDA_ARCH__ >= 800
    mma_16x8x16<REAL>(c, {low.x, high.x, low.y, high.y}, {x.x, x.y});
    mma_16x8x16<REAL>(c, {low.z, high.z, low.w, high.w}, {x.z, x.w});
#else  // float16 only: the launcher knows
    mma_16x8x8(c, low.x, high.x, x.x);
    mma_16x8x8(c, low.y, high.y, x.y);
    mma_16x8x8(c, low.z, high.z, x.z);
    mma_16x8x8(c, low.w, high.w, x.w);
#endif
}

__device__ inline uint4 sixteen_bytes(const REAL* from, bool present) {
    return present ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
}

// This warp's part of the products of weight rows `low` and `high` of each lane; null: no such output.
template <int TILES> __device__ inline void dot_columns(
        float (&c)[TILES][4], const REAL* low, const REAL* high, const REAL* xs, Shapes s) {
    int lane = threadIdx.x & 31, g = lane >> 2, mine = 8 * (lane & 3);
    for (int start = STEP * (threadIdx.x >> 5); start < s.width; start += AHEAD * STEP * WARPS) {
        uint4 a[AHEAD][2];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            int column = start + n * STEP * WARPS + mine;
            a[n][0] = sixteen_bytes(low + column, low && column < s.width);
            a[n][1] = sixteen_bytes(high + column, high && column < s.width);
        }
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            int column = start + n * STEP * WARPS;
            if (column >= s.width) break;  // the whole warp
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                int row = 8 * tile + g;
                multiply(c[tile], a[n][0], a[n][1], sixteen_bytes(xs + row * s.room + column + mine, row < s.rows));
            }
        }
    }
}

template <int TILES> __device__ inline void all_outputs(
        const REAL* xs, const REAL* weight, float* sums, REAL* out, Shapes s, After after) {
    bool gate = gated(after.activation);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    int made = gate ? s.outs / 2 : s.outs, wide = gate ? 8 : 16;  // outputs in all, of a tile
    float* own = sums + warp * 8 * TILES * SUMS;
    for (long long first = (long long)blockIdx.x * wide; first < made; first += (long long)gridDim.x * wide) {
        int j = (int)first + g, other = gate ? made + j : j + 8;
        const REAL* low = j < made ? weight + (long long)j * s.width : nullptr;
        const REAL* high = (gate ? j < made : other < made) ? weight + (long long)other * s.width : nullptr;
        float c[TILES][4] = {};
        dot_columns<TILES>(c, low, high, xs, s);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) own[(8 * tile + 2 * t + (i & 1)) * SUMS + g + 8 * (i >> 1)] = c[tile][i];
        __syncthreads();
        for (int i = threadIdx.x; i < wide * s.rows; i += blockDim.x) {
            int row = i / wide, column = i % wide;
            float sum = 0.0f, up = 0.0f;
            for (int w = 0; w < WARPS; w++) {
                const float* part = sums + (w * 8 * TILES + row) * SUMS + column;
                sum += part[0];
                if (gate) up += part[8];
            }
            int to = (int)first + column;
            if (to < made) out[after.place(row, to)] = narrow<REAL>(finished(sum, up, row, to, after));
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) linear_decode_tensor(
        const REAL* __restrict__ x, const REAL* __restrict__ weight, const void* __restrict__ bias,
        const REAL* __restrict__ residual, REAL* __restrict__ out, const void* __restrict__ gain,
        const void* __restrict__ shift, float eps, int rows, int width, int outs, int room,
        int norm, int norm_kind, int bias_kind, int activation) {
    extern __shared__ unsigned char memory[];
    Shapes s = {rows, width, outs, room};
    REAL* xs = (REAL*)memory;
    float* sums = (float*)(memory + (long long)rows * room * sizeof(REAL));
    stage_rows(xs, x, s);
    if (norm) normalize_rows(xs, s, {gain, shift, norm, norm_kind, eps});
    After after = {bias, residual, bias_kind, activation, 0, gated(activation) ? outs / 2 : outs};
    if (rows <= 8) all_outputs<1>(xs, weight, sums, out, s, after);
    else all_outputs<2>(xs, weight, sums, out, s, after);
}
