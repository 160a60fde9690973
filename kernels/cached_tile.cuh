// What a warp of cached attention does with its keys: read, multiply, weigh, mix; see cached_attention.cu.
#pragma once
#include "cache.cuh"

#define WARPS 4
#define TILE 32
#define AHEAD 4     // keys that a lane has in work, and as many under way
#define HELD 8      // elements of a key that a lane holds
#define WIDE (sizeof(CACHE) == 4 ? 4 : HELD)  // elements of an access: 16 bytes, in 8 bit 8
#define LOG2E 1.4426950408889634f

// A head over lanes: element i of lane l's quad q lies in column_of(q, l) + i. In shared memory the columns
// lie by quads first, so that lanes side by side read side by side.
struct Spread {
    int lanes, lane, room;  // room: 8 * lanes, the padded width

    __device__ Spread(int width) : lanes(4) {
        while (lanes * HELD < width) lanes *= 2;
        lane = threadIdx.x & (lanes - 1);
        room = lanes * HELD;
    }
    // The column of quad q * lanes + lane.
    __device__ int column_of(int quad) const {
        return WIDE == 4 ? 4 * quad : (quad & (lanes - 1)) * 8 + (quad >= lanes ? 4 : 0);
    }
    __device__ int slot_of(int column) const {
        return WIDE == 4 ? column : ((column >> 2 & 1) * lanes + (column >> 3)) * 4 + (column & 3);
    }
};

// What a lane holds of one key or value.
struct Piece { Chunk<WIDE, CACHE> parts[HELD / WIDE]; };

// The keys and values of a block's split, wherever they lie. `wide`: WIDE at a time.
struct Reader {
    const Cache& cache;
    const Spread& spread;
    const CACHE* fresh;        // in shared memory: the new tokens' keys, then their values
    const half* fresh_scales;  // and those of 8 bit's groups
    int batch, head, tokens, width, first_fresh, end;
    bool wide;

    // Whether keys begin .. stop - 1 are all to be read, and from the cache as one piece.
    __device__ bool plain(int begin, int stop) const {
        return wide && !cache.table && stop <= end && !has_fresh(begin, stop);
    }
    __device__ bool has_fresh(int begin, int stop) const { return begin < first_fresh + tokens && stop > first_fresh; }

    __device__ int column(int part) const { return (part * spread.lanes + spread.lane) * WIDE; }

    // The first keys of a plain tile, before the new tokens are staged.
    __device__ void read_plain(Piece (&to)[AHEAD], int place) const {
        const CACHE* from = cache.keys + cache.at(batch, place, head);
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
#pragma unroll
            for (int p = 0; p < HELD / WIDE; p++)
                if (column(p) < width) to[u].parts[p].read(from + u * cache.steps.place + column(p));
    }

    // AHEAD keys or values from `place` on; zeros past the end.
    __device__ void read(Piece (&to)[AHEAD], bool value, int place) const {
        const CACHE* from[AHEAD];
        const CACHE* all = value ? cache.values : cache.keys;
        find(from, all, place);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const unsigned age = (unsigned)(place + u - first_fresh);
            if (age < (unsigned)tokens) from[u] = fresh + (value ? tokens + age : age) * spread.room;
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
#pragma unroll
            for (int p = 0; p < HELD / WIDE; p++) {
                to[u].parts[p].clear();
                const int count = place + u < end ? width - column(p) : 0;
                if (wide && count > 0) to[u].parts[p].read(from[u] + column(p));
                else if (count > 0) read_singly(to[u].parts[p], from[u] + column(p), count);
            }
    }
    // Where the cache has AHEAD places; of a table only what is inside is read.
    __device__ void find(const CACHE* (&from)[AHEAD], const CACHE* all, int place) const {
        if (cache.table) {
#pragma unroll
            for (int u = 0; u < AHEAD; u++) from[u] = place + u < end ? all + cache.at(batch, place + u, head) : all;
        } else {
            all += batch * cache.steps.piece + place * cache.steps.place + head * cache.steps.head;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) from[u] = all + u * cache.steps.place;
        }
    }
    __device__ static void read_singly(Chunk<WIDE, CACHE>& to, const CACHE* from, int count) {
        CACHE x[WIDE];
#pragma unroll
        for (int i = 0; i < WIDE; i++) x[i] = i < count ? from[i] : CACHE();
        memcpy(to.words, x, sizeof(x));
    }
    // Where the scales of a place lie; null past the end.
    __device__ const half* scales(bool value, int place) const {
        if (place >= end) return nullptr;
        const unsigned age = (unsigned)(place - first_fresh);
        if (age < (unsigned)tokens) return fresh_scales + (value ? tokens + age : age) * groups_of(width);
        return cache.scales(value, batch, place, head);
    }
};

// The scales of a tile's keys or values, for 8 bit only: in shared memory [group][key], where a lane finds
// its group's of neighbouring keys; meanwhile those of the next are under way, a key's to a lane.
struct Scales {
    static const int ROW = TILE + 4;  // groups begin in different banks
    float* tile;
    int groups;
    Chunk<8, half> ahead;

    // `memory` of the warps side by side.
    __device__ Scales(float* memory, int width) : groups(groups_of(width)) { tile = memory + (threadIdx.x >> 5) * groups * ROW; }

