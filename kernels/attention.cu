// Attention forward: FlashAttention-2 (Dao 2023; the running softmax is Milakov and Gimelshein 2018).
//
//   out[b, t, h] = sum over s of softmax(scale q[b, t, h] . k[b, s, h / group] + bias)[s] v[b, s, h / group]
//   lse[b, h, t] = log of the sum of exp(scores), +inf for a query that sees nothing
//
// A block owns OWN queries of one head and streams keys and values past them, KEYS at a time. Each
// query keeps its largest score m so far, the sum l of exp(score - m) and the sum of exp(score - m) v,
// and shrinks both sums by exp(m_old - m_new) when the maximum grows. The (T, S) scores exist a tile
// at a time, in registers.
//
// Layout: q and out (B, T, H, D), k and v (B, S, K, D), q, k and v with any strides above the last axis.
// Blocks lie head first, so that those of one key head run side by side and find its keys in the L2
// cache, and late queries, which look at most keys where attention is causal, first.
//
// Bytes: q and out once, k and v once from memory (and T / OWN times through L2). Operations: 4 T S D
// a head, half of that if causal: tiles that nobody of the block may look at are skipped, and only
// those across an edge are compared with it.
//
// While scores are computed the tile's values are under way, and while values are mixed the next
// tile's keys (cp.async; 7.5 has none and loads at once). Shared memory (see `forward_tiles` in
// cuda/attention.py): the queries, one tile of keys, one of values, and for FFMA a slab of weights a
// warp: at most 64 KB, which 7.5 has. Registers: COLUMNS / 2 a unit for the sums, KEYS / 2 for the
// scores. 128 threads: a warp needs 16 or 32 rows for itself, and four of them leave room for two to
// four blocks a multiprocessor, which cover each other's barriers. With FFMA a head of 192 or more is split
// over two or four warps, which compute the same scores and mix different columns.
#include "attention.cuh"

static const int UNITS = CORES && HEAD <= 64 ? 2 : 1;
static const int SPLIT = CORES || HEAD <= 128 ? 1 : HEAD <= 192 ? 2 : 4;
static const int OWN = 16 * UNITS * WARPS / SPLIT;
// Before 9.0 two units of 64 columns leave registers for the scores of 32 keys only.
#define FEW_KEYS (HEAD > 128 || (HEAD == 64 && __CUDA_ARCH__ < 900))
static const int KEYS = CORES ? (FEW_KEYS ? 32 : 64) : (HEAD <= 96 ? 32 : 16);
static const int COLUMNS = HEAD / SPLIT;

// The state of the running softmax for the rows of a thread.
struct Running {
    float top[UNITS][Place::SLOTS], total[UNITS][Place::SLOTS];
    float sum[UNITS][COLUMNS / 8][4];
};

__device__ inline void start(Running& r) {
    clear(r.sum);
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int slot = 0; slot < Place::SLOTS; slot++) {
            r.top[u][slot] = -INFINITE;
            r.total[u][slot] = 0.0f;
        }
}

// Scores to weights exp(score - top) under the new maximum, to which the sums so far are brought.
__device__ inline void weigh(Running& r, float (&c)[UNITS][KEYS / 8][4]) {
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        float shift[Place::SLOTS], shrink[Place::SLOTS];
#pragma unroll
        for (int slot = 0; slot < Place::SLOTS; slot++) {
            float top = r.top[u][slot];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (Place::slot(i) == slot) top = fmaxf(top, c[u][j][i]);
            top = row_max(top);
            shift[slot] = top == -INFINITE ? 0.0f : top;  // nothing seen yet: every weight is exp(-inf)
            shrink[slot] = power(r.top[u][slot], shift[slot]);
            r.top[u][slot] = top;
            r.total[u][slot] *= shrink[slot];
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                c[u][j][i] = power(c[u][j][i], shift[Place::slot(i)]);
                r.total[u][Place::slot(i)] += c[u][j][i];
            }
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) r.sum[u][j][i] *= shrink[Place::slot(i)];
    }
}

