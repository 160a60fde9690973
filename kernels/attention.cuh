// What a query may look at, and the scores: shared by attention forward and backward.
//
// Lengths, causality and the window together leave each query t an interval of keys: t + least <=
// s <= t + last, and s < stop. Its ends never fall as t grows, so the keys that a tile of queries
// may look at are an interval too, and tiles outside it are never read.
#pragma once
#include "attention_tile.cuh"
#include "philox.cuh"

struct RowSteps { long long batch, row, head; };          // in elements, of q, k, v
struct ScoreSteps { long long batch, head, row, key; };  // of mask and bias; 0 where broadcast

// The inputs beside q, k and v, as they came.
struct Problem {
    const bool* mask;
    const long long* lengths;
    const long long* starts;
    const unsigned long long* state;
    ScoreSteps mask_steps;
    int queries, keys, heads, group, width;
    long long window;
    float scale, dropout, kept;
    bool causal;
    const void* bias;
    ScoreSteps bias_steps;
    bool wide_bias;
};

// Whether rows of `x` may be moved 16 bytes at a time.
__device__ inline bool in_vectors(const REAL* x, RowSteps steps, int width) {
    long long odd = steps.batch | steps.row | steps.head | width;
    return aligned(x, 16) && odd % EACH == 0;
}

__device__ inline int clamped(long long x, long long low, long long high) {
    return (int)(x < low ? low : x > high ? high : x);
}

// One row of the batch and, once aimed, one query head of a problem.
struct Sight {
    const bool* mask;
    const void* bias;
    unsigned long long base;  // index of the first draw of query 0, over the keys
    int queries, keys, stop, least, last;

    __device__ Sight(const Problem& p, int batch) : queries(p.queries), keys(p.keys) {
        const long long far = 1LL << 30;  // further than any query from any key
        long long length = p.lengths ? p.lengths[batch] : p.keys;
        long long first = p.starts ? p.starts[batch] : length - p.queries;
        stop = clamped(length, 0, p.keys);
        last = clamped(p.causal ? first : far, -far, far);
        least = clamped(first - p.window + 1, -far, far);
    }

    __device__ void aim(const Problem& p, int batch, int head) {
        mask = p.mask ? p.mask + batch * p.mask_steps.batch + head * p.mask_steps.head : nullptr;
        long long skipped = batch * p.bias_steps.batch + head * p.bias_steps.head;
        bias = nullptr;
        if (p.bias && p.wide_bias) bias = (const float*)p.bias + skipped;
        if (p.bias && !p.wide_bias) bias = (const REAL*)p.bias + skipped;
        base = ((unsigned long long)batch * p.heads + head) * p.queries * p.keys;
    }

    // Query t may look at keys low(t) .. high(t) - 1; none if that is empty.
    __device__ int low(int t) const { return clamped((long long)t + least, 0, keys); }
    __device__ int high(int t) const { return clamped((long long)t + last + 1, 0, stop); }

    // Queries that may look at some of the keys s0 .. s1 - 1.
    __device__ int first_query(int s0) const { return clamped((long long)s0 - last, 0, queries); }
    __device__ int last_query(int s1) const { return clamped((long long)s1 - 1 - least, -1, queries - 1); }

    // Whether every query t0 .. t1 - 1 sees every key s0 .. s1 - 1, without bias.
    __device__ bool plain(int t0, int t1, int s0, int s1) const {
        return !mask && !bias && t1 <= queries && low(t1 - 1) <= s0 && s1 <= high(t0);
    }

    // Whether query t may look at key s, but for the mask.
    __device__ bool reaches(int t, int s) const {
        return t < queries && s < stop && s - t <= last && s - t >= least;
    }
};

// Bias of T onto scores. The shuffles hand every lane what it has: addresses that depend on them are made when
// they are needed, where the compiler would keep those of a whole tile in registers that it has not.
template <class T, int UNITS, int N>
__device__ inline void add_bias(float (&c)[UNITS][N][4], const T* bias, const ScoreSteps& steps, const Sight& sight,
                                int row0, int column0) {
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N; j++) {
            const int first = __shfl_sync(FULL_WARP, row0, 0) + 16 * u, from = __shfl_sync(FULL_WARP, column0, 0);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = first + Place::row(Place::slot(i)), s = from + Place::column(j, i);
                if (sight.reaches(t, s)) c[u][j][i] += widen(bias[t * steps.row + s * steps.key]);
            }
        }
}

// Which elements of c[UNITS][N][4] the mask hides, a bit each: element (u N + j) 4 + i. Rows are queries
// from row0 on and columns keys from column0 on, or, TRANSPOSED, the other way round.
template <bool TRANSPOSED, int UNITS, int N>
__device__ inline unsigned long long masked(const Problem& p, const Sight& sight, int row0, int column0) {
    unsigned long long hidden = 0;
#pragma unroll 4
    for (int e = 0; e < UNITS * N * 4; e++) {
        int i = e % 4, row = row0 + e / 4 / N * 16 + Place::row(Place::slot(i));
        int column = column0 + Place::column(e / 4 % N, i);
        int t = TRANSPOSED ? column : row, s = TRANSPOSED ? row : column;
        bool seen = t < sight.queries && s < sight.stop &&
                    sight.mask[t * p.mask_steps.row + s * p.mask_steps.key];
        hidden |= (unsigned long long)!seen << e;
    }
    return hidden;
}

