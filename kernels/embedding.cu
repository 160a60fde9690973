// Rows of a table by number, and the sum of gradients by number.
//
// Forward copies row ids[n] of the table (PARAM) to row n of the output (REAL), scaled, with a row of a
// second table, the positions, added on the way if there is one. A group of threads shares a row, 16
// bytes of the wider type each; a row is read and written once: n C (p + r) bytes, p and r the sizes
// of the two types.
//
// Backward gives row v of the gradient the sum of all dout rows n with ids[n] = v. Adding with float
// atomics would give other digits in every run. Here integer atomics, whose result has no order, sort
// the places n by id, and each row is summed by one warp or block in the order of the places:
//   embedding_count    how many places each row has, and which of them each place is (by arrival)
//   embedding_reserve  a stretch of the list for each row that has any (in any order)
//   embedding_list     the places of each row, in order of arrival
//   embedding_order    the same in ascending order: a place's rank is how many of its row's are smaller
//   embedding_sum      every row of the gradient written once, zeros included
// That is five small launches and no wait for the host, where a library's sort would synchronise. The
// ranks cost the sum of the squares of the counts: nothing for text (a token in 20 of 32 thousand:
// 2.6 million comparisons), 1e9 (parallel, of cached numbers) if all 32 thousand are the same.
//
// Bytes of backward: n C r read, V C p written, and about 40 n + 16 V for the order. A row of up to
// HEAVY places is summed by one warp; heavier ones by the whole block, each of its warps every eighth
// place, joined in the order of the warps: a frequent token is no bottleneck.
#include "memory.cuh"
#include "reduce.cuh"

const int WARPS = 8, HEAVY = 32;
// Elements of a thread's access: 16 bytes of the wider type.
const int EACH = 16 / (int)(sizeof(PARAM) > sizeof(REAL) ? sizeof(PARAM) : sizeof(REAL));

// Ids are int64 or int32.
__device__ inline long long id_at(const void* ids, int bytes, long long n) {
    return bytes == 8 ? ((const long long*)ids)[n] : ((const int*)ids)[n];
}

// N elements of one output row from column `c` on. An id out of range, which the caller has excluded,
// gives NaN instead of some other memory.
template <int N> __device__ inline void gather(
    REAL* to, const PARAM* row, const PARAM* position, float scale, long long c
) {
    float x[N], place[N];
    if (row) load<N>(x, row + c);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = row ? x[i] * scale : NOT_A_NUMBER;
    if (position) {
        load<N>(place, position + c);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += place[i];
    }
    store<N>(to + c, x);
}

// Output row n on the threads (x, y) with blockIdx.x * blockDim.y + y = n. Position ids repeat after
// `positions` of them.
extern "C" __global__ void __launch_bounds__(256) embedding_forward(
    const void* ids, int id_bytes, const PARAM* table, long long rows, const void* position_ids,
    int position_bytes, long long positions, const PARAM* position_table, long long position_rows,
    float scale, REAL* out, long long count, long long width, bool vectors
) {
    long long n = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (n >= count) return;
    long long id = id_at(ids, id_bytes, n);
    const PARAM* row = id >= 0 && id < rows ? table + id * width : 0;
    const PARAM* position = 0;
    if (position_table) {
        long long place = id_at(position_ids, position_bytes, n % positions);
        if (place >= 0 && place < position_rows) position = position_table + place * width;
        else row = 0;
    }
    REAL* to = out + n * width;
    if (vectors) {
        for (long long c = threadIdx.x * EACH; c < width; c += blockDim.x * EACH)
            gather<EACH>(to, row, position, scale, c);
    } else {
        for (long long c = threadIdx.x; c < width; c += blockDim.x) gather<1>(to, row, position, scale, c);
    }
}

// --- backward: the order of the places ---

// counts[id] becomes the number of places of a row, arrivals[n] which of them n is. The row `padding`
// (-1 for none) counts as empty.
extern "C" __global__ void __launch_bounds__(256) embedding_count(
    const void* ids, int id_bytes, long long rows, long long padding, int* counts, int* arrivals, int count
) {
    int n = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (n >= count) return;
    long long id = id_at(ids, id_bytes, n);
    bool inside = id >= 0 && id < rows && id != padding;
    arrivals[n] = inside ? atomicAdd(&counts[id], 1) : -1;
}

