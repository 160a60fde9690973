// Attention of a few new tokens over a cache, with their turn and their append, in one launch.
//
// A decode step is bound by reading the cache. Flash-decoding (Dao et al. 2023): the keys of a row are split
// over blocks, so that a batch of one fills the chip. Each block leaves a maximum, a sum and the weighted
// values (the running softmax is Milakov and Gimelshein's, 2018); the block that arrives last, told by a
// counter, puts the parts together in the order of the keys: one launch, the same digits every time.
//
// A block is one row of the batch, one key head, one split, and up to QUERIES of the T * H / K queries that share
// the head, so each key and value is loaded once for all of them. How many splits a row really has follows
// from its length in device memory, so a captured step fits itself to the cache: a short row has few,
// and blocks beyond them leave at once. The new tokens' keys and values are taken from `packed` by every
// block that sees them, and one block writes them to the cache: none reads what another one writes.
//
// A warp takes TILE keys at a time, in three steps. Scores: a key lies over `lanes` lanes, 8 elements each in
// accesses of 16 bytes; a lane multiplies four keys with each query and the lanes add them up, four sums in
// the shuffles of less than two. Weights: now a lane is a key, so an exponential is computed once. Values: as the
// keys, weights from shared memory. While four keys or values are in work the next four are under way:
// 2 KB a warp, which with a dozen warps a processor is what latency times bandwidth asks for.
//
// Bytes: the keys and values that are seen once, and per split and query D + 2 floats written and read, and D
// elements of the query: the launcher makes splits long enough that all this is below a tenth. Operations: 4 D
// a query and key, on the plain cores: a few for each byte while QUERIES is 8 at most; more queries (several
// tokens) are several blocks side by side, which find the keys in the L2 cache.
// Registers: 8 sums a query, 32 numbers in work and 16 or 32 under way, with addresses from 84 (one query) to 234
// (eight in float). Shared memory: queries, TILE weights for each query and warp, the new keys and values; later
// the sums of the warps; at most 33 KB. Four warps: few enough to put together, and two to four blocks a processor.
#include "cached_parts.cuh"

