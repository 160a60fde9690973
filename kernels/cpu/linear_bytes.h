// Many rows of x times a quantized weight: bytes times bytes, the weight taken apart once for all rows.
//
// The scheme is that of product.h for whole numbers (Goto and van de Geijn 2008). A panel, some outputs of the
// weight, lies in the first-level cache as plain bytes, four of each output side by side, and behind those of each
// part of a block their scales (and offsets) as floats. The rows of x, in 8 bits, pass by it, BYTE_ROWS at a time,
// whose sums stay in registers: weights that were loaded are used for all of them, and four bytes of x for
// all outputs of the panel. As many rows of x as the second-level cache holds are done with before others come.
//
// A row's result depends neither on how many others there are nor on the number of threads.
#pragma once

#include "linear_quantized.h"
#include "product.h"

namespace ISA {

// Rows of x in a tile: with two vectors of outputs, as many sums as there are registers for.
constexpr int BYTE_ROWS = 4;

// Values of a row that a panel has at most, some 15 KB of it; bytes of x that stay in cache meanwhile.
constexpr int64_t PANEL_DEPTH = 768, CACHED_ROWS = 224 << 10;

template <class Kind>
struct Panel {
    typedef LaneProducts<Kind::MOST> Sums;
    static constexpr int VECTORS = 2, OUTS = VECTORS * LANES, LINE = 4 * OUTS;
    static constexpr int STEPS = Kind::PART / 4, PARTS = 32 / Kind::PART;
    static constexpr int SCALES = LINE * STEPS, OFFSETS = SCALES + 4 * OUTS;
    static constexpr int PART_BYTES = OFFSETS + (Kind::MINIMUM ? 4 * OUTS : 0);
    static constexpr int64_t BYTES = PANEL_DEPTH / Kind::PART * PART_BYTES;

    uint8_t* memory;
    int64_t first, blocks;  // of a row, 32 values each

    // Copies them from the groups of eight outputs from `group` on, `bytes` from one to the next. What is missing
    // to OUTS is left as it is: nobody asks for its sums.
    void fill(const uint8_t* group, int64_t groups, int64_t bytes) const {
        for (int64_t g = 0; g < groups; g++, group += bytes) {
            const uint8_t* from = group + first / Kind::SPAN * Kind::BYTES;
            uint8_t* to = memory;
            for (int64_t b = 0; b < blocks; b += Kind::SPAN, from += Kind::BYTES) {
                UNROLLED_16 for (int part = 0; part < Kind::SPAN * PARTS; part++, to += PART_BYTES) {
                    UNROLLED for (int v = 0; v < STEPS; v++) {
                        const Bytes four = Kind::values(from, part, v);
                        memcpy(to + LINE * v + 4 * GROUP * g, &four, sizeof four);
                    }
                    Floats8 scale, offset;
                    Kind::scales(from, part, scale, offset);
                    memcpy(to + SCALES + 4 * GROUP * g, &scale, sizeof scale);
                    if (Kind::MINIMUM) memcpy(to + OFFSETS + 4 * GROUP * g, &offset, sizeof offset);
                }
            }
        }
    }

    // Adds the products of block `b` of a tile, from its bytes here.
    template <int ROWS>
    static inline void add(const uint8_t* from, const Tile<ROWS>& x, int64_t b, Floats (&sums)[ROWS][VECTORS]) {
        constexpr int TOGETHER = least(Sums::TOGETHER, STEPS);
        UNROLLED for (int part = 0; part < PARTS; part++, from += PART_BYTES) {
            Sums products[ROWS][VECTORS];
            const auto steps = [&](int first) __attribute__((always_inline)) {
                UNROLLED for (int v = first; v < first + TOGETHER; v++) {
                    LaneBytes weights[VECTORS];
                    UNROLLED for (int c = 0; c < VECTORS; c++)
                        memcpy(weights + c, from + LINE * v + 4 * LANES * c, sizeof *weights);
                    UNROLLED for (int r = 0; r < ROWS; r++) {
                        const int32_t word = x.word(r, b, part * STEPS + v);
                        UNROLLED for (int c = 0; c < VECTORS; c++) products[r][c].add(weights[c], word);
                    }
                }
                UNROLLED for (int r = 0; r < ROWS; r++)
                    UNROLLED for (int c = 0; c < VECTORS; c++) products[r][c].fold();
            };
            if constexpr (TOGETHER == 1)  // short steps: more code would not be faster
                for (int v = 0; v < STEPS; v++) steps(v);
            else
                UNROLLED for (int v = 0; v < STEPS; v += TOGETHER) steps(v);
            const float* scales = reinterpret_cast<const float*>(from + SCALES);
            UNROLLED for (int r = 0; r < ROWS; r++) {
                const Rounded& own = x.block(r, b);
                const int32_t whole = PARTS == 1 ? own.whole() : own.halves[part];
                UNROLLED for (int c = 0; c < VECTORS; c++) {
                    const Ints total = products[r][c].total(whole) - Kind::CENTRE * whole;
                    sums[r][c] += __builtin_convertvector(total, Floats) * (load(scales + c * LANES) * own.scale);
                    if (Kind::MINIMUM) sums[r][c] += load(scales + OUTS + c * LANES) * own.sum;
                }
            }
        }
    }

