// Cross entropy of the rows of logits (N, V): what ops/loss.py says, for vocabularies up to 256k and more.
//
// Forward reads each logit once. A thread keeps the largest logit so far and the sum of exponentials
// below it, rescaled whenever the largest grows (the online softmax of Milakov & Gimelshein 2018,
// arXiv:1805.02867), and the plain sum that label smoothing needs; the block joins them. The mean over
// the counted targets is made by a second kernel of one block in a fixed order: nothing waits for the
// host and nothing depends on the order in which blocks finish.
//
// Backward reads a logit, writes its gradient: (softmax - target) times the row's share of the mean.
//
// Both at once, for a head whose loss is the end of the model: the row stays in shared memory between
// the two passes, so a logit is read once and a gradient written once, against two reads and a write
// by forward and backward. 227 KiB on Hopper hold 116k bfloat16 logits, 99 KiB of the smaller cards
// 50k; a longer row is read again (from the second level cache, mostly: 132 rows of 256 KiB are 34 MB).
// The gradients may be written over the logits: a thread writes only what it alone has read.
//
// Bytes: forward N V s, backward 2 N V s, both 2 N V s (s the size of a logit); the rest is a few
// numbers a row. About 8 instructions and one exponential a logit, below what memory allows on all cards.
//
// A row of up to 1024 is one warp's, eight to a block; longer ones are a block's, of 256 threads, or 512
// from 16k on. Each thread has four 16-byte loads under way (rows.cuh).
#include "rows.cuh"
#include "reduce.cuh"

const float MOST = 3.4028234663852886e38f;

// Targets are int64 or int32.
__device__ inline long long target_at(const void* targets, int bytes, long long i) {
    return bytes == 8 ? ((const long long*)targets)[i] : ((const int*)targets)[i];
}

struct SoftmaxSums {
    float top = -MOST, powers = 0.0f, plain = 0.0f;

    template <int N> __device__ inline void take(int, const float (&x)[N]) {
        float before = top;
#pragma unroll
        for (int i = 0; i < N; i++) top = fmaxf(top, x[i]);
        powers *= __expf(before - top);
#pragma unroll
        for (int i = 0; i < N; i++) {
            powers += __expf(x[i] - top);
            plain += x[i];
        }
    }

    // log sum exp of the whole row, in every thread of its group. Infinity among the logits and a row
    // of nothing but -infinity have none.
    __device__ inline float log_sum(float* scratch) {
        float whole = block_max(top, scratch);
        float sum = block_sum(powers * __expf(top - whole), scratch);
        return sum == 0.0f ? NOT_A_NUMBER : whole + logf(sum);
    }
};

// The same, and every element put aside at `kept`.
struct KeepingSums : SoftmaxSums {
    REAL* kept;

    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
        SoftmaxSums::take(index, x);
        if (kept) store<N>(kept + index, x);
    }
};

struct GradientWriter {
    REAL* to;
    bool vectors;  // whether the gradient lies to boundaries of 16 bytes as the logits do
    int target;    // -1 for none
    float log_sum, factor, confidence, rest;

    template <int N> __device__ inline void take(int index, const float (&x)[N]) {
        float gradient[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            float p = __expf(x[i] - log_sum);
            if (index + i == target) p -= confidence;
            gradient[i] = (p - rest) * factor;
        }
        if (N == 1 || vectors) {
            store<N>(to + index, gradient);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) to[index + i] = narrow<REAL>(gradient[i]);
        }
    }
};

// Zeros: the gradient of a row whose target is not counted. The logits are not read.
__device__ inline void write_zeros(REAL* to, int classes, int thread, int threads) {
    const int each = 16 / (int)sizeof(REAL);
    const float zeros[each] = {};
    int head = before_boundary(to, classes), vectors = (classes - head) / each, done = head + vectors * each;
    if (thread < head) to[thread] = narrow<REAL>(0.0f);
    for (int v = thread; v < vectors; v += threads) store<each>(to + head + v * each, zeros);
    if (thread < classes - done) to[done + thread] = narrow<REAL>(0.0f);
}

__device__ inline bool same_phase(const void* a, const void* b) {
    return (((unsigned long long)a ^ (unsigned long long)b) & 15ull) == 0;
}

