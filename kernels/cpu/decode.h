// One block of a quantized weight, as a file has it, in floats: the formats as ggml defines them.
#pragma once

#include "storage.h"

namespace ISA {

static inline float half_at(const uint8_t* block) {
    uint16_t half;
    memcpy(&half, block, 2);
    return widened_half(half);
}

// Four bits each: the low halves of some bytes, then the high ones.
static inline void decode_nibbles(const uint8_t* packed, int count, float scale, float offset, float* to) {
    for (int i = 0; i < count; i++) {
        to[i] = float(packed[i] & 15) * scale + offset;
        to[count + i] = float(packed[i] >> 4) * scale + offset;
    }
}

// Scale and minimum of group `g` of Q4_K and Q5_K, 6 bits each.
static inline void group_scales(const uint8_t* packed, int g, float& scale, float& minimum) {
    if (g < 4) {
        scale = float(packed[g] & 63);
        minimum = float(packed[g + 4] & 63);
    } else {
        scale = float((packed[g + 4] & 15) | (packed[g - 4] >> 2 & 48));
        minimum = float(packed[g + 4] >> 4 | (packed[g] >> 2 & 48));
    }
}

static inline void decode_q45k(const uint8_t* block, bool fifth, float* to) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t *bits = block + 16, *low = block + (fifth ? 48 : 16);
    for (int g = 0; g < 8; g++) {
        float scale, minimum;
        group_scales(block + 4, g, scale, minimum);
        const float factor = d * scale, offset = dmin * minimum;
        for (int i = 0; i < 32; i++) {
            const uint8_t byte = low[32 * (g / 2) + i];
            int value = g % 2 ? byte >> 4 : byte & 15;
            if (fifth) value |= (bits[i] >> g & 1) << 4;
            to[32 * g + i] = float(value) * factor - offset;
        }
    }
}

static inline void decode_q6k(const uint8_t* block, float* to) {
    const float d = half_at(block + 208);
    const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, part = i / 32 % 4, place = i % 32;
        const uint8_t byte = block[64 * half + 32 * (part % 2) + place];
        const int upper = block[128 + 32 * half + place] >> 2 * part & 3;
        const int value = (part < 2 ? byte & 15 : byte >> 4) | upper << 4;
        to[i] = float(value - 32) * (d * float(scales[i / 16]));
    }
}

static inline void decode_block(int64_t format, const uint8_t* block, float* to) {
    const float scale = half_at(block);
    switch (format) {
        case Q8_0:
            for (int i = 0; i < 32; i++) to[i] = float(int8_t(block[2 + i])) * scale;
            return;
        case Q4_0: return decode_nibbles(block + 2, 16, scale, -8 * scale, to);
        case Q4_1: return decode_nibbles(block + 4, 16, scale, half_at(block + 2), to);
        case Q4_K: return decode_q45k(block, false, to);
        case Q5_K: return decode_q45k(block, true, to);
        default: return decode_q6k(block, to);
    }
}

}  // namespace ISA
