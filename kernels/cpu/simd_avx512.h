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

static inline void store_bytes(uint8_t* to, Ints values) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(__m512i(values)));
}

// Sums of products of bytes, for eight rows: `weights` has four of each row, `word` four signed bytes of
// x, from -127 to 127. `fold` keeps what 16 bits can hold from overflowing, where they are used.
// The instruction takes unsigned times signed bytes and adds four products into 32 bits: signed weights get
// 128 added, which is taken off again with the sum of x.
struct SignedProducts {
    __m256i sums = _mm256_setzero_si256();
    void add(Bytes weights, int32_t word) {
        sums = _mm256_dpbusd_epi32(sums, __m256i(weights ^ 128), _mm256_set1_epi32(word));
    }
    Ints8 total(int32_t sum) const { return Ints8(sums) - 128 * sum; }
};

template <int MOST>  // the largest weight; none is below 0
struct Products {
    __m256i sums = _mm256_setzero_si256();
    void add(Bytes weights, int32_t word) {
        sums = _mm256_dpbusd_epi32(sums, __m256i(weights), _mm256_set1_epi32(word));
    }
    void fold() {}
    Ints8 total() const { return Ints8(sums); }
};

}  // namespace ISA
