// What `simd.h` needs of an instruction set, for x86 with AVX2, FMA and F16C (Haswell, Zen and later).
#pragma once

#include <immintrin.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

static inline Floats8 load_half8(const uint16_t* from) { return load_half(from); }

}  // namespace ISA
