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
// Masses are whole numbers, exp(x - top) in units of 2^-(62 - bits of V), 2^-44 for V = 128k. Sums of
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
#include "sampling_edge.cuh"

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
// first (as `penalize` does), and with `mark` the one drawn is noted as seen. `state` is one pair of seed
// and offset, or with `own_state` one a row.
extern "C" __global__ void __launch_bounds__(512, 1) sample_tokens(
    const REAL* logits, bool* seen, const float* penalty, bool mark, const float* temperature,
    const long long* top_k, const float* top_p, const float* min_p, const unsigned long long* state,
    bool own_state, long long* ids, int classes
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
        const unsigned long long* draw = state + (own_state ? 2 * b : 0);
        uint4 words = philox((unsigned long long)b >> 2, draw[0], draw[1]);
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

// held[b] = ids[b], where the next step reads its tokens, and one draw further: the launch that ends a
// captured step. One thread a row; the launch is the cost.
extern "C" __global__ void __launch_bounds__(64) feed_tokens(
    long long* held, const long long* ids, unsigned long long* state, bool own_state, int rows
) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    held[row] = ids[row];
    if (own_state || row == 0) state[2 * row + 1]++;
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
