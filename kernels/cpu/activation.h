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

// x (1 + erf(x / sqrt 2)) / 2, value by value: models with this one spend their time elsewhere.
static inline Floats gelu(Floats x) {
    Floats made;
    for (int i = 0; i < LANES; i++) made[i] = 0.5f * x[i] * erfcf(-0.70710678f * x[i]);
    return made;
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

}  // namespace ISA
