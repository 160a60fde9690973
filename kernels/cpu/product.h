// Products of matrices with many rows each: every value is used hundreds of times, so what counts is that
// the arithmetic never waits.
//
// The scheme is that of Goto and van de Geijn (2008) as BLIS has it. A tile of the result, PANEL_ROWS by
// PANEL_COLUMNS, stays in registers while `depth` products are added to it; what it needs lies in two panels that
// were copied ("packed") into the order in which it is read. A panel of the right matrix stays in the
// first-level cache while the panels of a block of the left one, which stays in the second, pass by. The right
// panels are packed once, from whatever format the matrix has; a left one once per RIGHT_COLUMNS columns.
//
// Each thread has a part of the result of its own, and packs what it needs: nobody waits.
#pragma once

#include "storage.h"

namespace ISA {

// As many sums as there are registers for, less those of the operands.
#if ISA_LEVEL == ISA_AVX512 || ISA_LEVEL == ISA_NEON
constexpr int PANEL_ROWS = 12;
#elif ISA_LEVEL == ISA_AVX2
constexpr int PANEL_ROWS = 6;
#else
constexpr int PANEL_ROWS = 4;
#endif
constexpr int PANEL_COLUMNS = 2 * LANES;
// Of a block: left rows, right columns (with DEEPEST 2 MB), and products that a tile adds up at a time.
constexpr int64_t LEFT_ROWS = 144, RIGHT_COLUMNS = 1024, DEPTH = 384, DEEPEST = 512;
static_assert(LEFT_ROWS % PANEL_ROWS == 0 && RIGHT_COLUMNS % PANEL_COLUMNS == 0);

#define UNROLLED_ROWS _Pragma("GCC unroll 12")

// A matrix of floats, read through strides.
struct View {
    const float* at;
    int64_t row, column;
};

typedef float Quad __attribute__((vector_size(16)));

// 4 rows of 4 values, `pitch` apart, to columns.
static inline void turn(const float* from, int64_t pitch, float* to, int64_t to_pitch) {
    Quad r[4];
    for (int i = 0; i < 4; i++) memcpy(r + i, from + i * pitch, 16);
    const Quad a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const Quad b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const Quad c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const Quad d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
    for (int i = 0; i < 4; i++) memcpy(to + i * to_pitch, r + i, 16);
}

// A panel of SIZE rows, of which there are `count`, each `depth` values long: to[k][row]. Missing ones are 0.
template <int SIZE>
static inline void pack_rows(const float* from, int64_t pitch, int64_t count, int64_t depth, float* to) {
    int64_t row = 0;
    for (; SIZE % 4 == 0 && row + 4 <= count; row += 4) {
        int64_t k = 0;
        for (; k + 4 <= depth; k += 4) turn(from + row * pitch + k, pitch, to + k * SIZE + row, SIZE);
        for (; k < depth; k++)
            for (int i = 0; i < 4; i++) to[k * SIZE + row + i] = from[(row + i) * pitch + k];
    }
    for (; row < count; row++)
        for (int64_t k = 0; k < depth; k++) to[k * SIZE + row] = from[row * pitch + k];
    for (; row < SIZE; row++)
        for (int64_t k = 0; k < depth; k++) to[k * SIZE + row] = 0;
}

// The same of `depth` rows that are SIZE values long.
template <int SIZE>
static inline void pack_columns(const float* from, int64_t pitch, int64_t count, int64_t depth, float* to) {
    for (int64_t k = 0; k < depth; k++, from += pitch, to += SIZE) {
        if (count == SIZE) {
            memcpy(to, from, 4 * SIZE);
        } else {
            for (int64_t i = 0; i < SIZE; i++) to[i] = i < count ? from[i] : 0.0f;
        }
    }
}

struct Left : View {  // (rows, depth)
    // Writes the panel of `count` rows from `first` on, and of `depth` columns from `k` on.
    void pack(int64_t first, int64_t count, int64_t k, int64_t depth, float* to) const {
        const float* from = at + first * row + k * column;
        if (column == 1) pack_rows<PANEL_ROWS>(from, row, count, depth, to);
        else pack_columns<PANEL_ROWS>(from, column, count, depth, to);
    }
};

// (depth, columns) in any format: `pack` writes the panel of `count` columns from `first` on, and of `depth`
// rows from `k` on, and may use `room` for as many values. It is called with whole multiples of `grain` for k.
struct Right {
    const void* at;
    int64_t row, column;
    int64_t grain;
    void (*pack)(const Right& own, int64_t first, int64_t count, int64_t k, int64_t depth, float* to,
                 float* room);
};

static void pack_floats(const Right& own, int64_t first, int64_t count, int64_t k, int64_t depth,
                        float* to, float*) {
    const float* from = static_cast<const float*>(own.at) + first * own.column + k * own.row;
    if (own.column == 1) pack_columns<PANEL_COLUMNS>(from, own.row, count, depth, to);
    else pack_rows<PANEL_COLUMNS>(from, own.column, count, depth, to);
}

// One tile: to (rows, columns) = or += left right. Not inlined, so that GCC keeps the sums in registers.
__attribute__((noinline)) static void panel_tile(const float* left, const float* right, int64_t depth,
                                           float* to, int64_t pitch, int64_t rows, int64_t columns,
                                           bool more) {
    Floats sums[PANEL_ROWS][2] = {};
    for (int64_t r = 0; r < rows; r++) __builtin_prefetch(to + r * pitch, 1);
    for (int64_t k = 0; k < depth; k++) {
        const Floats first = load(right), second = load(right + LANES);
        UNROLLED_ROWS for (int r = 0; r < PANEL_ROWS; r++) {
            sums[r][0] += left[r] * first;
            sums[r][1] += left[r] * second;
        }
        left += PANEL_ROWS;
        right += PANEL_COLUMNS;
    }
    if (rows == PANEL_ROWS && columns == PANEL_COLUMNS) {
        UNROLLED_ROWS for (int r = 0; r < PANEL_ROWS; r++) {
            float* row = to + r * pitch;
            if (more) sums[r][0] += load(row), sums[r][1] += load(row + LANES);
            store(row, sums[r][0]);
            store(row + LANES, sums[r][1]);
        }
        return;
    }
    float all[PANEL_ROWS][PANEL_COLUMNS];
    memcpy(all, sums, sizeof all);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++)
            to[r * pitch + i] = all[r][i] + (more ? to[r * pitch + i] : 0.0f);
}