// starts[v]: where the places of row v begin in the list. One atomic operation a warp.
extern "C" __global__ void __launch_bounds__(256) embedding_reserve(
    const int* counts, int* starts, int* reserved, long long rows
) {
    long long v = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    int lane = threadIdx.x & 31, count = v < rows ? counts[v] : 0, up_to = count;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        int below = __shfl_up_sync(FULL_WARP, up_to, step);
        if (lane >= step) up_to += below;
    }
    int base = 0;
    if (lane == 31 && up_to) base = atomicAdd(reserved, up_to);
    base = __shfl_sync(FULL_WARP, base, 31);
    if (v < rows) starts[v] = base + up_to - count;
}

extern "C" __global__ void __launch_bounds__(256) embedding_list(
    const void* ids, int id_bytes, const int* starts, const int* arrivals, int* listed, int count
) {
    int n = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (n < count && arrivals[n] >= 0) listed[starts[id_at(ids, id_bytes, n)] + arrivals[n]] = n;
}

extern "C" __global__ void __launch_bounds__(256) embedding_order(
    const void* ids, int id_bytes, const int* counts, const int* starts, const int* arrivals,
    const int* listed, int* ordered, int count
) {
    int n = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (n >= count || arrivals[n] < 0) return;
    long long id = id_at(ids, id_bytes, n);
    int start = starts[id], places = counts[id], rank = 0;
    for (int i = 0; i < places; i++) rank += listed[start + i] < n;
    ordered[start + rank] = n;
}

// --- backward: the sums ---

// Add to `sum` the N columns of every `step`-th place of a row.
template <int N> __device__ inline void add_places(
    float (&sum)[N], const REAL* douts, const int* places, int first, int count, int step, long long width
) {
#pragma unroll 4
    for (int i = first; i < count; i += step) {
        float x[N];
        load<N>(x, douts + places[i] * width);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += x[k];
    }
}

template <int N> __device__ inline void store_scaled(PARAM* to, float (&sum)[N], float scale) {
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] *= scale;
    store<N>(to, sum);
}

// The columns of this block (32 lanes of N) for the rows of this block (one a warp).
template <int N> __device__ inline void sum_rows(
    const REAL* douts, const int* counts, const int* starts, const int* ordered, float scale,
    PARAM* gradient, long long rows, long long width, float (*partial)[32 * EACH]
) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    long long first = (long long)blockIdx.x * WARPS, c = ((long long)blockIdx.y * 32 + lane) * N;
    bool live = c < width;
    // Lane i looks at row i: one request for all counts, which are the same in every warp.
    int looked_at = lane < WARPS && first + lane < rows ? counts[first + lane] : 0;
    unsigned heavy = __ballot_sync(FULL_WARP, looked_at > HEAVY);
    int count = __shfl_sync(FULL_WARP, looked_at, warp);
    long long row = first + warp;
    if (live && row < rows && count <= HEAVY) {
        float sum[N] = {};
        if (count) add_places<N>(sum, douts + c, ordered + starts[row], 0, count, 1, width);
        store_scaled<N>(gradient + row * width + c, sum, scale);
    }
    for (; heavy; heavy &= heavy - 1) {
        int w = __ffs((int)heavy) - 1;
        count = __shfl_sync(FULL_WARP, looked_at, w);
        float sum[N] = {};
        if (live) add_places<N>(sum, douts + c, ordered + starts[first + w], warp, count, WARPS, width);
#pragma unroll
        for (int k = 0; k < N; k++) partial[warp][k * 32 + lane] = sum[k];
        __syncthreads();
        if (warp == w && live) {
            for (int other = 0; other < WARPS; other++)
#pragma unroll
                for (int k = 0; k < N; k++) sum[k] = (other ? sum[k] : 0.0f) + partial[other][k * 32 + lane];
            store_scaled<N>(gradient + (first + w) * width + c, sum, scale);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_sum(
    const REAL* douts, const int* counts, const int* starts, const int* ordered, float scale,
    PARAM* gradient, long long rows, long long width, bool vectors
) {
    __shared__ float partial[WARPS][32 * EACH];
    if (vectors) sum_rows<EACH>(douts, counts, starts, ordered, scale, gradient, rows, width, partial);
    else sum_rows<1>(douts, counts, starts, ordered, scale, gradient, rows, width, partial);
}
