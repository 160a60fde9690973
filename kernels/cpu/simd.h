// Vectors, written once for every instruction set.
//
// GCC's and Clang's vector types have operators, so most code needs no intrinsics: a `Floats` is as
// many floats as a register of ISA holds (LANES), `a * b + c` becomes one fused instruction where there is
// one (-ffp-contract=fast). What the compiler does not find by itself (16-bit floats, byte products) is in
// the header of the instruction set at the end.
//
// No -ffast-math anywhere: it would switch the whole process to flush-to-zero when the library loads.
#pragma once

#include <math.h>
#include <string.h>

#include "operation.h"

#define ISA_PORTABLE 0
#define ISA_NEON 1
#define ISA_AVX2 2
#define ISA_AVX512 3

// In front of a loop of a few rounds whose arrays must become registers.
#define UNROLLED _Pragma("GCC unroll 8")
#define UNROLLED_16 _Pragma("GCC unroll 16")

namespace ISA {

#if ISA_LEVEL == ISA_AVX512
constexpr int LANES = 16;
#elif ISA_LEVEL == ISA_AVX2
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint64_t Longs __attribute__((vector_size(4 * LANES)));
// Always eight, one of each row of a block of quantized weights (see blocks.h).
typedef float Floats8 __attribute__((vector_size(32)));
typedef int32_t Ints8 __attribute__((vector_size(32)));
// Four bytes for each of the eight.
typedef uint8_t Bytes __attribute__((vector_size(32)));
// Four bytes for each lane.
typedef uint8_t LaneBytes __attribute__((vector_size(4 * LANES)));

// In the place of the largest weight of a format: its bytes have either sign.
constexpr int SIGNED = -1;

static inline Floats load(const float* from) {
    Floats made;
    memcpy(&made, from, sizeof made);
    return made;
}

static inline void store(float* to, Floats values) { memcpy(to, &values, sizeof values); }

// The first `count` of a vector, LANES or fewer, zeros behind them.
static inline Floats load_some(const float* from, int64_t count) {
    if (count >= LANES) return load(from);
    Floats made{};
    memcpy(&made, from, 4 * size_t(count));
    return made;
}

static inline void store_some(float* to, Floats values, int64_t count) {
    if (count >= LANES) store(to, values);
    else memcpy(to, &values, 4 * size_t(count));
}

static inline Floats splat(float value) { return value - Floats{}; }

typedef float Floats4 __attribute__((vector_size(16)));

// The lanes added up until four are left.
static inline Floats4 quarter(Floats values) {
#if ISA_LEVEL == ISA_AVX512
    Floats8 half = __builtin_shufflevector(values, values, 0, 1, 2, 3, 4, 5, 6, 7) +
                   __builtin_shufflevector(values, values, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    auto half = values;
#endif
    Floats4 low;
    memcpy(&low, &half, 16);
    if constexpr (sizeof half == 32) {
        Floats4 high;
        memcpy(&high, reinterpret_cast<const char*>(&half) + 16, 16);
        low += high;
    }
    return low;
}

static inline float sum(Floats values) {
    const Floats4 last = quarter(values);
    return (last[0] + last[2]) + (last[1] + last[3]);
}

// The sums of four vectors, which cost little more than that of one.
static inline Floats4 sums(Floats a, Floats b, Floats c, Floats d) {
    const Floats4 p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
    const Floats4 pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    const Floats4 rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }  // b where a is NaN
static inline Floats lesser(Floats a, Floats b) { return a < b ? a : b; }

static inline Ints bits(Floats values) {
    Ints made;
    memcpy(&made, &values, sizeof made);
    return made;
}

static inline Floats from_bits(Ints values) {
    Floats made;
    memcpy(&made, &values, sizeof made);
    return made;
}

// e ** x to some units in the last place: x = n ln 2 + r, a polynomial of r, and n into the exponent.
// Subnormal results, 0, infinity and NaN come out as they should. (Cody and Waite 1980; the
// coefficients are Taylor's.)
static inline Floats exp(Floats x) {
    const Floats inside = lesser(greater(splat(-104.0f), x), splat(89.0f));
    const float magic = 12582912.0f;  // adding it rounds to a whole number
    Floats shifted = inside * 1.44269504f + magic;
    Floats n = shifted - magic;
    Floats r = inside - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    Floats p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // Two halves of n, since e ** 89 is above what one power of two can say, and below -87 below it.
    Ints whole = bits(shifted) - 0x4B400000;
    Ints half = whole >> 1;
    Floats made = p * from_bits((half + 127) << 23) * from_bits((whole - half + 127) << 23);
    return x != x ? x : made;
}

static inline float widened_half(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7FFF, made;
    float value;
    if (rest >= 0x7C00) {
        made = 0x7F800000 | (rest & 0x3FF) << 13;
    } else {
        // The exponent is moved by a product, which is right for subnormal numbers too.
        made = rest << 13;
        memcpy(&value, &made, 4);
        value *= 0x1p112f;
        memcpy(&made, &value, 4);
    }
    made |= sign;
    memcpy(&value, &made, 4);
    return value;
}

static inline float widened_bfloat(uint16_t half) {
    uint32_t made = uint32_t(half) << 16;
    float value;
    memcpy(&value, &made, 4);
    return value;
}

// To the nearest, of two equally near ones the even: as NumPy rounds.
static inline uint16_t narrowed_half(float value) {
    uint32_t whole;
    memcpy(&whole, &value, 4);
    const uint32_t sign = whole >> 16 & 0x8000, rest = whole & 0x7FFFFFFF;
    if (rest > 0x7F800000) return uint16_t(sign | 0x7E00 | (rest >> 13 & 0x1FF));
    if (rest >= 0x477FF000) return uint16_t(sign | 0x7C00);
    if (rest < 0x38800000) {  // adding 2 ** -1 leaves the bits of a subnormal one at the end
        float small;
        memcpy(&small, &rest, 4);
        small += 0.5f;
        memcpy(&whole, &small, 4);
        return uint16_t(sign | (whole - 0x3F000000));
    }
    return uint16_t(sign | (rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13);
}

static inline uint16_t narrowed_bfloat(float value) {
    uint32_t whole;
    memcpy(&whole, &value, 4);
    if (value != value) return uint16_t(whole >> 16 | 0x40);
    return uint16_t((whole + 0x7FFF + (whole >> 16 & 1)) >> 16);
}

// a0 b0 a1 b1 and so on: the first and the second half of them.
static inline void zip(Longs a, Longs b, Longs& first, Longs& second) {
#if ISA_LEVEL == ISA_AVX512
    first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif ISA_LEVEL == ISA_AVX2
    first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#else
    first = __builtin_shufflevector(a, b, 0, 2);
    second = __builtin_shufflevector(a, b, 1, 3);
#endif
}

typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

static inline void store_bfloat(uint16_t* to, Floats values) {
    const Ints whole = bits(values);
    const Ints rounded = values == values ? (whole + 0x7FFF + (whole >> 16 & 1)) >> 16
                                          : whole >> 16 | 0x40;
    const Halves halves = __builtin_convertvector(rounded, Halves);
    memcpy(to, &halves, sizeof halves);
}

static inline Floats load_bfloat(const uint16_t* from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return from_bits(__builtin_convertvector(halves, Ints) << 16);
}

}  // namespace ISA

#if ISA_LEVEL == ISA_AVX512
#include "simd_avx512.h"
#elif ISA_LEVEL == ISA_AVX2
#include "simd_avx2.h"
#elif ISA_LEVEL == ISA_NEON
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

#if ISA_LEVEL == ISA_NEON || ISA_LEVEL == ISA_PORTABLE
namespace ISA {

// Sums of products of bytes for eight rows, where a vector has four lanes.
template <int MOST>
struct Products {
    static constexpr int TOGETHER = LaneProducts<MOST>::TOGETHER;
    LaneProducts<MOST> low, high;
    void add(Bytes weights, int32_t word) {
        LaneBytes w[2];
        memcpy(w, &weights, sizeof w);
        low.add(w[0], word);
        high.add(w[1], word);
    }
    void fold() { low.fold(), high.fold(); }
    Ints8 total(int32_t sum) const {
        return __builtin_shufflevector(low.total(sum), high.total(sum), 0, 1, 2, 3, 4, 5, 6, 7);
    }
};

}  // namespace ISA
#endif
