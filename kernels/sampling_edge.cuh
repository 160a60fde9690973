// The edge of a row of logits, below which nothing may be drawn, found without sorting: see sampling.cu.
#pragma once
#include "rows.cuh"
#include "reduce.cuh"

typedef unsigned long long mass_t;

const int BINS = 1024, BIN_BITS = 10, LISTED = 4096, LOADS = 4;
// Logits further below the largest than this have no mass: exp(-32) is 1.3e-14.
const float DEPTH = 32.0f;

// --- a row: its logits as they are to be drawn from ---

struct Logits {
    const REAL* row;
    const bool* seen;  // tokens to be made less likely, or none
    float penalty, temperature;
    int classes;

    __device__ inline float penalized(int i, float x) const {
        if (!seen || !seen[i]) return x;
        return x > 0.0f ? x / penalty : x * penalty;
    }
    __device__ inline float scaled(int i, float x) const { return penalized(i, x) / temperature; }
    __device__ inline float at(int i) const { return scaled(i, widen(row[i])); }
};

// Keys order as their numbers do.
__device__ inline unsigned key_of(float x) {
    unsigned bits = (unsigned)__float_as_int(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float number_of(unsigned key) {
    return __int_as_float((int)(key & 0x80000000u ? key & 0x7fffffffu : ~key));
}

struct Scale {
    float top, unit;  // unit: how much the largest logit weighs, a power of two

    __device__ inline mass_t mass(float x) const { return (mass_t)(expf(x - top) * unit); }
};

// --- sums of whole numbers over a block ---

// The sum over the threads before this one; `total` over all. Both barriers are inside.
__device__ inline mass_t block_before(mass_t x, mass_t* scratch, mass_t* total) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    mass_t up_to = x, base = 0, all = 0;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        mass_t below = __shfl_up_sync(FULL_WARP, up_to, step);
        if (lane >= step) up_to += below;
    }
    if (lane == 31) scratch[warp] = up_to;
    __syncthreads();
    for (int w = 0; w < warps; w++) {
        mass_t sum = scratch[w];
        if (w < warp) base += sum;
        all += sum;
    }
    __syncthreads();
    *total = all;
    return base + up_to - x;
}

// --- histograms ---

struct Histogram {
    unsigned* counts;
    unsigned* low;   // the masses' lower halves
    unsigned* high;

    __device__ inline void clear() const {
        for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) counts[bin] = low[bin] = high[bin] = 0;
        __syncthreads();
    }
    __device__ inline void add(int bin, mass_t mass) const {
        atomicAdd(&counts[bin], 1u);
        unsigned lower = (unsigned)mass, upper = (unsigned)(mass >> 32);
        if (lower) upper += atomicAdd(&low[bin], lower) + lower < lower;
        if (upper) atomicAdd(&high[bin], upper);
    }
    __device__ inline mass_t mass(int bin) const { return (mass_t)high[bin] << 32 | low[bin]; }
};

// What is wanted: the smallest logit that has fewer than `count` logits above it, or less than `mass`.
struct Wanted {
    unsigned count;
    double mass;
    bool by_mass;

    __device__ inline bool reached(mass_t count_above, mass_t mass_above) const {
        return by_mass ? (double)mass_above < mass : count_above < count;
    }
};

// Where the search is: the keys from `low` to `high`, and what lies above them.
struct Window {
    unsigned low, high;
    mass_t count, mass;
};

struct Board {  // shared memory
    Histogram coarse, fine;
    float* list;
    int* chosen;
    unsigned* bounds;
    mass_t* sums;
};

