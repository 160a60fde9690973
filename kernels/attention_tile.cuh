// Tiles of attention: rows of a head in shared memory, and the two matrix products on them.
//
// A block is four warps. It owns some rows (queries, or keys in the backward) and streams the others
// past them in tiles of N. A warp works on UNITS units of 16 rows and holds 16 x N numbers of a unit
// as c[N / 8][4] in each thread, in one of two arrangements that the rest of the code need not know:
//
//   tensor cores (half from 7.5 on, bfloat16 from 8.0): the C fragment of mma.sync, two rows a thread
//   FFMA (float, and bfloat16 on 7.5): eight lanes share a row, four rows a thread
//
// where `Place` says which row and column c[j][i] is. A tile keeps rows of HEAD elements in chunks of
// 16 bytes; chunk x of row r lies at x ^ (r % 8) (with 4 or 12 chunks a row, two rows to 128 bytes:
// x ^ (r / 2 % 4)), so that eight rows of one column, what ldmatrix and a quarter of a warp read, fall
// into different banks without any padding.
#pragma once
#include "memory.cuh"
#include "reduce.cuh"
#include "tensor_core.cuh"

static const int WARPS = 4, THREADS = 32 * WARPS;

template <class T> struct TensorCores { static const bool exist = false; };
template <> struct TensorCores<half> { static const bool exist = true; };
#if __CUDA_ARCH__ >= 800
template <> struct TensorCores<bfloat16> { static const bool exist = true; };
#endif
static const bool CORES = TensorCores<REAL>::exist;

// Elements of 16 bytes, and how many such chunks a row has.
static const int EACH = 16 / (int)sizeof(REAL), CHUNKS = HEAD / EACH;

template <bool BY_CORES> struct Places;

template <> struct Places<true> {
    static const int SLOTS = 2, LANES = 4;  // rows of a unit in a thread; lanes that share a row
    static const int BELOW = 4;             // from a lane to the one with the next row
    __device__ static int slot(int i) { return i / 2; }
    __device__ static int row(int slot) { return (threadIdx.x & 31) / 4 + 8 * slot; }
    __device__ static int column(int j, int i) { return 8 * j + 2 * (threadIdx.x & 3) + i % 2; }
    template <int COLUMNS> __device__ static int wide_column(int j, int i) { return column(j, i); }
};

template <> struct Places<false> {
    static const int SLOTS = 4, LANES = 8, BELOW = 8;
    __device__ static int slot(int i) { return i; }
    __device__ static int row(int slot) { return (threadIdx.x & 31) / 8 + 4 * slot; }
    __device__ static int column(int j, int i) { return 8 * j + (threadIdx.x & 7); }
    // Columns of the head: as many side by side as one load brings.
    template <int COLUMNS> struct Beside { static const int value = COLUMNS % 32 ? 2 : 4; };
    template <int COLUMNS> __device__ static int wide_column(int j, int i) {
        const int beside = Beside<COLUMNS>::value;
        return 8 * beside * (j / beside) + beside * (threadIdx.x & 7) + j % beside;
    }
};

typedef Places<CORES> Place;

