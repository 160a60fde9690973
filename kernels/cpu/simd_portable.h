// What `simd.h` needs of an instruction set, without one: loops that a compiler turns into what it has.
#pragma once

namespace ISA {

static inline Floats load_half(const uint16_t* from) {
    Floats made;
    for (int i = 0; i < LANES; i++) made[i] = widened_half(from[i]);
    return made;
}

static inline Floats8 load_half8(const uint16_t* from) {
    Floats8 made;
    for (int i = 0; i < 8; i++) made[i] = widened_half(from[i]);
    return made;
}

}  // namespace ISA