    // to (rows, outs) = or += the products of at most ROWS rows of x. Not inlined, so that GCC keeps the sums in
    // registers.
    template <int ROWS>
    __attribute__((noinline)) void tile(const RoundedRows& x, Rows rows, int64_t outs, float* to,
                                        int64_t pitch) const {
        const Tile<ROWS> some(x, rows);
        Floats sums[ROWS][VECTORS] = {};
        UNROLLED for (int r = 0; r < ROWS; r++)
            UNROLLED for (int c = 0; c < VECTORS; c++)
                if (first > 0 && r < rows.count && c * LANES < outs)
                    sums[r][c] = load_some(to + r * pitch + c * LANES, outs - c * LANES);
        for (int64_t b = 0; b < blocks; b++) add<ROWS>(memory + b * PARTS * PART_BYTES, some, first + b, sums);
        UNROLLED for (int r = 0; r < ROWS; r++)
            UNROLLED for (int c = 0; c < VECTORS; c++)
                if (r < rows.count && c * LANES < outs)
                    store_some(to + r * pitch + c * LANES, sums[r][c], outs - c * LANES);
    }

    // The same for any number of rows: in fours, and in threes what would leave a few over.
    void product(const RoundedRows& x, Rows rows, int64_t outs, float* to, int64_t pitch) const {
        for (int64_t r = 0, some; r < rows.count; r += some) {
            const int64_t left = rows.count - r, first = rows.first + r;
            some = left % BYTE_ROWS && left <= 3 * (BYTE_ROWS - 1) ? BYTE_ROWS - 1 : BYTE_ROWS;
            const Rows here{first, least(some, left)};
            if (some == BYTE_ROWS) tile<BYTE_ROWS>(x, here, outs, to + r * pitch, pitch);
            else tile<BYTE_ROWS - 1>(x, here, outs, to + r * pitch, pitch);
        }
    }
};

// A thread's view of an operation.
template <class Kind>
struct ByteProduct {
    typedef Panel<Kind> Part;
    const LinearArguments& a;
    RoundedRows x;
    Part panel;
    float* room;  // (rows, 2 OUTS) if the activation is gated

    // Outputs of the weight from `first` on, to (rows, count).
    void multiply(int64_t first, int64_t count, Rows rows, float* to, int64_t pitch) {
        const int64_t all = a.width / 32 / Kind::SPAN, bytes = all * Kind::BYTES;
        const int64_t parts = (a.width + PANEL_DEPTH - 1) / PANEL_DEPTH;
        const uint8_t* group = static_cast<const uint8_t*>(a.weight) + first / GROUP * bytes;
        for (int64_t part = 0; part < parts; part++) {
            const Span own = share(Thread{part, parts, nullptr}, all);
            panel.first = own.first * Kind::SPAN, panel.blocks = (own.last - own.first) * Kind::SPAN;
            panel.fill(group, (count + GROUP - 1) / GROUP, bytes);
            panel.product(x, rows, count, to, pitch);
        }
    }

    void run(Rows rows, Span outs) {
        const bool gated = is_gated(a.activation);
        const bool plain = a.activation == NONE && !a.bias && !a.residual;
        for (int64_t first = outs.first; first < outs.last; first += Part::OUTS) {
            const int64_t count = least(Part::OUTS, outs.last - first);
            float *to = a.out + rows.first * a.pitch + first, *up = nullptr;
            int64_t pitch = a.pitch;
            if (gated) to = room, up = room + Part::OUTS, pitch = 2 * Part::OUTS;
            multiply(first, count, rows, to, pitch);
            if (gated) multiply(a.outs / 2 + first, count, rows, up, pitch);
            if (!plain) finish(a, rows, first, count, to, up, pitch);
        }
    }
};

template <class Kind>
static void multiply_bytes(const LinearArguments& a, Thread& thread) {
    typedef Panel<Kind> Part;
    const RoundedRows x = rounded_rows(a, thread);
    Span rows, outs;
    grid_of(thread, a.rows, BYTE_ROWS, is_gated(a.activation) ? a.outs / 2 : a.outs, Part::OUTS, rows, outs);
    const int64_t cached = least(rows.last - rows.first, 32 + CACHED_ROWS / x.pitch);
    uint8_t* own = static_cast<uint8_t*>(thread.scratch(size_t(Part::BYTES + 4 * cached * 2 * Part::OUTS)));
    ByteProduct<Kind> product{a, x, {own, 0, 0}, reinterpret_cast<float*>(own + Part::BYTES)};
    for (int64_t row = rows.first; row < rows.last; row += cached)
        product.run({row, least(cached, rows.last - row)}, outs);
}

}  // namespace ISA
