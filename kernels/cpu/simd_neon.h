// What `simd.h` needs of an instruction set, for AArch64 with 16-bit floats and dot products (Armv8.2 and
// later: Apple M1, Graviton 2, Snapdragon X).
#pragma once

#include <arm_neon.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

static inline Floats8 load_half8(const uint16_t* from) {
    Floats low = load_half(from), high = load_half(from + 4);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

}  // namespace ISA
