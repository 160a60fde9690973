// The next token of each row of logits (B, V), one launch whatever is asked for.
//
// Sampling draws from softmax(logits / temperature) cut by top k, top p and min p, without sorting.
// What a sort would be for is one number, the edge: the smallest logit that may be drawn. A row is one
// block's, which goes over it
//   1. for the largest and the smallest logit (greedy rows end here),
//   2. for a histogram of BINS equal intervals of the logits, counts and masses of exp(x - top),
//   3. once for top k and once for top p: to collect the logits of the interval that has the edge,
//      which is then found among them by histograms of ever finer intervals of their bits,
//   4. for the mass of what may be drawn; the last step is inside one warp's part of the row.
// 2 and 3 only where something is cut. All but the first read of a row come from a cache: 128k
// float16 logits are 256 KiB, read by a multiprocessor in some 3 us.
//
// Masses are whole numbers, exp(x - top) in units of 2^-(62 - bits of V), below 2^-44 for V = 128k. Sums of
// them have no order, so shared memory's atomics give the same digits in every run, and the draw is
// exact: the first token at which the sum so far exceeds u times the whole, u = (2 m + 1) / 2^24. A
// 64-bit sum is two native 32-bit additions with a carry; equal intervals (not equal bits, which would
// put most logits of a row into a few bins) keep the lanes of a warp from waiting for each other.
//
// Equal logits at the edge stay together. A row with a NaN, or whose largest logit is infinite, gives the
// place of that: whoever looks at the logits finds it.
//
// Shared memory: two histograms of 12 bytes a bin and the list, 40 KiB. A row has a multiprocessor for
// itself in decoding: 512 threads (256 for short rows) with four loads of 16 bytes each under way keep
// 32 KiB in flight, and may have the registers that 1024 would spill.
#include "philox.cuh"
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

// --- the largest and the smallest logit ---

// A number and its place; of equals the first. NaN is larger than anything.
__device__ inline bool before(float a, int i, float b, int j) {
    bool na = a != a, nb = b != b;
    if (na || nb) return na && (!nb || i < j);
    return a > b || (a == b && i < j);
}

struct Extremes {
    Logits logits;
    float top = -INFINITE, least = INFINITE;
    int place = 0x7fffffff;

    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = logits.scaled(index + i, x[i]);
            if (before(value, index + i, top, place)) {
                top = value;
                place = index + i;
            }
            least = fminf(least, value);
        }
    }

    // Of the whole block, in every thread.
    __device__ inline void join(float* tops, int* places) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
        join_warp();
        if (lane == 0) {
            tops[warp] = top;
            places[warp] = place;
        }
        __syncthreads();
        top = lane < warps ? tops[lane] : -INFINITE;
        place = lane < warps ? places[lane] : 0x7fffffff;
        join_warp();
        __syncthreads();
        least = -block_max(-least, tops);
    }

    __device__ inline void join_warp() {
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) {
            float other = __shfl_xor_sync(FULL_WARP, top, step);
            int there = __shfl_xor_sync(FULL_WARP, place, step);
            if (before(other, there, top, place)) {
                top = other;
                place = there;
            }
        }
    }
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

// --- the draw ---

struct Cut {
    float temperature, top_p, min_p;
    long long top_k;
};

// The smallest logit that top k and top p leave.
__device__ inline float edge_of(const Logits& logits, const Scale& scale, float least, const Cut& cut, const Board& board) {
    bool by_count = cut.top_k > 0 && cut.top_k < logits.classes, by_mass = cut.top_p < 1.0f;
    if (!(by_count || by_mass) || least == scale.top) return -INFINITE;
    CoarseBins bins = {logits, scale, (float)BINS / fminf(scale.top - least, DEPTH), board.coarse};
    board.coarse.clear();
    visit_row<LOADS>(logits.row, logits.classes, (int)threadIdx.x, (int)blockDim.x, bins);
    mass_t whole;
    block_before(bins.sum, board.sums, &whole);
    Window window;
    float edge = -INFINITE;
    if (by_count) {
        edge = number_of(find(bins, {(unsigned)cut.top_k, 0.0, false}, window, board));
        whole = window.mass + ((mass_t)cut.top_k - window.count) * scale.mass(edge);
    }
    if (by_mass) {
        float second = number_of(find(bins, {0, (double)cut.top_p * (double)whole, true}, window, board));
        edge = fmaxf(edge, second);
    }
    return edge;
}

struct Kept {
    Logits logits;
    Scale scale;
    float edge, min_p;
    mass_t sum = 0;

    __device__ inline mass_t mass(int i, float x) const {
        float value = logits.scaled(i, x);
        if (value < edge || expf(value - scale.top) < min_p) return 0;
        return scale.mass(value);
    }
    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) sum += mass(index + i, x[i]);
    }
};

