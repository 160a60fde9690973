// GGUF's other blocks: five bits in blocks of 32, and the "K" formats in blocks of 256 with eight or sixteen groups.
//
// As in quantized.cuh, Blocks<B>::take gives the eight weights of a pack, which belong to four neighbours from `first`
// on and four from `second` on. Here `blocks` may lie in any memory, at an even address.
#pragma once
#include "quantized.cuh"

// Plain numbers, for the parts of a weight that are not in blocks.
template <class T> struct Plain {
    static const bool TOGETHER = true;
    __device__ static void take(float (&w)[8], const unsigned char* row, int pack) {
        load<8>(w, (const T*)row + 8 * pack);
    }
    __device__ static int first(int pack) { return 8 * pack; }
    __device__ static int second(int pack) { return 8 * pack + 4; }
};
template <> struct Blocks<float> : Plain<float> {};
template <> struct Blocks<half> : Plain<half> {};
template <> struct Blocks<bfloat16> : Plain<bfloat16> {};

struct q5_0 { half scale; unsigned char upper[4], pairs[16]; };           // upper: bit i is bit 4 of element i
struct q5_1 { half scale, minimum; unsigned char upper[4], pairs[16]; };
struct q4_k { half scale, minimum; unsigned char groups[12], pairs[128]; };
struct q5_k { half scale, minimum; unsigned char groups[12], upper[32], pairs[128]; };
struct q6_k { unsigned char pairs[128], upper[64]; signed char groups[16]; half scale; };

template <> constexpr int GROUP_BYTES<q5_0> = GROUP / 32 * (int)sizeof(q5_0);
template <> constexpr int GROUP_BYTES<q5_1> = GROUP / 32 * (int)sizeof(q5_1);
template <> constexpr int GROUP_BYTES<q4_k> = GROUP / 256 * (int)sizeof(q4_k);
template <> constexpr int GROUP_BYTES<q5_k> = GROUP / 256 * (int)sizeof(q5_k);
template <> constexpr int GROUP_BYTES<q6_k> = GROUP / 256 * (int)sizeof(q6_k);

// N bytes from an even address on, two in a load.
template <int N> struct Bytes {
    unsigned short pairs[N / 2];

    __device__ explicit Bytes(const unsigned char* from) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) pairs[i] = ((const unsigned short*)from)[i];
    }
    __device__ int operator[](int i) const { return pairs[i >> 1] >> 8 * (i & 1) & 255; }
};

// Four bytes of `pairs` hold elements 4 p .. 4 p + 3 in their low halves and 16 more in their high ones.
struct Fives : Nibbles {
    __device__ static void take(
            float (&w)[8], const unsigned char* upper, const unsigned char* pairs, int quarter, float scale, float offset) {
        const unsigned short* halves = (const unsigned short*)upper;
        unsigned bits = (halves[0] | (unsigned)halves[1] << 16) >> 4 * quarter;
        Bytes<4> of(pairs + 4 * quarter);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = fmaf(scale, (float)((of[i] & 15) | (bits >> i & 1) << 4), offset);
            w[i + 4] = fmaf(scale, (float)(of[i] >> 4 | (bits >> (i + 16) & 1) << 4), offset);
        }
    }
};

template <> struct Blocks<q5_0> : Fives {
    __device__ static void take(float (&w)[8], const unsigned char* blocks, int pack) {
        const unsigned char* block = blocks + (pack >> 2) * sizeof(q5_0);
        float scale = half_at(block);
        Fives::take(w, block + 2, block + 6, pack & 3, scale, -16.0f * scale);
    }
};

template <> struct Blocks<q5_1> : Fives {
    __device__ static void take(float (&w)[8], const unsigned char* blocks, int pack) {
        const unsigned char* block = blocks + (pack >> 2) * sizeof(q5_1);
        Fives::take(w, block + 4, block + 8, pack & 3, half_at(block), half_at(block + 2));
    }
};

// Packs of eight neighbours, 32 to a block.
struct Neighbours {
    static const bool TOGETHER = true;
    __device__ static int first(int pack) { return 8 * pack; }
    __device__ static int second(int pack) { return 8 * pack + 4; }
};

// Scale and minimum of one of eight groups, six bits each in twelve bytes.
struct Group {
    float scale, minimum;
    __device__ Group(const unsigned char* block, int group) {
        const unsigned char* at = block + 4;
        int six, low;
        if (group < 4) {
            six = at[group] & 63;
            low = at[group + 4] & 63;
        } else {
            six = (at[group + 4] & 15) | at[group - 4] >> 6 << 4;
            low = at[group + 4] >> 4 | at[group] >> 6 << 4;
        }
        scale = half_at(block) * (float)six;
        minimum = half_at(block + 2) * (float)low;
    }
};

template <> struct Blocks<q4_k> : Neighbours {
    __device__ static void take(float (&w)[8], const unsigned char* blocks, int pack) {
        const unsigned char* block = blocks + (pack >> 5) * sizeof(q4_k);
        int group = pack >> 2 & 7, at = 8 * (pack & 3);
        Group of(block, group);
        Bytes<8> pairs(block + 16 + 32 * (group >> 1) + at);
#pragma unroll
        for (int i = 0; i < 8; i++)
            w[i] = of.scale * (float)(pairs[i] >> 4 * (group & 1) & 15) - of.minimum;
    }
};

template <> struct Blocks<q5_k> : Neighbours {
    __device__ static void take(float (&w)[8], const unsigned char* blocks, int pack) {
        const unsigned char* block = blocks + (pack >> 5) * sizeof(q5_k);
        int group = pack >> 2 & 7, at = 8 * (pack & 3);
        Group of(block, group);
        Bytes<8> upper(block + 16 + at), pairs(block + 48 + 32 * (group >> 1) + at);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int value = (pairs[i] >> 4 * (group & 1) & 15) | (upper[i] >> group & 1) << 4;
            w[i] = of.scale * (float)value - of.minimum;
        }
    }
};

template <> struct Blocks<q6_k> : Neighbours {
    __device__ static void take(float (&w)[8], const unsigned char* blocks, int pack) {
        const unsigned char* block = blocks + (pack >> 5) * sizeof(q6_k);
        int within = pack & 31, part = within >> 2 & 3, at = 8 * (within & 3);
        Bytes<8> pairs(block + 64 * (within >> 4) + 32 * (part & 1) + at);
        Bytes<8> upper(block + 128 + 32 * (within >> 4) + at);
        float scale = half_at(block + 208) * (float)(signed char)block[192 + (within >> 1)];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int value = (pairs[i] >> 4 * (part >> 1) & 15) | (upper[i] >> 2 * part & 3) << 4;
            w[i] = scale * (float)(value - 32);
        }
    }
};
