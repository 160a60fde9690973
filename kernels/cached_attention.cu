// Attention of a few new tokens over a cache, with their turn and their append, in one launch.
//
// A decode step is bound by reading the cache once. Flash-decoding (Dao et al. 2023): the keys of a row are
// split over blocks, so that a batch of one fills the chip; each block keeps a running maximum, sum
// and weighted values (online softmax, Milakov and Gimelshein 2018) and writes them down. The block that
// arrives last, told by a counter, puts the parts together in the order of the keys: one launch, and the same
// result every time. The query heads of one key head, and the new tokens, share each key and value read.
//
// Layout: packed (B, T, H + 2 K, D) in REAL; caches of CACHE by strides, contiguous or in pages through a table;
// lengths and starts in device memory, so that a captured step follows the cache. A block is one
// row, one key head, up to eight of its queries, one split of the keys. A key's D elements lie over a
// power of two of lanes, 16 bytes each, so a warp reads several keys at once. The keys and values of the new
// tokens are taken from `packed`, by every block that sees them; only the first split appends them,
// and none reads what another writes.
//
// Bytes: the live keys and values once, plus queries * (D + 2) floats for a split, written and read once: under
// a tenth from 128 keys a split on. Operations: 4 D for a key and query, on the plain cores: a few
// for each byte. Registers: eight accumulators a query; eight queries are a hundred. Shared memory: the
// queries, the new keys and values, and the warps' results.
#include "reduce.cuh"
#include "rotary.cuh"

#define WARPS 4
#define LOG2E 1.4426950408889634f
#define PER_LANE 8  // elements of a head that a lane holds at most: 256 over 32 lanes

struct Steps { long long batch, row, head; };

struct Cached {
    const REAL* packed;
    CACHE *keys, *values;
    const int* table;  // pages of each row of the batch, or null
    const long long *starts, *lengths;
    Turn turn;
    Steps key_steps, value_steps;
    int batches, tokens, heads, kv_heads, width, stop, capacity, start, page, pages;
    long long window;
    float scale;
    bool causal;

    __device__ const REAL* head(int batch, int token, int number) const {
        return packed + (((long long)batch * tokens + token) * (heads + 2 * kv_heads) + number) * width;
    }
    __device__ long long offset(const Steps& s, int batch, int place, int head) const {
        if (!table) return batch * s.batch + place * s.row + head * s.head;
        return table[(long long)batch * pages + place / page] * s.batch + place % page * s.row + head * s.head;
    }
};

// One row of the batch: where its new tokens stand and which keys count.
struct Row {
    long long first;  // position of query 0
    int start, limit;

    __device__ Row(const Cached& c, int batch) {
        start = c.starts ? (int)c.starts[batch] : c.start;
        limit = c.lengths ? (int)max(0LL, min((long long)c.stop, c.lengths[batch])) : c.stop;
        first = c.starts ? start : (c.lengths ? c.lengths[batch] : c.stop) - c.tokens;
    }
    __device__ bool sees(const Cached& c, int token, int key) const {
        long long at = first + token;
        return key < limit && (!c.causal || key <= at) && at - key < c.window;
    }
};

// The running softmax of one query: maximum (in powers of two), sum, and this lane's part of the values.
struct State { float top, sum, mixed[PER_LANE]; };

__device__ inline void merge(State& a, const State& b) {
    float top = fmaxf(a.top, b.top);
    float keep = a.top == -INFINITE ? 0.0f : exp2f(a.top - top), take = b.top == -INFINITE ? 0.0f : exp2f(b.top - top);
    // A part without keys has zeros; infinite scores stay NaN.
    a.sum = a.sum * keep + b.sum * take;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) a.mixed[i] = a.mixed[i] * keep + b.mixed[i] * take;
    a.top = top;
}

// One key and value, spread over the lanes of a group, taken into the state of every query.
template <int N> __device__ inline void take_key(
        State (&states)[N], const float (&key)[PER_LANE], const float (&value)[PER_LANE], const float* queries,
        const bool (&seen)[N], int lanes, int room) {
#pragma unroll
    for (int q = 0; q < N; q++) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            score = fmaf(queries[q * room + i * lanes + (threadIdx.x & (lanes - 1))], key[i], score);
        for (int step = lanes >> 1; step > 0; step >>= 1) score += __shfl_xor_sync(FULL_WARP, score, step);
        if (!seen[q] || score == -INFINITE) continue;
        State& s = states[q];
        float top = fmaxf(s.top, score), weight = exp2f(score - top);
        float keep = s.top == -INFINITE ? 0.0f : exp2f(s.top - top);
        s.sum = s.sum * keep + weight;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) s.mixed[i] = s.mixed[i] * keep + weight * value[i];
        s.top = top;
    }
}

