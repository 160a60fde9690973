// Numbers of a cache in 8 bit: integers, and in half precision a scale that 32 neighbours of a head share, or a whole
// head that 32 does not divide. The rule of tinytorch_gpu/quantized/cache.py, so that all devices hold the same.
#pragma once
#include "chunk.cuh"
#include "reduce.cuh"

struct eight_bit { signed char value; };  // times its scale

template <class T> constexpr bool IN_EIGHT_BIT = false;
template <> constexpr bool IN_EIGHT_BIT<eight_bit> = true;

#define SHARING 32  // neighbours

__device__ inline int groups_of(int width) { return width % SHARING == 0 ? width / SHARING : 1; }

// Eight integers as floats. A conversion has a quarter of an addition's rate, so the byte, made positive, becomes the
// last one of 2^23.
template <> __device__ inline void Chunk<8, eight_bit>::get(float (&out)[8]) const {
    const unsigned halves[2] = {words[0].x ^ 0x80808080u, words[0].y ^ 0x80808080u};
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[i] = __int_as_float((int)(halves[i / 4] >> 8 * (i % 4) & 255u | 0x4b000000u)) - 8388736.0f;
}

// What lanes of a warp hold of a group, of which `top` is the largest size a lane has seen, becomes integers: the largest
// of all is 127. NaN becomes the scale's, so that it is not lost; what half cannot hold becomes infinite.
struct Rounding {
    half scale;
    float inverse;

    __device__ Rounding(float top) {
        scale = narrow<half>(warp_max(top) / 127.0f);
        const float wide = widen(scale);
        inverse = wide > 0.0f ? 1.0f / wide : 0.0f;
    }
    __device__ eight_bit of(float x) const {
        eight_bit made = {0};
        if (inverse > 0.0f) made.value = (signed char)max(-127, min(127, __float2int_rn(x * inverse)));
        return made;
    }
};
