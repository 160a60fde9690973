// Layer and RMS norm, each also with the residual addition in front of it, and the norm of packed heads: a row at a
// time.
//
// A row is read once from memory; its sum of squares and the result find it in the first-level cache
// (of up to 8192 floats). Moved: x, the residual where there is one, and what is written, once each. The
// layer norm takes the mean off before it squares, so that states far from 0 lose nothing.
#include "storage.h"

namespace ISA {

struct NormArguments {
    const float* x;         // (rows, width)
    const float* residual;  // (rows, width), added first, or null
    const void* weight;     // (width,) in `format`
    const void* bias;       // (width,) in `format`; null for the RMS norm, which leaves the mean in
    float* total;           // (rows, width) or null: x + residual
    float* out;             // (rows, width)
    float* mean;            // (rows,) or null
    float* rstd;            // (rows,) or null: 1 / standard deviation
    int64_t rows, width, format;
    double eps;
};

static inline float sum_of(const float* x, int64_t width) {
    Floats sums[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        sums[0] += load(x + i);
        sums[1] += load(x + i + LANES);
    }
    for (; i < width; i += LANES) sums[0] += load_some(x + i, least(LANES, width - i));
    return sum(sums[0] + sums[1]);
}

// The sum of squares of x - mean.
static inline float squares_of(const float* x, int64_t width, float mean) {
    Floats sums[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        const Floats a = load(x + i) - mean, b = load(x + i + LANES) - mean;
        sums[0] += a * a;
        sums[1] += b * b;
    }
    float total = sum(sums[0] + sums[1]);
    for (; i < width; i++) total += (x[i] - mean) * (x[i] - mean);
    return total;
}

static inline void add(const float* x, const float* y, float* to, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(to + i, load(x + i) + load(y + i));
    for (; i < width; i++) to[i] = x[i] + y[i];
}

template <class Kind>
static inline void norm_row(const NormArguments& a, int64_t row) {
    typedef typename Kind::Element Element;
    const Element *weight = static_cast<const Element*>(a.weight),
                  *bias = static_cast<const Element*>(a.bias);
    const float* x = a.x + row * a.width;
    if (a.residual) {
        add(x, a.residual + row * a.width, a.total + row * a.width, a.width);
        x = a.total + row * a.width;
    }
    const float count = float(a.width), mean = bias ? sum_of(x, a.width) / count : 0.0f;
    const float rstd = 1.0f / sqrtf(squares_of(x, a.width, mean) / count + float(a.eps));
    if (a.mean && bias) a.mean[row] = mean;
    if (a.rstd) a.rstd[row] = rstd;
    float* out = a.out + row * a.width;
    int64_t i = 0;
    for (; i + LANES <= a.width; i += LANES) {
        Floats made = (load(x + i) - mean) * rstd * Kind::load(weight + i);
        if (bias) made += Kind::load(bias + i);
        store(out + i, made);
    }
    for (; i < a.width; i++) {
        out[i] = (x[i] - mean) * rstd * Kind::value(weight[i]);
        if (bias) out[i] += Kind::value(bias[i]);
    }
}

template <class Kind>
static void norm_rows(const NormArguments& a, Span rows) {
    for (int64_t row = rows.first; row < rows.last; row++) norm_row<Kind>(a, row);
}

static void norm_some(const NormArguments& a, Span rows) {
    switch (a.format) {
        case FLOAT32: return norm_rows<Float32>(a, rows);
        case FLOAT16: return norm_rows<Float16>(a, rows);
        default: return norm_rows<BFloat16>(a, rows);
    }
}

static void norm(const NormArguments& a, Thread& thread) { norm_some(a, share(thread, a.rows)); }

struct NormHeadsArguments {
    const float* x;        // (tokens, heads + 2 kv_heads, width)
    const void *q_weight;  // (width,) in `format`, of the queries
    const void *k_weight;  // (width,), of the keys
    float* out;            // as x
    float* rstd;           // (tokens, heads + kv_heads) or null
    int64_t tokens, heads, kv_heads, width, format;
    double eps;
};

// The RMS norm of queries and keys; values stay as they are. Moved: x and out, once each.
static void norm_heads(const NormHeadsArguments& a, Thread& thread) {
    const int64_t normed = a.heads + a.kv_heads, total = normed + a.kv_heads;
    const Span own = share(thread, a.tokens * total);
    for (int64_t row = own.first; row < own.last; row++) {
        const int64_t token = row / total, head = row % total, at = row * a.width;
        if (head >= normed) {
            memcpy(a.out + at, a.x + at, 4 * size_t(a.width));
            continue;
        }
        float* rstd = a.rstd ? a.rstd + token * normed + head : nullptr;
        const void* weight = head < a.heads ? a.q_weight : a.k_weight;
        const NormArguments one = {a.x + at, nullptr, weight, nullptr, nullptr, a.out + at,
                                   nullptr,  rstd,    1,      a.width, a.format, a.eps};
        norm_some(one, {0, 1});
    }
}

struct NormBackwardArguments {
    const float *x, *weight;   // (rows, width), (width,)
    const float *mean, *rstd;  // (rows,); no mean for the RMS norm
    const float* dy;           // (rows, width): the gradient of the result
    const float* dtotal;       // (rows, width): that of x by another way, added to dx; or null
    float* dx;                 // (rows, width)
    float* sums;               // (parts of rows, 2, width): what they give weight and bias
    float *dweight, *dbias;    // (width,); no dbias for the RMS norm
    int64_t rows, width;
};

// Rows whose gradients of the parameters are added up first, the same ones for any number of threads.
constexpr int64_t PART = 32;

static inline void back_row(const NormBackwardArguments& a, int64_t row, float* dweight, float* dbias) {
    const float *x = a.x + row * a.width, *dy = a.dy + row * a.width;
    const float mean = a.mean ? a.mean[row] : 0.0f, rstd = a.rstd[row];
    Floats plain{}, along{};  // sums of dy weight, and of that times the normed x
    for (int64_t i = 0; i < a.width; i += LANES) {
        const int64_t some = a.width - i;
        const Floats given = load_some(dy + i, some), normed = (load_some(x + i, some) - mean) * rstd;
        const Floats scaled = given * load_some(a.weight + i, some);
        plain += scaled;
        along += scaled * normed;
        store_some(dweight + i, load_some(dweight + i, some) + given * normed, some);
        store_some(dbias + i, load_some(dbias + i, some) + given, some);
    }
    const float count = float(a.width), shift = a.mean ? sum(plain) / count : 0.0f;
    const float slope = sum(along) / count;
    for (int64_t i = 0; i < a.width; i += LANES) {
        const int64_t some = a.width - i;
        const Floats normed = (load_some(x + i, some) - mean) * rstd;
        const Floats scaled = load_some(dy + i, some) * load_some(a.weight + i, some);
        Floats made = (scaled - shift - normed * slope) * rstd;
        if (a.dtotal) made += load_some(a.dtotal + row * a.width + i, some);
        store_some(a.dx + row * a.width + i, made, some);
    }
}

// Reads x, dy and dtotal once and writes dx; the sums of a part stay in cache.
static void norm_backward(const NormBackwardArguments& a, Thread& thread) {
    const int64_t parts = (a.rows + PART - 1) / PART;
    const Span own = share(thread, parts);
    for (int64_t part = own.first; part < own.last; part++) {
        float* sums = a.sums + part * 2 * a.width;
        memset(sums, 0, 8 * size_t(a.width));
        for (int64_t row = part * PART; row < least(a.rows, (part + 1) * PART); row++)
            back_row(a, row, sums, sums + a.width);
    }
    thread.barrier();
    const Span columns = share(thread, a.width, 16);
    for (int64_t i = columns.first; i < columns.last; i++) {
        float dweight = 0, dbias = 0;
        for (int64_t part = 0; part < parts; part++) {
            dweight += a.sums[part * 2 * a.width + i];
            dbias += a.sums[(part * 2 + 1) * a.width + i];
        }
        a.dweight[i] = dweight;
        if (a.dbias) a.dbias[i] = dbias;
    }
}

}  // namespace ISA

OPERATION(norm, NormArguments)
OPERATION(norm_heads, NormHeadsArguments)
OPERATION(norm_backward, NormBackwardArguments)
