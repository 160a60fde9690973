// cached_attention: new queries, keys and values turned, the latter two put into the cache, then attention
// of the queries to what the cache holds.
//
// The keys of a row are cut into pieces, at most PIECES of them and none shorter than 32 keys, from
// the row's length alone: how many threads there are changes nothing in the result. A thread takes some of
// all (row, piece, key head); a piece gives for each query its largest score, the sum of the powers and the
// mix of the values, and goes through its keys in blocks of 32 with the sums scaled down whenever a larger
// score comes (online softmax: Milakov and Gimelshein 2018; split over keys: Dao et al. 2023, flash-decoding).
// Then, behind a barrier, the pieces of each query are put together in their order.
// All query heads of a key head are worked on together, so that a key is read once for them. Whoever has the piece
// in which a new token stands puts it into the cache, so no thread waits for another's.
//
// Moved: the keys and values that somebody sees, once; all else is small.
#include "cached_attention.h"
#include "rotary.h"

namespace ISA {

constexpr int64_t PIECES = 16, BLOCK = 32;

struct CachedAttentionArguments {
    const float* packed;  // (batch, tokens, heads + 2 kv_heads, width)
    void* keys;           // (batch, capacity, kv_heads, width) in any order of axes but the last
    void* values;
    void* key_scales;  // (batch, capacity, kv_heads, groups) of a cache in 8 bits
    void* value_scales;
    const int64_t* places;   // where the new tokens go, of row b at b * places_pitch
    const int64_t* firsts;   // (batch,) where the queries stand; null: at the end of the lengths
    const int64_t* lengths;  // (batch,) keys that count, or null: all `stop`
    const float* cos;        // (positions, turned / 2), or null
    const float* sin;
    const int64_t* positions;  // of token t of row b at b * positions_pitch + t
    float* parts;              // (batch, PIECES, heads, tokens, width + 2)
    float* out;                // (batch, tokens, heads, width)
    int64_t batch, tokens, heads, kv_heads, width, turned;
    int64_t format;  // of the cache: a plain one, or Q8_0
    int64_t stop, capacity, causal, window;  // window -1: none
    int64_t places_pitch, positions_pitch;
    int64_t key_row, key_place, key_head, value_row, value_place, value_head;  // strides, in elements
    int64_t scale_row, scale_place, scale_head;                               // of both
    double scale;  // of the products of queries and keys
};

// A row of the batch: what its queries see, and how it is cut.
struct Extent {
    int64_t place, first;  // of the first new token, and of the first query
    int64_t length;        // keys that count
    int64_t low, high;     // keys that some query sees
    int64_t piece, pieces; // keys of a piece, and how many there are (of `low`'s piece and later ones)
    int64_t start;         // where the first piece begins

    Extent(const CachedAttentionArguments& a, int64_t row) {
        place = a.places[row * a.places_pitch];
        length = a.lengths ? least(a.lengths[row], a.stop) : a.stop;
        first = a.firsts ? a.firsts[row] : length_of(a, row) - a.tokens;
        high = a.causal ? least(length, first + a.tokens) : length;
        high = high < 0 ? 0 : high;
        low = a.window < 0 ? 0 : first - a.window + 1;
        low = low < 0 ? 0 : least(low, high);
        start = low / BLOCK * BLOCK;
        const int64_t blocks = (high - start + BLOCK - 1) / BLOCK;
        piece = (blocks + PIECES - 1) / PIECES * BLOCK;
        pieces = blocks ? (high - start + piece - 1) / piece : 0;
    }
    static int64_t length_of(const CachedAttentionArguments& a, int64_t row) {
        return a.lengths ? a.lengths[row] : a.stop;
    }
    // Keys that query `token` sees.
    Span seen(const CachedAttentionArguments& a, int64_t token) const {
        const int64_t from = a.window < 0 ? 0 : first + token - a.window + 1;
        return {from, a.causal ? least(length, first + token + 1) : length};
    }
};

static inline void turn(const CachedAttentionArguments& a, int64_t row, int64_t token, const float* x,
                        float* to) {
    memcpy(to, x, 4 * size_t(a.width));
    if (!a.cos) return;
    const int64_t half = a.turned / 2, at = a.positions[row * a.positions_pitch + token] * half;
    turn<Float32>(x, a.cos + at, a.sin + at, 1.0f, half, to);
}

// A thread's own memory.
struct Room {
    float *queries;  // (groups, tokens, width): of the key head at hand
    float *scores;   // (groups tokens, BLOCK)
    float *turned;   // (width,)

