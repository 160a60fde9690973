// Weights as they lie in memory, eight at a time: dense ones, and GGUF's blocks of 32.
//
// A block is a scale (and a minimum) in half precision and 32 integers of 8 or 4 bits, 34, 18 or 20 bytes: no
// lane can load its part of one in a single aligned access. So a warp copies a group of 32 blocks, which lie
// one after the other, to shared memory word by word, and takes them apart there.
#pragma once
#include "memory.cuh"

struct q8_0 { half scale; signed char values[32]; };
struct q4_0 { half scale; unsigned char pairs[16]; };           // byte i: elements i and i + 16, less 8
struct q4_1 { half scale, minimum; unsigned char pairs[16]; };  // the same, plus a minimum

// GROUP: elements that a warp takes at a time; STAGE: bytes of shared memory for one row's group.
template <class W> struct Weights {
    static const int GROUP = 256, STAGE = 0, BLOCK = 1;

    static const bool TOGETHER = true;  // whether eight weights meet eight neighbours

    // The eight weights of `pack` out of `packs`, and the places of the two times four elements they meet.
    __device__ static void take(float (&w)[8], const W* row, const unsigned char*, int pack, int) { load<8>(w, row + 8 * pack); }
    __device__ static int first(int pack) { return 8 * pack; }
    __device__ static int second(int pack, int) { return 8 * pack + 4; }
};

// Four floats are 16 bytes: a lane takes four of each half of the group, so that a warp's load has no gaps.
template <> struct Weights<float> {
    static const int GROUP = 256, STAGE = 0, BLOCK = 1;
    static const bool TOGETHER = false;

    __device__ static void take(float (&w)[8], const float* row, const unsigned char*, int pack, int packs) {
        float low[4], high[4];
        load<4>(low, row + first(pack));
        load<4>(high, row + second(pack, packs));
#pragma unroll
        for (int i = 0; i < 4; i++) { w[i] = low[i]; w[i + 4] = high[i]; }
    }
    __device__ static int first(int pack) { return 4 * pack; }
    __device__ static int second(int pack, int packs) { return 4 * (pack + packs); }
};

// What all kinds of blocks share: 32 of them to a group, four lanes to a block.
template <class B> struct Blocks {
    static const int GROUP = 1024, STAGE = 32 * (int)sizeof(B), BLOCK = 32;
    static const bool TOGETHER = false;
};

__device__ inline float half_at(const unsigned char* p) {
    half h;
    h.bits = *(const unsigned short*)p;
    return widen(h);
}

template <> struct Weights<q8_0> : Blocks<q8_0> {
    __device__ static void take(float (&w)[8], const q8_0*, const unsigned char* stage, int pack, int) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q8_0);
        float scale = half_at(block);
        const unsigned short* pairs = (const unsigned short*)(block + 2 + 8 * (pack & 3));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[2 * i] = scale * (float)(signed char)(pairs[i] & 0xff);
            w[2 * i + 1] = scale * (float)(signed char)(pairs[i] >> 8);
        }
    }
    __device__ static int first(int pack) { return 8 * pack; }
    __device__ static int second(int pack, int) { return 8 * pack + 4; }
};

// Four bytes hold elements 4 p .. 4 p + 3 in their low halves and 16 more in their high ones.
template <class B> struct Nibbles : Blocks<B> {
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
    __device__ static int second(int pack, int) { return first(pack) + 16; }
};

template <> struct Weights<q4_0> : Nibbles<q4_0> {
    __device__ static void take(float (&w)[8], const q4_0*, const unsigned char* stage, int pack, int) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q4_0);
        float scale = half_at(block);
        Nibbles<q4_0>::take(w, block + 2 + 4 * (pack & 3), scale, -8.0f * scale);
    }
};

template <> struct Weights<q4_1> : Nibbles<q4_1> {
    __device__ static void take(float (&w)[8], const q4_1*, const unsigned char* stage, int pack, int) {
        const unsigned char* block = stage + (pack >> 2) * sizeof(q4_1);
        Nibbles<q4_1>::take(w, block + 4 + 4 * (pack & 3), half_at(block), half_at(block + 2));
    }
};

// A warp copies `bytes` bytes of a row to shared memory, in the widest words that both ends allow.
__device__ inline void stage_bytes(unsigned char* to, const unsigned char* from, int bytes, int lane) {
    if (aligned(from, 16) && bytes % 16 == 0) {
        for (int i = lane; i < bytes / 16; i += 32) ((uint4*)to)[i] = ((const uint4*)from)[i];
    } else if (aligned(from, 4) && bytes % 4 == 0) {
        for (int i = lane; i < bytes / 4; i += 32) ((unsigned*)to)[i] = ((const unsigned*)from)[i];
    } else {
        for (int i = lane; i < bytes / 2; i += 32) ((unsigned short*)to)[i] = ((const unsigned short*)from)[i];
    }
}
