// The random numbers of rng.py: Philox4x32-10 (Salmon et al. 2011), four words of a counter and a key.
#pragma once

#include <stdint.h>

namespace ISA {

static inline void philox(uint64_t low, uint64_t high, uint64_t key, uint32_t words[4]) {
    uint32_t c[4] = {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t left = uint64_t(c[0]) * 0xD2511F53u, right = uint64_t(c[2]) * 0xCD9E8D57u;
        const uint32_t next[4] = {uint32_t(right >> 32) ^ c[1] ^ k0, uint32_t(right),
                                  uint32_t(left >> 32) ^ c[3] ^ k1, uint32_t(left)};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) words[i] = c[i];
}

// Number `i` of a draw, in (0, 1).
static inline double uniform(uint64_t seed, uint64_t offset, int64_t i) {
    uint32_t words[4];
    philox(uint64_t(i / 4), offset, seed, words);
    return (double(words[i % 4] >> 9) + 0.5) * 0x1p-23;
}

}  // namespace ISA
