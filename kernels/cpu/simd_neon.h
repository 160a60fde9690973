// What `simd.h` needs of an instruction set, for AArch64 with 16-bit floats and dot products (Armv8.2 and
// later: Apple M1, Graviton 2, Snapdragon X).
#pragma once

#include <arm_neon.h>

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

static inline void store_half(uint16_t* to, Floats values) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(values)));
}

static inline Floats8 load_half8(const uint16_t* from) {
    Floats low = load_half(from), high = load_half(from + 4);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

static inline void store_bytes(uint8_t* to, Ints values) {
    const int16x4_t words = vmovn_s32(int32x4_t(values));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(to, &four, 4);
}

// Sums of products of bytes, for eight rows: `weights` has four of each row, `word` four signed bytes of
// x, from -127 to 127. `fold` keeps what 16 bits can hold from overflowing, where they are used.
// The instruction adds four products of signed bytes into 32 bits; weights above 0 are below 128.
struct SignedProducts {
    int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);
    void add(Bytes weights, int32_t word) {
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(word));
        int8x16_t w[2];
        memcpy(w, &weights, sizeof w);
        low = vdotq_s32(low, w[0], x);
        high = vdotq_s32(high, w[1], x);
    }
    Ints8 total(int32_t) const {
        return __builtin_shufflevector(Ints(low), Ints(high), 0, 1, 2, 3, 4, 5, 6, 7);
    }
};

template <int MOST>  // the largest weight; none is below 0
struct Products : SignedProducts {
    void fold() {}
    Ints8 total() const { return SignedProducts::total(0); }
};

}  // namespace ISA
