// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and the length of a gradient, over one tensor or
// over all tensors of a model in one launch.
//
// All tensors: a table in device memory has a row of numbers for each tensor, its addresses, its size and
// its first chunk; a second one names the tensor of each chunk of CHUNK elements. One block does a
// chunk. The host builds both once, since parameters and moments stay where they are.
//
// Bytes of a step, each read and written once: parameter, gradient, two moments and, for 16-bit
// parameters with float32 masters, the master (the parameter is then only written). Per element 28 for
// float32, 22 for 16 bit, 28 with masters; some 20 operations. Four elements a thread are 16 bytes of
// float32, so that a warp moves whole sectors of every array; 256 threads need few enough registers for
// 1024 a multiprocessor and more, 48 to 64 bytes each under way.
//
// The learning rate, the step and the gradient's scale are read from device memory: a captured step
// sees their new values. A scale of 0 (clipping says so of a gradient that is not finite) skips the step.
//
// The length: each block sums the squares of its chunk, and one block the sums, in an order that depends
// on nothing but the sizes. Bytes: the gradients, once.
#include "memory.cuh"
#include "reduce.cuh"

const int CHUNK = 8192, THREADS = 256;
const int EACH = 4;  // elements of a thread's access: 16 bytes of float32, 8 of the 16-bit types
// Columns of the table; the rest is padding.
const int AT_PARAM = 0, AT_GRAD = 1, AT_FIRST = 2, AT_SECOND = 3, AT_MASTER = 4, SIZE = 5, FIRST_CHUNK = 6, COLUMNS = 8;

// 1 - beta^step = 1 - exp(x), x = step log(beta). 1 - exp(x) itself loses its digits for a small x; with
// u = exp(x) as computed, (1 - u) x / log(u) does not (Kahan; Higham 2002, section 1.14.1).
__device__ inline float one_minus_exp(float x) {
    float u = expf(x);
    if (u == 1.0f) return -x;
    return u == 0.0f ? 1.0f : (1.0f - u) * (x / logf(u));
}

// What is the same for all elements of a step.
struct Adam {
    float beta1, beta2, rest1, rest2, eps, decay;  // rest = 1 - beta, rounded once
    float rate, scale, unbias1, unbias2;

    __device__ inline void update(float& weight, float gradient, float& first, float& second) const {
        gradient *= scale;
        first = beta1 * first + rest1 * gradient;
        second = beta2 * second + rest2 * (gradient * gradient);
        float change = first * unbias1 / (sqrtf(second * unbias2) + eps);
        weight -= rate * (change + decay * weight);
    }
};

struct Tensors {
    PARAM* param;
    const GRAD* grad;
    float* first;
    float* second;
    float* master;
    long long size;
};

// A pointer from the table. The compiler cannot know what memory a number points to unless it is told.
template <class T> __device__ inline T* global(unsigned long long address) {
#ifdef EMULATED
    return (T*)address;
#else
    return address ? (T*)__cvta_global_to_generic(address) : 0;
#endif
}

// N elements from `i` on.
template <int N> __device__ inline void step_at(const Tensors& t, long long i, const Adam& adam) {
    float weight[N], gradient[N], first[N], second[N];
    if (t.master) load<N>(weight, t.master + i);
    else load<N>(weight, t.param + i);
    load<N>(gradient, t.grad + i);
    load<N>(first, t.first + i);
    load<N>(second, t.second + i);
#pragma unroll
    for (int k = 0; k < N; k++) adam.update(weight[k], gradient[k], first[k], second[k]);
    if (t.master) store<N>(t.master + i, weight);
    store<N>(t.param + i, weight);
    store<N>(t.first + i, first);
    store<N>(t.second + i, second);
}

__device__ inline void step_chunk(const Tensors& t, long long start, const Adam& adam) {
    long long end = start + CHUNK < t.size ? start + CHUNK : t.size, done = start;
    bool whole = aligned(t.param, 16) && aligned(t.grad, 16) && aligned(t.first, 16) && aligned(t.second, 16) &&
                 aligned(t.master, 16);
    if (whole) {
        done += (end - start) / EACH * EACH;
        for (long long i = start + threadIdx.x * EACH; i < done; i += THREADS * EACH) step_at<EACH>(t, i, adam);
    }
    for (long long i = done + threadIdx.x; i < end; i += THREADS) step_at<1>(t, i, adam);
}