// Products of queries and keys to scores; -inf where hidden.
template <bool TRANSPOSED, int UNITS, int N>
__device__ inline void score(float (&c)[UNITS][N][4], const Problem& p, const Sight& sight, bool plain, int row0,
                             int column0) {
    const unsigned long long hidden =
        sight.mask ? masked<TRANSPOSED, UNITS, N>(p, sight, row0, column0) : 0ull;
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[u][j][i] *= p.scale;
    if (plain) return;
    if (sight.bias && p.wide_bias) add_bias(c, (const float*)sight.bias, p.bias_steps, sight, row0, column0);
    if (sight.bias && !p.wide_bias) add_bias(c, (const REAL*)sight.bias, p.bias_steps, sight, row0, column0);
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = row0 + 16 * u + Place::row(Place::slot(i)), column = column0 + Place::column(j, i);
                int t = TRANSPOSED ? column : row, s = TRANSPOSED ? row : column;
                bool seen = sight.reaches(t, s) && !(hidden >> ((u * N + j) * 4 + i) & 1);
                if (!seen) c[u][j][i] = -INFINITE;
            }
}

// exp(score - shift). In float32 the difference is taken first, which is exact where it matters; in 16
// bits one fused multiply-add of both serves, whose error grows with the shift but is far below theirs.
__device__ inline float power(float score, float shift) {
    const float log2e = 1.44269504f;
    return sizeof(REAL) == 2 ? exp2f(score * log2e - shift * log2e) : exp2f((score - shift) * log2e);
}

// What decides on each element of the weights: the state of the generator, and below which number an element goes.
// Read for each tile, since it would take registers where there is no dropout.
struct Draws {
    unsigned long long seed, offset;
    float p;

    __device__ Draws(const Problem& problem) : seed(problem.state[0]), offset(problem.state[1]), p(problem.dropout) {}
};

// Whether draws 4 group .. 4 group + 3 are below p, a bit each.
__device__ inline unsigned four_below(unsigned long long group, const Draws& draws) {
    const uint4 words = philox(group, draws.seed, draws.offset);
    const float p = draws.p;
    return (unsigned)(uniform(words.x) < p) | (unsigned)(uniform(words.y) < p) << 1 |
           (unsigned)(uniform(words.z) < p) << 2 | (unsigned)(uniform(words.w) < p) << 3;
}

// The same for draws index .. index + 15, by four lanes APART from each other that all ask for them:
// each makes one group of the four, or five, that these lie in.
template <int APART> __device__ inline unsigned below(unsigned long long index, const Draws& draws) {
    const int rank = threadIdx.x / APART & 3, skipped = (int)(index & 3);
    unsigned bits = four_below((index >> 2) + rank, draws) << 4 * rank;
    bits |= __shfl_xor_sync(FULL_WARP, bits, APART);
    bits |= __shfl_xor_sync(FULL_WARP, bits, 2 * APART);
    if (skipped) bits |= four_below((index >> 2) + 4, draws) << 16;
    return bits >> skipped;
}

// Which elements dropout takes away, as bits like those of `masked`. The draws of a query lie along the
// keys: along a row, whose 16 columns are two of j, or, TRANSPOSED, down the 16 rows of a unit.
template <bool TRANSPOSED, int UNITS, int N>
__device__ inline unsigned long long dropped(const Problem& p, const Sight& sight, int row0, int column0) {
    const Draws draws(p);
    unsigned long long goes = 0;
    const int steps = TRANSPOSED ? N * 4 / Place::SLOTS : (N + 1) / 2 * Place::SLOTS;
#pragma unroll 1
    for (int x = 0; x < UNITS * steps; x++) {
        const int u = x / steps, y = x % steps;
        if (TRANSPOSED) {
            const int j = y / (4 / Place::SLOTS), side = y % (4 / Place::SLOTS);
            const unsigned long long t = column0 + Place::column(j, side);
            const unsigned bits = below<Place::BELOW>(sight.base + t * sight.keys + row0 + 16 * u, draws);
            for (int slot = 0; slot < Place::SLOTS; slot++) {
                const int e = (u * N + j) * 4 + slot * (4 / Place::SLOTS) + side;
                goes |= (unsigned long long)(bits >> Place::row(slot) & 1) << e;
            }
        } else {
            const int slot = y % Place::SLOTS, j0 = y / Place::SLOTS * 2;
            const unsigned long long t = row0 + 16 * u + Place::row(slot);
            const unsigned bits = below<1>(sight.base + t * sight.keys + column0 + 8 * j0, draws);
            for (int e = 0; e < 8; e++) {
                const int j = e / 4, i = e % 4;
                if (Place::slot(i) == slot && j0 + j < N)
                    goes |= (unsigned long long)(bits >> Place::column(j, i) & 1) << ((u * N + j0 + j) * 4 + i);
            }
        }
    }
    return goes;
}

// 0 where an element goes; the others times `kept`.
template <int UNITS, int N>
__device__ inline void drop(float (&c)[UNITS][N][4], unsigned long long goes, float kept) {
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[u][j][i] *= goes >> ((u * N + j) * 4 + i) & 1 ? 0.0f : kept;
}
