// Several neighbouring elements in one access. A warp moves memory fastest by 16 bytes a thread.
#pragma once
#include "numbers.cuh"

template <int BYTES> struct Word;
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

template <int A, int B> struct Smaller { static const int value = A < B ? A : B; };

// The `N` elements from `from` on, widened. The address is a multiple of 16 bytes, or of
// N * sizeof(T) where that is less.
template <int N, class T> __device__ inline void load(float (&out)[N], const T* from) {
    const int bytes = Smaller<16, N * (int)sizeof(T)>::value, each = bytes / (int)sizeof(T);
    typedef typename Word<bytes>::type word;
#pragma unroll
    for (int first = 0; first < N; first += each) {
        word bits = *reinterpret_cast<const word*>(from + first);
        T elements[each];
        memcpy(elements, &bits, bytes);
#pragma unroll
        for (int i = 0; i < each; i++) out[first + i] = widen(elements[i]);
    }
}

// Narrow `N` numbers and store them; aligned as for `load`.
template <int N, class T> __device__ inline void store(T* to, const float (&values)[N]) {
    const int bytes = Smaller<16, N * (int)sizeof(T)>::value, each = bytes / (int)sizeof(T);
    typedef typename Word<bytes>::type word;
#pragma unroll
    for (int first = 0; first < N; first += each) {
        T elements[each];
#pragma unroll
        for (int i = 0; i < each; i++) elements[i] = narrow<T>(values[first + i]);
        word bits;
        memcpy(&bits, elements, bytes);
        *reinterpret_cast<word*>(to + first) = bits;
    }
}

// Whether `p` may be accessed `bytes` at a time.
__device__ inline bool aligned(const void* p, int bytes) {
    return ((unsigned long long)p & (unsigned long long)(bytes - 1)) == 0;
}
