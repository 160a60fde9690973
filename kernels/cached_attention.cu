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
// accesses of 16 bytes (in 8 bit one of 8); a lane multiplies four keys with each query and the lanes add them up, four
// sums in the shuffles of less than two. Weights: now a lane is a key, so an exponential is computed once. Values: as the
// keys, weights from shared memory. While four keys or values are in work the next four are under way:
// 2 KB a warp, which with a dozen warps a processor is what latency times bandwidth asks for (1 KB in 8 bit).
//
// In 8 bit a lane's sum of integers times a query is multiplied by the scale, and of values the weight: an operation more
// for eight. The scales of a tile's keys are read together, a key's to a lane, while its values before are in work.
//
// Queries and keys that are normed (RMS, each head by itself) are so while they are staged: a warp sums up the squares of a
// head before. Every block does it for its own few heads anew.
//
// Bytes: the keys and values that are seen once, with their scales, and per split and query D + 2 floats written and read, and D
// elements of the query: the launcher makes splits long enough that all this is below a tenth. Operations: 4 D
// a query and key, on the plain cores: a few for each byte while QUERIES is 8 at most; more queries (several
// tokens) are several blocks side by side, which find the keys in the L2 cache.
// Registers: 8 sums a query, 32 numbers in work and 8, 16 or 32 under way, with addresses from 84 (one query; in 8 bit 114)
// to 244 (eight). Shared memory: queries, TILE weights for each query and warp, a tile's scales, the new keys and values;
// later the sums of the warps; at most 33 KB. Four warps: few enough to put together, and two to four blocks a processor.
#define MOST_TOKENS 8  // of a row
#include "cached_fresh.cuh"

// All keys from `tile` on that are this warp's. A step is four keys or values: of each tile first the keys, then
// the values. `ahead` holds those of step 0 if `loaded`.
__device__ inline void walk(Running& run, const Reader& reader, Scales& scales, Piece (&ahead)[AHEAD], bool loaded,
                            const float* queries, float* scores, const int* sights, int tile) {
    const int lanes = reader.spread.lanes, half = lanes / AHEAD, lane = threadIdx.x & 31, own = lane & ~(lanes - 1);
    const int tiles = max(0, (reader.end - tile + WARPS * TILE - 1) / (WARPS * TILE)), steps = tiles * 2 * half;
    const int shift = 32 - __clz(half);  // of a step's number to its tile's
    float held[AHEAD][HELD];
    if (EIGHT && !loaded) scales.read(reader, false, tile);
#pragma unroll 1
    for (int step = loaded ? 0 : -1; step < steps; step++) {
        const int next = step + 1, key = own + (step & half - 1) * AHEAD;
        widen_all(held, ahead);
        reader.read(ahead, next & half, tile + (next >> shift) * WARPS * TILE + own + (next & half - 1) * AHEAD);
        if (step < 0) continue;
        if (EIGHT && (step & half - 1) == 0) {  // another half of a tile: its scales have been read
            const int then = step + half;
            scales.put();
            scales.read(reader, then & half, tile + (then >> shift) * WARPS * TILE);
        }
        if (step & half) mix(run, scores, held, reader.spread, scales, key);
        else multiply(scores, queries, held, reader.spread, scales, key);
        if ((step & 2 * half - 1) == half - 1) weigh(run, scores, sights, tile + (step >> shift) * WARPS * TILE + lane);
        if ((step & 2 * half - 1) == 2 * half - 1) __syncwarp();  // before the next tile's scores
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, QUERIES == 1 ? 4 : QUERIES == 8 ? 2 : QUERIES == 4 || WIDE == 4 ? 3 : 4) attend_cached(
        const REAL* packed, const REAL* q_gain, const REAL* k_gain, float eps, CACHE* keys, CACHE* values, half* key_scales,
        half* value_scales, const int* table, const long long* starts, const long long* lengths, const void* cos, const void* sin,
        const long long* positions, REAL* out, float* scratch, unsigned* counters, long long per_batch, int half_width, int kind,
        long long piece, long long place, long long head, long long scale_piece, long long scale_place, long long scale_head,
        int page, int pages, int capacity, bool wide,
        int tokens, int heads, int kv_heads, int width, int start, int stop, long long window, float scale,
        bool causal, int sets, int least) {
    extern __shared__ unsigned char memory[];
    __shared__ int sights[2 * QUERIES];
    __shared__ float tops[WARPS * QUERIES];
    __shared__ float totals[WARPS * QUERIES];
    __shared__ bool last;
    __shared__ float query_roots[QUERIES];
    __shared__ float key_roots[MOST_TOKENS];
    const NewTokens fresh = {packed, starts, {cos, sin, positions, per_batch, half_width, kind, 1.0f}, tokens, heads, kv_heads, width, start,
                             q_gain, k_gain, query_roots, key_roots};
    const Cache cache = {keys, values, key_scales, value_scales, table, {piece, place, head},
                         {scale_piece, scale_place, scale_head}, page, pages, capacity};
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
    float* tile_scales = scores + WARPS * QUERIES * TILE;
    Scales scales(tile_scales, width);
    CACHE* new_rows = (CACHE*)(tile_scales + (EIGHT ? WARPS * scales.groups * Scales::ROW : 0));
    half* new_scales = (half*)(new_rows + 2 * tokens * spread.room);
    const Reader reader = {cache, spread, new_rows, new_scales, block.batch, block.kv, tokens, width, fresh.first_place(block.batch), end, wide};
    const int warp = threadIdx.x >> 5, tile = begin + warp * TILE, own = (threadIdx.x & 31) / spread.lanes * spread.lanes;
    Running run;
    start_empty(run);
    Piece ahead[AHEAD];
    for (int u = 0; u < AHEAD; u++)
        for (int p = 0; p < HELD / WIDE; p++) ahead[u].parts[p].clear();
    const bool loaded = reader.plain(tile, tile + TILE);
    if (loaded) reader.read_plain(ahead, tile + own);
    if (EIGHT && loaded) scales.read(reader, false, tile);
    stage_roots(query_roots, key_roots, block, fresh, eps);
    stage_queries(queries, sights, block, fresh, sight, spread, scale * LOG2E);
    const bool appends = set == 0 && split == splits - 1;
    if (appends || reader.has_fresh(begin, end)) {
        if constexpr (EIGHT) stage_groups(new_rows, new_scales, block, fresh, cache, spread, appends);
        else stage_columns(new_rows, block, fresh, cache, spread, appends);
    }
    __syncthreads();
    walk(run, reader, scales, ahead, loaded, queries, scores + warp * QUERIES * TILE, sights, tile);

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
        if constexpr (!EIGHT)
            turn_part<EACH>(cache.row(head >= fresh.heads + fresh.kv_heads, batch, place, kv), from, part, fresh.turn, turns, position);
    }
};