// The loss of one row. A target outside the classes gives NaN instead of some other memory.
__device__ inline float row_loss(
    const REAL* row, int classes, long long target, float smoothing, float log_sum, float plain
) {
    float chosen = target >= 0 && target < classes ? widen(row[target]) : NOT_A_NUMBER;
    float loss = log_sum - (1.0f - smoothing) * chosen;
    return smoothing == 0.0f ? loss : loss - smoothing * (plain / (float)classes);
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_forward(
    const REAL* logits, const void* targets, int target_bytes, long long ignored, float smoothing,
    void* safe, float* log_sums, float* losses, long long rows, int classes
) {
    __shared__ float scratch[32];
    long long n = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    bool live = n < rows;  // a whole warp where blockDim.y is above 1, else always
    const REAL* row = logits + (live ? n : 0) * classes;
    SoftmaxSums sums;
    if (live) visit_row(row, classes, (int)threadIdx.x, (int)blockDim.x, sums);
    float log_sum = sums.log_sum(scratch), plain = block_sum(sums.plain, scratch);
    if (!live || threadIdx.x) return;
    long long target = target_at(targets, target_bytes, n);
    bool counted = target != ignored;
    if (!counted) target = 0;
    if (target_bytes == 8) ((long long*)safe)[n] = target;
    else ((int*)safe)[n] = (int)target;
    log_sums[n] = log_sum;
    losses[n] = row_loss(row, classes, target, smoothing, log_sum, plain) * (counted ? 1.0f : 0.0f);
}

// How many targets are counted, in every thread of one block; at least 1.
__device__ inline float counted_targets(
    const void* targets, int bytes, long long ignored, long long rows, float* scratch
) {
    float count = 0.0f;  // whole numbers: exact up to 16 million
    for (long long n = threadIdx.x; n < rows; n += blockDim.x)
        count += target_at(targets, bytes, n) != ignored ? 1.0f : 0.0f;
    return fmaxf(block_sum(count, scratch), 1.0f);
}

// One block: the mean of the losses, and each row's share of it if `shares` are wanted.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_mean(
    const float* losses, const void* targets, int target_bytes, long long ignored, float* mean,
    float* shares, long long rows
) {
    __shared__ float scratch[32];
    float count = counted_targets(targets, target_bytes, ignored, rows, scratch), sum = 0.0f;
    for (long long n = threadIdx.x; n < rows; n += blockDim.x) {
        sum += losses[n];
        if (shares) shares[n] = (target_at(targets, target_bytes, n) != ignored ? 1.0f : 0.0f) / count;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *mean = sum / count;
}

// One block: how many targets the mean is over, before any loss is known.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_count(
    const void* targets, int target_bytes, long long ignored, float* count, long long rows
) {
    __shared__ float scratch[32];
    float counted = counted_targets(targets, target_bytes, ignored, rows, scratch);
    if (threadIdx.x == 0) *count = counted;
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_backward(
    const REAL* __restrict__ logits, const void* __restrict__ targets, int target_bytes,
    const float* __restrict__ shares, const float* __restrict__ log_sums, const float* __restrict__ dout,
    float smoothing, REAL* __restrict__ gradients, long long rows, int classes
) {
    long long n = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (n >= rows) return;
    int thread = threadIdx.x, threads = blockDim.x;
    const REAL* row = logits + n * classes;
    REAL* to = gradients + n * classes;
    float share = shares[n];
    if (share == 0.0f) {
        write_zeros(to, classes, thread, threads);
        return;
    }
    GradientWriter writer = {
        to, same_phase(row, to), (int)target_at(targets, target_bytes, n), log_sums[n], share * *dout,
        1.0f - smoothing, smoothing / (float)classes
    };
    visit_row(row, classes, thread, threads, writer);
}

// Losses and gradients in one pass. `kept_bytes` of shared memory a row, 0 if a row does not fit.
extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_both(
    const REAL* logits, const void* targets, int target_bytes, long long ignored, float smoothing,
    const float* count, float* losses, REAL* gradients, long long rows, int classes, int kept_bytes
) {
    extern __shared__ unsigned char dynamic[];
    __shared__ float scratch[32];
    long long n = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    int thread = threadIdx.x, threads = blockDim.x;
    long long target = n < rows ? target_at(targets, target_bytes, n) : ignored;
    bool live = target != ignored;  // the same in a whole warp, and in a whole block if one has the row
    const REAL* row = logits + (n < rows ? n : 0) * classes;
    REAL* to = gradients + (n < rows ? n : 0) * classes;
    KeepingSums sums;
    int past = (int)((unsigned long long)row & 15ull) / (int)sizeof(REAL);
    sums.kept = kept_bytes ? (REAL*)(dynamic + threadIdx.y * kept_bytes) + past : 0;
    if (live) visit_row(row, classes, thread, threads, sums);
    float log_sum = sums.log_sum(scratch), plain = block_sum(sums.plain, scratch);
    if (live && thread == 0) losses[n] = row_loss(row, classes, target, smoothing, log_sum, plain);
    __syncthreads();  // the target's logit is read before it may be written over
    if (live) {
        bool inside = target >= 0 && target < classes;
        GradientWriter writer = {
            to, same_phase(row, to), inside ? (int)target : -1, log_sum, 1.0f / *count,
            1.0f - smoothing, smoothing / (float)classes
        };
        if (kept_bytes) visit_row((const REAL*)sums.kept, classes, thread, threads, writer);
        else visit_row(row, classes, thread, threads, writer);
    } else if (n < rows) {
        write_zeros(to, classes, thread, threads);
        if (thread == 0) losses[n] = 0.0f;
    }
}