// The elements of a cached head that a lane holds: EACH at a time.
template <int EACH> __device__ inline void take_head(float (&out)[PER_LANE], const CACHE* head, const int (&places)[PER_LANE]) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i += EACH) {
        float part[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) part[k] = 0.0f;
        if (places[i] >= 0) load<EACH>(part, head + places[i]);
#pragma unroll
        for (int k = 0; k < EACH; k++) out[i + k] = part[k];
    }
}

// All keys of the split that some query of the block sees.
template <int N, int EACH> __device__ inline void walk_keys(
        State (&states)[N], const Cached& c, const Row& row, int batch, int kv, int first_query, int count,
        const float* queries, const float* fresh, const int (&places)[PER_LANE], int lanes, int begin, int end) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, at_once = 32 / lanes;
    for (int base = begin + warp * at_once; base < end; base += WARPS * at_once) {
        int key = base + lane / lanes;
        bool seen[N], any = false;
#pragma unroll
        for (int q = 0; q < N; q++) {
            seen[q] = key < end && q < count && row.sees(c, (first_query + q) % c.tokens, key);
            any = any || seen[q];
        }
        float k[PER_LANE] = {}, v[PER_LANE] = {};
        int age = key - row.start;
        if (any && age >= 0 && age < c.tokens) {
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (places[i] >= 0) {
                    k[i] = fresh[age * c.width + places[i]];
                    v[i] = fresh[(c.tokens + age) * c.width + places[i]];
                }
        } else if (any) {
            take_head<EACH>(k, c.keys + c.offset(c.key_steps, batch, key, kv), places);
            take_head<EACH>(v, c.values + c.offset(c.value_steps, batch, key, kv), places);
        }
        take_key<N>(states, k, v, queries, seen, lanes, PER_LANE * lanes);
    }
}

// The block's queries, scaled, and the keys and values of the new tokens as the cache will hold them.
// Element i of every lane lies together, so that a warp reads it without bank conflicts; past D are zeros.
template <int N, int EACH> __device__ inline void stage_new(
        const Cached& c, float* queries, float* fresh, int batch, int kv, int first_query, int count, int lanes) {
    int group = c.heads / c.kv_heads, room = PER_LANE * lanes;
    for (int i = threadIdx.x; i < N * room; i += blockDim.x) {
        int q = i / room, slot = i - q * room, own = slot / lanes, lane = slot - own * lanes;
        int d = (own / EACH * lanes + lane) * EACH + own % EACH, of = first_query + q, token = of % c.tokens;
        float x = 0.0f;
        if (q < count && d < c.width) {
            long long position = c.turn.cos ? position_of(c.turn, batch, token) : 0;
            x = turned(c.head(batch, token, kv * group + of / c.tokens), d, c.turn, position);
        }
        queries[i] = x * (c.scale * LOG2E);
    }
    for (int i = threadIdx.x; i < c.tokens * c.width; i += blockDim.x) {
        int token = i / c.width, d = i - token * c.width;
        long long position = c.turn.cos ? position_of(c.turn, batch, token) : 0;
        float key = turned(c.head(batch, token, c.heads + kv), d, c.turn, position);
        fresh[i] = widen(narrow<CACHE>(key));
        fresh[c.tokens * c.width + i] = widen(narrow<CACHE>(widen(c.head(batch, token, c.heads + c.kv_heads + kv)[d])));
    }
    __syncthreads();
}

__device__ inline void append(const Cached& c, const Row& row, const float* fresh, int batch, int kv) {
    for (int i = threadIdx.x; i < c.tokens * c.width; i += blockDim.x) {
        int token = i / c.width, d = i - token * c.width, place = row.start + token;
        if (place < 0 || place >= c.capacity) continue;
        c.keys[c.offset(c.key_steps, batch, place, kv) + d] = narrow<CACHE>(fresh[i]);
        c.values[c.offset(c.value_steps, batch, place, kv) + d] = narrow<CACHE>(fresh[c.tokens * c.width + i]);
    }
}

