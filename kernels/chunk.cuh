// N neighbouring elements as they lie in memory: read early, widened when they are needed.
//
// load<N> widens at once, so a load that depends on a condition would be waited for inside its branch.
// Chunks are only bits: a thread can have all its loads under way before it looks at the first one,
// and 16-bit elements wait two to a register.
#pragma once
#include "memory.cuh"

template <int N, class T> struct Chunk {
    static const int bytes = Smaller<16, N * (int)sizeof(T)>::value;
    static const int count = N * (int)sizeof(T) / bytes;
    typedef typename Word<bytes>::type word;
    word words[count];

    __device__ inline void clear() {
#pragma unroll
        for (int i = 0; i < count; i++) words[i] = word();
    }

    // `from` and `to` are aligned as for `load`.
    __device__ inline void read(const T* from) {
#pragma unroll
        for (int i = 0; i < count; i++) words[i] = reinterpret_cast<const word*>(from)[i];
    }

    __device__ inline void write(T* to) const {
#pragma unroll
        for (int i = 0; i < count; i++) reinterpret_cast<word*>(to)[i] = words[i];
    }

    __device__ inline void get(float (&out)[N]) const {
        T elements[N];
        memcpy(elements, words, sizeof(words));
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = widen(elements[i]);
    }

    __device__ inline void set(const float (&values)[N]) {
        T elements[N];
#pragma unroll
        for (int i = 0; i < N; i++) elements[i] = narrow<T>(values[i]);
        memcpy(words, elements, sizeof(words));
    }
};
