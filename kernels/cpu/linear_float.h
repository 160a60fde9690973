// Products with a weight in float32, float16 or bfloat16, row by row as it lies in memory.
//
// A tile is four rows of the weight times a few rows of x, all sums in registers: each value that is
// loaded is used three or four times, and the sums of a row's lanes are added up once at its end. The four rows lie
// far from each other (STREAMS), which reads the weight at the speed of memory. They stay in the first-level
// cache while the rows of x pass by, for which 16-bit ones are widened once if there are many.
#pragma once

#include "linear.h"

namespace ISA {

// Rows of x in a tile: with STREAMS rows of the weight, as many sums as there are registers for.
constexpr int TILE_ROWS = ISA_LEVEL == ISA_AVX512 || ISA_LEVEL == ISA_NEON ? 6 : 3;

// OUTS rows of a weight that lie `apart` values, and their outputs `to_apart`, from each other.
template <class Element>
struct Strip {
    const Element* weight;
    int64_t apart;
    float* to;
    int64_t to_apart, pitch;
};

// Values whose products are added up alone, so that few are added to a large sum.
constexpr int64_t SUMMED_APART = 256;

// The products of the values from `from` to before `to`, a whole number of steps, are added to `totals`.
template <class Kind, int OUTS, int ROWS, int PARTS>
static inline void add_products(const Strip<typename Kind::Element>& strip, const float* x, int64_t width,
                                int64_t from, int64_t to, Floats (&totals)[OUTS][ROWS]) {
    Floats sums[OUTS][ROWS][PARTS] = {};
    for (int64_t i = from; i < to; i += PARTS * LANES) {
        UNROLLED for (int o = 0; o < OUTS; o++)
            prefetch(strip.weight + o * strip.apart + i, PARTS * LANES * sizeof(typename Kind::Element));
        UNROLLED for (int p = 0; p < PARTS; p++) {
            Floats known[ROWS];
            UNROLLED for (int r = 0; r < ROWS; r++) known[r] = load(x + r * width + i + p * LANES);
            UNROLLED for (int o = 0; o < OUTS; o++) {
                const Floats factor = Kind::load(strip.weight + o * strip.apart + i + p * LANES);
                UNROLLED for (int r = 0; r < ROWS; r++) sums[o][r][p] += factor * known[r];
            }
        }
    }
    UNROLLED for (int o = 0; o < OUTS; o++)
        UNROLLED for (int r = 0; r < ROWS; r++)
            UNROLLED for (int p = 0; p < PARTS; p++) totals[o][r] += sums[o][r][p];
}

template <class Kind, int OUTS, int ROWS>
static inline void tile(const Strip<typename Kind::Element>& strip, const float* x, int64_t width, float* to) {
    constexpr int PARTS = ROWS > 1 ? 1 : OUTS > 1 ? 2 : 4;  // sums of an output, so that none waits for another
    const int64_t last = width / (PARTS * LANES) * (PARTS * LANES);
    Floats totals[OUTS][ROWS] = {};
    for (int64_t i = 0; i < last; i += SUMMED_APART)
        add_products<Kind, OUTS, ROWS, PARTS>(strip, x, width, i, least(last, i + SUMMED_APART), totals);
    for (int o = 0; o < OUTS; o++) {
        for (int r = 0; r < ROWS; r++) {
            float total = sum(totals[o][r]);
            for (int64_t j = last; j < width; j++)
                total += Kind::value(strip.weight[o * strip.apart + j]) * x[r * width + j];
            to[r * strip.pitch + o * strip.to_apart] = total;
        }
    }
}

// The same for `rows` rows of x, a tile at a time.
template <class Kind, int OUTS>
static inline void tiles(const Strip<typename Kind::Element>& strip, const float* x, int64_t width, int64_t rows) {
    float* to = strip.to;
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS, to += TILE_ROWS * strip.pitch)
        tile<Kind, OUTS, TILE_ROWS>(strip, x + r * width, width, to);
    for (; r + 2 <= rows; r += 2, to += 2 * strip.pitch) tile<Kind, OUTS, 2>(strip, x + r * width, width, to);
    if (r < rows) tile<Kind, OUTS, 1>(strip, x + r * width, width, to);
}

template <class Kind>
struct FloatWeight {
    typedef typename Kind::Element Element;
    const Element* weight;
    const float* x;
    int64_t rows, width;
    float* wide;  // room for STREAMS rows

    // `count` outputs from `first` on.
    void product(int64_t first, int64_t count, float* to, int64_t pitch) {
        const Element* own = weight + first * width;
        const int64_t each = count / STREAMS;
        const bool widening = sizeof(Element) == 2 && rows > TILE_ROWS;
        for (int64_t o = 0; o < each; o++) {
            const Element* some = own + o * width;
            if (widening) {
                for (int s = 0; s < STREAMS; s++) widen(some + s * each * width, wide + s * width);
                tiles<Float32, STREAMS>({wide, width, to + o, each, pitch}, x, width, rows);
            } else {
                tiles<Kind, STREAMS>({some, each * width, to + o, each, pitch}, x, width, rows);
            }
        }
        for (int64_t o = STREAMS * each; o < count; o++)
            tiles<Kind, 1>({own + o * width, 0, to + o, 0, pitch}, x, width, rows);
    }

    void widen(const Element* from, float* to) {
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            prefetch(from + i, LANES * sizeof *from);
            store(to + i, Kind::load(from + i));
        }
        for (; i < width; i++) to[i] = Kind::value(from[i]);
    }
};

template <class Kind>
static void multiply_floats(const LinearArguments& a, Thread& thread) {
    const int64_t room = few_room(a);
    float* own = static_cast<float*>(thread.scratch(size_t(4 * (room + STREAMS * a.width))));
    FloatWeight<Kind> weight{static_cast<const typename Kind::Element*>(a.weight), a.x, a.rows, a.width, own + room};
    multiply_few(a, thread, weight, own);
}

}  // namespace ISA
