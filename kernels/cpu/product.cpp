// product and column_sums: what the gradients of a linear map are made of.
#include "product.h"

namespace ISA {

struct ProductArguments {
    const float *left, *right;  // (rows, depth) and (depth, columns), anyhow in memory
    float* out;                 // (rows, columns)
    int64_t rows, columns, depth;
    int64_t left_row, left_column;  // from one row or column to the next; one of each pair is 1
    int64_t right_row, right_column;
};

static void product(const ProductArguments& a, Thread& thread) {
    const Left left{{a.left, a.left_row, a.left_column}};
    const Right right{a.right, a.right_row, a.right_column, 8, pack_floats};
    const Result to{a.out, a.columns, a.rows, a.columns, 1};
    multiply_panels(left, right, a.depth, to, thread, [](int64_t, int64_t, int64_t, int64_t) {});
}

struct ColumnSumsArguments {
    const float* x;  // (rows, width)
    float* sums;     // (width,)
    int64_t rows, width;
};

// Values of a row at a time, and rows whose sum goes on alone: few numbers are added to a large one.
constexpr int64_t STRIPE = 256, SUMMED = 32;

static void column_sums(const ColumnSumsArguments& a, Thread& thread) {
    const Span own = share(thread, a.width, 16);
    for (int64_t first = own.first; first < own.last; first += STRIPE) {
        const int64_t count = least(STRIPE, own.last - first);
        float total[STRIPE] = {};
        for (int64_t row = 0; row < a.rows; row += SUMMED) {
            float part[STRIPE] = {};
            for (int64_t r = row; r < least(a.rows, row + SUMMED); r++)
                for (int64_t i = 0; i < count; i++) part[i] += a.x[r * a.width + first + i];
            for (int64_t i = 0; i < count; i++) total[i] += part[i];
        }
        memcpy(a.sums + first, total, 4 * size_t(count));
    }
}

}  // namespace ISA

OPERATION(product, ProductArguments)
OPERATION(column_sums, ColumnSumsArguments)
