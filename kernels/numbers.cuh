// Element types. Everything is computed in float32; these are how numbers lie in memory.
//
// The 16-bit types are bits and two conversions, written out here so that no CUDA header is needed:
// NVRTC alone compiles every kernel, and the host twin of each conversion stands beside it.
#pragma once

struct half { unsigned short bits; };      // IEEE binary16
struct bfloat16 { unsigned short bits; };  // the upper half of a float32

#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define INFINITE __int_as_float(0x7f800000)

__device__ inline float widen(float x) { return x; }

__device__ inline float widen(half x) {
#ifdef EMULATED
    return emulated::half_to_float(x.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#endif
}

__device__ inline float widen(bfloat16 x) { return __int_as_float((int)((unsigned)x.bits << 16)); }

// Rounding to the nearest, ties to even.
template <class T> __device__ inline T narrow(float x);

template <> __device__ inline float narrow<float>(float x) { return x; }

template <> __device__ inline half narrow<half>(float x) {
    half out;
#ifdef EMULATED
    out.bits = emulated::float_to_half(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
    return out;
}

template <> __device__ inline bfloat16 narrow<bfloat16>(float x) {
    bfloat16 out;
#if !defined(EMULATED) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    unsigned bits = (unsigned)__float_as_int(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = nan ? 0x7fff : (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
    return out;
}

// Two numbers side by side in a register, the first in the low half: an operand of the tensor cores.
template <class T> __device__ inline unsigned pack(float low, float high) {
    return (unsigned)narrow<T>(low).bits | (unsigned)narrow<T>(high).bits << 16;
}
