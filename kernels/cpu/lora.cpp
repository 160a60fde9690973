// Low-rank adapters (Hu et al. 2021) beside a linear map, for a few rows of x: out = base + scale x a^T b^T in the columns
// of each part.
//
// First x in the ranks, whose numbers threads share; behind a barrier the columns, four at a time, so that their sums
// do not wait for each other. Moved: the factors, base and out once.
#include "storage.h"

namespace ISA {

constexpr int PARTS = 3;  // query, key and value: the most that lie side by side in one weight

struct LoraArguments {
    const float* base;     // (rows, outs)
    const float* x;        // (rows, width)
    const void* a[PARTS];  // (rank, width) in `format`
    const void* b[PARTS];  // (columns, rank)
    float* low;            // (rows, rank) of each part, one behind the other
    float* out;            // (rows, outs)
    int64_t rows, width, outs, format;
    int64_t rank[PARTS];  // 0: there is no such part
    int64_t first[PARTS], last[PARTS];  // its columns
    double scale[PARTS];
};

template <class Kind>
static inline float product(const float* x, const typename Kind::Element* weight, int64_t width) {
    Floats sums[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        sums[0] += load(x + i) * Kind::load(weight + i);
        sums[1] += load(x + i + LANES) * Kind::load(weight + i + LANES);
    }
    float total = sum(sums[0] + sums[1]);
    for (; i < width; i++) total += x[i] * Kind::value(weight[i]);
    return total;
}

// Adds to `count` columns from `first` on what `low` (rank,) makes of their rows of b.
template <class Kind>
static inline void raise(const float* low, const typename Kind::Element* b, int64_t rank, int64_t count, float* to) {
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) {
        const typename Kind::Element* rows = b + c * rank;
        float sums[4] = {};
        for (int64_t i = 0; i < rank; i++)
            for (int64_t k = 0; k < 4; k++) sums[k] += low[i] * Kind::value(rows[k * rank + i]);
        for (int64_t k = 0; k < 4; k++) to[c + k] += sums[k];
    }
    for (; c < count; c++) {
        float total = 0;
        for (int64_t i = 0; i < rank; i++) total += low[i] * Kind::value(b[c * rank + i]);
        to[c] += total;
    }
}

template <class Kind>
static void adapt(const LoraArguments& a, Thread& thread) {
    typedef typename Kind::Element Element;
    float* low = a.low;
    for (int p = 0; p < PARTS; low += a.rows * a.rank[p++]) {
        const Element* weight = static_cast<const Element*>(a.a[p]);
        const Span own = share(thread, a.rows * a.rank[p]);
        for (int64_t i = own.first; i < own.last; i++) {
            const int64_t row = i / a.rank[p], rank = i % a.rank[p];
            low[i] = float(a.scale[p]) * product<Kind>(a.x + row * a.width, weight + rank * a.width, a.width);
        }
    }
    thread.barrier();
    const Span own = share(thread, a.outs, 16);  // a line of the cache has one writer
    for (int64_t row = 0; row < a.rows; row++) {
        float* out = a.out + row * a.outs;
        memcpy(out + own.first, a.base + row * a.outs + own.first, 4 * size_t(own.last - own.first));
        low = a.low;
        for (int p = 0; p < PARTS; low += a.rows * a.rank[p++]) {
            const int64_t first = a.first[p] > own.first ? a.first[p] : own.first, last = least(a.last[p], own.last);
            const Element* weight = static_cast<const Element*>(a.b[p]) + (first - a.first[p]) * a.rank[p];
            if (first < last) raise<Kind>(low + row * a.rank[p], weight, a.rank[p], last - first, out + first);
        }
    }
}

static void lora(const LoraArguments& a, Thread& thread) {
    switch (a.format) {
        case FLOAT32: return adapt<Float32>(a, thread);
        case FLOAT16: return adapt<Float16>(a, thread);
        default: return adapt<BFloat16>(a, thread);
    }
}

}  // namespace ISA

OPERATION(lora, LoraArguments)