    static size_t bytes(const CachedAttentionArguments& a) {
        const int64_t rows = a.heads / a.kv_heads * a.tokens;
        return 4 * size_t(rows * (a.width + BLOCK) + a.width);
    }
    Room(const CachedAttentionArguments& a, void* memory) {
        const int64_t rows = a.heads / a.kv_heads * a.tokens;
        queries = static_cast<float*>(memory);
        scores = queries + rows * a.width;
        turned = scores + rows * BLOCK;
    }
};

template <class Store>
struct Head {
    const CachedAttentionArguments& a;
    const Extent& extent;
    int64_t row, head, rows;  // row of the batch, key head, and queries of it
    Store keys, values;
    Room& room;

    Head(const CachedAttentionArguments& a, const Extent& extent, int64_t row, int64_t head, Room& room)
        : a(a), extent(extent), row(row), head(head), rows(a.heads / a.kv_heads * a.tokens),
          keys(Store::of(a.keys, a.key_scales, row * a.key_row + head * a.key_head,
                         row * a.scale_row + head * a.scale_head, a.width, a.key_place, a.scale_place)),
          values(Store::of(a.values, a.value_scales, row * a.value_row + head * a.value_head,
                           row * a.scale_row + head * a.scale_head, a.width, a.value_place,
                           a.scale_place)),
          room(room) {}

    const float* given(int64_t token, int64_t which) const {
        return a.packed + ((row * a.tokens + token) * (a.heads + 2 * a.kv_heads) + which) * a.width;
    }

    // The new tokens that stand from `from` to before `to` go into the cache.
    void put(int64_t from, int64_t to) {
        const int64_t low = (from < 0 ? 0 : from) - extent.place, high = least(to, a.capacity) - extent.place;
        for (int64_t token = low < 0 ? 0 : low; token < least(high, a.tokens); token++) {
            turn(a, row, token, given(token, a.heads + head), room.turned);
            keys.put(extent.place + token, room.turned, a.width);
            values.put(extent.place + token, given(token, a.heads + a.kv_heads + head), a.width);
        }
    }

    void take_queries() {
        const int64_t groups = a.heads / a.kv_heads;
        for (int64_t g = 0; g < groups; g++)
            for (int64_t token = 0; token < a.tokens; token++)
                turn(a, row, token, given(token, head * groups + g),
                     room.queries + (g * a.tokens + token) * a.width);
    }

    // Powers of a block's scores, in place, and the piece's sums brought down to their new top.
    void soften(int64_t from, int64_t to, float* parts) {
        for (int64_t r = 0; r < rows; r++) {
            float *scores = room.scores + r * BLOCK, *part = parts + r * (a.width + 2);
            const Span seen = extent.seen(a, r % a.tokens);
            const bool whole = seen.first <= from && seen.last >= from + BLOCK && to == from + BLOCK;
            for (int64_t k = 0; !whole && k < BLOCK; k++)
                if (from + k < seen.first || from + k >= seen.last || from + k >= to)
                    scores[k] = -INFINITY;
            Floats most = splat(-INFINITY);
            for (int64_t k = 0; k < BLOCK; k += LANES) most = greater(load(scores + k), most);
            float top = part[0];
            for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
            // Infinite scores give NaN, none at all gives nothing.
            const float base = top - top == 0 ? top : 0.0f;
            const Floats scale = exp(splat(part[0] - base));
            Floats total{};
            for (int64_t k = 0; k < BLOCK; k += LANES) {
                const Floats powers = exp(load(scores + k) - base);
                store(scores + k, powers);
                total += powers;
            }
            if (part[0] != top) {
                part[1] *= scale[0];
                float* mixed = part + 2;
                for (int64_t i = 0; i < a.width; i++) mixed[i] *= scale[0];
            }
            part[0] = top;
            part[1] += sum(total);
        }
    }

    void attend(int64_t from, int64_t to, float* parts) {
        for (int64_t r = 0; r < rows;) {
            const float* queries = room.queries + r * a.width;
            float* scores = room.scores + r * BLOCK;
            const float scale = float(a.scale);
            const int64_t some = least(3, rows - r);
            if (some == 3) score_rows<3>(keys, values, r == 0, from, to, queries, a.width, scale, scores, BLOCK);
            else if (some == 2) score_rows<2>(keys, values, r == 0, from, to, queries, a.width, scale, scores, BLOCK);
            else score_rows<1>(keys, values, r == 0, from, to, queries, a.width, scale, scores, BLOCK);
            r += some;
        }
        soften(from, to, parts);
        const int64_t pitch = a.width + 2;
        for (int64_t r = 0; r < rows;) {
            const float* weights = room.scores + r * BLOCK;
            float* mixed = parts + r * pitch + 2;
            const int64_t some = least(3, rows - r);
            if (some == 3) mix_rows<3>(values, from, to, weights, BLOCK, a.width, mixed, pitch);
            else if (some == 2) mix_rows<2>(values, from, to, weights, BLOCK, a.width, mixed, pitch);
            else mix_rows<1>(values, from, to, weights, BLOCK, a.width, mixed, pitch);
            r += some;
        }
    }