// beta = 0 has log(beta) = -infinity: exp(-infinity) is 0, and nothing is biased.
__device__ inline Adam adam_now(
    float beta1, float beta2, float rest1, float rest2, float log_beta1, float log_beta2, float eps, float decay,
    const float* rate, const long long* step, const float* scale
) {
    float times = (float)*step;
    return {beta1, beta2, rest1, rest2, eps, decay, *rate, *scale, 1.0f / one_minus_exp(times * log_beta1),
            1.0f / one_minus_exp(times * log_beta2)};
}

// One tensor, block b on its chunk b.
extern "C" __global__ void __launch_bounds__(256) adamw_step(
    PARAM* param, const GRAD* grad, float* first, float* second, float* master, long long size,
    const float* rate, const long long* step, const float* scale, float beta1, float beta2, float rest1,
    float rest2, float log_beta1, float log_beta2, float eps, float decay
) {
    if (*scale == 0.0f) return;
    Adam adam = adam_now(beta1, beta2, rest1, rest2, log_beta1, log_beta2, eps, decay, rate, step, scale);
    step_chunk({param, grad, first, second, master, size}, (long long)blockIdx.x * CHUNK, adam);
}

// All tensors of a table, block b on chunk b, which belongs to tensor owners[b].
extern "C" __global__ void __launch_bounds__(256) adamw_step_many(
    const unsigned long long* table, const int* owners, const float* rate, const long long* step,
    const float* scale, float beta1, float beta2, float rest1, float rest2, float log_beta1,
    float log_beta2, float eps, float decay
) {
    if (*scale == 0.0f) return;
    Adam adam = adam_now(beta1, beta2, rest1, rest2, log_beta1, log_beta2, eps, decay, rate, step, scale);
    const unsigned long long* row = table + (long long)owners[blockIdx.x] * COLUMNS;
    Tensors tensors = {global<PARAM>(row[AT_PARAM]), global<const GRAD>(row[AT_GRAD]), global<float>(row[AT_FIRST]),
                       global<float>(row[AT_SECOND]), global<float>(row[AT_MASTER]), (long long)row[SIZE]};
    step_chunk(tensors, ((long long)blockIdx.x - (long long)row[FIRST_CHUNK]) * CHUNK, adam);
}

// --- the length of the gradient ---

__device__ inline float chunk_squares(const GRAD* grad, long long size, long long start, float* scratch) {
    const int each = 16 / (int)sizeof(GRAD);
    long long end = start + CHUNK < size ? start + CHUNK : size, done = start;
    float sum = 0.0f;
    if (aligned(grad, 16)) {
        done += (end - start) / each * each;
#pragma unroll 4
        for (long long i = start + threadIdx.x * each; i < done; i += THREADS * each) {
            float x[each];
            load<each>(x, grad + i);
#pragma unroll
            for (int k = 0; k < each; k++) sum += x[k] * x[k];
        }
    }
    for (long long i = done + threadIdx.x; i < end; i += THREADS) {
        float x = widen(grad[i]);
        sum += x * x;
    }
    return block_sum(sum, scratch);
}

extern "C" __global__ void __launch_bounds__(256) gradient_squares_many(
    const unsigned long long* table, const int* owners, float* sums
) {
    __shared__ float scratch[32];
    const unsigned long long* row = table + (long long)owners[blockIdx.x] * COLUMNS;
    long long start = ((long long)blockIdx.x - (long long)row[FIRST_CHUNK]) * CHUNK;
    float sum = chunk_squares(global<const GRAD>(row[AT_GRAD]), (long long)row[SIZE], start, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: the root of the sum.
extern "C" __global__ void __launch_bounds__(1024) gradient_length(const float* sums, long long count, float* norm) {
    __shared__ float scratch[32];
    float sum = 0.0f;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    sum = sqrtf(block_sum(sum, scratch));
    if (threadIdx.x == 0) *norm = sum;
}

// One thread: the factor that makes a gradient of length `norm` no longer than `most`; 0 if it is not finite.
extern "C" __global__ void __launch_bounds__(32) gradient_clip(const float* norm, float most, float* factor) {
    if (threadIdx.x == 0) *factor = fabsf(*norm) < INFINITE ? fminf(1.0f, most / (*norm + 1e-6f)) : 0.0f;
}
