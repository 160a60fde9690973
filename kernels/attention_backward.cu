// Attention backward: FlashAttention-2 (Dao 2023), in two passes without atomics.
//
//   p  = exp(score - lse)                     the weights again, from what forward saved
//   dv = (f p)' dout                          f: 1 / (1 - dropout) or 0
//   dp = dout v',   ds = p (f dp - delta)     delta[t] = dout[t] . out[t], the sum of p f dp over the keys
//   dq = scale ds k,   dk = scale ds' q
//
// `attention_delta` computes delta. `attention_backward_queries` owns OWN queries of a head and streams
// the keys past them. `attention_backward_keys` owns OWN keys of a key head and streams the queries of
// its query heads, head after head, so that grouped heads are summed in order. Each sum is one thread's
// and always in the same order: the result does not depend on timing. The price is that scores and dp are
// computed twice: 7 products of the size T S D instead of 5, and one more in 16 bits, see below.
//
// In 16 bits `out` was rounded, so delta is off by some e[t], and with it ds by p e: an error that does
// not average out where keys have a mean other than 0. A row of ds sums to 0 with the right delta, and
// to -e with this one, since weights sum to 1. So the pass over the queries adds up ds, and p k beside
// ds k, an eighth product; at its end it puts dq right by e p k, and delta for the pass over the keys.
//
// Both keep two tiles of owned rows in shared memory and bring pairs of tiles of OTHER rows, the next
// pair under way while this one is used (from 8.0 on, where copies are asynchronous). Rows of the
// products are the owned ones, so weights and ds, rounded to 16 bits, go from one product into the next in
// registers. A head too wide for one warp's registers is split over SPLIT warps, which compute the same
// weights and sum different columns. Shared memory: `backward_tiles` in cuda/attention.py, at most
// 64 KB on 7.5 and 99 KB from 8.0 on. Bytes: q, dout, k, v twice from memory (T / OWN and S / OWN
// times through L2), dq, dk and dv once. 128 threads, as forward.
#include "attention.cuh"

#if __CUDA_ARCH__ >= 800
static const int STAGES = CORES ? 2 : 1;
#else
static const int STAGES = 1;
#endif
static const int SPLIT = CORES ? (HEAD <= 128 ? 1 : 2) : (HEAD <= 96 ? 1 : HEAD <= 128 ? 2 : 4);
static const int OTHER = CORES ? (HEAD <= 64 ? 64 : HEAD <= 192 ? 32 : 16)
                               : (HEAD <= 64 ? 32 : HEAD == 128 || HEAD == 192 ? 16 : 8);
static const int OWN = 16 * WARPS / SPLIT, COLUMNS = HEAD / SPLIT;

typedef float Scores[1][OTHER / 8][4];
typedef float Sums[1][COLUMNS / 8][4];
// In 16 bits the pass over the queries sums p k beside ds k.
static const int PARTS = sizeof(REAL) == 2 ? 2 : 1;

// delta (B, H, T) of dout and out (B, T, H, D): a few lanes to a row.
static const int GROUP = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;

