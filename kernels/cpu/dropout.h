// What dropout (Srivastava et al. 2014) multiplies numbers by, from counted random numbers: forwards and backwards the
// same, so that no mask is kept.
#pragma once

#include "philox.h"

namespace ISA {

struct Dropout {
    uint64_t seed, offset;
    float p, scale;

    Dropout(const uint64_t* state, double p)
        : seed(state[0]), offset(state[1]), p(float(p)), scale(float(1 / (1 - p))) {}

    // Floats of room that the factors of `count` elements need.
    static constexpr int64_t room(int64_t count) { return (count + 3 + DRAWN - 1) / DRAWN * DRAWN; }

    // The factors of elements from `first` on, somewhere in `room`: 1 / (1 - p) where one stays, 0 where it goes.
    const float* factors(int64_t first, int64_t count, float* room) const {
        const int64_t before = first % 4;
        for (int64_t i = 0; i < before + count; i += DRAWN) {
            uniforms(seed, offset, uint64_t(first / 4 + i / 4), room + i);
            for (float* at = room + i; at < room + i + DRAWN; at += LANES)
                store(at, load(at) >= p ? splat(scale) : Floats{});
        }
        return room + before;
    }
};

}  // namespace ISA
