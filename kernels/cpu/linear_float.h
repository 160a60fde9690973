// Products with a weight in float32, float16 or bfloat16, row by row as it lies in memory.
//
// A tile is four rows of the weight times a few rows of x, all sums in registers: each value that is
// loaded is used three or four times, and the sums of a row's lanes are added up once at its end. For one row of x
// that reads the weight at the speed of memory. For many rows the four rows of the weight (9 KB at a width
// of 576) stay in the first-level cache while the rows of x pass by, and 16-bit ones are widened once for all of
// a block of rows.
#pragma once

#include "linear.h"

namespace ISA {

// Rows of x in a tile: with four rows of the weight, as many sums as there are registers for.
constexpr int TILE_OUTS = 4, TILE_ROWS = ISA_LEVEL == ISA_AVX512 || ISA_LEVEL == ISA_NEON ? 6 : 3;

template <class Kind, int OUTS, int ROWS>
static inline void tile(const typename Kind::Element* weight, const float* x, int64_t width,
                        float* to, int64_t pitch) {
    Floats sums[OUTS][ROWS] = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats known[ROWS];
        for (int r = 0; r < ROWS; r++) known[r] = load(x + r * width + i);
        for (int o = 0; o < OUTS; o++) {
            const Floats factor = Kind::load(weight + o * width + i);
            for (int r = 0; r < ROWS; r++) sums[o][r] += factor * known[r];
        }
    }
    for (int o = 0; o < OUTS; o++) {
        for (int r = 0; r < ROWS; r++) {
            float total = sum(sums[o][r]);
            for (int64_t j = i; j < width; j++)
                total += Kind::value(weight[o * width + j]) * x[r * width + j];
            to[r * pitch + o] = total;
        }
    }
}

// One row of x times rows of a weight that lie `apart` values, and their outputs `to_apart`, from each other.
template <class Kind, int OUTS>
static inline void dots(const typename Kind::Element* weight, int64_t apart, const float* x, int64_t width,
                        float* to, int64_t to_apart) {
    constexpr int PARTS = OUTS > 1 ? 2 : 4;  // sums of a row, so that none waits for another
    Floats sums[OUTS][PARTS] = {};
    int64_t i = 0;
    for (; i + PARTS * LANES <= width; i += PARTS * LANES) {
        UNROLLED for (int o = 0; o < OUTS; o++)
            prefetch(weight + o * apart + i, PARTS * LANES * sizeof(*weight));
        UNROLLED for (int p = 0; p < PARTS; p++) {
            const Floats known = load(x + i + p * LANES);
            UNROLLED for (int o = 0; o < OUTS; o++)
                sums[o][p] += Kind::load(weight + o * apart + i + p * LANES) * known;
        }
    }
    for (int o = 0; o < OUTS; o++) {
        Floats all = sums[o][0];
        for (int p = 1; p < PARTS; p++) all += sums[o][p];
        float total = sum(all);
        for (int64_t j = i; j < width; j++) total += Kind::value(weight[o * apart + j]) * x[j];
        to[o * to_apart] = total;
    }
}

// OUTS rows of a weight times `rows` rows of x, a tile at a time.
template <class Kind, int OUTS>
static inline void strip(const typename Kind::Element* weight, const float* x, int64_t width,
                         int64_t rows, float* to, int64_t pitch) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        tile<Kind, OUTS, TILE_ROWS>(weight, x + r * width, width, to + r * pitch, pitch);
    for (; r + 2 <= rows; r += 2)
        tile<Kind, OUTS, 2>(weight, x + r * width, width, to + r * pitch, pitch);
    if (r < rows) tile<Kind, OUTS, 1>(weight, x + r * width, width, to + r * pitch, pitch);
}

template <class Kind>
struct FloatWeight {
    typedef typename Kind::Element Element;
    const Element* weight;
    const float* x;
    int64_t width;
    float* wide;  // room for TILE_OUTS rows

    void product(int64_t first, int64_t count, Rows rows, float* to, int64_t pitch) {
        const float* given = x + rows.first * width;
        const bool widening = sizeof(Element) == 2 && rows.count > TILE_ROWS;
        int64_t o = 0;
        for (; o + TILE_OUTS <= count; o += TILE_OUTS) {
            const Element* some = weight + (first + o) * width;
            if (widening) {
                widen(some, TILE_OUTS * width);
                strip<Float32, TILE_OUTS>(wide, given, width, rows.count, to + o, pitch);
            } else {
                strip<Kind, TILE_OUTS>(some, given, width, rows.count, to + o, pitch);
            }
        }
        for (; o < count; o++)
            strip<Kind, 1>(weight + (first + o) * width, given, width, rows.count, to + o, pitch);
    }

    // `count` outputs of the one row of x from `first` on.
    void row(int64_t first, int64_t count, float* to) {
        const Element* own = weight + first * width;
        const int64_t each = count / STREAMS;
        for (int64_t o = 0; o < each; o++)
            dots<Kind, STREAMS>(own + o * width, each * width, x, width, to + o, each);
        for (int64_t o = STREAMS * each; o < count; o++)
            dots<Kind, 1>(own + o * width, 0, x, width, to + o, 0);
    }

    void widen(const Element* from, int64_t count) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store(wide + i, Kind::load(from + i));
        for (; i < count; i++) wide[i] = Kind::value(from[i]);
    }
};

template <class Kind>
static void multiply_floats(const LinearArguments& a, Thread& thread) {
    const size_t room = a.rows == 1 ? size_t(a.outs + 16) : BLOCK_ROWS * 2 * BLOCK_OUTS;
    float* own = static_cast<float*>(thread.scratch(4 * (room + TILE_OUTS * a.width)));
    FloatWeight<Kind> weight{static_cast<const typename Kind::Element*>(a.weight), a.x, a.width,
                             own + room};
    if (a.rows == 1) multiply_row(a, thread, weight, own);
    else multiply(a, thread, weight, own);
}

}  // namespace ISA