extern "C" __global__ void __launch_bounds__(128) attention_delta(
    const REAL* dout, const REAL* out, float* delta, long long rows, int queries, int heads, int width) {
    long long row = ((long long)blockIdx.x * THREADS + threadIdx.x) / GROUP;
    const int lane = threadIdx.x % GROUP;
    const bool exists = row < rows, vectors = aligned(dout, 16) && aligned(out, 16) && width % EACH == 0;
    float sum = 0.0f;
    if (exists && vectors) {
        for (int d = lane * EACH; d < width; d += GROUP * EACH) {
            float a[EACH], b[EACH];
            load<EACH>(a, dout + row * width + d);
            load<EACH>(b, out + row * width + d);
#pragma unroll
            for (int i = 0; i < EACH; i++) sum += a[i] * b[i];
        }
    } else if (exists) {
        for (int d = lane; d < width; d += GROUP) sum += widen(dout[row * width + d]) * widen(out[row * width + d]);
    }
#pragma unroll
    for (int step = GROUP / 2; step > 0; step >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    long long token = row / heads, head = row % heads, batch = token / queries;
    if (exists && lane == 0) delta[(batch * heads + head) * queries + token % queries] = sum;
}

// Scores to weights. The lse and, later, delta of a query are its row's or, TRANSPOSED, its column's.
template <bool TRANSPOSED> __device__ inline float of_query(const float* columns, const float (&rows)[Place::SLOTS],
                                                            int j, int i) {
    return TRANSPOSED ? columns[Place::column(j, i)] : rows[Place::slot(i)];
}

template <bool TRANSPOSED>
__device__ inline void weigh(Scores& c, const float* column_lse, const float (&row_lse)[Place::SLOTS]) {
#pragma unroll
    for (int j = 0; j < OTHER / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) c[0][j][i] = power(c[0][j][i], of_query<TRANSPOSED>(column_lse, row_lse, j, i));
}

// dp to ds, given the weights.
template <bool TRANSPOSED>
__device__ inline void through_softmax(Scores& dp, const Scores& c, const float* column_delta,
                                       const float (&row_delta)[Place::SLOTS]) {
#pragma unroll
    for (int j = 0; j < OTHER / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            dp[0][j][i] = c[0][j][i] * (dp[0][j][i] - of_query<TRANSPOSED>(column_delta, row_delta, j, i));
}

// One owned tile from sums times `scale`, through shared memory to rows `stride` apart.
__device__ inline void write_sums(REAL* to, REAL* tile, const Sums& sum, float scale, int row0, int column0,
                                  long long stride, int first, int stop, int width, bool vectors) {
    float factor[1][Place::SLOTS];
#pragma unroll
    for (int slot = 0; slot < Place::SLOTS; slot++) factor[0][slot] = scale;
    put<1, COLUMNS>(tile, sum, row0, column0, factor);
    __syncthreads();
    write<OWN>(to, tile, stride, first, stop, width, vectors);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys(
    const REAL* q, const REAL* k, const REAL* v, const bool* mask, const long long* lengths, const long long* starts,
    const unsigned long long* state, const REAL* dout, const float* lse, const float* delta, REAL* dk, REAL* dv,
    long long q_batch, long long q_row, long long q_head, long long k_batch, long long k_row, long long k_head,
    long long v_batch, long long v_row, long long v_head,
    long long mask_batch, long long mask_head, long long mask_row, long long mask_key,
    int queries, int keys, int heads, int group, int width,
    long long window, float scale, float dropout, float kept, bool causal) {
    extern __shared__ unsigned char shared[];
    const Problem p = {mask, lengths, starts, state, {mask_batch, mask_head, mask_row, mask_key},
                       queries, keys, heads, group, width, window, scale, dropout, kept, causal,
                       nullptr, {0, 0, 0, 0}, false};
    const int tiles = (keys + OWN - 1) / OWN, kv_heads = heads / group, kv_head = blockIdx.x % kv_heads;
    const int key0 = blockIdx.x / kv_heads % tiles * OWN, batch = blockIdx.x / kv_heads / tiles;
    const int warp = threadIdx.x / 32, row0 = warp / SPLIT * 16, column0 = warp % SPLIT * COLUMNS;
    REAL* own_k = (REAL*)shared;
    REAL* own_v = own_k + OWN * HEAD;
    REAL* streamed = own_v + OWN * HEAD;
    float* notes = (float*)(streamed + STAGES * 2 * OTHER * HEAD);  // lse and delta of the streamed queries
    REAL* slab = (REAL*)(notes + STAGES * 2 * OTHER) + warp * 16 * (OTHER + 8);

    const bool vectors = in_vectors(q, {q_batch, q_row, q_head}, width) && aligned(dout, 16) && aligned(dk, 16) &&
                         in_vectors(k, {k_batch, k_row, k_head}, width) && aligned(dv, 16) &&
                         in_vectors(v, {v_batch, v_row, v_head}, width);
    const long long dout_row = (long long)heads * width, dk_row = (long long)kv_heads * width;
    Sight sight(p, batch);
    const int end = key0 + OWN < sight.stop ? key0 + OWN : sight.stop;
    const int query0 = sight.first_query(key0), query_stop = key0 < end ? sight.last_query(end) + 1 : 0;
    const int head_stop = query0 < query_stop ? (kv_head + 1) * group : 0;

    auto bring = [&](int head, int first, int stage) {
        REAL* pair = streamed + stage * 2 * OTHER * HEAD;
        const REAL* from = dout + (long long)batch * queries * dout_row + head * width;
        fetch<OTHER>(pair, q + batch * q_batch + head * q_head, q_row, first, queries, width, vectors);
        fetch<OTHER>(pair + OTHER * HEAD, from, dout_row, first, queries, width, vectors);
        if (threadIdx.x < OTHER) {
            const long long rows = ((long long)batch * heads + head) * queries;
            const int t = first + threadIdx.x;
            float* note = notes + stage * 2 * OTHER + threadIdx.x;
            note[0] = t < queries ? lse[rows + t] : INFINITE;
            note[OTHER] = t < queries ? delta[rows + t] : 0.0f;
        }
    };
    const float none[Place::SLOTS] = {};
    Sums dk_sum, dv_sum;
    clear(dk_sum);
    clear(dv_sum);
    fetch<OWN>(own_k, k + batch * k_batch + kv_head * k_head, k_row, key0, sight.stop, width, vectors);
    fetch<OWN>(own_v, v + batch * v_batch + kv_head * v_head, v_row, key0, sight.stop, width, vectors);
    int head = kv_head * group, first = query0, stage = 0;
    if (STAGES == 2 && head < head_stop) bring(head, first, 0);
    copy_commit();
    while (head < head_stop) {
        const bool over = first + OTHER >= query_stop;  // the next tile is the next head's
        const int next_head = head + over, next = over ? query0 : first + OTHER;
        if (STAGES == 1) bring(head, first, 0);
        else if (next_head < head_stop) bring(next_head, next, stage ^ 1);
        copy_commit();
        copy_wait<STAGES - 1>();
        __syncthreads();
        const REAL* q_tile = streamed + stage * 2 * OTHER * HEAD;
        const REAL* dout_tile = q_tile + OTHER * HEAD;
        const float* note = notes + stage * 2 * OTHER;
        sight.aim(p, batch, head);
        Scores c, other;
        dot<1, OTHER>(c, own_k, row0, q_tile);
        score<true>(c, p, sight, sight.plain(first, first + OTHER, key0, key0 + OWN), key0 + row0, first);
        weigh<true>(c, note, none);
        unsigned long long goes = 0;
        if (dropout > 0.0f) goes = dropped<true, 1, OTHER / 8>(p, sight, key0 + row0, first);
        memcpy(other, c, sizeof(Scores));
        if (dropout > 0.0f) drop(other, goes, kept);
        mix<1, OTHER, COLUMNS>(dv_sum, other, dout_tile, column0, slab);
        dot<1, OTHER>(other, own_v, row0, dout_tile);
        if (dropout > 0.0f) drop(other, goes, kept);
        through_softmax<true>(other, c, note + OTHER, none);
        mix<1, OTHER, COLUMNS>(dk_sum, other, q_tile, column0, slab);
        __syncthreads();
        head = next_head;
        first = next;
        stage = STAGES == 2 ? stage ^ 1 : 0;
    }
    copy_wait<0>();
    __syncthreads();
    const long long offset = (long long)batch * keys * dk_row + kv_head * width;
    write_sums(dk + offset, own_k, dk_sum, scale, row0, column0, dk_row, key0, keys, width, vectors);
    write_sums(dv + offset, own_v, dv_sum, 1.0f, row0, column0, dk_row, key0, keys, width, vectors);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries(
    const REAL* q, const REAL* k, const REAL* v, const bool* mask, const long long* lengths, const long long* starts,
    const unsigned long long* state, const REAL* dout, const float* lse, float* delta, REAL* dq,
    long long q_batch, long long q_row, long long q_head, long long k_batch, long long k_row, long long k_head,
    long long v_batch, long long v_row, long long v_head,
    long long mask_batch, long long mask_head, long long mask_row, long long mask_key,
    int queries, int keys, int heads, int group, int width,
    long long window, float scale, float dropout, float kept, bool causal) {
    extern __shared__ unsigned char shared[];
    const Problem p = {mask, lengths, starts, state, {mask_batch, mask_head, mask_row, mask_key},
                       queries, keys, heads, group, width, window, scale, dropout, kept, causal,
                       nullptr, {0, 0, 0, 0}, false};
    const int tiles = (queries + OWN - 1) / OWN, head = blockIdx.x % heads;
    const int query0 = (tiles - 1 - blockIdx.x / heads % tiles) * OWN, batch = blockIdx.x / heads / tiles;
    const int warp = threadIdx.x / 32, row0 = warp / SPLIT * 16, column0 = warp % SPLIT * COLUMNS;
    REAL* own_q = (REAL*)shared;
    REAL* own_dout = own_q + OWN * HEAD;
    REAL* streamed = own_dout + OWN * HEAD;
    REAL* slab = streamed + STAGES * 2 * OTHER * HEAD + warp * 16 * PARTS * (OTHER + 8);

    const bool vectors = in_vectors(q, {q_batch, q_row, q_head}, width) && aligned(dout, 16) && aligned(dq, 16) &&
                         in_vectors(k, {k_batch, k_row, k_head}, width) &&
                         in_vectors(v, {v_batch, v_row, v_head}, width);
    const long long dq_row = (long long)heads * width;
    const long long offset = (long long)batch * queries * dq_row + head * width;
    k += batch * k_batch + head / group * k_head;
    v += batch * v_batch + head / group * v_head;
    Sight sight(p, batch);
    sight.aim(p, batch, head);
    const int end = query0 + OWN < queries ? query0 + OWN : queries;
    const int key_first = sight.low(query0), stop = sight.high(end - 1);

    auto bring = [&](int first, int stage) {
        REAL* pair = streamed + stage * 2 * OTHER * HEAD;
        fetch<OTHER>(pair, k, k_row, first, stop, width, vectors);
        fetch<OTHER>(pair + OTHER * HEAD, v, v_row, first, stop, width, vectors);
    };
    float row_lse[Place::SLOTS], row_delta[Place::SLOTS], row_rest[Place::SLOTS] = {};
#pragma unroll
    for (int slot = 0; slot < Place::SLOTS; slot++) {
        const int t = query0 + row0 + Place::row(slot);
        const long long i = ((long long)batch * heads + head) * queries + t;
        row_lse[slot] = t < queries ? lse[i] : INFINITE;
        row_delta[slot] = t < queries ? delta[i] : 0.0f;
    }
    float sum[PARTS][COLUMNS / 8][4];
    clear(sum);
    fetch<OWN>(own_q, q + batch * q_batch + head * q_head, q_row, query0, queries, width, vectors);
    fetch<OWN>(own_dout, dout + offset, dq_row, query0, queries, width, vectors);
    if (STAGES == 2 && key_first < stop) bring(key_first, 0);
    copy_commit();
    int stage = 0;
    for (int key0 = key_first; key0 < stop; key0 += OTHER) {
        if (STAGES == 1) bring(key0, 0);
        else if (key0 + OTHER < stop) bring(key0 + OTHER, stage ^ 1);
        copy_commit();
        copy_wait<STAGES - 1>();
        __syncthreads();
        const REAL* k_tile = streamed + stage * 2 * OTHER * HEAD;
        Scores c, ds;
        float parts[PARTS][OTHER / 8][4];
        dot<1, OTHER>(c, own_q, row0, k_tile);
        score<false>(c, p, sight, sight.plain(query0, end, key0, key0 + OTHER), query0 + row0, key0);
        weigh<false>(c, nullptr, row_lse);
        dot<1, OTHER>(ds, own_dout, row0, k_tile + OTHER * HEAD);
        if (dropout > 0.0f) drop(ds, dropped<false, 1, OTHER / 8>(p, sight, query0 + row0, key0), kept);
        through_softmax<false>(ds, c, nullptr, row_delta);
#pragma unroll
        for (int j = 0; j < OTHER / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) row_rest[Place::slot(i)] += ds[0][j][i];
        memcpy(parts[0], ds, sizeof(Scores));
        memcpy(parts[PARTS - 1], PARTS == 2 ? c : ds, sizeof(Scores));
        mix<PARTS, OTHER, COLUMNS>(sum, parts, k_tile, column0, slab);
        __syncthreads();
        stage = STAGES == 2 ? stage ^ 1 : 0;
    }
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int slot = 0; slot < Place::SLOTS; slot++) {
        row_rest[slot] = row_sum(row_rest[slot]);
        const int t = query0 + row0 + Place::row(slot);
        if (column0 == 0 && threadIdx.x % Place::LANES == 0 && t < queries)
            delta[((long long)batch * heads + head) * queries + t] = row_delta[slot] + row_rest[slot];
    }
    Sums dq_sum;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            dq_sum[0][j][i] = sum[0][j][i];
            if (PARTS == 2) dq_sum[0][j][i] -= row_rest[Place::slot(i)] * sum[PARTS - 1][j][i];
        }
    write_sums(dq + offset, own_q, dq_sum, scale, row0, column0, dq_row, query0, queries, width, vectors);
}
