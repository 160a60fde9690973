// The forward of the norms: see norm.cu.
#pragma once
#include "norm_rows.cuh"

#define FORWARD_ELEMENTS 32  // of a row in the registers of a thread

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

// This thread's chunks of x, or of x + residual, which is stored rounded and normed as stored. All of
// them are on their way before the first is used.
template <int N, int CHUNKS>
__device__ inline void read_row(
    float (&values)[CHUNKS][N], const Forward& a, const Place<0>& place, long long start, int width) {
    Chunk<N, REAL> x[CHUNKS], residual[CHUNKS];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int column = place.column(k, N);
        x[k].clear();
        if (column < width) x[k].read(a.x + start + column);
        if (column < width && a.residual) residual[k].read(a.residual + start + column);
    }
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        x[k].get(values[k]);
        if (!a.residual || place.column(k, N) >= width) continue;
        float more[N];
        residual[k].get(more);
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

// A row in registers, N elements in an access.
template <int N, bool CENTRED>
__device__ inline void normalize(
    const Forward& a, long long rows, int full_width, int group, float eps, float* scratch) {
    const int CHUNKS = FORWARD_ELEMENTS / N;
    const bool EARLY = CENTRED && sizeof(PARAM) == 2;  // float32 is too much beside the row and the weight
    Place<0> place(group);
    long long row = (long long)blockIdx.x * place.groups + place.index, start = row * full_width;
    int width = row < rows ? full_width : 0;  // all threads take part in the sums
    float values[CHUNKS][N], average = 0.0f, sum[1] = {0.0f}, sums[CENTRED ? 2 : 1] = {};
    read_row<N, CHUNKS>(values, a, place, start, width);
    Chunk<N, PARAM> weight[CHUNKS], bias[CHUNKS];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int column = place.column(k, N);
        if (column < width) weight[k].read(a.weight + column);
        if (EARLY && column < width) bias[k].read(a.bias + column);
        float part = 0.0f;  // sums of sums lose less to rounding than one long sum
#pragma unroll
        for (int i = 0; i < N; i++) part += values[k][i];  // 0 beyond the row
        sum[0] += part;
    }
    if (CENTRED) {
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
    Statistics found = statistics<CENTRED>(sums, place, full_width, eps, scratch);
    if (place.lane == 0 && width) a.keep(row, average + found.mean, found.rstd);
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int column = place.column(k, N);
        if (column >= width) continue;
        float scale[N], shift[N];
        weight[k].get(scale);
        if (CENTRED && !EARLY) bias[k].read(a.bias + column);
        if (CENTRED) bias[k].get(shift);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float normed = (CENTRED ? values[k][i] - found.mean : values[k][i]) * found.rstd;
            values[k][i] = CENTRED ? normed * scale[i] + shift[i] : normed * scale[i];
        }
        store<N>(a.out + start + column, values[k]);
    }
}

// Widths and addresses that allow no vectors: an element at a time, the row read again from the cache.
template <bool CENTRED>
__device__ inline void normalize_singly(
    const Forward& a, long long rows, int full_width, int group, float eps, float* scratch) {
    Place<0> place(group);
    long long row = (long long)blockIdx.x * place.groups + place.index, start = row * full_width;
    int width = row < rows ? full_width : 0;
    float average = 0.0f, sum[1] = {0.0f}, sums[CENTRED ? 2 : 1] = {};
    if (a.residual) {
        for (int i = place.lane; i < width; i += group)
            a.total[start + i] = narrow<REAL>(widen(a.x[start + i]) + widen(a.residual[start + i]));
    }
    const REAL* from = (a.residual ? a.total : a.x) + start;
    if (CENTRED) {
        for (int i = place.lane; i < width; i += group) sum[0] += widen(from[i]);
        row_sums<1>(sum, place, scratch);
        average = sum[0] / (float)full_width;
    }
    for (int i = place.lane; i < width; i += group) add_moments<CENTRED>(sums, widen(from[i]) - average);
    Statistics found = statistics<CENTRED>(sums, place, full_width, eps, scratch);
    if (place.lane == 0 && width) a.keep(row, average + found.mean, found.rstd);
    for (int i = place.lane; i < width; i += group) {
        float normed = (widen(from[i]) - average - found.mean) * found.rstd * widen(a.weight[i]);
        a.out[start + i] = narrow<REAL>(CENTRED ? normed + widen(a.bias[i]) : normed);
    }
}

template <bool CENTRED>
__device__ inline void normalize_any(const Forward& a, long long rows, int width, int group, float eps) {
    __shared__ float scratch[3 * MOST_WARPS];
    bool whole = width % NEIGHBOURS == 0 && aligned(a.x, 16) && aligned(a.residual, 16) && aligned(a.weight, 16) &&
                 aligned(a.bias, 16) && aligned(a.total, 16) && aligned(a.out, 16);
    if (whole) normalize<NEIGHBOURS, CENTRED>(a, rows, width, group, eps, scratch);
    else normalize_singly<CENTRED>(a, rows, width, group, eps, scratch);
}
