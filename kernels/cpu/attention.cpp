// attention and attention_backward: softmax(q k^T) v of whole sequences, without its matrix of scores.
//
// FlashAttention-2 (Dao 2023) for caches and registers: QUERIES queries of a head go through the keys they see,
// KEYS at a time; scores, weights and sums of a block stay in the first-level cache, and what has been mixed so
// far is scaled down when a larger score comes (Milakov and Gimelshein 2018). The forward shares out blocks of
// queries, the backward heads of keys, whose gradients then have one writer; it makes the weights anew from
// the log-sum-exp, and draws the dropout of weights again. The result is the same for any number of threads.
#include "attention.h"

namespace ISA {

struct AttentionArguments {
    Heads q, k, v, out;
    float* lse;  // (batch, heads, rows)
    AttentionShape shape;
};

static inline Floats finite(Floats x) { return x - x == 0.0f ? x : Floats{}; }

// The queries of one block. `room` is (width, QUERIES), (KEYS, QUERIES) twice and (QUERIES, width).
static inline void attend(const AttentionArguments& a, const QueryBlock& q, float* room) {
    const AttentionShape& shape = a.shape;
    const int64_t width = shape.width, kv_head = q.head / (shape.heads / shape.kv_heads);
    float *queries = room, *scores = queries + width * QUERIES;
    float *factors = scores + KEYS * QUERIES, *mixed = factors + KEYS * QUERIES;
    turned(a.q.of(q.batch, q.head, q.first), a.q.row, q.count, width, queries);
    Floats top[VECTORS], total[VECTORS] = {};
    for (Floats& each : top) each = splat(-INFINITY);
    for (int64_t first = q.low; first < q.high; first += KEYS) {
        const int64_t count = least(KEYS, q.high - first);
        scores_of(shape, q, a.k, first, count, queries, scores);
        float shrink[QUERIES];
        for (int64_t v = 0; v < VECTORS; v++) {
            Floats most = top[v];
            for (int64_t k = 0; k < count; k++) most = greater(load(scores + k * QUERIES + v * LANES), most);
            const Floats base = finite(most);
            const Floats factor = top[v] == -INFINITY ? Floats{} : exp(finite(top[v]) - base);
            Floats sum = total[v] * factor;
            for (int64_t k = 0; k < count; k++) {
                float* at = scores + k * QUERIES + v * LANES;
                const Floats power = exp(load(at) - base);
                store(at, power);
                sum += power;
            }
            top[v] = most, total[v] = sum;
            store(shrink + v * LANES, factor);
        }
        if (shape.state) {
            factors_of(shape, q, first, count, factors);
            for (int64_t i = 0; i < count * QUERIES; i++) scores[i] *= factors[i];
        }
        const bool more = first > q.low;
        for (int64_t r = 0; more && r < q.count; r++) {
            if (shrink[r] == 1.0f) continue;
            for (int64_t i = 0; i < width; i++) mixed[r * width + i] *= shrink[r];
        }
        small_product(scores, 1, QUERIES, q.count, a.v.of(q.batch, kv_head, first), a.v.row, count, mixed,
                      width, width, more);
    }
    float tops[QUERIES], totals[QUERIES];
    memcpy(tops, top, sizeof tops);
    memcpy(totals, total, sizeof totals);
    for (int64_t r = 0; r < q.count; r++) {
        // A query that sees nothing, or a NaN, saves infinity: the backward's weights are 0 there.
        const bool some = totals[r] > 0;
        const float base = tops[r] - tops[r] == 0.0f ? tops[r] : 0.0f;
        float* out = a.out.of(q.batch, q.head, q.first + r);
        if (a.lse)
            a.lse[(q.batch * shape.heads + q.head) * shape.rows + q.first + r] =
                some ? base + logf(totals[r]) : INFINITY;
        const float inverse = some ? 1.0f / totals[r] : 1.0f;
        for (int64_t i = 0; i < width; i++) out[i] = q.low < q.high ? mixed[r * width + i] * inverse : 0.0f;
    }
}

static void attention(const AttentionArguments& a, Thread& thread) {
    const AttentionShape& shape = a.shape;
    const int64_t blocks = (shape.rows + QUERIES - 1) / QUERIES;
    float* room = static_cast<float*>(thread.scratch(4 * size_t(2 * (shape.width + KEYS)) * QUERIES));
    // One after the other to each thread: of a causal head the later blocks are more work.
    for (int64_t i = thread.index; i < shape.batch * shape.heads * blocks; i += thread.count) {
        const int64_t head = i / blocks;
        attend(a, QueryBlock(shape, head / shape.heads, head % shape.heads, i % blocks), room);
    }
}

struct AttentionBackwardArguments {
    Heads q, k, v, out, dout, dq, dk, dv;
    const float* lse;
    AttentionShape shape;
};

// What a thread needs of its own.
struct BackwardRoom {
    float *queries, *douts;             // (width, QUERIES)
    float *weights, *slopes, *factors;  // (KEYS, QUERIES)
    float lse[QUERIES], mean[QUERIES];