__device__ inline float row_sum(float x) {
#pragma unroll
    for (int step = Place::LANES / 2; step > 0; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

__device__ inline float row_max(float x) {
#pragma unroll
    for (int step = Place::LANES / 2; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

template <int UNITS, int N> __device__ inline void clear(float (&c)[UNITS][N][4]) {
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[u][j][i] = 0.0f;
}

// Where an element lies in a tile.
__device__ inline int place(int row, int column) {
    int turned = column / EACH ^ (CHUNKS % 8 ? row >> 1 & 3 : row & 7);
    return row * HEAD + turned * EACH + column % EACH;
}

// Begin to bring ROWS rows of a head, `stride` apart, from row `first` on into a tile; zeros for rows
// from `stop` on, whose memory may hold anything, and for columns from `width` on.
template <int ROWS>
__device__ inline void fetch(REAL* tile, const REAL* from, long long stride, int first, int stop, int width,
                             bool vectors) {
    if (vectors) {
#pragma unroll 4
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
            int row = i / CHUNKS, column = i % CHUNKS * EACH;
            bool present = row < stop - first && column < width;
            const REAL* source = present ? from + (first + row) * stride + column : from;
            copy_async(tile + place(row, column), source, present);
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * HEAD; i += THREADS) {
            int row = i / HEAD, column = i % HEAD;
            bool present = row < stop - first && column < width;
            tile[place(row, column)] = present ? from[(first + row) * stride + column] : narrow<REAL>(0.0f);
        }
    }
}

// Write the first rows of a tile, as many as there are before `stop`, out to rows `stride` apart.
template <int ROWS>
__device__ inline void write(REAL* to, const REAL* tile, long long stride, int first, int stop, int width,
                             bool vectors) {
    const int count = stop - first < ROWS ? stop - first : ROWS;
    if (vectors) {
#pragma unroll 2
        for (int i = threadIdx.x; i < count * CHUNKS; i += THREADS) {
            int row = i / CHUNKS, column = i % CHUNKS * EACH;
            if (column < width)
                *(uint4*)(to + (first + row) * stride + column) = *(const uint4*)(tile + place(row, column));
        }
    } else {
#pragma unroll 1
        for (int i = threadIdx.x; i < count * HEAD; i += THREADS) {
            int row = i / HEAD, column = i % HEAD;
            if (column < width) to[(first + row) * stride + column] = tile[place(row, column)];
        }
    }
}

// A warp's accumulators, each row times its factor, into its rows and columns of a tile: neighbours together.
template <int UNITS, int COLUMNS>
__device__ inline void put(REAL* tile, const float (&c)[UNITS][COLUMNS / 8][4], int row0, int column0,
                           const float (&factor)[UNITS][Place::SLOTS]) {
    const int beside = CORES ? 2 : Places<false>::Beside<COLUMNS>::value, each_j = CORES ? 1 : beside;
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += each_j)
#pragma unroll
            for (int i = 0; i < 4; i += CORES ? beside : 1) {
                const int slot = Place::slot(i), row = row0 + 16 * u + Place::row(slot);
                const int column = column0 + Place::template wide_column<COLUMNS>(j, i);
                float values[beside];
#pragma unroll
                for (int x = 0; x < beside; x++) {
                    const float sum = CORES ? c[u][j][i + x & 3] : c[u][j + x % each_j][i];
                    values[x] = factor[u][slot] == 0.0f ? 0.0f : sum * factor[u][slot];
                }
                store<beside>(tile + place(row, column), values);
            }
}

// --- tensor cores ---------------------------------------------------------------------------

template <class T>
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    const unsigned b[2] = {b0, b1};
    mma_16x8x16<T>(c, a, b);
#else
    mma_16x8x8(c, a[0], a[1], b0);
    mma_16x8x8(c, a[2], a[3], b1);
#endif
}

// c = (rows of `own` from row0 on) times (the N rows of `other`), transposed.
template <int UNITS, int N>
__device__ inline void dot_by_cores(float (&c)[UNITS][N / 8][4], const REAL* own, int row0, const REAL* other) {
    const int lane = threadIdx.x & 31;
    // Two steps have loads enough to overlap; the turned addresses of more would fill the registers. Where there are
    // two units, the head is short, and all its addresses are no more than what a loop would keep.
    const int unrolled = UNITS == 2 ? HEAD / 16 : 2;
#pragma unroll unrolled
    for (int d = 0; d < HEAD; d += 16) {
        unsigned a[UNITS][4];
#pragma unroll
        for (int u = 0; u < UNITS; u++)
            ldmatrix_x4(a[u], own + place(row0 + 16 * u + lane % 16, d + lane / 16 * 8));
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            unsigned b[4];
            ldmatrix_x4(b, other + place(n + lane % 8 + lane / 16 * 8, d + lane / 8 % 2 * 8));
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                multiply<REAL>(c[u][n / 8], a[u], b[0], b[1]);
                multiply<REAL>(c[u][n / 8 + 1], a[u], b[2], b[3]);
            }
        }
    }
}