// All keys from `tile` on that are this warp's. A step is four keys or values: of each tile first the keys, then
// the values. `ahead` holds those of step 0 if `loaded`.
__device__ inline void walk(Running& run, const Reader& reader, Piece (&ahead)[AHEAD], bool loaded, const float* queries,
                            float* scores, const int* sights, int tile) {
    const int lanes = reader.spread.lanes, half = lanes / AHEAD, lane = threadIdx.x & 31, own = lane & ~(lanes - 1);
    const int tiles = max(0, (reader.end - tile + WARPS * TILE - 1) / (WARPS * TILE)), steps = tiles * 2 * half;
    const int shift = 32 - __clz(half);  // of a step's number to its tile's
    float held[AHEAD][HELD];
#pragma unroll 1
    for (int step = loaded ? 0 : -1; step < steps; step++) {
        const int next = step + 1, key = own + (step & half - 1) * AHEAD;
        widen_all(held, ahead);
        reader.read(ahead, next & half, tile + (next >> shift) * WARPS * TILE + own + (next & half - 1) * AHEAD);
        if (step < 0) continue;
        if (step & half) mix(run, scores, held, key);
        else multiply(scores, queries, held, reader.spread, key);
        if ((step & 2 * half - 1) == half - 1) weigh(run, scores, sights, tile + (step >> shift) * WARPS * TILE + lane);
        if ((step & 2 * half - 1) == 2 * half - 1) __syncwarp();  // before the next tile's scores
    }
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
    __device__ void load(float& x, float& y, const REAL* head) const {
        x = widen(head[left]);
        if (right < 0) return;
        y = widen(head[right]);
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
            columns.load(x, y, fresh.head(block.batch, token, block.head(r)));
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

// The new keys and values of a head as the cache will hold them, into shared memory and, by one block, there.
__device__ inline void stage_fresh(CACHE* rows, const Block& block, const NewTokens& fresh, const Cache& cache,
                                   const Spread& spread, bool appends) {
    const int items = fresh.width - (fresh.turn.cos ? fresh.turn.half_width : 0), first = fresh.first_place(block.batch);
    for (int i = threadIdx.x; i < fresh.tokens * items; i += blockDim.x) {
        const int token = i / items, place = first + token;
        const Columns columns(fresh.turn, position_of(fresh.turn, block.batch, token), i - token * items);
        const REAL* head = fresh.head(block.batch, token, fresh.heads + block.kv);
        float x[2];
        columns.load(x[0], x[1], head);
        const bool kept = appends && place >= 0 && place < cache.capacity;
        const long long to = kept ? cache.at(block.batch, place, block.kv) : 0;
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int column = side ? columns.right : columns.left;
            if (column < 0) continue;
            const CACHE key = narrow<CACHE>(x[side]), value = narrow<CACHE>(widen(head[fresh.kv_heads * fresh.width + column]));
            rows[token * spread.room + column] = key;
            rows[(fresh.tokens + token) * spread.room + column] = value;
            if (!kept) continue;
            cache.keys[to + column] = key;
            cache.values[to + column] = value;
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, QUERIES == 8 ? 2 : QUERIES == 4 || WIDE == 4 ? 3 : 4) attend_cached(
        const REAL* packed, CACHE* keys, CACHE* values, const int* table, const long long* starts,
        const long long* lengths, const void* cos, const void* sin, const long long* positions, REAL* out,
        float* scratch, unsigned* counters, long long per_batch, int half_width, int kind,
        long long piece, long long place, long long head, int page, int pages, int capacity, bool wide,
        int tokens, int heads, int kv_heads, int width, int start, int stop, long long window, float scale,
        bool causal, int sets, int least) {
    extern __shared__ unsigned char memory[];
    __shared__ int sights[2 * QUERIES];
    __shared__ float tops[WARPS * QUERIES];
    __shared__ float totals[WARPS * QUERIES];
    __shared__ bool last;
    const NewTokens fresh = {packed, starts, {cos, sin, positions, per_batch, half_width, kind, 1.0f}, tokens, heads, kv_heads, width, start};
    const Cache cache = {keys, values, table, piece, place, head, page, pages, capacity};
    const int set = blockIdx.x % sets, split = blockIdx.x / sets, most = gridDim.x / sets, group = heads / kv_heads;
    const Block block = {(int)blockIdx.z, (int)blockIdx.y, set * QUERIES, min(QUERIES, tokens * group - set * QUERIES), group};

    // The splits that this row has, and the keys of this one.
    const Sight sight(fresh, {lengths, window, stop, causal}, block.batch);
    const int low = sight.low(block.token(0)), high = sight.high(block.token(block.count - 1));
    const int seen = max(0, high - low), size = (max(least, (seen + most - 1) / most) + TILE - 1) / TILE * TILE;
    const int splits = max(1, (seen + size - 1) / size), begin = low + split * size, end = min(high, begin + size);
    if (split >= splits) return;

    const Spread spread(width);
    float* queries = (float*)memory;
    float* scores = queries + QUERIES * spread.room;
    CACHE* new_rows = (CACHE*)(scores + WARPS * QUERIES * TILE);
    const Reader reader = {cache, spread, new_rows, block.batch, block.kv, tokens, width, fresh.first_place(block.batch), end, wide};
    const int warp = threadIdx.x >> 5, tile = begin + warp * TILE, own = (threadIdx.x & 31) / spread.lanes * spread.lanes;
    Running run;
    start_empty(run);
    Piece ahead[AHEAD];
    for (int u = 0; u < AHEAD; u++)
        for (int p = 0; p < HELD / WIDE; p++) ahead[u].parts[p].clear();
    const bool loaded = reader.plain(tile, tile + TILE);
    if (loaded) reader.read_plain(ahead, tile + own);
    stage_queries(queries, sights, block, fresh, sight, spread, scale * LOG2E);
    const bool appends = set == 0 && split == splits - 1;
    if (appends || reader.has_fresh(begin, end)) stage_fresh(new_rows, block, fresh, cache, spread, appends);
    __syncthreads();
    walk(run, reader, ahead, loaded, queries, scores + warp * QUERIES * TILE, sights, tile);

    __syncthreads();
    float* sums = (float*)memory;
    gather_warps(run, sums, tops, totals, spread);
    const long long turn = ((long long)block.batch * kv_heads + block.kv) * sets + set;
    const int step = (width + 3) / 4 * 4 + 4;
    const Parts parts = {scratch + turn * most * QUERIES * step, step};
    leave(out, parts, split, splits, sums, tops, totals, block, fresh, spread);
    if (splits == 1) return;
    __threadfence();
    __syncthreads();
    // Counts to splits - 1 and then to 0 again, ready for the next launch.
    if (threadIdx.x == 0) last = atomicInc(counters + turn, (unsigned)splits - 1) == (unsigned)splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    combine_splits(out, (float*)memory, parts, splits, block, fresh);
}

// For a prompt, whose attention is a kernel of its own: turned queries to `queries` (null: they stay where they
// are), keys, turned, and values to the cache. Every element is read and written once.
template <int EACH> struct Appending {
    const NewTokens& fresh;
    const Cache& cache;
    REAL* queries;
    int skipped;

    __device__ void take(long long at, int number, int part) const {
        const int head = number + skipped;
        const bool turns = fresh.turn.cos && head < fresh.heads + fresh.kv_heads;
        if (part >= parts_of<EACH>(fresh.width, fresh.turn, turns)) return;
        const int batch = (int)((unsigned)at / (unsigned)fresh.tokens), token = (int)at - batch * fresh.tokens;
        const long long position = turns ? position_of(fresh.turn, batch, token) : 0;
        const REAL* from = fresh.head(batch, token, head);
        if (head < fresh.heads)
            return turn_part<EACH>(queries + (at * fresh.heads + head) * fresh.width, from, part, fresh.turn, turns, position);
        const int place = fresh.first_place(batch) + token, kv = (head - fresh.heads) % fresh.kv_heads;
        if (place < 0 || place >= cache.capacity) return;
        CACHE* to = (head < fresh.heads + fresh.kv_heads ? cache.keys : cache.values) + cache.at(batch, place, kv);
        turn_part<EACH>(to, from, part, fresh.turn, turns, position);
    }
};

template <int EACH> __device__ inline void append_all(const NewTokens& fresh, const Cache& cache, REAL* queries, long long tokens) {
    const int skipped = queries ? 0 : fresh.heads;
    Appending<EACH> appending = {fresh, cache, queries, skipped};
    each_part(tokens, fresh.heads + 2 * fresh.kv_heads - skipped, fresh.width / EACH, appending);
}

extern "C" __global__ void __launch_bounds__(256, 4) turn_and_append(
        const REAL* packed, CACHE* keys, CACHE* values, const int* table, const long long* starts,
        const void* cos, const void* sin, const long long* positions, REAL* queries,
        long long per_batch, int half_width, int kind,
        long long piece, long long place, long long head, int page, int pages, int capacity, bool wide,
        int batches, int tokens, int heads, int kv_heads, int width, int start) {
    const NewTokens fresh = {packed, starts, {cos, sin, positions, per_batch, half_width, kind, 1.0f}, tokens, heads, kv_heads, width, start};
    const Cache cache = {keys, values, table, piece, place, head, page, pages, capacity};
    const int each = 16 / (int)sizeof(REAL);
    wide = wide && in_parts<each>(width, fresh.turn, packed, queries);
    if (wide) append_all<each>(fresh, cache, queries, (long long)batches * tokens);
    else append_all<1>(fresh, cache, queries, (long long)batches * tokens);
}
