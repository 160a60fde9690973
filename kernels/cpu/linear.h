// What all kinds of weights share: `out = activation(x weight.T + bias) + residual`.
//
// A few rows of x are bound by reading the weight. A kind of weight is a class with `product(first, count, to, pitch)`,
// which multiplies the rows of x with `count` rows of the weight from `first` on. This file divides the work: each
// thread has outputs of its own, so no two write to one place and nothing has to be added up between them. The weight
// is read once from memory, x and the result once or twice from a cache, and nothing else moves. Many rows are
// multiplied by the schemes of linear_many.h and linear_bytes.h.
#pragma once

#include "activation.h"
#include "storage.h"

namespace ISA {

struct LinearArguments {
    const float* x;         // (rows, width)
    const void* weight;     // (outs, width) in `format`
    const void* bias;       // (outs,) in `bias_format`, or null
    const float* residual;  // (rows, made), or null
    float* inner;           // (rows, outs) or null: what the activation was given
    float* out;             // (rows, made), where made is half of outs if the activation is gated
    void* scratch;          // room for the rows of x in 8 bits (linear_quantized.h), or null
    int64_t rows, width, outs, format, bias_format, activation;
    int64_t pitch;  // from one row of residual and out to the next: made, or more if they are wider
    int64_t exact;  // whether x must not be rounded to 8 bits for a quantized weight
};

// Outputs that are finished at a time.
constexpr int64_t BLOCK_OUTS = 64;

// As many rows of x and more meet a weight of floats as whole matrices (linear_many.h).
constexpr int64_t MANY_ROWS = 24;

// A few rows of x read a weight in four places side by side, far from each other: a processor foresees each by
// itself, and memory serves four at half as much again as one. What comes next is asked for a little ahead, in bytes:
// into the first-level cache, from where the processor has put it meanwhile.
constexpr int STREAMS = 4, PREFETCHED = 384;

template <class Element>
static inline void prefetch(const Element* from, int64_t bytes) {
    const char* place = reinterpret_cast<const char*>(from) + PREFETCHED;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(place + i);
}

// Some rows of x, and where in all of x they are.
struct Rows {
    int64_t first, count;
};

// Bias, activation and residual for `count` outputs of some rows from output `first` on. `from` (rows,
// pitch) has the products, and `up` the other halves of gated ones, null if there are none.
static inline void finish(const LinearArguments& a, Rows rows, int64_t first, int64_t count,
                          float* from, float* up, int64_t pitch) {
    const bool gated = up != nullptr;
    const int64_t made = gated ? a.outs / 2 : a.outs;
    float biases[2][BLOCK_OUTS];
    for (int64_t i = 0; a.bias && i < count; i++) {
        biases[0][i] = element(a.bias, a.bias_format, first + i);
        if (gated) biases[1][i] = element(a.bias, a.bias_format, made + first + i);
    }
    for (int64_t row = 0; row < rows.count; row++) {
        float* x = from + row * pitch;
        float* y = gated ? up + row * pitch : nullptr;
        const int64_t place = (rows.first + row) * a.pitch + first;
        for (int64_t i = 0; i < count; i += LANES) {
            const int64_t some = least(LANES, count - i);
            Floats inner = load_some(x + i, some), other{};
            if (gated) other = load_some(y + i, some);
            if (a.bias) {
                inner += load_some(biases[0] + i, some);
                if (gated) other += load_some(biases[1] + i, some);
            }
            if (a.inner) {
                store_some(x + i, inner, some);
                if (gated) store_some(y + i, other, some);
            }
            Floats out = activated(a.activation, inner);
            if (gated) out *= other;
            if (a.residual) out += load_some(a.residual + place + i, some);
            store_some(a.out + place + i, out, some);
        }
    }
}

// Floats that a thread's part of few rows needs before a gate brings both halves together.
static inline int64_t few_room(const LinearArguments& a) {
    return is_gated(a.activation) && !a.inner ? a.rows * (a.outs + 16) : 0;
}

// Few rows of x: most of the time goes into reading the weight, so each thread goes through all of its outputs at once
// (STREAMS). `room` is for few_room() floats.
template <class Weight>
static inline void multiply_few(const LinearArguments& a, Thread& thread, Weight& weight, float* room) {
    const bool gated = is_gated(a.activation);
    const bool plain = a.activation == NONE && !a.bias && !a.residual && !a.inner;
    const int64_t made = gated ? a.outs / 2 : a.outs;
    const Span own = share(thread, made, 8);
    const int64_t count = own.last - own.first;
    float* to = a.inner ? a.inner + own.first : gated ? room : a.out + own.first;
    float* up = !gated ? nullptr : a.inner ? to + made : room + count;
    const int64_t pitch = a.inner ? a.outs : gated ? 2 * count : a.pitch;
    weight.product(own.first, count, to, pitch);
    if (gated) weight.product(made + own.first, count, up, pitch);
    for (int64_t i = 0; !plain && i < count; i += BLOCK_OUTS)
        finish(a, {0, a.rows}, own.first + i, least(BLOCK_OUTS, count - i), to + i, gated ? up + i : nullptr, pitch);
}

}  // namespace ISA
