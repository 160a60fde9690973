// Weights as they lie in memory: 16 bytes of dense ones, and GGUF's blocks of 32 (of 256: fine_blocks.cuh).
//
// A block is a scale (and a minimum) in half precision and 32 integers of 8 or 4 bits, 34, 18 or 20 bytes: no
// lane can load its part of one in a single aligned access. So a warp copies a group of 1024 weights, whose blocks lie
// one after the other, to shared memory word by word, and takes them apart there, eight weights a lane.
#pragma once
#include "memory.cuh"

struct q8_0 { half scale; signed char values[32]; };
struct q4_0 { half scale; unsigned char pairs[16]; };           // byte i: elements i and i + 16, less 8
struct q4_1 { half scale, minimum; unsigned char pairs[16]; };  // the same, plus a minimum

#define GROUP 1024  // elements of a row that a warp stages at a time

// Bytes of a group, and of shared memory for one row's: room for whole loads of 16 bytes.
template <class W> constexpr int GROUP_BYTES = 0;
template <> constexpr int GROUP_BYTES<q8_0> = GROUP / 32 * (int)sizeof(q8_0);
template <> constexpr int GROUP_BYTES<q4_0> = GROUP / 32 * (int)sizeof(q4_0);
template <> constexpr int GROUP_BYTES<q4_1> = GROUP / 32 * (int)sizeof(q4_1);
template <class W> constexpr int STAGE = (GROUP_BYTES<W> + 15) / 16 * 16;

// The dense weights in 16 bytes, widened.
template <class W, int N> __device__ inline void unpack(float (&w)[N], uint4 bits) {
    W elements[N];
    memcpy(elements, &bits, 16);
#pragma unroll
    for (int i = 0; i < N; i++) w[i] = widen(elements[i]);
}

__device__ inline float half_at(const unsigned char* p) {
    half h;
    h.bits = *(const unsigned short*)p;
    return widen(h);
}

// take: the eight weights of pack `pack` out of a stage; they belong to the four elements
// of x from `first` on and the four from `second` on, TOGETHER if those are eight neighbours.
template <class B> struct Blocks;

template <> struct Blocks<q8_0> {
    static const bool TOGETHER = true;

    __device__ static void take(float (&w)[8], const unsigned char* stage, int pack) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q8_0);
        float scale = half_at(block);
        const unsigned short* pairs = (const unsigned short*)(block + 2 + 8 * (pack & 3));
        // Half of the blocks begin with their second two pairs: else three lanes meet in some banks.
        bool late = pack >> 4 & 1;
        unsigned short held[4];
#pragma unroll
        for (int i = 0; i < 4; i++) held[i] = pairs[late ? i ^ 2 : i];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int two = late ? held[i ^ 2] : held[i];
            w[2 * i] = scale * (float)(signed char)(two & 0xff);
            w[2 * i + 1] = scale * (float)(signed char)(two >> 8);
        }
    }
    __device__ static int first(int pack) { return 8 * pack; }
    __device__ static int second(int pack) { return 8 * pack + 4; }
};

// Four bytes hold elements 4 p .. 4 p + 3 of a block in their low halves and 16 more in their high ones.
struct Nibbles {
    static const bool TOGETHER = false;

    __device__ static void take(float (&w)[8], const unsigned char* bytes, float scale, float offset) {
        const unsigned short* pairs = (const unsigned short*)bytes;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int byte = pairs[i] >> (8 * j);
                w[2 * i + j] = fmaf(scale, (float)(byte & 15), offset);
                w[2 * i + j + 4] = fmaf(scale, (float)(byte >> 4 & 15), offset);
            }
    }
    __device__ static int first(int pack) { return (pack >> 2) * 32 + 4 * (pack & 3); }
    __device__ static int second(int pack) { return first(pack) + 16; }
};

template <> struct Blocks<q4_0> : Nibbles {
    __device__ static void take(float (&w)[8], const unsigned char* stage, int pack) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q4_0);
        float scale = half_at(block);
        Nibbles::take(w, block + 2 + 4 * (pack & 3), scale, -8.0f * scale);
    }
};

template <> struct Blocks<q4_1> : Nibbles {
    __device__ static void take(float (&w)[8], const unsigned char* stage, int pack) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q4_1);
        Nibbles::take(w, block + 4 + 4 * (pack & 3), half_at(block), half_at(block + 2));
    }
};

// A warp copies `bytes` bytes of each of two rows to their stages, loads ahead of the
// stores: else every load would wait for the one before.
template <class W, int MOST, int HELD> __device__ inline void stage_words(
        unsigned char* to, const unsigned char* one, const unsigned char* two, int bytes) {
    int count = bytes / (int)sizeof(W);
#pragma unroll 1
    for (int start = threadIdx.x & 31; start < count; start += 32 * HELD) {
        W words[2][HELD];
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (start + 32 * n < count) {
                words[0][n] = ((const W*)one)[start + 32 * n];
                words[1][n] = ((const W*)two)[start + 32 * n];
            }
#pragma unroll
        for (int n = 0; n < HELD; n++)
            if (start + 32 * n < count) {
                ((W*)to)[start + 32 * n] = words[0][n];
                ((W*)(to + MOST))[start + 32 * n] = words[1][n];
            }
    }
}

// The same in the widest words that the addresses, which are even, and the count allow; HELD loads of each row are
// under way at once.
template <int MOST, int HELD> __device__ inline void stage_two(
        unsigned char* to, const unsigned char* one, const unsigned char* two, int bytes) {
    if (aligned(one, 16) && aligned(two, 16) && bytes % 16 == 0) stage_words<uint4, MOST, HELD>(to, one, two, bytes);
    else if (aligned(one, 4) && aligned(two, 4) && bytes % 4 == 0) stage_words<unsigned, MOST, HELD>(to, one, two, bytes);
    else stage_words<unsigned short, MOST, HELD>(to, one, two, bytes);
}
