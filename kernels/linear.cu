// A linear map of one to sixteen rows: y = activation(norm(x) W^T + bias) + residual.
//
// A decode step multiplies each weight with a handful of numbers, so memory is the limit: every weight is
// read once, for all rows of x, by loads of 16 bytes; everything else of the layer (the norm in front,
// bias, activation and residual behind) rides along without a trip through memory.
//
// Layout: x (rows, width) in REAL; W in PARAM, outputs one after the other, each `pitch` bytes: dense numbers or
// GGUF's blocks (quantized.cuh, fine_blocks.cuh). A block holds x in shared memory. Each warp makes two outputs at a time:
// neighbours, or with a gated activation output j and its gate. Two,
// because then x is read from shared memory and widened half as often. Its lanes take 16 bytes of each row in
// turn and add up by shuffles. Where there are too few outputs to give every warp of the device some, `split` of them
// (two to eight) share a pair. The sums of all warps meet in shared memory, those of several turns at a time, where
// neighbouring threads finish neighbouring outputs: whole sectors are written. All sums are made in a fixed order.
//
// Bytes: outs * pitch + rows * (width + 2 outs) * sizeof(REAL), each once, but x once per block; the launcher
// starts as many blocks as the processors hold at once and no more. Loads under way in a processor: up to four of
// 16 bytes in each of 1024 threads for one or two rows of dense weights, of 512 for more: 64 KB, 32 KB. To hide
// 0.7 us, 3.3 TB/s over 132 processors take 18 KB.
//
// Operations: a multiply-add per weight and row, a conversion of each x for two weights. At four instructions a
// clock that is no longer than the memory takes up to 16 rows of float32, about four of 16 bits and one or two of 4
// bits (by counting instructions, not by measurement). From three rows on products wholly in 16 bits go to the
// tensor cores instead (linear_tensor.cu).
//
// Registers: two sums per row, 32 for sixteen rows (128 in all: two blocks of eight warps or one of sixteen), 64 for
// dense weights of one or two rows (four blocks), 80 for blocks of weights (three). Shared memory: x, the
// sums of four to sixteen turns (2 or 8 KB) and for blocks of weights two kilobytes a warp or less.
#include "fine_blocks.cuh"
#include "linear_ends.cuh"

#define FEW_BLOCKS STAGE<PARAM> ? 3 : 4  // a processor, of one or two rows
#define FEW_TURNS 16                     // of a block's warps between two stores of what they have made
#define MANY_TURNS 4

// sums[output][row] += N weights of two outputs times the N elements of each row of x they belong to: neighbours,
// or two halves apart.
template <bool TOGETHER, int ROWS, int N> __device__ inline void multiply(
        float (&sums)[2][ROWS], const float (&a)[N], const float (&b)[N],
        const REAL* first, const REAL* second, int room) {
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        float x[N];
        if constexpr (TOGETHER) {
            load<N>(x, first + row * room);
        } else {
            float low[N / 2], high[N / 2];
            load<N / 2>(low, first + row * room);
            load<N / 2>(high, second + row * room);
#pragma unroll
            for (int i = 0; i < N / 2; i++) { x[i] = low[i]; x[i + N / 2] = high[i]; }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums[0][row] = fmaf(a[i], x[i], sums[0][row]);
            sums[1][row] = fmaf(b[i], x[i], sums[1][row]);
        }
    }
}

// How one warp goes over the width of a pair of outputs: it is `part` of `split`.
struct Way { int part, split; bool wide; };

// The products of two dense rows with all rows of x, this lane's part of the width: 16 bytes at a time,
// two loads of each row under way together.
template <int ROWS, class W> __device__ inline void dot_dense(
        float (&sums)[2][ROWS], const W* one, const W* two, const REAL* xs, Way way, Shapes s) {
    const int each = 16 / (int)sizeof(W), ahead = 2;
    int stride = way.split * 32 * each;
    for (int start = (way.part * 32 + (threadIdx.x & 31)) * each; start < s.width; start += ahead * stride) {
        uint4 bits[ahead][2];
#pragma unroll
        for (int n = 0; n < ahead; n++) {
            bool present = start + n * stride < s.width;
            bits[n][0] = present ? *(const uint4*)(one + start + n * stride) : make_uint4(0, 0, 0, 0);
            bits[n][1] = present ? *(const uint4*)(two + start + n * stride) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int n = 0; n < ahead; n++) {
            int at = start + n * stride;
            if (at >= s.width) break;
            float a[each], b[each];
            unpack<W>(a, bits[n][0]);
            unpack<W>(b, bits[n][1]);
            multiply<true>(sums, a, b, xs + at, xs, s.room);
        }
    }
}

