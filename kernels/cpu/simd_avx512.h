// What `simd.h` needs of an instruction set, for x86 with AVX-512 F, BW, VL, DQ and VNNI (Ice Lake, Zen 4).
#pragma once

#include <immintrin.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

static inline Floats8 load_half8(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

}  // namespace ISA