template <int EACH> __device__ inline void append_all(const NewTokens& fresh, const Cache& cache, REAL* queries, long long tokens) {
    const int skipped = queries ? 0 : fresh.heads, there = EIGHT ? 0 : 2 * fresh.kv_heads;
    Appending<EACH> appending = {fresh, cache, queries, skipped};
    each_part(tokens, fresh.heads + there - skipped, fresh.width / EACH, appending);
}

// Keys and values in 8 bit: a warp takes a group.
template <class STORED> __device__ inline void append_groups(const NewTokens& fresh, const Cache& cache, long long tokens) {
    const int groups = groups_of(fresh.width), count = 2 * fresh.kv_heads * groups;
    const long long step = (long long)gridDim.x * (blockDim.x >> 5);
    for (long long i = (long long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); i < tokens * count; i += step) {
        const unsigned at = (unsigned)(i / count), number = (unsigned)(i - (long long)at * count) / groups;
        const int batch = (int)(at / fresh.tokens), token = (int)(at - batch * fresh.tokens);
        const int group = (int)(i - ((long long)at * 2 * fresh.kv_heads + number) * groups), place = fresh.first_place(batch) + token;
        const bool value = (int)number >= fresh.kv_heads;
        const int kv = (int)number - (value ? fresh.kv_heads : 0);
        if (place < 0 || place >= cache.capacity) continue;
        FreshGroup(fresh, batch, token, kv, value, group).round(
            cache.row(value, batch, place, kv), cache.scales(value, batch, place, kv) + group);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) turn_and_append(
        const REAL* packed, CACHE* keys, CACHE* values, half* key_scales, half* value_scales, const int* table, const long long* starts,
        const void* cos, const void* sin, const long long* positions, REAL* queries,
        long long per_batch, int half_width, int kind,
        long long piece, long long place, long long head, long long scale_piece, long long scale_place, long long scale_head,
        int page, int pages, int capacity, bool wide,
        int batches, int tokens, int heads, int kv_heads, int width, int start) {
    const NewTokens fresh = {packed, starts, {cos, sin, positions, per_batch, half_width, kind, 1.0f}, tokens, heads, kv_heads, width, start};
    const Cache cache = {keys, values, key_scales, value_scales, table, {piece, place, head},
                         {scale_piece, scale_place, scale_head}, page, pages, capacity};
    const int each = 16 / (int)sizeof(REAL);
    wide = wide && in_parts<each>(width, fresh.turn, packed, queries);
    if (wide) append_all<each>(fresh, cache, queries, (long long)batches * tokens);
    else append_all<1>(fresh, cache, queries, (long long)batches * tokens);
    if constexpr (EIGHT) append_groups<CACHE>(fresh, cache, (long long)batches * tokens);
}