// The last bin, counted from the largest logits, that is not empty and is reached; moves `window`'s
// sums to what lies above it. -1 if there is none.
__device__ inline int pick(const Histogram& histogram, const Wanted& wanted, Window& window, const Board& board) {
    if (threadIdx.x == 0) *board.chosen = -1;
    __syncthreads();  // also after the last addition to the histogram
    int each = BINS / (int)blockDim.x, first = threadIdx.x * each, last = -1;
    mass_t count = 0, mass = 0, total;
    for (int bin = first; bin < first + each; bin++) {
        count += histogram.counts[bin];
        mass += histogram.mass(bin);
    }
    mass_t count_above = window.count + block_before(count, board.sums, &total);
    mass_t mass_above = window.mass + block_before(mass, board.sums, &total);
    mass_t count_there = 0, mass_there = 0;
    for (int bin = first; bin < first + each; bin++) {
        if (histogram.counts[bin] && wanted.reached(count_above, mass_above)) {
            last = bin;
            count_there = count_above;
            mass_there = mass_above;
        }
        count_above += histogram.counts[bin];
        mass_above += histogram.mass(bin);
    }
    if (last >= 0) atomicMax(board.chosen, last);
    __syncthreads();
    int chosen = *board.chosen;
    if (last >= 0 && last == chosen) {
        board.sums[0] = count_there;
        board.sums[1] = mass_there;
    }
    __syncthreads();
    if (chosen >= 0) {
        window.count = board.sums[0];
        window.mass = board.sums[1];
    }
    __syncthreads();
    return chosen;
}

struct CoarseBins {
    Logits logits;
    Scale scale;
    float per_unit;  // bins per unit of the logits
    Histogram histogram;
    mass_t sum = 0;

    __device__ inline int bin(float x) const {
        return (int)fminf((scale.top - x) * per_unit, (float)(BINS - 1));
    }
    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = logits.scaled(index + i, x[i]);
            mass_t mass = scale.mass(value);
            histogram.add(bin(value), mass);
            sum += mass;
        }
    }
};

// The logits of one coarse bin: their range of keys, and a list of them if there is room.
struct Collector {
    CoarseBins bins;
    int wanted;
    float* list;
    int* listed;
    unsigned low = 0xffffffffu, high = 0;

    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = bins.logits.scaled(index + i, x[i]);
            if (bins.bin(value) != wanted) continue;
            unsigned key = key_of(value);
            low = key < low ? key : low;
            high = key > high ? key : high;
            if (list) list[atomicAdd(listed, 1)] = value;
        }
    }
};

// The key of the edge, and in `window` what lies above it. No logit reached gives the largest one.
__device__ inline unsigned find(const CoarseBins& bins, const Wanted& wanted, Window& window, const Board& board) {
    window.count = window.mass = 0;
    int bin = pick(bins.histogram, wanted, window, board);
    if (bin < 0) return key_of(bins.scale.top);
    bool listed = bins.histogram.counts[bin] <= (unsigned)LISTED;
    if (threadIdx.x == 0) {
        *board.chosen = 0;  // now the length of the list
        board.bounds[0] = 0xffffffffu;
        board.bounds[1] = 0;
    }
    __syncthreads();
    Collector collector = {bins, bin, listed ? board.list : 0, board.chosen};
    visit_row<LOADS>(bins.logits.row, bins.logits.classes, (int)threadIdx.x, (int)blockDim.x, collector);
    if (collector.low <= collector.high) {
        atomicMin(&board.bounds[0], collector.low);
        atomicMax(&board.bounds[1], collector.high);
    }
    __syncthreads();
    window.low = board.bounds[0];
    window.high = board.bounds[1];
    int length = listed ? *board.chosen : bins.logits.classes;
    __syncthreads();
    while (window.low < window.high) {
        int bits = 32 - __clz((int)(window.high - window.low));
        int shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
        board.fine.clear();
        for (int i = threadIdx.x; i < length; i += blockDim.x) {
            float value = listed ? board.list[i] : bins.logits.at(i);
            unsigned key = key_of(value);
            if (key >= window.low && key <= window.high)
                board.fine.add((int)((window.high - key) >> shift), bins.scale.mass(value));
        }
        int step = pick(board.fine, wanted, window, board);
        window.high -= (unsigned)step << shift;
        unsigned width = (1u << shift) - 1;
        if (window.high - window.low > width) window.low = window.high - width;
    }
    return window.high;
}
