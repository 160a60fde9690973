// Layer normalization (Ba, Kiros and Hinton 2016) and RMS normalization (Zhang and Sennrich 2019) of
// rows of up to 16384 elements, alone or behind the addition of a residual; forward and backward.
//
// Layout. x is (rows, width), packed. The `group` threads of a row take turns at chunks of N neighbours:
// N is 16 bytes' worth, or 1 where width or addresses do not allow that. A group is a power of two up to
// a warp, whose sums need shuffles only, or several warps, which meet in shared memory. So a warp has
// many short rows at work and a block one long row, and every request covers whole 32-byte sectors.
//
// Forward. A thread holds up to 16 elements of its row in registers, so that x is read once. The mean comes
// first and the variance from what is left after taking it off, which cannot cancel as E[x^2] - E[x]^2 does;
// what rounding left in the mean is found with it and corrects both (Chan, Golub and LeVeque 1983, "Algorithms
// for computing the sample variance", the corrected two-pass algorithm). Blocks stay for the whole launch and keep
// weight and bias of their columns in registers. Bytes: read x (and residual), write out
// (and total), 8 a row for the statistics: the least possible, and the weights once a block. Some 12 operations an
// element are far fewer than memory speed allows. 64 to 110 registers: 512 threads on a multiprocessor, each with
// 32 bytes or more under way, 16 KiB; latency times bandwidth asks for 18 KiB on an H100 and less elsewhere.
// Rows beyond 8192 have 32 elements a thread, which leaves no room for the weights: they come from the cache.
//
// Backward. With dn = dout * weight and n the normed row,
//     dx = rstd (dn - mean(dn) - n mean(dn n)),   dweight = sum of dout n,   dbias = sum of dout
// over the rows; RMS has no mean(dn). A few blocks of 512 threads stay for the whole launch. A thread keeps
// the same columns for all its rows, 16 in 16 bits and 8 in float32, and adds up their dweight and dbias in
// registers; in the end a block adds up its groups and leaves one partial row, and a second kernel adds the partial
// rows. No order ever changes.
// Bytes: read x and dout, write dx, and for each partial row 4 to write and 4 to read a column of each gradient:
// the launcher makes no more than one for 64 rows, 16 / (64 * 6) = 4 % in 16 bits (but 16 of them for few rows,
// which are over before memory speed matters), nor more than one a multiprocessor. Registers: x and dout as they
// lie in memory, sums in float32, up to 128 with all else, so a multiprocessor has one block, with 32 KiB of
// loads under way.
//
// Rows beyond 8192 (4096 in float32) need 32 columns a thread, whose sums leave no room for the row: its elements
// are read again for dx from the cache, at most 128 KiB later. Where width or addresses do not allow vectors,
// elements are taken one by one, and read again from the cache too.
//
// Queries and keys are normed where they lie, packed beside the values (norm_heads.cuh): a head is a short row, its
// threads a power of two up to a warp, and values go through as they are. Bytes: x and out once, 4 a head; the two
// weights of a head's width come from the cache. At most 64 registers, no shared memory.
#include "columns.cuh"
#include "norm_backward.cuh"
#include "norm_forward.cuh"
#include "norm_heads.cuh"

extern "C" __global__ void __launch_bounds__(512, 1) layer_norm_forward(
    const REAL* x, const REAL* residual, const PARAM* weight, const PARAM* bias, REAL* total, REAL* out, float* mean,
    float* rstd, long long rows, int width, int group, float eps) {
    Forward arrays = {x, residual, weight, bias, total, out, mean, rstd};
    normalize_any<false, true>(arrays, rows, width, group, eps);
}

static const int RMS_BLOCKS = sizeof(REAL) == 2 ? 2 : 1;  // a processor holds: the registers are enough

extern "C" __global__ void __launch_bounds__(512, RMS_BLOCKS) rms_norm_forward(
    const REAL* x, const REAL* residual, const PARAM* weight, REAL* total, REAL* out, float* rstd, long long rows,
    int width, int group, float eps) {
    Forward arrays = {x, residual, weight, nullptr, total, out, nullptr, rstd};
    normalize_any<false, false>(arrays, rows, width, group, eps);
}