// Where a product goes: `halves` matrices of `columns` columns beside each other, worked on in step.
struct Result {
    float* at;
    int64_t pitch, rows, columns, halves;
};

static inline int64_t rounded_up(int64_t count, int64_t grain) {
    return (count + grain - 1) / grain * grain;
}

// Products of a tile at a time: equal parts of all of them, in whole multiples of `grain`.
static inline int64_t depth_of(int64_t all, int64_t grain) {
    const int64_t parts = (all + DEPTH - 1) / DEPTH;
    return rounded_up((all + parts - 1) / parts, grain);
}

// Rows and columns of a result that are this thread's: a grid of parts as square as can be, in whole tiles.
static inline void grid_of(const Thread& thread, int64_t rows, int64_t row_tile, int64_t columns, int64_t column_tile,
                           Span& own_rows, Span& own_columns) {
    int64_t best = 1, least_sum = -1;
    for (int64_t down = 1; down <= thread.count; down++) {
        if (thread.count % down) continue;
        const int64_t sum = rows / down + columns / (thread.count / down);
        if (least_sum < 0 || sum < least_sum) best = down, least_sum = sum;
    }
    const int64_t across = thread.count / best;
    own_rows = share(Thread{thread.index / across, best, nullptr}, rows, row_tile);
    own_columns = share(Thread{thread.index % across, across, nullptr}, columns, column_tile);
}

// to = left right, over `all` products. `finish(row, rows, column, columns)` is called for what is done.
template <class Finish>
static inline void multiply_panels(const Left& left, const Right& right, int64_t all, const Result& to,
                                   Thread& thread, Finish finish) {
    Span rows, columns;
    grid_of(thread, to.rows, PANEL_ROWS, to.columns, PANEL_COLUMNS, rows, columns);
    float* own = static_cast<float*>(thread.scratch(
        4 * (DEEPEST * (RIGHT_COLUMNS + LEFT_ROWS) + PANEL_COLUMNS * DEEPEST)));
    float *rights = own, *lefts = own + DEEPEST * RIGHT_COLUMNS, *room = lefts + DEEPEST * LEFT_ROWS;
    const int64_t step = depth_of(all, right.grain), width = RIGHT_COLUMNS / to.halves;
    for (int64_t column = columns.first; column < columns.last; column += width) {
        const int64_t end = least(columns.last, column + width);
        for (int64_t k = 0; k < all; k += step) {
            const int64_t depth = least(step, all - k), size = depth * PANEL_COLUMNS;
            float* panel = rights;
            for (int64_t j = column; j < end; j += PANEL_COLUMNS)
                for (int64_t half = 0; half < to.halves; half++, panel += size)
                    right.pack(right, half * to.columns + j, least(PANEL_COLUMNS, end - j), k, depth,
                               panel, room);
            for (int64_t row = rows.first; row < rows.last; row += LEFT_ROWS) {
                const int64_t count = least(LEFT_ROWS, rows.last - row);
                for (int64_t i = 0; i < count; i += PANEL_ROWS)
                    left.pack(row + i, least(PANEL_ROWS, count - i), k, depth, lefts + i * depth);
                panel = rights;
                for (int64_t j = column; j < end; j += PANEL_COLUMNS) {
                    const int64_t some = least(PANEL_COLUMNS, end - j);
                    for (int64_t half = 0; half < to.halves; half++, panel += size)
                        for (int64_t i = 0; i < count; i += PANEL_ROWS)
                            panel_tile(lefts + i * depth, panel, depth,
                                 to.at + (row + i) * to.pitch + half * to.columns + j, to.pitch,
                                 least(PANEL_ROWS, count - i), some, k > 0);
                    if (k + depth == all) finish(row, count, j, some);
                }
            }
        }
    }
}

}  // namespace ISA
