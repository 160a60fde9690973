// The random numbers of rng.py: Philox4x32-10 (Salmon et al. 2011), four words of a counter and a key.
#pragma once

#include "simd.h"

namespace ISA {

constexpr uint32_t PHILOX_LEFT = 0xD2511F53, PHILOX_RIGHT = 0xCD9E8D57;

struct PhiloxKey {
    uint32_t low, high;

    explicit PhiloxKey(uint64_t seed) : low(uint32_t(seed)), high(uint32_t(seed >> 32)) {}
    void next() { low += 0x9E3779B9u, high += 0xBB67AE85u; }
};

static inline void philox(uint64_t low, uint64_t high, uint64_t seed, uint32_t words[4]) {
    uint32_t c[4] = {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
    PhiloxKey key(seed);
    for (int round = 0; round < 10; round++, key.next()) {
        const uint64_t left = uint64_t(c[0]) * PHILOX_LEFT, right = uint64_t(c[2]) * PHILOX_RIGHT;
        const uint32_t next[4] = {uint32_t(right >> 32) ^ c[1] ^ key.low, uint32_t(right),
                                  uint32_t(left >> 32) ^ c[3] ^ key.high, uint32_t(left)};
        for (int i = 0; i < 4; i++) c[i] = next[i];
    }
    for (int i = 0; i < 4; i++) words[i] = c[i];
}

// Number `i` of a draw, in (0, 1).
static inline double uniform(uint64_t seed, uint64_t offset, int64_t i) {
    uint32_t words[4];
    philox(uint64_t(i / 4), offset, seed, words);
    return (double(words[i % 4] >> 9) + 0.5) * 0x1p-23;
}

// Numbers that are drawn at a time: four of each group, two vectors of groups, whose chains of products overlap.
constexpr int64_t DRAWN = 4 * LANES;

// The DRAWN numbers from 4 `group` on. Each 64-bit lane holds one word; what is above its low 32 bits is not looked
// at until the end.
static inline void uniforms(uint64_t seed, uint64_t offset, uint64_t group, float* to) {
    Longs c[2][4];
    UNROLLED for (int v = 0; v < 2; v++) {
        for (int i = 0; i < LANES / 2; i++) c[v][0][i] = group + uint64_t(v * LANES / 2 + i);
        c[v][1] = c[v][0] >> 32;
        c[v][2] = offset - Longs{};
        c[v][3] = c[v][2] >> 32;
    }
    PhiloxKey key(seed);
    for (int round = 0; round < 10; round++, key.next()) {
        UNROLLED for (Longs* x : c) {
            const Longs left = product_of_low(x[0], PHILOX_LEFT), right = product_of_low(x[2], PHILOX_RIGHT);
            x[0] = right >> 32 ^ x[1] ^ uint64_t(key.low), x[1] = right;
            x[2] = left >> 32 ^ x[3] ^ uint64_t(key.high), x[3] = left;
        }
    }
    for (const Longs* x : c) {
        Longs pairs[2];
        zip((x[0] & 0xFFFFFFFF) | x[1] << 32, (x[2] & 0xFFFFFFFF) | x[3] << 32, pairs[0], pairs[1]);
        for (const Longs& pair : pairs) {
            Ints words;
            memcpy(&words, &pair, sizeof words);
            store(to, (__builtin_convertvector(words >> 9 & 0x7FFFFF, Floats) + 0.5f) * 0x1p-23f);
            to += LANES;
        }
    }
}

}  // namespace ISA
