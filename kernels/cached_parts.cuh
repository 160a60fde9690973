// Cached attention: from the sums of lanes to the result, over the lanes of a warp, the warps of a block and the
// splits of a row, each time in a fixed order; see cached_attention.cu.
#pragma once
#include "cached_tile.cuh"

// The queries of a block: numbers first .. first + count - 1 of the T * group that share a key head, by tokens.
struct Block {
    int batch, kv, first, count, group;

    __device__ int token(int r) const { return (first + r) / group; }
    __device__ int head(int r) const { return kv * group + (first + r) % group; }
    __device__ REAL* result(REAL* out, const NewTokens& fresh, int r) const {
        return out + (((long long)batch * fresh.tokens + token(r)) * fresh.heads + head(r)) * fresh.width;
    }
};

// The sums of a warp's groups of lanes, then of each warp, into shared memory.
__device__ inline void gather_warps(Running& run, float* sums, float* tops, float* totals, const Spread& spread) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int r = 0; r < QUERIES; r++) {
        const float total = warp_sum(run.total[r]);
        for (int step = spread.lanes; step < 32; step <<= 1)
#pragma unroll
            for (int i = 0; i < HELD; i++) run.sum[r][i] += __shfl_xor_sync(FULL_WARP, run.sum[r][i], step);
        const int row = warp * QUERIES + r;
        if (lane < spread.lanes)
#pragma unroll
            for (int q = 0; q < 2; q++) {
                const float quad[4] = {run.sum[r][4 * q], run.sum[r][4 * q + 1], run.sum[r][4 * q + 2], run.sum[r][4 * q + 3]};
                store<4>(sums + row * spread.room + (q * spread.lanes + lane) * 4, quad);
            }
        if (lane == 0) {
            tops[row] = run.top[r];
            totals[row] = total;
        }
    }
    __syncthreads();
}

// By what a part with this maximum is multiplied under the maximum of all.
__device__ inline float factor(float top, float highest) { return top == -INFINITE ? 0.0f : exp2f(top - highest); }

// Four columns of query r over the warps.
__device__ inline void combine_warps(float (&x)[4], float& top, float& total, const float* sums, const float* tops,
                                     const float* totals, int r, int slot, int room) {
    top = -INFINITE;
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w * QUERIES + r]);
    total = x[0] = x[1] = x[2] = x[3] = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float keep = factor(tops[w * QUERIES + r], top);
        float part[4];
        load<4>(part, sums + (w * QUERIES + r) * room + slot);
        total += totals[w * QUERIES + r] * keep;
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = fmaf(part[i], keep, x[i]);
    }
}

// Four columns of a head of the result; a query that saw nothing is zeros.
__device__ inline void put(REAL* head, const float (&x)[4], float scale, int column, int width) {
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = x[i] * scale;
    if (width % 4 == 0 && aligned(head, 4 * (int)sizeof(REAL))) return store<4>(head + column, y);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (column + i < width) head[column + i] = narrow<REAL>(y[i]);
}

__device__ inline float inverse(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }

// What the splits of a block left: of each split and query `step` floats, first the columns, at `step` - 4 the
// maximum and the sum. Read past the first-level cache, which does not see other processors' writes.
struct Parts {
    float* first;
    int step;

    __device__ float* of(int split, int r) const { return first + ((long long)split * QUERIES + r) * step; }
    __device__ float top(int split, int r) const { return __ldcg(of(split, r) + step - 4); }
    __device__ float total(int split, int r) const { return __ldcg(of(split, r) + step - 3); }
};

// By what each split's sum of query r is multiplied, into weights[split][r]; a warp takes a query.
__device__ inline void weigh_splits(float* weights, const Parts& parts, int splits, int count) {
    const int lane = threadIdx.x & 31;
    for (int r = threadIdx.x >> 5; r < count; r += WARPS) {
        float top = -INFINITE, total = 0.0f;
        for (int split = lane; split < splits; split += 32) top = fmaxf(top, parts.top(split, r));
#pragma unroll
        for (int step = 16; step > 0; step >>= 1) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, step));
        for (int split = lane; split < splits; split += 32) {
            const float keep = factor(parts.top(split, r), top);
            weights[split * QUERIES + r] = keep;
            total += keep * parts.total(split, r);
        }
        const float scale = inverse(warp_sum(total));
        for (int split = lane; split < splits; split += 32) weights[split * QUERIES + r] *= scale;
    }
    __syncthreads();
}

// The last block of a set of queries puts the splits together.
__device__ inline void combine_splits(REAL* out, float* weights, const Parts& parts, int splits, const Block& block, const NewTokens& fresh) {
    weigh_splits(weights, parts, splits, block.count);
    const int quads = (fresh.width + 3) / 4;
    for (int i = threadIdx.x; i < block.count * quads; i += blockDim.x) {
        const int r = i / quads, column = (i - r * quads) * 4;
        float x[4] = {};
#pragma unroll 8
        for (int split = 0; split < splits; split++) {
            const float4 part = __ldcg((const float4*)(parts.of(split, r) + column));
            const float weight = weights[split * QUERIES + r];
            x[0] = fmaf(part.x, weight, x[0]);
            x[1] = fmaf(part.y, weight, x[1]);
            x[2] = fmaf(part.z, weight, x[2]);
            x[3] = fmaf(part.w, weight, x[3]);
        }
        put(block.result(out, fresh, r), x, 1.0f, column, fresh.width);
    }
}

// The block's own result: to its place if there is one split, else among the parts.
__device__ inline void leave(REAL* out, const Parts& parts, int split, int splits, const float* sums, const float* tops,
                             const float* totals, const Block& block, const NewTokens& fresh, const Spread& spread) {
    const int quads = spread.room / 4;
    for (int i = threadIdx.x; i < block.count * quads; i += blockDim.x) {
        const int r = i / quads, quad = i - r * quads, column = spread.column_of(quad);
        if (column >= fresh.width) continue;
        float x[4], top, total;
        combine_warps(x, top, total, sums, tops, totals, r, 4 * quad, spread.room);
        if (splits == 1) {
            put(block.result(out, fresh, r), x, inverse(total), column, fresh.width);
            continue;
        }
        float* to = parts.of(split, r);
        store<4>(to + column, x);
        if (column == 0) {
            to[parts.step - 4] = top;
            to[parts.step - 3] = total;
        }
    }
}
