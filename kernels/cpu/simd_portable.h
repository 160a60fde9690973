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

static inline void store_bytes(uint8_t* to, Ints values) {
    for (int i = 0; i < LANES; i++) to[i] = uint8_t(values[i]);
}

// Sums of products of bytes, for eight rows: `weights` has four of each row, `word` four signed bytes of
// x, from -127 to 127. `fold` keeps what 16 bits can hold from overflowing, where they are used.
struct SignedProducts {
    Ints8 sums{};
    void add(Bytes weights, int32_t word) {
        int8_t known[4], given[32];
        memcpy(known, &word, 4);
        memcpy(given, &weights, 32);
        for (int row = 0; row < 8; row++)
            for (int i = 0; i < 4; i++) sums[row] += given[4 * row + i] * known[i];
    }
    Ints8 total(int32_t) const { return sums; }
};

template <int MOST>  // the largest weight; none is below 0
struct Products : SignedProducts {
    void fold() {}
    Ints8 total() const { return sums; }
};

}  // namespace ISA
