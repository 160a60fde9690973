// How numbers are stored: the formats by the numbers that Python gives them (native/blocks.py), and the
// plain ones as classes for what is compiled once for each.
#pragma once

#include "simd.h"

namespace ISA {

enum Format : int64_t { FLOAT32, FLOAT16, BFLOAT16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K };

struct Float32 {
    typedef float Element;
    static inline Floats load(const float* from) { return ISA::load(from); }
    static inline float value(float element) { return element; }
    static inline void store(float* to, Floats values) { ISA::store(to, values); }
    static inline float narrowed(float value) { return value; }
};

struct Float16 {
    typedef uint16_t Element;
    static inline Floats load(const uint16_t* from) { return load_half(from); }
    static inline float value(uint16_t element) { return widened_half(element); }
    static inline void store(uint16_t* to, Floats values) { store_half(to, values); }
    static inline uint16_t narrowed(float value) { return narrowed_half(value); }
};

struct BFloat16 {
    typedef uint16_t Element;
    static inline Floats load(const uint16_t* from) { return load_bfloat(from); }
    static inline float value(uint16_t element) { return widened_bfloat(element); }
    static inline void store(uint16_t* to, Floats values) { store_bfloat(to, values); }
    static inline uint16_t narrowed(float value) { return narrowed_bfloat(value); }
};

static inline float element(const void* array, int64_t format, int64_t i) {
    if (format == FLOAT32) return static_cast<const float*>(array)[i];
    uint16_t half = static_cast<const uint16_t*>(array)[i];
    return format == FLOAT16 ? widened_half(half) : widened_bfloat(half);
}

}  // namespace ISA
