// Rotary positions (Su et al. 2021): pairs of a head's numbers turned by their angles.
#pragma once

#include "storage.h"

namespace ISA {

// The pairs (i, i + half) of x, turned forwards for `sign` 1 and back for -1.
template <class Kind>
static inline void turn(const typename Kind::Element* x, const float* cos, const float* sin, float sign, int64_t half,
                        typename Kind::Element* to) {
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const Floats left = Kind::load(x + i), right = Kind::load(x + half + i);
        const Floats c = load(cos + i), s = load(sin + i) * sign;
        Kind::store(to + i, left * c - right * s);
        Kind::store(to + half + i, right * c + left * s);
    }
    for (; i < half; i++) {
        const float left = Kind::value(x[i]), right = Kind::value(x[half + i]), c = cos[i], s = sin[i] * sign;
        to[i] = Kind::narrowed(left * c - right * s);
        to[half + i] = Kind::narrowed(right * c + left * s);
    }
}

}  // namespace ISA