// The total of each row from its lanes, its log-sum-exp, and into `total` what to multiply its sum by.
__device__ inline void finish(Running& r, float* lse, int row0, int queries, bool writes) {
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int slot = 0; slot < Place::SLOTS; slot++) {
            float total = row_sum(r.total[u][slot]);
            int row = row0 + 16 * u + Place::row(slot);
            if (writes && lse && row < queries)
                lse[row] = total > 0.0f ? r.top[u][slot] + logf(total) : INFINITE;
            r.total[u][slot] = total == 0.0f ? 0.0f : 1.0f / total;  // a NaN stays one
        }
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_forward(
    const REAL* q, const REAL* k, const REAL* v, const bool* mask, const long long* lengths, const long long* starts,
    const unsigned long long* state, const void* bias, REAL* out, float* lse,
    long long q_batch, long long q_row, long long q_head, long long k_batch, long long k_row, long long k_head,
    long long v_batch, long long v_row, long long v_head,
    long long mask_batch, long long mask_head, long long mask_row, long long mask_key,
    int queries, int keys, int heads, int group, int width,
    long long window, float scale, float dropout, float kept, bool causal,
    long long bias_batch, long long bias_head, long long bias_row, long long bias_key, bool wide_bias) {
    extern __shared__ unsigned char shared[];
    const Problem p = {mask, lengths, starts, state, {mask_batch, mask_head, mask_row, mask_key},
                       queries, keys, heads, group, width, window, scale, dropout, kept, causal,
                       bias, {bias_batch, bias_head, bias_row, bias_key}, wide_bias};
    const int tiles = (queries + OWN - 1) / OWN, head = blockIdx.x % heads;
    const int query0 = (tiles - 1 - blockIdx.x / heads % tiles) * OWN, batch = blockIdx.x / heads / tiles;
    const int warp = threadIdx.x / 32, row0 = warp / SPLIT * 16 * UNITS, column0 = warp % SPLIT * COLUMNS;
    REAL* own = (REAL*)shared;
    REAL* key_tile = own + OWN * HEAD;
    REAL* value_tile = key_tile + KEYS * HEAD;
    REAL* slab = value_tile + KEYS * HEAD + warp * 16 * UNITS * (KEYS + 8);

    const bool vectors = in_vectors(q, {q_batch, q_row, q_head}, width) &&
                         in_vectors(k, {k_batch, k_row, k_head}, width) &&
                         in_vectors(v, {v_batch, v_row, v_head}, width) && aligned(out, 16);
    q += batch * q_batch + head * q_head;
    k += batch * k_batch + head / group * k_head;
    v += batch * v_batch + head / group * v_head;
    Sight sight(p, batch);
    sight.aim(p, batch, head);
    const int end = query0 + OWN < queries ? query0 + OWN : queries;
    const int first = sight.low(query0), stop = sight.high(end - 1);

    Running r;
    start(r);
    fetch<OWN>(own, q, q_row, query0, queries, width, vectors);
    if (first < stop) fetch<KEYS>(key_tile, k, k_row, first, stop, width, vectors);
    copy_commit();
    for (int key0 = first; key0 < stop; key0 += KEYS) {
        fetch<KEYS>(value_tile, v, v_row, key0, stop, width, vectors);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        float c[UNITS][KEYS / 8][4];
        dot<UNITS, KEYS>(c, own, row0, key_tile);
        __syncthreads();
        if (key0 + KEYS < stop) fetch<KEYS>(key_tile, k, k_row, key0 + KEYS, stop, width, vectors);
        copy_commit();
        score<false>(c, p, sight, sight.plain(query0, end, key0, key0 + KEYS), query0 + row0, key0);
        weigh(r, c);
        if (dropout > 0.0f) drop(c, dropped<false, UNITS, KEYS / 8>(p, sight, query0 + row0, key0), kept);
        copy_wait<1>();
        __syncthreads();
        mix<UNITS, KEYS, COLUMNS>(r.sum, c, value_tile, column0, slab);
        __syncthreads();
    }
    copy_wait<0>();
    __syncthreads();  // the rows of other threads' copies, where no key was seen, before they are written over
    bool writes = column0 == 0 && threadIdx.x % Place::LANES == 0;
    float* sums = lse ? lse + ((long long)batch * heads + head) * queries : nullptr;
    finish(r, sums, query0 + row0, queries, writes);
    put<UNITS, COLUMNS>(own, r.sum, row0, column0, r.total);
    __syncthreads();
    const long long out_row = (long long)heads * width;
    REAL* to = out + (long long)batch * queries * out_row + head * width;
    write<OWN>(to, own, out_row, query0, queries, width, vectors);
}
