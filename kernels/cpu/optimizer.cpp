// adamw: a step of many tensors at once; gradient_norm: the squares of many gradients.
//
// A step reads weight, gradient and two moments and writes all but the gradient: 28 bytes a weight, which is
// what it costs. The values of all tensors are shared among the threads as if they were one.
#include "storage.h"

namespace ISA {

struct AdamWTensor {
    void* param;
    const void* grad;
    float *first, *second;  // the moments
    float* master;          // the weights that `param` is rounded from, if it has 16 bits
    int64_t size, param_format, grad_format;
};

struct AdamWArguments {
    const AdamWTensor* tensors;
    int64_t count, size;  // of the tensors, and of the values in all of them
    double beta1, beta2;
    double to_first, to_second;  // what the gradient is multiplied by for each moment (squared after)
    double grown, eps, shrunk;   // change = first / (sqrt(second) grown + eps) shrunk + decay weight
    double decay;
};

static inline void step(const AdamWArguments& a, float* __restrict w, const float* __restrict grad,
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

// Values of a piece of a tensor whose gradient is widened first or whose weights are narrowed afterwards.
constexpr int64_t PIECE = 1024;

static inline void step(const AdamWArguments& a, const AdamWTensor& t, int64_t first, int64_t last) {
    float* w = t.master ? t.master : static_cast<float*>(t.param);
    float wide[PIECE];
    for (int64_t at = first; at < last; at += PIECE) {
        const int64_t count = least(PIECE, last - at);
        const float* grad = static_cast<const float*>(t.grad) + at;
        if (t.grad_format != FLOAT32) {
            for (int64_t i = 0; i < count; i++) wide[i] = element(t.grad, t.grad_format, at + i);
            grad = wide;
        }
        step(a, w + at, grad, t.first + at, t.second + at, count);
        if (!t.master) continue;
        uint16_t* narrow = static_cast<uint16_t*>(t.param) + at;
        for (int64_t i = 0; i < count; i++)
            narrow[i] = t.param_format == FLOAT16 ? narrowed_half(w[at + i])
                                                  : narrowed_bfloat(w[at + i]);
    }
}

static void adamw(const AdamWArguments& a, Thread& thread) {
    const Span own = share(thread, a.size, 64);
    int64_t before = 0;
    for (int64_t i = 0; i < a.count; i++) {
        const AdamWTensor& t = a.tensors[i];
        const int64_t first = own.first > before ? own.first - before : 0;
        const int64_t last = least(t.size, own.last - before);
        if (first < last) step(a, t, first, last);
        before += t.size;
    }
}

struct Gradient {
    const float* values;
    int64_t size;
};

struct GradientNormArguments {
    const Gradient* gradients;
    double* sums;  // (parts,) the sum of squares of each PART of each gradient, in order
    int64_t count, parts;
};

// Values whose squares make one sum: the result is the same for any number of threads.
constexpr int64_t PART = 1 << 14;

static inline double squares(const float* x, int64_t count) {
    double total = 0;
    for (int64_t first = 0; first < count; first += 1024) {
        const int64_t stop = least(count, first + 1024);
        Floats sums[4] = {};
        int64_t i = first;
        for (; i + 4 * LANES <= stop; i += 4 * LANES)
            UNROLLED for (int s = 0; s < 4; s++) {
                const Floats each = load(x + i + s * LANES);
                sums[s] += each * each;
            }
        for (; i < stop; i += LANES) {
            const Floats each = load_some(x + i, stop - i);
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
                a.sums[part] = squares(g.values + first, least(PART, g.size - first));
    }
}

}  // namespace ISA

OPERATION(adamw, AdamWArguments)
OPERATION(gradient_norm, GradientNormArguments)
