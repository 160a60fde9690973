// The backward of the norms: see norm.cu.
#pragma once
#include "norm_rows.cuh"

#define BACKWARD_ELEMENTS (32 / (int)sizeof(REAL))  // of a row in a thread, with as many sums of each gradient
#define TOGETHER (MOST_THREADS * BACKWARD_ELEMENTS)  // floats of shared memory to add groups up in

template <bool FIRST, class A, class B> struct Either { typedef A type; };
template <class A, class B> struct Either<false, A, B> { typedef B type; };

// What the backward kernels read and write. `x` is what was normed; dtotal, mean and dbias may be null.
// The partial sums are (gridDim.x, width).
struct Backward {
    const REAL* x;
    const PARAM* weight;
    const float* mean;
    const float* rstd;
    const REAL* dout;
    const REAL* dtotal;
    REAL* dx;
    float* dweight;
    float* dbias;

    // Whether rows consist of whole 16-byte chunks.
    __device__ inline bool whole(int width) const {
        return width % NEIGHBOURS == 0 && aligned(x, 16) && aligned(weight, 16) && aligned(dout, 16) &&
               aligned(dtotal, 16) && aligned(dx, 16) && aligned(dweight, 16) && aligned(dbias, 16);
    }
};

// What a thread has of a row, as bits: x, its gradient and the one to be added, all on their way before
// any is used.
template <int N, int CHUNKS> struct Held {
    Chunk<N, REAL> x[CHUNKS], dout[CHUNKS], dtotal[CHUNKS];

    template <class P>
    __device__ inline void read(const Backward& a, const P& place, long long start, int width) {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            long long from = start + place.column(k, N);
            if (place.column(k, N) < width) x[k].read(a.x + from);
            if (place.column(k, N) < width) dout[k].read(a.dout + from);
            if (place.column(k, N) < width && a.dtotal) dtotal[k].read(a.dtotal + from);
        }
    }

    __device__ inline void get(float (&x_k)[N], float (&dout_k)[N], int k, const Backward&, long long) const {
        x[k].get(x_k);
        dout[k].get(dout_k);
    }

    __device__ inline void get_dtotal(float (&out)[N], int k, const Backward&, long long) const {
        dtotal[k].get(out);
    }
};

// The same for a row that does not fit: each use reads it, from the cache but for the first.
template <int N, int CHUNKS> struct ReadAgain {
    template <class P>
    __device__ inline void read(const Backward&, const P&, long long, int) {}

    __device__ inline void get(float (&x_k)[N], float (&dout_k)[N], int, const Backward& a, long long from) const {
        load<N>(x_k, a.x + from);
        load<N>(dout_k, a.dout + from);
    }

    __device__ inline void get_dtotal(float (&out)[N], int, const Backward& a, long long from) const {
        load<N>(out, a.dtotal + from);
    }
};

// The weight of a thread's columns: kept, or read where it is used.
template <int N, int CHUNKS, bool KEPT> struct Scales {
    Chunk<N, PARAM> kept[CHUNKS];

    template <class P>
    __device__ inline Scales(const PARAM* weight, const P& place, int width) {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            if (place.column(k, N) < width) kept[k].read(weight + place.column(k, N));
        }
    }
    __device__ inline void get(float (&out)[N], int k, int) const { kept[k].get(out); }
};
template <int N, int CHUNKS> struct Scales<N, CHUNKS, false> {
    const PARAM* weight;

    template <class P>
    __device__ inline Scales(const PARAM* weight, const P&, int) : weight(weight) {}
    __device__ inline void get(float (&out)[N], int, int column) const { load<N>(out, weight + column); }
};

// Add up what the groups of a block have left in `together`, one row of `width` each, into `partial`.
__device__ inline void add_groups(const float* together, int groups, int width, float* partial) {
    __syncthreads();
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float sum = 0.0f;
        for (int i = 0; i < groups; i++) sum += together[i * width + column];
        partial[column] = sum;
    }
}

// Leave the sums of a block's threads in `partial`, one of the partial rows.
template <int N, int CHUNKS, class P>
__device__ inline void leave_sums(
    const float (&sums)[CHUNKS][N], const P& place, int width, float* partial, float* together) {
    bool alone = place.groups == 1;
    float* to = alone ? partial : together + place.index * width;
    if (!alone) __syncthreads();  // what was there has been read
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int column = place.column(k, N);
        if (column < width && !place.spare) store<N>(to + column, sums[k]);
    }
    if (!alone) add_groups(together, place.groups, width, partial);
}