// Put together the groups of a warp, then write each warp's state to shared memory: (top, sum, values).
template <int N> __device__ inline void gather_warps(
        State (&states)[N], float* parts, const int (&places)[PER_LANE], int lanes, int width) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int q = 0; q < N; q++) {
        State& s = states[q];
        for (int step = lanes; step < 32; step <<= 1) {
            State other;
            other.top = __shfl_xor_sync(FULL_WARP, s.top, step);
            other.sum = __shfl_xor_sync(FULL_WARP, s.sum, step);
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) other.mixed[i] = __shfl_xor_sync(FULL_WARP, s.mixed[i], step);
            // Both partners add in the order of their lanes, so both have the same.
            if (lane & step) { merge(other, s); s = other; }
            else merge(s, other);
        }
        float* part = parts + (warp * N + q) * (width + 2);
        if (lane == 0) { part[0] = s.top; part[1] = s.sum; }
        if (lane < lanes)
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (places[i] >= 0) part[2 + places[i]] = s.mixed[i];
    }
    __syncthreads();
}

// Element d of the sum over `count` parts that lie `step` floats apart, and the sum of their weights.
__device__ inline float combine(const float* parts, int count, long long step, int d, float& top, float& sum) {
    top = -INFINITE;
    for (int i = 0; i < count; i++) top = fmaxf(top, parts[i * step]);
    float mixed = 0.0f;
    sum = 0.0f;
    for (int i = 0; i < count; i++) {
        float part_top = parts[i * step];
        if (part_top == -INFINITE) continue;
        float keep = exp2f(part_top - top);
        sum += parts[i * step + 1] * keep;
        mixed += parts[i * step + 2 + d] * keep;
    }
    return mixed;
}

template <int N, int EACH> __device__ inline void attend(
        const Cached& c, REAL* out, float* scratch, unsigned* counters, unsigned char* memory, int splits, int per_split) {
    int group = c.heads / c.kv_heads, all = group * c.tokens, sets = (all + N - 1) / N;
    int split = blockIdx.x, kv = blockIdx.y / sets, set = blockIdx.y % sets, batch = blockIdx.z;
    int first_query = set * N, count = min(N, all - first_query);
    float* queries = (float*)memory;
    int lanes = 1, places[PER_LANE];
    while (lanes < 32 && lanes * EACH < c.width) lanes *= 2;
    float* fresh = queries + N * PER_LANE * lanes;
    float* parts = fresh + 2 * c.tokens * c.width;
    Row row(c, batch);
    stage_new<N, EACH>(c, queries, fresh, batch, kv, first_query, count, lanes);
    if (split == 0 && set == 0) append(c, row, fresh, batch, kv);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int place = (i / EACH * lanes + (int)(threadIdx.x & (lanes - 1))) * EACH + i % EACH;
        places[i] = place < c.width ? place : -1;
    }
    State states[N];
#pragma unroll
    for (int q = 0; q < N; q++) {
        states[q].top = -INFINITE;
        states[q].sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) states[q].mixed[i] = 0.0f;
    }
    int begin = split * per_split, end = min(min(begin + per_split, c.stop), row.limit);
    walk_keys<N, EACH>(states, c, row, batch, kv, first_query, count, queries, fresh, places, lanes, begin, end);
    gather_warps<N>(states, parts, places, lanes, c.width);
    // The parts of the splits, if there are several, through memory to the last block.
    long long part = c.width + 2, place = ((long long)batch * c.kv_heads + kv) * sets + set;
    float* mine = scratch + (place * splits + split) * N * part;
    const float* from = parts;
    int pieces = WARPS;
    long long step = N * part;
    if (splits > 1) {
        __shared__ unsigned arrived;
        for (int i = threadIdx.x; i < count * c.width; i += blockDim.x) {
            int q = i / c.width, d = i - q * c.width;
            float top, sum, mixed = combine(parts + q * part, WARPS, step, d, top, sum);
            mine[q * part + 2 + d] = mixed;
            if (d == 0) { mine[q * part] = top; mine[q * part + 1] = sum; }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) arrived = atomicAdd(counters + place, 1u);
        __syncthreads();
        if (arrived != (unsigned)splits - 1) return;
        __threadfence();
        if (threadIdx.x == 0) atomicExch(counters + place, 0u);  // for the next launch
        from = scratch + place * splits * N * part;
        pieces = splits;
    }
    for (int i = threadIdx.x; i < count * c.width; i += blockDim.x) {
        int q = i / c.width, d = i - q * c.width, of = first_query + q, token = of % c.tokens, head = kv * group + of / c.tokens;
        float top, sum, mixed = combine(from + q * part, pieces, step, d, top, sum);
        float y = sum == 0.0f ? 0.0f : mixed / sum;
        out[(((long long)batch * c.tokens + token) * c.heads + head) * c.width + d] = narrow<REAL>(y);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, QUERIES == 1 ? 5 : QUERIES == 4 ? 3 : 2) attend_cached(
        const REAL* __restrict__ packed, CACHE* keys, CACHE* values, const int* __restrict__ table,
        const long long* __restrict__ starts, const long long* __restrict__ lengths,
        const void* __restrict__ cos, const void* __restrict__ sin, const long long* __restrict__ positions,
        REAL* __restrict__ out, float* scratch, unsigned* counters,
        long long per_batch, int half_width, int kind,
        long long key_batch, long long key_row, long long key_head, long long value_batch, long long value_row, long long value_head,
        int tokens, int heads, int kv_heads, int width, int stop, int capacity, int start, int page, int pages,
        long long window, float scale, bool causal, int splits, int per_split) {
    extern __shared__ unsigned char memory[];
    Cached c = {packed, keys, values, table, starts, lengths, {cos, sin, positions, per_batch, half_width, kind, 1.0f},
                {key_batch, key_row, key_head}, {value_batch, value_row, value_head},
                (int)gridDim.z, tokens, heads, kv_heads, width, stop, capacity, start, page, pages, window, scale, causal};
    const int each = 16 / (int)sizeof(CACHE);
    long long odd = key_batch | key_row | key_head | value_batch | value_row | value_head | width;
    bool wide = odd % each == 0 && aligned(keys, 16) && aligned(values, 16);
    if (wide) attend<QUERIES, 16 / (int)sizeof(CACHE)>(c, out, scratch, counters, memory, splits, per_split);
    else attend<QUERIES, 1>(c, out, scratch, counters, memory, splits, per_split);
}

