// What both halves of attention share: where things lie, who sees what, and small products in registers.
#pragma once

#include "dropout.h"

namespace ISA {

// (batch, row, head, width) with the numbers of a head side by side; strides in elements.
struct Heads {
    float* at;
    int64_t batch, row, head;
    float* of(int64_t b, int64_t h, int64_t r = 0) const { return at + b * batch + h * head + r * row; }
};

// Nonzero where a query (T) may look at a key (S); strides may be 0. Null: everywhere.
struct Mask {
    const uint8_t* at;
    int64_t batch, head, query, key;
};

struct AttentionShape {
    int64_t batch, rows, keys, heads, kv_heads, width;
    int64_t causal, window;  // window -1: none
    double scale;
    const int64_t* lengths;  // (batch,) keys that count
    const int64_t* starts;   // (batch,) where the first query stands
    Mask mask;
    const uint64_t* state;  // seed and offset of the dropout of weights, or null
    double dropout;
};

// Queries and keys of a block. Scores lie key by key, QUERIES side by side, so that a lane is a query
// and nothing is ever added up across lanes.
constexpr int64_t QUERIES = 32, KEYS = 64, VECTORS = QUERIES / LANES;

// Rows of a tile of a small product: with two vectors each, as many sums as there are registers for.
constexpr int TILE = ISA_LEVEL == ISA_PORTABLE ? 4 : 6;

// to (ROWS, columns) = or += left (ROWS, depth) right (depth, columns), for `columns` of them: at most COUNT
// vectors. The left matrix is read through strides, the right one row by row.
template <int ROWS, int COUNT>
static inline void small_tile(const float* left, int64_t row, int64_t step, const float* right,
                              int64_t right_pitch, int64_t depth, float* to, int64_t pitch,
                              int64_t columns, bool more) {
    const bool whole = columns >= COUNT * LANES;
    Floats sums[ROWS][COUNT] = {};
    for (int64_t k = 0; k < depth; k++, left += step, right += right_pitch) {
        Floats given[COUNT];
        UNROLLED for (int c = 0; c < COUNT; c++)
            given[c] = whole ? load(right + c * LANES) : load_some(right + c * LANES, columns - c * LANES);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            const float factor = left[r * row];
            UNROLLED for (int c = 0; c < COUNT; c++) sums[r][c] += factor * given[c];
        }
    }
    // What was there is added last: the sums stay short.
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int c = 0; c < COUNT; c++) {
            float* place = to + r * pitch + c * LANES;
            if (more) sums[r][c] += load_some(place, columns - c * LANES);
            store_some(place, sums[r][c], columns - c * LANES);
        }
}

// A strip of ROWS rows. Not inlined, so that GCC keeps the sums in registers.
template <int ROWS>
__attribute__((noinline)) static void small_strip(const float* left, int64_t row, int64_t step,
                                                  const float* right, int64_t right_pitch, int64_t depth,
                                                  float* to, int64_t pitch, int64_t columns, bool more) {
    int64_t c = 0;
    for (; c + 2 * LANES <= columns; c += 2 * LANES)
        small_tile<ROWS, 2>(left, row, step, right + c, right_pitch, depth, to + c, pitch, 2 * LANES, more);
    for (; c < columns; c += LANES)
        small_tile<ROWS, 1>(left, row, step, right + c, right_pitch, depth, to + c, pitch, columns - c, more);
}

// to (rows, columns) = or += left (rows, depth) right (depth, columns).
static inline void small_product(const float* left, int64_t row, int64_t step, int64_t rows,
                                 const float* right, int64_t right_pitch, int64_t depth, float* to,
                                 int64_t pitch, int64_t columns, bool more) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE)
        small_strip<TILE>(left + r * row, row, step, right, right_pitch, depth, to + r * pitch, pitch, columns,
                          more);
    for (; r + 2 <= rows; r += 2)
        small_strip<2>(left + r * row, row, step, right, right_pitch, depth, to + r * pitch, pitch, columns,
                       more);
    if (r < rows)
        small_strip<1>(left + r * row, row, step, right, right_pitch, depth, to + r * pitch, pitch, columns,
                       more);
}