// The rows of a block, N elements in an access, ELEMENTS of a row in a thread. FIXED threads have a row
// together if that is not 0, which are rows too long to hold.
template <int N, int ELEMENTS, int FIXED, bool CENTRED>
__device__ inline void differentiate(
    const Backward& a, long long rows, int full_width, int group, float* scratch, float* together) {
    const int CHUNKS = ELEMENTS / N, SUMS = CENTRED ? 2 : 1;
    const bool HELD = FIXED == 0;
    typedef typename Either<HELD, Held<N, CHUNKS>, ReadAgain<N, CHUNKS>>::type Row;
    Place<FIXED> place(group);
    Scales<N, CHUNKS, HELD> scales(a.weight, place, full_width);
    float dweight[CHUNKS][N], dbias[CHUNKS][N], part = 1.0f / (float)full_width;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
#pragma unroll
        for (int i = 0; i < N; i++) dweight[k][i] = dbias[k][i] = 0.0f;
    }
    long long step = (long long)gridDim.x * place.groups;
    int turn = 0;  // the sums of one row and of the next are in different halves of the scratch
    for (long long first = (long long)blockIdx.x * place.groups; first < rows; first += step) {
        long long row = first + place.index, start = row * full_width;
        int width = row < rows && !place.spare ? full_width : 0;  // all threads take part in the sums
        Row held;
        held.read(a, place, start, width);
        float mean = CENTRED && width ? a.mean[row] : 0.0f, rstd = width ? a.rstd[row] : 0.0f;
        float sums[SUMS] = {}, x[N], dy[N], scale[N];
#pragma unroll (HELD ? CHUNKS : 2)
        for (int k = 0; k < CHUNKS; k++) {
            int column = place.column(k, N);
            if (column >= width) continue;
            held.get(x, dy, k, a, start + column);
            scales.get(scale, k, column);
#pragma unroll
            for (int i = 0; i < N; i++) {
                sums[0] += dy[i] * scale[i] * ((x[i] - mean) * rstd);
                if (CENTRED) sums[SUMS - 1] += dy[i] * scale[i];
            }
        }
        row_sums<SUMS>(sums, place, scratch + turn);
        turn ^= 2 * MOST_WARPS;
        float slope = sums[0] * part, level = CENTRED ? sums[SUMS - 1] * part : 0.0f;
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int column = place.column(k, N);
            if (column >= width) continue;
            held.get(x, dy, k, a, start + column);
            scales.get(scale, k, column);
            float dx[N], more[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                float normed = (x[i] - mean) * rstd;
                dx[i] = (dy[i] * scale[i] - level - normed * slope) * rstd;
                dweight[k][i] += dy[i] * normed;
                dbias[k][i] += dy[i];
            }
            if (a.dtotal) {
                held.get_dtotal(more, k, a, start + column);
#pragma unroll
                for (int i = 0; i < N; i++) dx[i] += more[i];
            }
            store<N>(a.dx + start + column, dx);
        }
    }
    long long partial = (long long)blockIdx.x * full_width;
    leave_sums(dweight, place, full_width, a.dweight + partial, together);
    if (CENTRED) leave_sums(dbias, place, full_width, a.dbias + partial, together);
}

// Widths and addresses that allow no vectors: an element at a time, the row read again from the cache.
// The sums of short rows are in shared memory; for long ones the partial row itself takes them.
template <bool CENTRED>
__device__ inline void differentiate_singly(
    const Backward& a, long long rows, int full_width, float* scratch, float* together) {
    const int SUMS = CENTRED ? 2 : 1;
    bool small = full_width <= TOGETHER / (2 * MOST_WARPS);
    Place<0> place(small ? 32 : MOST_THREADS);
    long long partial = (long long)blockIdx.x * full_width;
    float* dweight = small ? together + place.index * full_width : a.dweight + partial;
    float* dbias = small ? dweight + place.groups * full_width : a.dbias + partial;
    for (int i = place.lane; i < full_width; i += place.group) {
        dweight[i] = 0.0f;
        if (CENTRED) dbias[i] = 0.0f;
    }
    float part = 1.0f / (float)full_width;
    long long step = (long long)gridDim.x * place.groups;
    int turn = 0;
    for (long long first = (long long)blockIdx.x * place.groups; first < rows; first += step) {
        long long row = first + place.index, start = row * full_width;
        int width = row < rows ? full_width : 0;
        float mean = CENTRED && width ? a.mean[row] : 0.0f, rstd = width ? a.rstd[row] : 0.0f, sums[SUMS] = {};
        for (int i = place.lane; i < width; i += place.group) {
            float dnormed = widen(a.dout[start + i]) * widen(a.weight[i]);
            sums[0] += dnormed * ((widen(a.x[start + i]) - mean) * rstd);
            if (CENTRED) sums[SUMS - 1] += dnormed;
        }
        row_sums<SUMS>(sums, place, scratch + turn);
        turn ^= 2 * MOST_WARPS;
        float slope = sums[0] * part, level = CENTRED ? sums[SUMS - 1] * part : 0.0f;
        for (int i = place.lane; i < width; i += place.group) {
            float dy = widen(a.dout[start + i]), normed = (widen(a.x[start + i]) - mean) * rstd;
            float dx = (dy * widen(a.weight[i]) - level - normed * slope) * rstd;
            a.dx[start + i] = narrow<REAL>(a.dtotal ? dx + widen(a.dtotal[start + i]) : dx);
            dweight[i] += dy * normed;
            if (CENTRED) dbias[i] += dy;
        }
    }
    if (!small) return;
    add_groups(together, place.groups, full_width, a.dweight + partial);
    if (CENTRED) add_groups(together + place.groups * full_width, place.groups, full_width, a.dbias + partial);
}

template <bool CENTRED>
__device__ inline void differentiate_any(const Backward& a, long long rows, int width, int group) {
    __shared__ float together[TOGETHER];
    __shared__ float scratch[4 * MOST_WARPS];
    const int N = NEIGHBOURS;
    if (a.whole(width)) differentiate<N, BACKWARD_ELEMENTS, 0, CENTRED>(a, rows, width, group, scratch, together);
    else differentiate_singly<CENTRED>(a, rows, width, scratch, together);
}

// Rows of which a block has one at a time, so that there are no groups to add up.
template <bool CENTRED> __device__ inline void differentiate_wide(const Backward& a, long long rows, int width) {
    __shared__ float scratch[4 * MOST_WARPS];
    const int N = NEIGHBOURS, GROUP = MOST_THREADS;
    if (a.whole(width)) differentiate<N, WIDE_ELEMENTS, GROUP, CENTRED>(a, rows, width, GROUP, scratch, nullptr);
    else differentiate_singly<CENTRED>(a, rows, width, scratch, nullptr);
}