    static size_t bytes(int64_t width) { return 4 * size_t(2 * width + 3 * KEYS) * QUERIES; }
    BackwardRoom(float* memory, int64_t width)
        : queries(memory), douts(queries + width * QUERIES), weights(douts + width * QUERIES),
          slopes(weights + KEYS * QUERIES), factors(slopes + KEYS * QUERIES) {}
};

// Adds to the gradients what one block of queries and one of keys give each other.
static inline void go_back(const AttentionBackwardArguments& a, const QueryBlock& q, int64_t first,
                           int64_t count, BackwardRoom& own) {
    const AttentionShape& shape = a.shape;
    const int64_t width = shape.width, b = q.batch, head = q.head / (shape.heads / shape.kv_heads);
    scores_of(shape, q, a.k, first, count, own.queries, own.weights);
    products_of(a.v.of(b, head, first), a.v.row, count, own.douts, width, own.slopes);
    if (shape.state) factors_of(shape, q, first, count, own.factors);
    const float scale = float(shape.scale);
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < QUERIES; i += LANES) {
            float *weight = own.weights + k * QUERIES + i, *slope = own.slopes + k * QUERIES + i;
            const Floats power = exp(load(weight) - load(own.lse + i));
            const Floats factor = shape.state ? load(own.factors + k * QUERIES + i) : splat(1.0f);
            store(weight, power * factor);
            store(slope, power * (load(slope) * factor - load(own.mean + i)) * scale);
        }
    }
    const float *dout = a.dout.of(b, q.head, q.first), *query = a.q.of(b, q.head, q.first);
    small_product(own.weights, QUERIES, 1, count, dout, a.dout.row, q.count, a.dv.of(b, head, first), a.dv.row,
                  width, true);
    small_product(own.slopes, QUERIES, 1, count, query, a.q.row, q.count, a.dk.of(b, head, first), a.dk.row,
                  width, true);
    small_product(own.slopes, 1, QUERIES, q.count, a.k.of(b, head, first), a.k.row, count,
                  a.dq.of(b, q.head, q.first), a.dq.row, width, true);
}

static inline void go_back(const AttentionBackwardArguments& a, const QueryBlock& q, BackwardRoom& own) {
    const AttentionShape& shape = a.shape;
    const int64_t width = shape.width;
    turned(a.q.of(q.batch, q.head, q.first), a.q.row, q.count, width, own.queries);
    turned(a.dout.of(q.batch, q.head, q.first), a.dout.row, q.count, width, own.douts);
    for (int64_t r = 0; r < QUERIES; r++) {
        own.lse[r] = INFINITY, own.mean[r] = 0;
        if (r >= q.count) continue;
        own.lse[r] = a.lse[(q.batch * shape.heads + q.head) * shape.rows + q.first + r];
        const float* out = a.out.of(q.batch, q.head, q.first + r);
        double mean = 0;  // taken from numbers that are often near it
        for (int64_t i = 0; i < width; i++) mean += double(out[i]) * own.douts[i * QUERIES + r];
        own.mean[r] = float(mean);
        memset(a.dq.of(q.batch, q.head, q.first + r), 0, 4 * size_t(width));
    }
    for (int64_t first = q.low; first < q.high; first += KEYS)
        go_back(a, q, first, least(KEYS, q.high - first), own);
}

static void attention_backward(const AttentionBackwardArguments& a, Thread& thread) {
    const AttentionShape& shape = a.shape;
    const int64_t blocks = (shape.rows + QUERIES - 1) / QUERIES, groups = shape.heads / shape.kv_heads;
    BackwardRoom own(static_cast<float*>(thread.scratch(BackwardRoom::bytes(shape.width))), shape.width);
    for (int64_t i = thread.index; i < shape.batch * shape.kv_heads; i += thread.count) {
        const int64_t b = i / shape.kv_heads, head = i % shape.kv_heads;
        for (int64_t key = 0; key < shape.keys; key++) {
            memset(a.dk.of(b, head, key), 0, 4 * size_t(shape.width));
            memset(a.dv.of(b, head, key), 0, 4 * size_t(shape.width));
        }
        for (int64_t h = head * groups; h < (head + 1) * groups; h++)
            for (int64_t block = 0; block < blocks; block++) go_back(a, QueryBlock(shape, b, h, block), own);
    }
}

}  // namespace ISA

OPERATION(attention, AttentionArguments)
OPERATION(attention_backward, AttentionBackwardArguments)