// Where the sum over tokens in their order first exceeds u times the whole; known to one thread, -1 in
// the others. Each warp sums a part of the row; the part that has the goal is then gone through by all.
__device__ inline int draw_token(const Kept& kept, unsigned bits, int likeliest, const Board& board) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int classes = kept.logits.classes, span = (classes + warps - 1) / warps;
    int first = min(span * warp, classes), length = min(span, classes - first);
    Kept part = kept;
    part.logits.row += first;
    if (part.logits.seen) part.logits.seen += first;
    visit_row<LOADS>(part.logits.row, length, lane, 32, part);
    mass_t whole, above = block_before(part.sum, board.sums, &whole);
    if (whole == 0) return threadIdx.x == 0 ? likeliest : -1;  // min_p is above 1
    mass_t twice = 2 * (mass_t)(bits >> 9) + 1;  // u = twice / 2^24
    mass_t goal = (whole >> 24) * twice + ((whole & 0xffffffu) * twice >> 24);
    mass_t start = __shfl_sync(FULL_WARP, above, 0);           // before this warp's part
    mass_t end = __shfl_sync(FULL_WARP, above + part.sum, 31);  // and after
    if (lane == 0 && start <= goal && goal < end) {
        *board.chosen = warp;
        board.sums[32] = start;
    }
    __syncthreads();
    first = span * *board.chosen;
    length = min(span, classes - first);
    mass_t before_part = board.sums[32];
    int each = (length + (int)blockDim.x - 1) / (int)blockDim.x;
    int from = min((int)threadIdx.x * each, length), to = min(from + each, length);
    mass_t sum = 0, all;
    for (int i = first + from; i < first + to; i++) sum += kept.mass(i, widen(kept.logits.row[i]));
    mass_t reached = before_part + block_before(sum, board.sums, &all);
    if (!(reached <= goal && goal < reached + sum)) return -1;
    for (int i = first + from; i < first + to; i++) {
        reached += kept.mass(i, widen(kept.logits.row[i]));
        if (goal < reached) return i;
    }
    return -1;
}

// ids[b]: the next token of row b. With `seen` and `penalty`, tokens already seen are made less likely
// first (as `penalize` does), and with `mark` the one drawn is noted as seen.
extern "C" __global__ void __launch_bounds__(512, 1) sample_tokens(
    const REAL* logits, bool* seen, const float* penalty, bool mark, const float* temperature,
    const long long* top_k, const float* top_p, const float* min_p, const unsigned long long* state,
    long long* ids, int classes
) {
    __shared__ unsigned coarse[3 * BINS];
    __shared__ unsigned fine[3 * BINS];
    __shared__ float list[LISTED];
    __shared__ mass_t sums[33];
    __shared__ float tops[32];
    __shared__ int places[32];
    __shared__ int chosen[1];
    __shared__ unsigned bounds[2];
    Board board = {
        {coarse, coarse + BINS, coarse + 2 * BINS}, {fine, fine + BINS, fine + 2 * BINS},
        list, chosen, bounds, sums
    };
    long long b = blockIdx.x;
    bool* marks = seen ? seen + b * classes : 0;
    float heat = temperature[b];
    bool greedy = heat == 0.0f;
    Logits row = {logits + b * classes, marks, seen ? penalty[b] : 1.0f, greedy ? 1.0f : heat, classes};
    Extremes extremes = {row};
    visit_row<LOADS>(row.row, classes, (int)threadIdx.x, (int)blockDim.x, extremes);
    extremes.join(tops, places);
    int token = threadIdx.x == 0 ? extremes.place : -1;
    if (!greedy && fabsf(extremes.top) < INFINITE) {  // the same for the whole block
        int bits = 32 - __clz(classes);
        Scale scale = {extremes.top, __int_as_float((127 + 62 - bits) << 23)};
        Cut cut = {heat, top_p[b], min_p[b], top_k[b]};
        Kept kept = {row, scale, edge_of(row, scale, extremes.least, cut, board), cut.min_p};
        uint4 words = philox((unsigned long long)b >> 2, state[0], state[1]);
        token = draw_token(kept, word_of(words, (int)(b & 3)), extremes.place, board);
    }
    if (token < 0) return;
    ids[b] = token;
    if (mark) marks[token] = true;
}

// ids[b]: the likeliest token of row b, the first of equals; a NaN is likelier than anything.
extern "C" __global__ void __launch_bounds__(512) argmax_tokens(
    const REAL* logits, long long* ids, int classes
) {
    __shared__ float tops[32];
    __shared__ int places[32];
    long long b = blockIdx.x;
    Logits row = {logits + b * classes, 0, 1.0f, 1.0f, classes};
    Extremes extremes = {row};
    visit_row<LOADS>(row.row, classes, (int)threadIdx.x, (int)blockDim.x, extremes);
    extremes.join(tops, places);
    if (threadIdx.x == 0) ids[b] = extremes.place;
}

// seen[b, ids[b, t]] for all t, one warp a row; -1 is none. The lanes write in turn, so that a token that
// comes twice is not written by two threads at once.
extern "C" __global__ void __launch_bounds__(32) mark_seen_tokens(
    bool* seen, const void* ids, int id_bytes, long long classes, int count
) {
    long long b = blockIdx.x;
    int lane = threadIdx.x;
    for (int first = 0; first < count; first += 32) {
        long long id = -1, at = b * count + first + lane;
        if (first + lane < count) id = id_bytes == 8 ? ((const long long*)ids)[at] : ((const int*)ids)[at];
        for (int turn = 0; turn < 32 && first + turn < count; turn++) {
            if (lane == turn && id >= 0 && id < classes) seen[b * classes + id] = true;
            __syncwarp();
        }
    }
}

// Logits with the tokens already seen made less likely, in float32.
extern "C" __global__ void __launch_bounds__(256) penalize_logits(
    const REAL* logits, const bool* seen, const float* penalty, float* out, int classes
) {
    long long b = blockIdx.y;
    Logits row = {logits + b * classes, seen + b * classes, penalty[b], 1.0f, classes};
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < classes; i += gridDim.x * blockDim.x)
        out[b * classes + i] = row.penalized(i, widen(row.row[i]));
}