// The same where width or address do not allow 16 bytes.
template <int ROWS, class W> __device__ inline void dot_singly(
        float (&sums)[2][ROWS], const W* one, const W* two, const REAL* xs, Way way, Shapes s) {
    for (int i = way.part * 32 + (threadIdx.x & 31); i < s.width; i += way.split * 32) {
        float a = widen(one[i]), b = widen(two[i]);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            float x = widen(xs[row * s.room + i]);
            sums[0][row] = fmaf(a, x, sums[0][row]);
            sums[1][row] = fmaf(b, x, sums[1][row]);
        }
    }
}

// Loads of blocks that a lane has under way, of each row: as many as the sums leave registers for.
template <int ROWS> constexpr int HELD = ROWS <= 8 ? 2 : 1;

// The same for rows of blocks, which a warp takes apart in its `stage` of shared memory.
template <int ROWS, class B> __device__ inline void dot_blocks(
        float (&sums)[2][ROWS], const unsigned char* one, const unsigned char* two, const REAL* xs, unsigned char* stage,
        Way way, Shapes s) {
    const int lane = threadIdx.x & 31, whole = GROUP_BYTES<B>;
    for (int start = way.part * GROUP; start < s.width; start += way.split * GROUP) {
        int packs = min(GROUP, s.width - start) / 8, bytes = packs * whole / (GROUP / 8), at = start / GROUP * whole;
        __syncwarp();
        stage_two<STAGE<B>, HELD<ROWS>>(stage, one + at, two + at, bytes);
        __syncwarp();
        for (int pack = lane; pack < packs; pack += 32) {
            float a[8], b[8];
            Blocks<B>::take(a, stage, pack);
            Blocks<B>::take(b, stage + STAGE<B>, pack);
            const REAL *first = xs + start + Blocks<B>::first(pack), *second = xs + start + Blocks<B>::second(pack);
            multiply<Blocks<B>::TOGETHER>(sums, a, b, first, second, s.room);
        }
    }
}

// Where x, the weights and the results are, for one block.
struct Places {
    const REAL* xs;
    const unsigned char* weight;
    unsigned char* stage;
    float* sums;
    REAL* out;
    long long pitch;
};

// This warp's share of outputs j and other: lane r gets the sums of row r.
template <int ROWS> __device__ inline void dot_two(float (&mine)[2], int j, int other, Places at, Way way, Shapes s) {
    const unsigned char* one = at.weight + j * at.pitch;
    const unsigned char* two = other < s.outs ? at.weight + other * at.pitch : one;  // a last one alone
    float sums[2][ROWS] = {};
    if constexpr (STAGE<PARAM> > 0) dot_blocks<ROWS, PARAM>(sums, one, two, at.xs, at.stage, way, s);
    else if (way.wide) dot_dense<ROWS>(sums, (const PARAM*)one, (const PARAM*)two, at.xs, way, s);
    else dot_singly<ROWS>(sums, (const PARAM*)one, (const PARAM*)two, at.xs, way, s);
#pragma unroll
    for (int row = 0; row < ROWS; row++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float sum = warp_sum(sums[k][row]);
            if ((threadIdx.x & 31) == row) mine[k] = sum;
        }
}

// The sums that the warps of a block leave in `turns` turns, two a warp and row: sums[turn][row][2 warp + k]. A
// row's begin in different banks.
struct Board {
    int rows, pitch;

    __device__ int at(int turn, int row, int warp) const { return (turn * rows + row) * pitch + 2 * warp; }
};

// Finish what is on the board and write it, neighbouring outputs by neighbouring threads: whole sectors, where each
// warp on its own would touch one for two outputs. What the `split` warps of a pair have is added up in their order.
__device__ inline void write_outputs(Places at, Board board, int first, int turns, int split, Shapes s, After after) {
    const int gate = gated(after.activation), outs = gate ? s.outs / 2 : s.outs, at_once = (blockDim.x >> 5) / split;
    const int wide = gate ? at_once : 2 * at_once, step = gridDim.x * at_once;
    for (int i = threadIdx.x; i < turns * s.rows * wide; i += blockDim.x) {
        const int column = i % wide, row = i / wide % s.rows, turn = i / wide / s.rows;
        const int pair = gate ? column : column >> 1, j = (first + turn * step) * (gate ? 1 : 2) + column;
        if (j >= outs) continue;
        const float* parts = at.sums + board.at(turn, row, pair * split) + (gate ? 0 : column & 1);
        float sum = parts[0], up = gate ? parts[1] : 0.0f;
        for (int w = 1; w < split; w++) {
            sum += parts[2 * w];
            if (gate) up += parts[2 * w + 1];
        }
        at.out[after.place(row, j)] = narrow<REAL>(finished(sum, up, row, j, after));
    }
}

// Whether warps may share a pair: with blocks and many rows there are no registers left for it.
template <int ROWS> constexpr bool SHARED = STAGE<PARAM> == 0 || ROWS <= 2;

