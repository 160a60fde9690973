// The forward of the norms: see norm.cu.
#pragma once
#include "norm_rows.cuh"

#define FORWARD_ELEMENTS 16  // of a row in the registers of a thread, with their weights and biases

// What the forward kernels read and write; residual, total, bias and mean may be null.
struct Forward {
    const REAL* x;
    const REAL* residual;
    const PARAM* weight;
    const PARAM* bias;
    REAL* total;
    REAL* out;
    float* mean;
    float* rstd;

    __device__ inline void keep(long long row, float average, float scale) const {
        if (mean) mean[row] = average;
        rstd[row] = scale;
    }
};

// This thread's chunks of x, or of x + residual, which is stored rounded and normed as stored. All of x
// is on its way before the first is used, and all of the residual where there are registers for it.
template <int N, int CHUNKS, bool BOTH>
__device__ inline void read_row(
    float (&values)[CHUNKS][N], const Forward& a, const Place<0>& place, long long start, int width) {
    Chunk<N, REAL> x[CHUNKS], residual[BOTH ? CHUNKS : 1];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int column = place.column(k, N);
        x[k].clear();
        if (column < width) x[k].read(a.x + start + column);
        if (BOTH && column < width && a.residual) residual[BOTH ? k : 0].read(a.residual + start + column);
    }
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        x[k].get(values[k]);
        if (!a.residual || place.column(k, N) >= width) continue;
        float more[N];
        if (!BOTH) residual[0].read(a.residual + start + place.column(k, N));
        residual[BOTH ? k : 0].get(more);
#pragma unroll
        for (int i = 0; i < N; i++) values[k][i] += more[i];
        x[k].set(values[k]);
        x[k].write(a.total + start + place.column(k, N));
        x[k].get(values[k]);
    }
}

// The sum of squares, and with a mean that of the numbers themselves.
template <bool CENTRED> __device__ inline void add_moments(float (&sums)[CENTRED ? 2 : 1], float x) {
    sums[0] += x * x;
    if (CENTRED) sums[CENTRED ? 1 : 0] += x;
}

// Of what is left of a row: what the mean found first was off by, and 1 / the standard deviation.
struct Statistics {
    float mean, rstd;
};

template <bool CENTRED>
__device__ inline Statistics statistics(
    float (&sums)[CENTRED ? 2 : 1], const Place<0>& place, int width, float eps, float* scratch) {
    row_sums<CENTRED ? 2 : 1>(sums, place, scratch + MOST_WARPS);
    float mean = CENTRED ? sums[CENTRED ? 1 : 0] / (float)width : 0.0f;
    float rstd = 1.0f / sqrtf(sums[0] / (float)width - mean * mean + eps);
    return {mean == mean ? mean : 0.0f, rstd};  // an infinite mean found first stays
}

// Weight and bias of a thread's columns: kept for all its rows, or read for each where the row itself
// takes the registers.
template <int N, int CHUNKS, bool KEPT, bool CENTRED> struct Parameters {
    Chunk<N, PARAM> weight[KEPT ? CHUNKS : 1], bias[KEPT && CENTRED ? CHUNKS : 1];

    __device__ inline void read(int k, const Forward& a, int column) {
        weight[KEPT ? k : 0].read(a.weight + column);
        if (CENTRED) bias[KEPT && CENTRED ? k : 0].read(a.bias + column);
    }

    __device__ inline Parameters(const Forward& a, const Place<0>& place, int width) {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++)
            if (KEPT && place.column(k, N) < width) read(k, a, place.column(k, N));
    }

    // values[k], which begin at `column`, scaled and shifted.
    __device__ inline void apply(float (&values)[N], int k, const Forward& a, int column) {
        float scale[N], shift[N];
        if (!KEPT) read(k, a, column);
        weight[KEPT ? k : 0].get(scale);
        if (CENTRED) bias[KEPT && CENTRED ? k : 0].get(shift);
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = CENTRED ? values[i] * scale[i] + shift[i] : values[i] * scale[i];
    }
};

// The mean of a row, taken off its elements, and what is left to know of it.
template <int N, int CHUNKS, bool CENTRED>
__device__ inline Statistics centre(
    float (&values)[CHUNKS][N], float& average, const Place<0>& place, int width, int full_width, float eps,
    float* scratch) {
    float sum[1] = {0.0f}, sums[CENTRED ? 2 : 1] = {};
    average = 0.0f;
    if (CENTRED) {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            float part = 0.0f;  // sums of sums lose less to rounding than one long sum
#pragma unroll
            for (int i = 0; i < N; i++) part += values[k][i];  // 0 beyond the row
            sum[0] += part;
        }
        row_sums<1>(sum, place, scratch);
        average = sum[0] / (float)full_width;
    }
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        if (place.column(k, N) >= width) continue;
        float parts[CENTRED ? 2 : 1] = {};