    // Piece `n`, the queries being taken already.
    void work(int64_t n, float* parts) {
        for (int64_t r = 0; r < rows; r++) {
            float* part = parts + r * (a.width + 2);
            part[0] = -INFINITY;
            memset(part + 1, 0, 4 * size_t(a.width + 1));
        }
        const int64_t first = extent.start + n * extent.piece, last = first + extent.piece;
        for (int64_t at = first; at < least(last, extent.high); at += BLOCK) {
            const int64_t from = at < extent.low ? extent.low : at;
            attend(from, least(at + BLOCK, extent.high), parts);
        }
    }
};

static inline float* parts_of(const CachedAttentionArguments& a, int64_t row, int64_t n, int64_t head) {
    const int64_t groups = a.heads / a.kv_heads;
    return a.parts +
           ((row * PIECES + n) * a.heads + head * groups) * a.tokens * (a.width + 2);
}

// Adds up the pieces of one query.
static inline void join(const CachedAttentionArguments& a, const Extent& extent, int64_t row,
                        int64_t token, int64_t head) {
    const int64_t pitch = a.width + 2, apart = a.heads * a.tokens * pitch;
    const float* parts = a.parts + ((row * PIECES * a.heads + head) * a.tokens + token) * pitch;
    float* out = a.out + ((row * a.tokens + token) * a.heads + head) * a.width;
    float top = -INFINITY, total = 0;
    for (int64_t n = 0; n < extent.pieces; n++)
        top = parts[n * apart] > top ? parts[n * apart] : top;
    const float base = top - top == 0 ? top : 0.0f;
    memset(out, 0, 4 * size_t(a.width));
    for (int64_t n = 0; n < extent.pieces; n++) {
        const float* part = parts + n * apart;
        const float scale = expf(part[0] - base);
        total += part[1] * scale;
        int64_t i = 0;
        for (; i + LANES <= a.width; i += LANES)
            store(out + i, load(out + i) + scale * load(part + 2 + i));
        for (; i < a.width; i++) out[i] += scale * part[2 + i];
    }
    if (total == 0) return;  // a query that sees no key
    const float inverse = 1.0f / total;
    for (int64_t i = 0; i < a.width; i++) out[i] *= inverse;
}

template <class Store>
static void attend_through(const CachedAttentionArguments& a, Thread& thread) {
    Room room(a, thread.scratch(Room::bytes(a)));
    int64_t items = 0;
    for (int64_t row = 0; row < a.batch; row++) items += Extent(a, row).pieces * a.kv_heads;
    const Span own = share(thread, items);
    int64_t item = 0;
    for (int64_t row = 0; row < a.batch; row++) {
        const Extent extent(a, row);
        const int64_t last = item + extent.pieces * a.kv_heads;
        // Heads one after another, each in its pieces: what one thread reads lies together.
        for (int64_t i = own.first > item ? own.first : item, ready = -1; i < least(last, own.last); i++) {
            const int64_t head = (i - item) / extent.pieces, n = (i - item) % extent.pieces;
            Head<Store> some(a, extent, row, head, room);
            if (head != ready) some.take_queries();
            ready = head;
            const int64_t from = extent.start + n * extent.piece;
            some.put(n ? from : INT64_MIN / 2, n + 1 < extent.pieces ? from + extent.piece : INT64_MAX / 2);
            some.work(n, parts_of(a, row, n, head));
        }
        if (!extent.pieces && thread.index == 0)  // nobody looks, but the tokens are there
            for (int64_t head = 0; head < a.kv_heads; head++)
                Head<Store>(a, extent, row, head, room).put(INT64_MIN / 2, INT64_MAX / 2);
        item = last;
    }
    thread.barrier();
    const Span queries = share(thread, a.batch * a.heads * a.tokens);
    for (int64_t q = queries.first; q < queries.last; q++) {
        const int64_t row = q / (a.heads * a.tokens);
        join(a, Extent(a, row), row, q / a.heads % a.tokens, q % a.heads);
    }
}

static void cached_attention(const CachedAttentionArguments& a, Thread& thread) {
    switch (a.format) {
        case FLOAT32: return attend_through<PlainStore<Float32>>(a, thread);
        case FLOAT16: return attend_through<PlainStore<Float16>>(a, thread);
        case BFLOAT16: return attend_through<PlainStore<BFloat16>>(a, thread);
        default: return attend_through<EightBitStore>(a, thread);
    }
}

}  // namespace ISA

OPERATION(cached_attention, CachedAttentionArguments)