extern "C" __global__ void __launch_bounds__(512, 1) layer_norm_forward_wide(
    const REAL* x, const REAL* residual, const PARAM* weight, const PARAM* bias, REAL* total, REAL* out, float* mean,
    float* rstd, long long rows, int width, int group, float eps) {
    Forward arrays = {x, residual, weight, bias, total, out, mean, rstd};
    normalize_any<true, true>(arrays, rows, width, group, eps);
}

extern "C" __global__ void __launch_bounds__(512, 1) rms_norm_forward_wide(
    const REAL* x, const REAL* residual, const PARAM* weight, REAL* total, REAL* out, float* rstd, long long rows,
    int width, int group, float eps) {
    Forward arrays = {x, residual, weight, nullptr, total, out, nullptr, rstd};
    normalize_any<true, false>(arrays, rows, width, group, eps);
}

extern "C" __global__ void __launch_bounds__(512, 1) layer_norm_backward(
    const REAL* x, const PARAM* weight, const float* mean, const float* rstd, const REAL* dout, const REAL* dtotal,
    REAL* dx, float* dweight, float* dbias, long long rows, int width, int group) {
    Backward arrays = {x, weight, mean, rstd, dout, dtotal, dx, dweight, dbias};
    differentiate_any<true>(arrays, rows, width, group);
}

extern "C" __global__ void __launch_bounds__(512, 1) rms_norm_backward(
    const REAL* x, const PARAM* weight, const float* rstd, const REAL* dout, const REAL* dtotal, REAL* dx,
    float* dweight, long long rows, int width, int group) {
    Backward arrays = {x, weight, nullptr, rstd, dout, dtotal, dx, dweight, nullptr};
    differentiate_any<false>(arrays, rows, width, group);
}

extern "C" __global__ void __launch_bounds__(512, 1) layer_norm_backward_wide(
    const REAL* x, const PARAM* weight, const float* mean, const float* rstd, const REAL* dout, const REAL* dtotal,
    REAL* dx, float* dweight, float* dbias, long long rows, int width) {
    Backward arrays = {x, weight, mean, rstd, dout, dtotal, dx, dweight, dbias};
    differentiate_wide<true>(arrays, rows, width);
}

extern "C" __global__ void __launch_bounds__(512, 1) rms_norm_backward_wide(
    const REAL* x, const PARAM* weight, const float* rstd, const REAL* dout, const REAL* dtotal, REAL* dx,
    float* dweight, long long rows, int width) {
    Backward arrays = {x, weight, nullptr, rstd, dout, dtotal, dx, dweight, nullptr};
    differentiate_wide<false>(arrays, rows, width);
}

extern "C" __global__ void __launch_bounds__(128, 8) norm_heads_forward(
    const REAL* x, const PARAM* q_weight, const PARAM* k_weight, REAL* out, float* rstd, long long rows, int heads,
    int kv_heads, int width, int lanes, float eps) {
    const PackedHeads arrays = {x, q_weight, k_weight, out, rstd, heads, kv_heads, width, eps};
    const bool whole = width % NEIGHBOURS == 0 && aligned(x, 16) && aligned(q_weight, 16) && aligned(k_weight, 16) &&
                       aligned(out, 16);
    if (whole) norm_heads<NEIGHBOURS>(arrays, rows, lanes);
    else norm_heads<1>(arrays, rows, lanes);
}

// blockIdx.y: 0 for dweight, 1 for dbias, whose `count` partial rows lie behind those of dweight.
extern "C" __global__ void __launch_bounds__(256) sum_norm_gradients(
    const float* partial, PARAM* dweight, PARAM* dbias, int count, int width) {
    const float* from = partial + (long long)blockIdx.y * count * width;
    sum_partial_rows(from, count, width, blockIdx.y == 0 ? dweight : dbias);
}
