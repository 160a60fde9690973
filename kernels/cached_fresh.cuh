// What is new to cached attention: queries into shared memory, keys and values there and into the cache; see
// cached_attention.cu.
#pragma once
#include "cached_parts.cuh"

// Of the queries and then of the new keys of a block, 1 / the root of their mean square into shared memory, where they are
// normed; a warp takes a head.
__device__ inline void stage_roots(
        float* query_roots, float* key_roots, const Block& block, const NewTokens& fresh, float eps) {
    const int lane = threadIdx.x & 31;
    if (!fresh.q_gain) return;
    for (int i = threadIdx.x >> 5; i < block.count + fresh.tokens; i += WARPS) {
        const bool query = i < block.count;
        const int key = i - block.count;
        const REAL* head = query ? fresh.head(block.batch, block.token(i), block.head(i))
                                 : fresh.head(block.batch, key, fresh.heads + block.kv);
        float sum = 0.0f;
        for (int column = lane; column < fresh.width; column += 32) sum += widen(head[column]) * widen(head[column]);
        sum = warp_sum(sum);
        if (lane == 0) (query ? query_roots[i] : key_roots[key]) = 1.0f / sqrtf(sum / (float)fresh.width + eps);
    }
    __syncthreads();
}

// Two columns of a head that belong together: turned ones, or, at `item` half on, one that stays.
struct Columns {
    int left, right;  // right: -1 where there is none
    float cos[1], sin[1];

    __device__ Columns(const Turn& turn, long long position, int item) {
        const int half = turn.cos ? turn.half_width : 0;
        left = item < half ? item : item + half;
        right = item < half ? item + half : -1;
        if (item >= half) return;
        table_at(cos, turn.cos, turn.kind, position * half + item);
        table_at(sin, turn.sin, turn.kind, position * half + item);
    }
    __device__ void load(float& x, float& y, const NewHead& head) const {
        x = head[left];
        if (right < 0) return;
        y = head[right];
        turn_pair(x, y, cos[0], sin[0]);
    }
};

// Queries, scaled, and what each may look at, into shared memory; nothing for those there are not. The queries
// of a token share its cosines and sines.
__device__ inline void stage_queries(float* queries, int* sights, const Block& block, const NewTokens& fresh,
                                     const Sight& sight, const Spread& spread, float scale) {
    const int items = fresh.width - (fresh.turn.cos ? fresh.turn.half_width : 0), from = block.token(0);
    const int tokens = block.token(block.count - 1) + 1 - from;
    for (int i = threadIdx.x; i < tokens * items; i += blockDim.x) {
        const int token = from + i / items;
        const Columns columns(fresh.turn, position_of(fresh.turn, block.batch, token), i % items);
        const int stop = min(block.count, (token + 1) * block.group - block.first);
        for (int r = max(0, token * block.group - block.first); r < stop; r++) {
            float x, y, *row = queries + r * spread.room;
            columns.load(x, y, fresh.query(block.batch, token, block.head(r), r));
            row[spread.slot_of(columns.left)] = x * scale;
            if (columns.right >= 0) row[spread.slot_of(columns.right)] = y * scale;
        }
    }
    for (int i = threadIdx.x; i < QUERIES * spread.room; i += blockDim.x) {
        const int r = i / spread.room, column = i - r * spread.room;
        if (r >= block.count || column >= fresh.width) queries[r * spread.room + spread.slot_of(column)] = 0.0f;
    }
    for (int r = threadIdx.x; r < QUERIES; r += blockDim.x) {
        const bool there = r < block.count;
        sights[2 * r] = there ? sight.low(block.token(r)) : 0;
        sights[2 * r + 1] = there ? sight.high(block.token(r)) : 0;
    }
}

// A group of a new key, turned, or of a new value, which a warp puts into 8 bit.
struct FreshGroup {
    const Turn& turn;
    const NewHead head;
    long long position;
    int first, count;
    bool turns;