    // Those of a tile's keys or values from place `first` on.
    __device__ void read(const Reader& reader, bool value, int first) {
        const half* from = reader.scales(value, first + (threadIdx.x & 31));
        ahead.clear();
        if (!from) return;
        if (groups == 8 && aligned(from, 16)) ahead.words[0] = *(const uint4*)from;
        else if (groups == 4 && aligned(from, 8)) take(*(const uint2*)from);
        else if (groups == 2 && aligned(from, 4)) take(*(const unsigned*)from);
        else read_singly(from);
    }
    template <class W> __device__ void take(W word) { memcpy(&ahead, &word, sizeof(W)); }

    __device__ void read_singly(const half* from) {
        half x[8] = {};
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < groups) x[j] = from[j];
        memcpy(&ahead, x, sizeof(x));
    }
    // What has been read, for all lanes; none is at the tile before any more.
    __device__ void put() {
        float x[8];
        ahead.get(x);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < groups) tile[j * ROW + (threadIdx.x & 31)] = x[j];
        __syncwarp();
    }
    // By what the columns that this lane has of AHEAD keys from `key` on are multiplied.
    __device__ void get(float (&by)[AHEAD], const Spread& spread, int key) const {
        load<AHEAD>(by, tile + min(spread.lane * HELD / SHARING, groups - 1) * ROW + key);
    }
};

__device__ inline void widen_all(float (&to)[AHEAD][HELD], const Piece (&from)[AHEAD]) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++)
#pragma unroll
        for (int p = 0; p < HELD / WIDE; p++) {
            float part[WIDE];
            from[u].parts[p].get(part);
#pragma unroll
            for (int i = 0; i < WIDE; i++) to[u][p * WIDE + i] = part[i];
        }
}

// The running softmax of a lane: sums of its columns, and of the weights of its own keys.
struct Running { float top[QUERIES], total[QUERIES], sum[QUERIES][HELD]; };

__device__ inline void start_empty(Running& run) {
#pragma unroll
    for (int r = 0; r < QUERIES; r++) {
        run.top[r] = -INFINITE;
        run.total[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) run.sum[r][i] = 0.0f;
    }
}

// Four numbers of each lane summed over the lanes of a key; a lane gets the sum of number `which`.
__device__ inline float fold(const float (&x)[AHEAD], const Spread& spread, int& which) {
    const bool upper = spread.lane & spread.lanes >> 1, odd = spread.lane & spread.lanes >> 2;
    float a = upper ? x[2] : x[0], b = upper ? x[3] : x[1];
    a += __shfl_xor_sync(FULL_WARP, upper ? x[0] : x[2], spread.lanes >> 1);
    b += __shfl_xor_sync(FULL_WARP, upper ? x[1] : x[3], spread.lanes >> 1);
    float sum = (odd ? b : a) + __shfl_xor_sync(FULL_WARP, odd ? a : b, spread.lanes >> 2);
    for (int step = spread.lanes >> 3; step > 0; step >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    which = 2 * upper + odd;
    return sum;
}

// Scores of AHEAD keys with all queries into scores[query][key].
__device__ inline void multiply(float* scores, const float* queries, const float (&keys)[AHEAD][HELD], const Spread& spread,
                                const Scales& scales, int key) {
    float by[AHEAD];
    if (EIGHT) scales.get(by, spread, key);
#pragma unroll
    for (int r = 0; r < QUERIES; r++) {
        float products[AHEAD] = {};
#pragma unroll
        for (int q = 0; q < 2; q++) {
            float query[4];
            load<4>(query, queries + r * spread.room + (q * spread.lanes + spread.lane) * 4);
#pragma unroll
            for (int u = 0; u < AHEAD; u++)
#pragma unroll
                for (int i = 0; i < 4; i++) products[u] = fmaf(query[i], keys[u][4 * q + i], products[u]);
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
            if (EIGHT) products[u] *= by[u];
        int which;
        const float score = fold(products, spread, which);
        if ((spread.lane & (spread.lanes >> 2) - 1) == 0) scores[r * TILE + key + which] = score;
    }
}

// Scores to weights under the new maximum, to which the sums so far are brought. A lane is a key.
__device__ inline void weigh(Running& run, float* scores, const int* sights, int place) {
    const int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int r = 0; r < QUERIES; r++) {
        float score = scores[r * TILE + lane];
        if (place < sights[2 * r] || place >= sights[2 * r + 1]) score = -INFINITE;
        float top = score;
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, step));
        top = fmaxf(top, run.top[r]);
        const float shift = top == -INFINITE ? 0.0f : top;  // nothing seen yet: every weight is exp(-inf)
        const float shrink = exp2f(run.top[r] - shift), weight = exp2f(score - shift);
        run.top[r] = top;
        run.total[r] = run.total[r] * shrink + weight;
        scores[r * TILE + lane] = weight;
#pragma unroll
        for (int i = 0; i < HELD; i++) run.sum[r][i] *= shrink;
    }
    __syncwarp();
}

__device__ inline void mix(Running& run, const float* weights, const float (&values)[AHEAD][HELD], const Spread& spread,
                           const Scales& scales, int key) {
    float by[AHEAD];
    if (EIGHT) scales.get(by, spread, key);
#pragma unroll
    for (int r = 0; r < QUERIES; r++) {
        float weight[AHEAD];
        load<AHEAD>(weight, weights + r * TILE + key);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            if (EIGHT) weight[u] *= by[u];
#pragma unroll
            for (int i = 0; i < HELD; i++) run.sum[r][i] = fmaf(weight[u], values[u][i], run.sum[r][i]);
        }
    }
}