// For a prompt: turn the queries into a buffer, turn and append the keys, append the values. Attention follows.
template <int EACH> __device__ inline void turn_and_append_all(const Cached& c, REAL* queries, long long tokens) {
    int most = c.width / EACH, all = c.heads + 2 * c.kv_heads;
    long long total = tokens * all * most, stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += stride) {
        int part = (int)(i % most), head = (int)(i / most % all);
        long long at = i / most / all;
        int batch = (int)(at / c.tokens), token = (int)(at % c.tokens);
        bool turns = c.turn.cos && head < c.heads + c.kv_heads;
        if (part >= parts_of<EACH>(c.width, c.turn, turns)) continue;
        long long position = turns ? position_of(c.turn, batch, token) : 0;
        const REAL* from = c.head(batch, token, head);
        if (head < c.heads) {
            turn_part<EACH>(queries + (at * c.heads + head) * c.width, from, part, c.turn, turns, position);
            continue;
        }
        int place = (c.starts ? (int)c.starts[batch] : c.start) + token, kv = (head - c.heads) % c.kv_heads;
        if (place < 0 || place >= c.capacity) continue;
        bool key = head < c.heads + c.kv_heads;
        CACHE* to = key ? c.keys + c.offset(c.key_steps, batch, place, kv) : c.values + c.offset(c.value_steps, batch, place, kv);
        turn_part<EACH>(to, from, part, c.turn, turns, position);
    }
}

extern "C" __global__ void __launch_bounds__(256) turn_and_append(
        const REAL* __restrict__ packed, CACHE* keys, CACHE* values, const long long* __restrict__ starts,
        const void* __restrict__ cos, const void* __restrict__ sin, const long long* __restrict__ positions, REAL* queries,
        long long per_batch, int half_width, int kind,
        long long key_batch, long long key_row, long long key_head, long long value_batch, long long value_row, long long value_head,
        int batches, int tokens, int heads, int kv_heads, int width, int capacity, int start) {
    Cached c = {packed, keys, values, nullptr, starts, nullptr, {cos, sin, positions, per_batch, half_width, kind, 1.0f},
                {key_batch, key_row, key_head}, {value_batch, value_row, value_head},
                batches, tokens, heads, kv_heads, width, capacity, capacity, start, 1, 1, 0, 1.0f, true};
    const int each = 16 / (int)sizeof(REAL);
    long long odd = key_batch | key_row | key_head | value_batch | value_row | value_head;
    bool wide = odd % each == 0 && in_parts<each>(width, c.turn, packed, queries) && aligned(keys, 16) && aligned(values, 16);
    if (wide) turn_and_append_all<16 / (int)sizeof(REAL)>(c, queries, (long long)batches * tokens);
    else turn_and_append_all<1>(c, queries, (long long)batches * tokens);
}
