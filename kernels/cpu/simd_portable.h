// What `simd.h` needs of an instruction set, without one: loops that a compiler turns into what it has.
#pragma once

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    Floats made;
    for (int i = 0; i < LANES; i++) made[i] = widened_half(from[i]);
    return made;
}

static inline void store_half(uint16_t* to, Floats values) {
    for (int i = 0; i < LANES; i++) to[i] = narrowed_half(values[i]);
}

static inline Floats8 load_half8(const uint16_t* from) {
    Floats8 made;
    for (int i = 0; i < 8; i++) made[i] = widened_half(from[i]);
    return made;
}

// The low 32 bits of each times `factor`, which has 32.
static inline Longs product_of_low(Longs a, uint32_t factor) {
    for (int i = 0; i < LANES / 2; i++) a[i] = uint64_t(uint32_t(a[i])) * factor;
    return a;
}

static inline void store_bytes(uint8_t* to, Ints values) {
    for (int i = 0; i < LANES; i++) to[i] = uint8_t(values[i]);
}

// Sums of products of bytes, for LANES rows: `weights` has four of each row, from 0 to MOST or SIGNED, `word` four
// signed bytes of x, from -127 to 127. 16 bits hold the sum of TOGETHER times two products: so often `fold` is to
// be called.
template <int MOST>
struct LaneProducts {
    typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));
    static constexpr int TOGETHER = 32767 / (2 * 127 * (MOST == SIGNED ? 128 : MOST));
    Shorts narrow{};
    Ints wide{};
    // Bytes 0 and 2 of each four, and bytes 1 and 3.
    static Shorts even(Shorts both, bool with_sign) { return with_sign ? both << 8 >> 8 : both & 255; }
    static Shorts odd(Shorts both, bool with_sign) { return with_sign ? both >> 8 : both >> 8 & 255; }
    void add(LaneBytes weights, int32_t word) {
        const Ints all = word - Ints{};
        Shorts w, x;
        memcpy(&w, &weights, sizeof w);
        memcpy(&x, &all, sizeof x);
        narrow += even(w, MOST == SIGNED) * even(x, true) + odd(w, MOST == SIGNED) * odd(x, true);
    }
    void fold() {
        Ints pairs;
        memcpy(&pairs, &narrow, sizeof pairs);
        wide += (pairs << 16 >> 16) + (pairs >> 16);
        narrow = Shorts{};
    }
    Ints total(int32_t) const { return wide; }
};

}  // namespace ISA