template <int ROWS, int TURNS> __device__ inline void all_outputs(Places at, Way way, Shapes s, After after) {
    if (!SHARED<ROWS>) way = {0, 1, way.wide};
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, at_once = (blockDim.x >> 5) / way.split;
    const int step = gridDim.x * at_once;
    const bool gate = gated(after.activation);
    int turn = 0;
    for (int first = blockIdx.x * at_once; 2 * first < s.outs; first += step) {
        const int pair = first + warp / way.split, half = s.outs / 2;
        const int j = gate ? pair : 2 * pair, other = gate ? pair + half : 2 * pair + 1;
        float mine[2] = {0.0f, 0.0f};
        if (2 * pair < s.outs) dot_two<ROWS>(mine, j, other, at, way, s);
        const Board board = {ROWS, 2 * (int)(blockDim.x >> 5) + 1};
        if (lane < ROWS) {
            float* to = at.sums + board.at(turn, lane, warp);
            to[0] = mine[0];
            to[1] = mine[1];
        }
        if (++turn < TURNS && 2 * (first + step) < s.outs) continue;
        __syncthreads();
        write_outputs(at, board, first - (turn - 1) * step, turn, way.split, s, after);
        __syncthreads();
        turn = 0;
    }
}

// Stage and normalize x; rows are rounded up to ROWS by zeros.
__device__ inline void prepare(REAL* xs, const REAL* x, int padded, Shapes s, Before before) {
    stage_rows(xs, x, s);
    for (int i = s.rows * s.room + threadIdx.x; i < padded * s.room; i += blockDim.x) xs[i] = narrow<REAL>(0.0f);
    if (padded > s.rows) __syncthreads();
    if (before.norm) normalize_rows(xs, s, before);
}

// The stages of the warps lie behind the rows of x.
__device__ inline Places places(
        REAL* xs, const void* weight, int padded, float* sums, REAL* out, long long pitch, Shapes s) {
    unsigned char* stages = (unsigned char*)(xs + (long long)padded * s.room);
    return {xs, (const unsigned char*)weight, stages + (threadIdx.x >> 5) * 2 * STAGE<PARAM>, sums, out, pitch};
}

__device__ inline Way way_of(const void* weight, int width, long long pitch, int split) {
    bool wide = width % 8 == 0 && pitch % 16 == 0 && aligned(weight, 16);
    return {(int)(threadIdx.x >> 5) % split, split, wide};
}

// One or two rows. The outputs are those from `first` on of the `made` in a row of `out`: a weight may be in parts.
extern "C" __global__ void __launch_bounds__(256, FEW_BLOCKS) linear_decode(
        const REAL* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias,
        const REAL* __restrict__ residual, REAL* __restrict__ out, const void* __restrict__ gain,
        const void* __restrict__ shift, float eps, int rows, int width, int outs, long long pitch,
        int split, int first, int made, int norm, int norm_kind, int bias_kind, int activation) {
    extern __shared__ unsigned char memory[];
    __shared__ float sums[FEW_TURNS * 2 * (2 * 8 + 1)];
    Shapes s = {rows, width, outs, (width + 7) / 8 * 8};
    int padded = rows;
    REAL* xs = (REAL*)memory;
    prepare(xs, x, padded, s, {gain, shift, norm, norm_kind, eps});
    Places at = places(xs, weight, padded, sums, out, pitch, s);
    Way way = way_of(weight, width, pitch, split);
    After after = {bias, residual, bias_kind, activation, first, made};
    if (rows == 1) all_outputs<1, FEW_TURNS>(at, way, s, after);
    else all_outputs<2, FEW_TURNS>(at, way, s, after);
}

// Three to sixteen rows. Eight warps, or sixteen where there is work for so many: x is in each processor once.
extern "C" __global__ void __launch_bounds__(512, 1) linear_decode_many(
        const REAL* __restrict__ x, const void* __restrict__ weight, const void* __restrict__ bias,
        const REAL* __restrict__ residual, REAL* __restrict__ out, const void* __restrict__ gain,
        const void* __restrict__ shift, float eps, int rows, int width, int outs, long long pitch,
        int split, int first, int made, int norm, int norm_kind, int bias_kind, int activation) {
    extern __shared__ unsigned char memory[];
    __shared__ float sums[MANY_TURNS * 16 * (2 * 16 + 1)];
    Shapes s = {rows, width, outs, (width + 7) / 8 * 8};
    int padded = rows <= 4 ? 4 : rows <= 8 ? 8 : 16;
    REAL* xs = (REAL*)memory;
    prepare(xs, x, padded, s, {gain, shift, norm, norm_kind, eps});
    Places at = places(xs, weight, padded, sums, out, pitch, s);
    Way way = way_of(weight, width, pitch, split);
    After after = {bias, residual, bias_kind, activation, first, made};
    if (padded == 4) all_outputs<4, MANY_TURNS>(at, way, s, after);
    else if (padded == 8) all_outputs<8, MANY_TURNS>(at, way, s, after);
    else all_outputs<16, MANY_TURNS>(at, way, s, after);
}
