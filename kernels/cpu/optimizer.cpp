// adamw and sgd: a step of many tensors at once; gradient_norm: the squares of many gradients.
//
// A step of AdamW reads weight, gradient and two moments and writes all but the gradient: 28 bytes a weight, which is
// what it costs; SGD with momentum 20. The values of all tensors are shared among the threads as if they were one.
#include "storage.h"

namespace ISA {

struct Tensor {
    void* param;
    const void* grad;
    float *first, *second;  // the moments of AdamW; the velocity of SGD, or null, and null
    float* master;          // the weights that `param` is rounded from, if it has 16 bits
    int64_t size, param_format, grad_format;
};

// Values of a piece of a tensor whose gradient is widened first or whose weights are narrowed afterwards.
constexpr int64_t PIECE = 1024;

// `count` values of an array from `at` on, as they are or widened into `room`.
static inline const float* floats_of(const void* array, int64_t format, int64_t at, int64_t count, float* room) {
    if (format == FLOAT32) return static_cast<const float*>(array) + at;
    for (int64_t i = 0; i < count; i++) room[i] = element(array, format, at + i);
    return room;
}

// Calls `step(tensor, at, weights, gradient, count)` for pieces of tensor from `at` on.
template <class Step>
static inline void step_pieces(const Tensor& t, int64_t first, int64_t last, Step step) {
    float* weights = t.master ? t.master : static_cast<float*>(t.param);
    float room[PIECE];
    for (int64_t at = first; at < last; at += PIECE) {
        const int64_t count = least(PIECE, last - at);
        step(t, at, weights + at, floats_of(t.grad, t.grad_format, at, count, room), count);
        if (!t.master) continue;
        uint16_t* narrow = static_cast<uint16_t*>(t.param) + at;
        for (int64_t i = 0; i < count; i++)
            narrow[i] = t.param_format == FLOAT16 ? narrowed_half(weights[at + i])
                                                  : narrowed_bfloat(weights[at + i]);
    }
}

// The same for this thread's part of `size` values in `count` tensors.
template <class Step>
static inline void step_tensors(const Tensor* tensors, int64_t count, int64_t size, Thread& thread, Step step) {
    const Span own = share(thread, size, 64);
    int64_t before = 0;
    for (int64_t i = 0; i < count; i++) {
        const Tensor& t = tensors[i];
        const int64_t first = own.first > before ? own.first - before : 0;
        const int64_t last = least(t.size, own.last - before);
        if (first < last) step_pieces(t, first, last, step);
        before += t.size;
    }
}

struct AdamWArguments {
    const Tensor* tensors;
    int64_t count, size;  // of the tensors, and of the values in all of them
    double beta1, beta2;
    double to_first, to_second;  // what the gradient is multiplied by for each moment (squared after)
    double grown, eps, shrunk;   // change = first / (sqrt(second) grown + eps) shrunk + decay weight
    double decay;
};

static inline void adamw_step(const AdamWArguments& a, float* __restrict w, const float* __restrict grad,
                              float* __restrict m, float* __restrict v, int64_t count) {
    const float beta1 = float(a.beta1), beta2 = float(a.beta2), eps = float(a.eps);
    const float to_first = float(a.to_first), to_second = float(a.to_second);
    const float grown = float(a.grown), shrunk = float(a.shrunk), decay = float(a.decay);
    for (int64_t i = 0; i < count; i++) {
        const float root = grad[i] * to_second;
        m[i] = m[i] * beta1 + grad[i] * to_first;
        v[i] = v[i] * beta2 + root * root;
        w[i] -= m[i] / (sqrtf(v[i]) * grown + eps) * shrunk + w[i] * decay;
    }
}

static void adamw(const AdamWArguments& a, Thread& thread) {
    step_tensors(a.tensors, a.count, a.size, thread,
                 [&](const Tensor& t, int64_t at, float* w, const float* grad, int64_t count) {
                     adamw_step(a, w, grad, t.first + at, t.second + at, count);
                 });
}

struct SgdArguments {
    const Tensor* tensors;
    int64_t count, size;
    int64_t nesterov;
    double rate, scale, momentum, decay;
};

static inline void sgd_step(const SgdArguments& a, float* __restrict w, const float* __restrict grad,
                            float* __restrict velocity, int64_t count) {
    const float rate = float(a.rate), scale = float(a.scale), decay = float(a.decay);
    const float momentum = float(a.momentum);
    const float old = a.nesterov ? 1.0f : 0.0f, fresh = a.nesterov ? momentum : 1.0f;
    if (!velocity) {
        for (int64_t i = 0; i < count; i++) w[i] -= rate * (grad[i] * scale + decay * w[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const float given = grad[i] * scale + decay * w[i];
        velocity[i] = momentum * velocity[i] + given;
        w[i] -= rate * (old * given + fresh * velocity[i]);
    }
}

static void sgd(const SgdArguments& a, Thread& thread) {
    step_tensors(a.tensors, a.count, a.size, thread,
                 [&](const Tensor& t, int64_t at, float* w, const float* grad, int64_t count) {
                     sgd_step(a, w, grad, t.first ? t.first + at : nullptr, count);
                 });
}

struct Gradient {
    const void* values;
    int64_t size, format;
};

struct GradientNormArguments {
    const Gradient* gradients;
    double* sums;  // (parts,) the sum of squares of each PART of each gradient, in order
    int64_t count, parts;
};

// Values whose squares make one sum: the result is the same for any number of threads.
constexpr int64_t PART = 1 << 14;

static inline double squares(const Gradient& g, int64_t first, int64_t last) {
    double total = 0;
    float room[PIECE];
    for (; first < last; first += PIECE) {
        const int64_t count = least(PIECE, last - first);
        const float* x = floats_of(g.values, g.format, first, count, room);
        Floats sums[4] = {};
        int64_t i = 0;
        for (; i + 4 * LANES <= count; i += 4 * LANES)
            UNROLLED for (int s = 0; s < 4; s++) {
                const Floats each = load(x + i + s * LANES);
                sums[s] += each * each;
            }
        for (; i < count; i += LANES) {
            const Floats each = load_some(x + i, count - i);
            sums[0] += each * each;
        }
        total += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    return total;
}

static void gradient_norm(const GradientNormArguments& a, Thread& thread) {
    const Span own = share(thread, a.parts);
    int64_t part = 0;
    for (int64_t i = 0; i < a.count; i++) {
        const Gradient& g = a.gradients[i];
        for (int64_t first = 0; first < g.size; first += PART, part++)
            if (part >= own.first && part < own.last)
                a.sums[part] = squares(g, first, least(g.size, first + PART));
    }
}

}  // namespace ISA

OPERATION(adamw, AdamWArguments)
OPERATION(sgd, SgdArguments)
OPERATION(gradient_norm, GradientNormArguments)
