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

// The low 32 bits of each times `factor`, which has 32.
static inline Longs product_of_low(Longs a, uint32_t factor) {
    return Longs(vmull_u32(vmovn_u64(uint64x2_t(a)), vdup_n_u32(factor)));
}

static inline void store_bytes(uint8_t* to, Ints values) {
    const int16x4_t words = vmovn_s32(int32x4_t(values));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(to, &four, 4);
}

// Sums of products of bytes, for LANES rows: `weights` has four of each row, from 0 to MOST or SIGNED, `word` four
// signed bytes of x, from -127 to 127. Where 16 bits hold sums, `fold` keeps them from overflowing: at most TOGETHER
// words may come between two of it. The instruction adds four products of signed bytes into 32 bits; weights that
// are not SIGNED are below 128.
template <int MOST>
struct LaneProducts {
    static constexpr int TOGETHER = 1;
    int32x4_t sums = vdupq_n_s32(0);
    void add(LaneBytes weights, int32_t word) {
        sums = vdotq_s32(sums, int8x16_t(weights), vreinterpretq_s8_s32(vdupq_n_s32(word)));
    }
    void fold() {}
    Ints total(int32_t) const { return Ints(sums); }
};

}  // namespace ISA