#pragma unroll
        for (int i = 0; i < N; i++) {
            values[k][i] -= average;
            add_moments<CENTRED>(parts, values[k][i]);
        }
#pragma unroll
        for (int i = 0; i < (CENTRED ? 2 : 1); i++) sums[i] += parts[i];
    }
    return statistics<CENTRED>(sums, place, full_width, eps, scratch);
}

// Rows in registers, N elements in an access, ELEMENTS of a row in a thread.
template <int N, int ELEMENTS, bool KEPT, bool CENTRED>
__device__ inline void normalize(
    const Forward& a, long long rows, int full_width, int group, float eps, float* scratch) {
    const int CHUNKS = ELEMENTS / N;
    Place<0> place(group);
    Parameters<N, CHUNKS, KEPT, CENTRED> parameters(a, place, full_width);
    long long step = (long long)gridDim.x * place.groups;
    int turn = 0;  // the sums of one row and of the next are in different halves of the scratch
    for (long long first = (long long)blockIdx.x * place.groups; first < rows; first += step) {
        long long row = first + place.index, start = row * full_width;
        int width = row < rows ? full_width : 0;  // all threads take part in the sums
        float values[CHUNKS][N], average;
        read_row<N, CHUNKS, KEPT>(values, a, place, start, width);
        Statistics found = centre<N, CHUNKS, CENTRED>(values, average, place, width, full_width, eps, scratch + turn);
        if (place.lane == 0 && width) a.keep(row, average + found.mean, found.rstd);
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int column = place.column(k, N);
            if (column >= width) continue;
#pragma unroll
            for (int i = 0; i < N; i++)
                values[k][i] = (CENTRED ? values[k][i] - found.mean : values[k][i]) * found.rstd;
            parameters.apply(values[k], k, a, column);
            store<N>(a.out + start + column, values[k]);
        }
        turn ^= 3 * MOST_WARPS;
    }
}

// Widths and addresses that allow no vectors: an element at a time, the row read again from the cache.
template <bool CENTRED>
__device__ inline void normalize_singly(
    const Forward& a, long long rows, int full_width, int group, float eps, float* scratch) {
    Place<0> place(group);
    long long step = (long long)gridDim.x * place.groups;
    int turn = 0;  // the sums of one row and of the next are in different halves of the scratch
    for (long long first = (long long)blockIdx.x * place.groups; first < rows; first += step) {
        long long row = first + place.index, start = row * full_width;
        int width = row < rows ? full_width : 0;
        float average = 0.0f, sum[1] = {0.0f}, sums[CENTRED ? 2 : 1] = {};
        if (a.residual) {
            for (int i = place.lane; i < width; i += group)
                a.total[start + i] = narrow<REAL>(widen(a.x[start + i]) + widen(a.residual[start + i]));
        }
        const REAL* from = (a.residual ? a.total : a.x) + start;
        if (CENTRED) {
            for (int i = place.lane; i < width; i += group) sum[0] += widen(from[i]);
            row_sums<1>(sum, place, scratch + turn);
            average = sum[0] / (float)full_width;
        }
        for (int i = place.lane; i < width; i += group) add_moments<CENTRED>(sums, widen(from[i]) - average);
        Statistics found = statistics<CENTRED>(sums, place, full_width, eps, scratch + turn);
        if (place.lane == 0 && width) a.keep(row, average + found.mean, found.rstd);
        for (int i = place.lane; i < width; i += group) {
            float normed = (widen(from[i]) - average - found.mean) * found.rstd * widen(a.weight[i]);
            a.out[start + i] = narrow<REAL>(CENTRED ? normed + widen(a.bias[i]) : normed);
        }
        turn ^= 3 * MOST_WARPS;
    }
}

template <bool WIDE, bool CENTRED>
__device__ inline void normalize_any(const Forward& a, long long rows, int width, int group, float eps) {
    __shared__ float scratch[6 * MOST_WARPS];
    const int N = NEIGHBOURS, ELEMENTS = WIDE ? WIDE_ELEMENTS : FORWARD_ELEMENTS;
    bool whole = width % N == 0 && aligned(a.x, 16) && aligned(a.residual, 16) && aligned(a.weight, 16) &&
                 aligned(a.bias, 16) && aligned(a.total, 16) && aligned(a.out, 16);
    if (whole) normalize<N, ELEMENTS, !WIDE, CENTRED>(a, rows, width, group, eps, scratch);
    else normalize_singly<CENTRED>(a, rows, width, group, eps, scratch);
}
