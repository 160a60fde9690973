// What `simd.h` needs of an instruction set, for x86 with AVX2, FMA and F16C (Haswell, Zen and later).
#pragma once

#include <immintrin.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

static inline void store_half(uint16_t* to, Floats values) {
    const __m128i halves = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}

static inline Floats8 load_half8(const uint16_t* from) { return load_half(from); }

// The low 32 bits of each times `factor`, which has 32.
static inline Longs product_of_low(Longs a, uint32_t factor) {
    return Longs(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(factor)));
}

static inline void store_bytes(uint8_t* to, Ints values) {
    const __m256i words = _mm256_packs_epi32(__m256i(values), __m256i(values));
    const __m256i bytes = _mm256_packs_epi16(words, words);
    const int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    memcpy(to, &low, 4);
    memcpy(to + 4, &high, 4);
}

// Sums of products of bytes, for eight rows: `weights` has four of each row, from 0 to MOST, `word` four signed
// bytes of x, from -127 to 127. The instruction takes unsigned times signed bytes and adds two products into 16 bits,
// which hold the sum of TOGETHER such: so often `fold` is to be called.
template <int MOST>
struct Products {
    static constexpr int TOGETHER = 32767 / (2 * 127 * MOST);
    __m256i narrow = _mm256_setzero_si256(), wide = _mm256_setzero_si256();
    void add(Bytes weights, int32_t word) {
        const __m256i x = _mm256_set1_epi32(word);
        narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(__m256i(weights), x));
        // Else GCC makes all products first and adds them up later, and has no registers for them.
        asm("" : "+x"(narrow));
    }
    void fold() {
        wide = _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
        narrow = _mm256_setzero_si256();
    }
    Ints8 total(int32_t) const { return Ints8(wide); }
};

// The same of signed weights. (`total` is given the sum of what x was for other instruction sets.)
template <>
struct Products<SIGNED> {
    static constexpr int TOGETHER = 8;
    __m256i sums = _mm256_setzero_si256();
    void add(Bytes weights, int32_t word) {
        const __m256i w = __m256i(weights), x = _mm256_set1_epi32(word);
        // |w| (x sign w) is w x; with |x| up to 127 two of them fit.
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        asm("" : "+x"(sums));  // see above
    }
    void fold() {}
    Ints8 total(int32_t) const { return Ints8(sums); }
};

// For LANES rows.
template <int MOST>
using LaneProducts = Products<MOST>;

}  // namespace ISA