    __device__ FreshGroup(const NewTokens& fresh, int batch, int token, int kv, bool value, int group)
        : turn(fresh.turn), head(value ? fresh.value(batch, token, kv) : fresh.key(batch, token, kv)),
          position(position_of(fresh.turn, batch, token)), count(fresh.width / groups_of(fresh.width)), turns(fresh.turn.cos && !value) {
        first = group * count;
    }
    __device__ float at(int column) const {
        const int half_width = turn.half_width, pair = column < half_width ? column : column - half_width;
        if (!turns || pair >= half_width) return head[column];
        float left = head[pair], right = head[pair + half_width], c[1], s[1];
        table_at(c, turn.cos, turn.kind, position * half_width + pair);
        table_at(s, turn.sin, turn.kind, position * half_width + pair);
        turn_pair(left, right, c[0], s[0]);
        return column < half_width ? left : right;
    }
    // Into the cache's head at `to`, and into one that is staged in shared memory; null: not there.
    template <class STORED> __device__ void round(STORED* to, half* scale, STORED* staged = nullptr, half* staged_scale = nullptr) const {
        const int lane = threadIdx.x & 31;
        float x[256 / 32], top = 0.0f;
#pragma unroll
        for (int j = 0; j < 256 / 32; j++) {
            x[j] = 32 * j + lane < count ? at(first + 32 * j + lane) : 0.0f;
            top = nan_max(top, fabsf(x[j]));
        }
        const Rounding rounding(top);
#pragma unroll
        for (int j = 0; j < 256 / 32; j++) {
            if (32 * j >= count) break;
            const STORED made = rounding.of(x[j]);
            const int column = first + 32 * j + lane, next = __shfl_xor_sync(FULL_WARP, (int)made.value, 1);
            if (32 * j + lane >= count) continue;
            if (to) to[column] = made;
            if (staged && !(lane & 1)) *(unsigned short*)(staged + column) = (unsigned short)(made.value & 255 | next << 8);
        }
        if (lane) return;
        if (to) *scale = rounding.scale;
        if (staged) *staged_scale = rounding.scale;
    }
};

// The new keys and values of a head as the cache will hold them, into shared memory and, by one block, there: a warp takes
// a group of 8 bit.
template <class STORED> __device__ inline void stage_groups(
        STORED* rows, half* scales, const Block& block, const NewTokens& fresh, const Cache& cache, const Spread& spread, bool appends) {
    const int groups = groups_of(fresh.width), first = fresh.first_place(block.batch);
    for (int i = threadIdx.x >> 5; i < 2 * fresh.tokens * groups; i += WARPS) {
        const int row = i / groups, group = i - row * groups, token = row % fresh.tokens, place = first + token;
        const bool value = row >= fresh.tokens, kept = appends && place >= 0 && place < cache.capacity;
        STORED* to = kept ? cache.row(value, block.batch, place, block.kv) : nullptr;
        half* scale = kept ? cache.scales(value, block.batch, place, block.kv) + group : nullptr;
        FreshGroup(fresh, block.batch, token, block.kv, value, group).round(to, scale, rows + row * spread.room, scales + i);
    }
}

// The same of numbers that stand for themselves: a thread takes a column, or two that turn.
template <class STORED> __device__ inline void stage_columns(
        STORED* rows, const Block& block, const NewTokens& fresh, const Cache& cache, const Spread& spread, bool appends) {
    const int first = fresh.first_place(block.batch);
    const int items = fresh.width - (fresh.turn.cos ? fresh.turn.half_width : 0);
    for (int i = threadIdx.x; i < fresh.tokens * items; i += blockDim.x) {
        const int token = i / items, place = first + token;
        const Columns columns(fresh.turn, position_of(fresh.turn, block.batch, token), i - token * items);
        const NewHead values = fresh.value(block.batch, token, block.kv);
        float x[2];
        columns.load(x[0], x[1], fresh.key(block.batch, token, block.kv));
        const bool kept = appends && place >= 0 && place < cache.capacity;
        const long long to = kept ? cache.at(block.batch, place, block.kv) : 0;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int column = side ? columns.right : columns.left;
            if (column < 0) continue;
            const STORED key = narrow<STORED>(x[side]), value = narrow<STORED>(values[column]);
            rows[token * spread.room + column] = key;
            rows[(fresh.tokens + token) * spread.room + column] = value;
            if (!kept) continue;
            cache.keys[to + column] = key;
            cache.values[to + column] = value;
        }
    }
}
