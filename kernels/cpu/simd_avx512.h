// What `simd.h` needs of an instruction set, for x86 with AVX-512 F, BW, VL, DQ and VNNI (Ice Lake, Zen 4).
#pragma once

#include <immintrin.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

static inline void store_half(uint16_t* to, Floats values) {
    const __m256i halves = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

static inline Floats8 load_half8(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// The low 32 bits of each times `factor`, which has 32.
static inline Longs product_of_low(Longs a, uint32_t factor) {
    return Longs(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(factor)));
}

static inline void store_bytes(uint8_t* to, Ints values) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(values)));
}

// Four unsigned times four signed bytes are added to each sum.
static inline Ints8 dot_bytes(Ints8 sums, Bytes weights, int32_t word) {
    return Ints8(_mm256_dpbusd_epi32(__m256i(sums), __m256i(weights), _mm256_set1_epi32(word)));
}

static inline Ints dot_bytes(Ints sums, LaneBytes weights, int32_t word) {
    return Ints(_mm512_dpbusd_epi32(__m512i(sums), __m512i(weights), _mm512_set1_epi32(word)));
}

// Sums of products of bytes: `weights` has four of each row, from 0 to MOST or SIGNED, `word` four signed
// bytes of x, from -127 to 127. Where 16 bits hold sums, `fold` keeps them from overflowing: at most TOGETHER words
// may come between two of it. Signed weights get 128 added, which is taken off again with the sum of what x was.
template <int MOST, class Weights, class Sums>
struct ProductsOf {
    static constexpr int TOGETHER = 1;
    Sums sums{};
    void add(Weights weights, int32_t word) { sums = dot_bytes(sums, MOST == SIGNED ? weights ^ 128 : weights, word); }
    void fold() {}
    Sums total(int32_t sum) const { return MOST == SIGNED ? sums - 128 * sum : sums; }
};

// For eight rows, and for LANES rows.
template <int MOST>
using Products = ProductsOf<MOST, Bytes, Ints8>;
template <int MOST>
using LaneProducts = ProductsOf<MOST, LaneBytes, Ints>;

}  // namespace ISA
