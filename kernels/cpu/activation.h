// The activations on vectors, by the numbers that Python gives them (native/library.py).
#pragma once

#include "simd.h"

namespace ISA {

enum Activation : int64_t { NONE, RELU, GELU, GELU_TANH, SILU, SWIGLU, GEGLU };

static inline bool is_gated(int64_t activation) {
    return activation == SWIGLU || activation == GEGLU;
}

static inline Floats relu(Floats x) { return x > 0.0f ? x : (x != x ? x : Floats{}); }

// x / (1 + e ** -x): far on the left e ** -x is infinite and the quotient 0, as it should.
static inline Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

// x (1 + tanh u) / 2 is x / (1 + e ** -2u).
static inline Floats gelu_tanh(Floats x) {
    const float scale = 0.7978845608f, cubic = 0.044715f;
    return x / (1.0f + exp(x * (x * x * (-2 * scale * cubic) - 2 * scale)));
}

// The share of the normal distribution below x, and `falling`, e ** (-x x / 2), which a slope needs too.
// Beyond a = |x| / sqrt 2 there is erfc(a) / 2 = t P(t) e ** (-a a), where t = 1 / (1 + 0.4 a): P is a
// polynomial fitted to it, right to 4e-7 of the value however small that is.
static inline Floats normal_share(Floats x, Floats& falling) {
    const Floats size = x < 0.0f ? -x : x;
    const Floats t = 1.0f / (1.0f + 0.282842712f * size);
    falling = exp(-0.5f * x * x);
    Floats p = splat(0.0250936441f);
    p = p * t - 0.0913076735f;
    p = p * t + 0.084321929f;
    p = p * t - 0.002627705f;
    p = p * t + 0.0706386705f;
    p = p * t + 0.084289086f;
    p = p * t + 0.103919292f;
    p = p * t + 0.1128348865f;
    p = p * t + 0.1128379305f;
    const Floats beyond = p * t * falling;
    return x > 0.0f ? 1.0f - beyond : beyond;
}

// x (1 + erf(x / sqrt 2)) / 2.
static inline Floats gelu(Floats x) {
    Floats falling;
    return x * normal_share(x, falling);
}

// The activation of `x`, or of the gate `x`, if it is a gated one.
static inline Floats activated(int64_t activation, Floats x) {
    switch (activation) {
        case RELU: return relu(x);
        case GELU: return gelu(x);
        case GELU_TANH: case GEGLU: return gelu_tanh(x);
        case SILU: case SWIGLU: return silu(x);
        default: return x;
    }
}

// gate (1 + bend (1 - gate)), where gate is 1 / (1 + e ** -x): near 1, what it lacks of 1 is not the difference, whose
// digits are lost.
static inline Floats gate_slope(Floats x, Floats bend) {
    const Floats power = exp(-x), gate = 1.0f / (1.0f + power);
    return gate * (1.0f + bend * (x > 0.0f ? power * gate : 1.0f - gate));
}

static inline Floats silu_slope(Floats x) { return gate_slope(x, x); }

// gate + x gate (1 - gate) 2u', where gate is 1 / (1 + e ** -2u).
static inline Floats gelu_tanh_slope(Floats x) {
    const float scale = 0.7978845608f, cubic = 0.044715f;
    const Floats square = x * x;
    const Floats twice = x * (square * (2 * scale * cubic) + 2 * scale);
    return gate_slope(twice, x * (square * (6 * scale * cubic) + 2 * scale));
}

static inline Floats gelu_slope(Floats x) {
    Floats falling;
    const Floats share = normal_share(x, falling);
    return share + x * falling * 0.3989422804f;
}

// The derivative of `activated` at x.
static inline Floats slope(int64_t activation, Floats x) {
    switch (activation) {
        case RELU: return x > 0.0f ? splat(1.0f) : Floats{};
        case GELU: return gelu_slope(x);
        case GELU_TANH: case GEGLU: return gelu_tanh_slope(x);
        case SILU: case SWIGLU: return silu_slope(x);
        default: return splat(1.0f);
    }
}

}  // namespace ISA
