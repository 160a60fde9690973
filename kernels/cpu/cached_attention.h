// The parts of attention through a cache: how keys and values are stored, and two small products.
#pragma once

#include "storage.h"

namespace ISA {

// Asks for memory early: what a processor foresees by itself ends with a page, which is 16 keys of 64 floats.
static inline void ask_for(const void* from, int64_t bytes) {
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(from) + b);
}

// Keys or values of one head, of one cache. `load` and `value` read numbers i on of place `at`, `ask` asks for
// a place early, `put` writes one. Strides are in elements.

template <class Kind>
struct PlainStore {
    typedef typename Kind::Element Element;
    Element* numbers;
    int64_t pitch;

    static PlainStore of(void* numbers, void*, int64_t place, int64_t, int64_t, int64_t pitch, int64_t) {
        return {static_cast<Element*>(numbers) + place, pitch};
    }
    const Element* row(int64_t at) const { return numbers + at * pitch; }
    Floats load(int64_t at, int64_t i) const { return Kind::load(row(at) + i); }
    float value(int64_t at, int64_t i) const { return Kind::value(row(at)[i]); }
    void ask(int64_t at, int64_t width) const { ask_for(row(at), width * int64_t(sizeof(Element))); }
    void put(int64_t at, const float* from, int64_t width) const {
        Element* to = numbers + at * pitch;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) Kind::store(to + i, ISA::load(from + i));
        for (; i < width; i++) to[i] = Kind::narrowed(from[i]);
    }
};

// 8 bits: 32 neighbours share a scale in float16, or all of a head whose width 32 does not divide
// (quantized/cache.py).
struct EightBitStore {
    int8_t* numbers;
    uint16_t* scales;
    int64_t pitch, scale_pitch, group;

    static EightBitStore of(void* numbers, void* scales, int64_t place, int64_t scale_place, int64_t width,
                            int64_t pitch, int64_t scale_pitch) {
        return {static_cast<int8_t*>(numbers) + place, static_cast<uint16_t*>(scales) + scale_place,
                pitch, scale_pitch, width % 32 ? width : 32};
    }
    float scale(int64_t at, int64_t i) const {
        return widened_half(scales[at * scale_pitch + i / group]);
    }
    Floats load(int64_t at, int64_t i) const {
        typedef int8_t Small __attribute__((vector_size(LANES)));
        Small small;
        memcpy(&small, numbers + at * pitch + i, sizeof small);
        return __builtin_convertvector(small, Floats) * scale(at, i);
    }
    float value(int64_t at, int64_t i) const { return float(numbers[at * pitch + i]) * scale(at, i); }
    void ask(int64_t at, int64_t width) const {
        ask_for(numbers + at * pitch, width);
        ask_for(scales + at * scale_pitch, 2 * (width / group));
    }
    void put(int64_t at, const float* from, int64_t width) const {
        for (int64_t first = 0; first < width; first += group) put_group(at, from, first);
    }
    void put_group(int64_t at, const float* from, int64_t first) const {
        float top = 0;
        for (int64_t i = first; i < first + group; i++) {
            const float size = from[i] < 0 ? -from[i] : from[i];
            if (size > top || size != size) top = size;  // NaN stays
            if (top != top) break;
        }
        const uint16_t half = narrowed_half(top / 127.0f);
        scales[at * scale_pitch + first / group] = half;
        const float wide = widened_half(half), inverse = wide > 0 ? 1.0f / wide : 0.0f;
        for (int64_t i = first; i < first + group; i++) {
            const float scaled = from[i] * inverse;
            const float inside = scaled > 127 ? 127 : scaled < -127 ? -127 : scaled == scaled ? scaled : 0;
            numbers[at * pitch + i] = int8_t(int32_t(inside + 12582912.0f - 12582912.0f));
        }
    }
};

// Scores of ROWS queries (`pitch` apart) with KEYS keys from place `at` on: to (rows, to_pitch).
template <int KEYS, int ROWS, class Store>
static inline void scores_of(const Store& keys, int64_t at, const float* queries, int64_t width,
                             float scale, float* to, int64_t to_pitch) {
    Floats sums[KEYS][ROWS] = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats query[ROWS];
        UNROLLED for (int r = 0; r < ROWS; r++) query[r] = load(queries + r * width + i);
        UNROLLED for (int k = 0; k < KEYS; k++) {
            const Floats key = keys.load(at + k, i);
            UNROLLED for (int r = 0; r < ROWS; r++) sums[k][r] += key * query[r];
        }
    }
    UNROLLED for (int r = 0; r < ROWS; r++) {
        float totals[KEYS];
        if constexpr (KEYS == 4) {
            const Floats4 four = ISA::sums(sums[0][r], sums[1][r], sums[2][r], sums[3][r]);
            memcpy(totals, &four, sizeof four);
        } else {
            for (int k = 0; k < KEYS; k++) totals[k] = sum(sums[k][r]);
        }
        for (int k = 0; k < KEYS; k++) {
            for (int64_t j = i; j < width; j++)
                totals[k] += keys.value(at + k, j) * queries[r * width + j];
            to[r * to_pitch + k] = totals[k] * scale;
        }
    }
}

// If `asking`, it asks meanwhile for the keys of the next block, and for the values of this one, which come next.
template <int ROWS, class Store>
static inline void score_rows(const Store& keys, const Store& values, bool asking, int64_t first, int64_t last, const float* queries,
                              int64_t width, float scale, float* to, int64_t to_pitch) {
    int64_t at = first;
    for (; at + 4 <= last; at += 4) {
        for (int k = 0; asking && k < 4; k++) {
            keys.ask(at + k + last - first, width);
            values.ask(at + k, width);
        }
        scores_of<4, ROWS>(keys, at, queries, width, scale, to + at - first, to_pitch);
    }
    for (; at < last; at++)
        scores_of<1, ROWS>(keys, at, queries, width, scale, to + at - first, to_pitch);
}

// to (rows, to_pitch) += weights (rows, pitch) times the values of places `first` to `last`, for numbers i on.
template <int VECTORS, int ROWS, class Store>
static inline void mix(const Store& values, int64_t first, int64_t last, const float* weights,
                       int64_t pitch, int64_t i, float* to, int64_t to_pitch) {
    Floats sums[ROWS][VECTORS];
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int v = 0; v < VECTORS; v++) sums[r][v] = load(to + r * to_pitch + i + v * LANES);
    for (int64_t at = first; at < last; at++) {
        Floats value[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) value[v] = values.load(at, i + v * LANES);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            const float weight = weights[r * pitch + at - first];
            UNROLLED for (int v = 0; v < VECTORS; v++) sums[r][v] += weight * value[v];
        }
    }
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int v = 0; v < VECTORS; v++) store(to + r * to_pitch + i + v * LANES, sums[r][v]);
}

template <int ROWS, class Store>
static inline void mix_rows(const Store& values, int64_t first, int64_t last, const float* weights,
                            int64_t pitch, int64_t width, float* to, int64_t to_pitch) {
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        mix<4, ROWS>(values, first, last, weights, pitch, i, to, to_pitch);
    for (; i + LANES <= width; i += LANES)
        mix<1, ROWS>(values, first, last, weights, pitch, i, to, to_pitch);
    for (; i < width; i++)
        for (int r = 0; r < ROWS; r++)
            for (int64_t at = first; at < last; at++)
                to[r * to_pitch + i] += weights[r * pitch + at - first] * values.value(at, i);
}

}  // namespace ISA