// sum += p times columns column0 .. of the N rows of `other`. A C fragment of p, rounded to 16 bits
// two by two, is an A fragment as it stands.
template <int UNITS, int N, int COLUMNS>
__device__ inline void mix_by_cores(float (&sum)[UNITS][COLUMNS / 8][4], const float (&p)[UNITS][N / 8][4],
                                    const REAL* other, int column0) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < N; n += 16) {
        unsigned a[UNITS][4];
#pragma unroll
        for (int u = 0; u < UNITS; u++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* pair = &p[u][n / 8 + i / 2][i % 2 * 2];
                a[u][i] = pack<REAL>(pair[0], pair[1]);
            }
#pragma unroll
        for (int d = 0; d < COLUMNS; d += 16) {
            // No more loads ahead of their products than registers are left beside so wide a sum.
            if (UNITS * COLUMNS > 192 && d % 32 == 0) __syncwarp();
            unsigned b[4];
            ldmatrix_x4_transposed(b, other + place(n + lane % 16, column0 + d + lane / 16 * 8));
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                multiply<REAL>(sum[u][d / 8], a[u], b[0], b[1]);
                multiply<REAL>(sum[u][d / 8 + 1], a[u], b[2], b[3]);
            }
        }
    }
}

// --- FFMA -----------------------------------------------------------------------------------

template <int UNITS, int N>
__device__ inline void dot_by_ffma(float (&c)[UNITS][N / 8][4], const REAL* own, int row0, const REAL* other) {
#pragma unroll 2
    for (int d = 0; d < HEAD; d += 4) {
        float a[UNITS][4][4];
#pragma unroll
        for (int u = 0; u < UNITS; u++)
#pragma unroll
            for (int i = 0; i < 4; i++) load<4>(a[u][i], own + place(row0 + 16 * u + Place::row(i), d));
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            float b[4];
            load<4>(b, other + place(Place::column(j, 0), d));
#pragma unroll
            for (int u = 0; u < UNITS; u++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) c[u][j][i] += a[u][i][e] * b[e];
        }
    }
}

// The weights go through `slab`, 16 UNITS rows of N + 8 of this warp, to reach the lanes of their row.
template <int UNITS, int N, int COLUMNS>
__device__ inline void mix_by_ffma(float (&sum)[UNITS][COLUMNS / 8][4], const float (&p)[UNITS][N / 8][4],
                                   const REAL* other, int column0, REAL* slab) {
    const int beside = Places<false>::Beside<COLUMNS>::value, lane = threadIdx.x & 7;
    __syncwarp();
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                slab[(16 * u + Place::row(i)) * (N + 8) + Place::column(j, i)] = narrow<REAL>(p[u][j][i]);
    __syncwarp();
#pragma unroll 1
    for (int n = 0; n < N; n += 4) {
        float a[UNITS][4][4];
#pragma unroll
        for (int u = 0; u < UNITS; u++)
#pragma unroll
            for (int i = 0; i < 4; i++) load<4>(a[u][i], slab + (16 * u + Place::row(i)) * (N + 8) + n);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += beside) {
                float b[beside];
                load<beside>(b, other + place(n + e, column0 + 8 * j + lane * beside));
#pragma unroll
                for (int u = 0; u < UNITS; u++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int x = 0; x < beside; x++) sum[u][j + x][i] += a[u][i][e] * b[x];
            }
    }
}

// --- either ---------------------------------------------------------------------------------

template <int UNITS, int N>
__device__ inline void dot(float (&c)[UNITS][N / 8][4], const REAL* own, int row0, const REAL* other) {
    clear(c);
    if constexpr (CORES) dot_by_cores<UNITS, N>(c, own, row0, other);
    else dot_by_ffma<UNITS, N>(c, own, row0, other);
}

template <int UNITS, int N, int COLUMNS>
__device__ inline void mix(float (&sum)[UNITS][COLUMNS / 8][4], const float (&p)[UNITS][N / 8][4],
                           const REAL* other, int column0, REAL* slab) {
    if constexpr (CORES) mix_by_cores<UNITS, N, COLUMNS>(sum, p, other, column0);
    else mix_by_ffma<UNITS, N, COLUMNS>(sum, p, other, column0, slab);
}