// Some queries of one head of one row of the batch.
struct QueryBlock {
    int64_t batch, head, first, count;  // `first` of all rows
    int64_t position;                   // where the first one stands
    int64_t low, high;                  // keys that some of them see

    QueryBlock(const AttentionShape& a, int64_t b, int64_t h, int64_t block)
        : batch(b), head(h), first(block * QUERIES), count(least(QUERIES, a.rows - first)),
          position(a.starts[b] + first) {
        high = least(a.lengths[b], a.keys);
        if (a.causal) high = least(high, position + count);
        low = a.window < 0 ? 0 : position - a.window + 1;
        high = high < 0 ? 0 : high;
        low = low < 0 ? 0 : least(low, high);
    }
};

// The numbers of some queries (pitch apart) as (width, QUERIES), zeros for those that are missing.
static inline void turned(const float* from, int64_t pitch, int64_t count, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i++)
        for (int64_t r = 0; r < QUERIES; r++) to[i * QUERIES + r] = r < count ? from[r * pitch + i] : 0.0f;
}

// The products (count, QUERIES) of keys or values with all queries, summed in parts for the rounding errors.
static inline void products_of(const float* known, int64_t pitch, int64_t count, const float* queries,
                               int64_t width, float* to) {
    constexpr int64_t PART = 64;
    for (int64_t i = 0; i < width; i += PART)
        small_product(known + i, pitch, 1, count, queries + i * QUERIES, QUERIES, least(PART, width - i), to,
                      QUERIES, QUERIES, i > 0);
}

// The scores of one key, -inf for queries that the mask does not let look.
static inline void hide(const Mask& mask, const QueryBlock& q, int64_t key, float* scores) {
    const uint8_t* seen = mask.at + q.batch * mask.batch + q.head * mask.head + q.first * mask.query + key * mask.key;
    for (int64_t i = 0; i < q.count; i++)
        if (!seen[i * mask.query]) scores[i] = -INFINITY;
}

// The scores (count, QUERIES) of keys from `first` on, -inf where hidden. `queries` is (width, QUERIES).
static inline void scores_of(const AttentionShape& a, const QueryBlock& q, const Heads& keys, int64_t first,
                             int64_t count, const float* queries, float* scores) {
    const float* known = keys.of(q.batch, q.head / (a.heads / a.kv_heads), first);
    products_of(known, keys.row, count, queries, a.width, scores);
    const bool causal = a.causal && first + count > q.position + 1;
    const bool far = a.window >= 0 && first <= q.position + q.count - 1 - a.window;
    const float scale = float(a.scale);
    const int32_t window = int32_t(least(a.window, INT32_MAX));
    Ints lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < QUERIES; i += LANES) {
            float* place = scores + k * QUERIES + i;
            const Ints apart = lane + int32_t(q.position + i - (first + k));
            Floats score = load(place) * scale;
            if (causal) score = apart < 0 ? splat(-INFINITY) : score;
            if (far) score = apart >= window ? splat(-INFINITY) : score;
            store(place, score);
        }
        if (a.mask.at) hide(a.mask, q, first + k, scores + k * QUERIES);
    }
}

// The factors (count, QUERIES) that dropout has for the weights of keys from `first` on.
static inline void factors_of(const AttentionShape& a, const QueryBlock& q, int64_t first, int64_t count,
                              float* to) {
    const Dropout dropout(a.state, a.dropout);
    for (int64_t r = 0; r < q.count; r++) {
        const int64_t row = (q.batch * a.heads + q.head) * a.rows + q.first + r;
        float room[Dropout::room(KEYS)];
        const float* factors = dropout.factors(row * a.keys + first, count, room);
        for (int64_t k = 0; k < count; k++) to[k * QUERIES + r] = factors[k];
    }
}

}  // namespace ISA
