// embedding: rows of a table by number, in floats. Reads and writes those rows once.
// embedding_backward: what the rows of a table get from the tokens that they were taken for. Each thread adds up columns
// of its own, token by token: nobody waits for another, and the sums are the same for any number of threads.
#include "blocks.h"
#include "decode.h"

namespace ISA {

struct EmbeddingArguments {
    const int64_t* ids;  // (count,), in range
    const void* table;   // (rows, width) in `format`
    float* out;          // (count, width)
    int64_t count, width, format;
    int64_t interleaved;  // whether rows in blocks lie as in blocks.h, else as in the file
    double scale;
};

template <class Kind>
static inline void widen_row(const typename Kind::Element* from, float* to, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(to + i, Kind::load(from + i));
    for (; i < width; i++) to[i] = Kind::value(from[i]);
}

static inline void decode_row(const EmbeddingArguments& a, int64_t id, float* to) {
    const Layout& layout = layout_of(a.format);
    const int64_t blocks = a.width / layout.weights;
    const uint8_t* table = static_cast<const uint8_t*>(a.table);
    uint8_t own[256];
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t* block = table + (id * blocks + b) * layout.bytes;
        if (a.interleaved) {
            const int64_t group = id / GROUP * blocks + b;
            take_block(layout, int(id % GROUP), table + group * GROUP * layout.bytes, own);
            block = own;
        }
        decode_block(a.format, block, to + b * layout.weights);
    }
}

static void embedding(const EmbeddingArguments& a, Thread& thread) {
    const Span own = share(thread, a.count);
    for (int64_t i = own.first; i < own.last; i++) {
        const int64_t id = a.ids[i], at = id * a.width;
        float* to = a.out + i * a.width;
        switch (a.format) {
            case FLOAT32: widen_row<Float32>(static_cast<const float*>(a.table) + at, to, a.width); break;
            case FLOAT16: widen_row<Float16>(static_cast<const uint16_t*>(a.table) + at, to, a.width); break;
            case BFLOAT16: widen_row<BFloat16>(static_cast<const uint16_t*>(a.table) + at, to, a.width); break;
            default: decode_row(a, id, to);
        }
        for (int64_t c = 0; a.scale != 1.0 && c < a.width; c++) to[c] *= float(a.scale);
    }
}

struct EmbeddingBackwardArguments {
    const int64_t* ids;    // (count,), in range
    const int64_t* order;  // (count,) the places of ids, equal ones side by side
    const float* dout;     // (count, width)
    void* gradient;        // (rows, width) in `format`; rows of no id are left as they are
    int64_t count, width, format;
    double scale;
};

// Columns whose sums are in the first-level cache.
constexpr int64_t STRIPE = 256;

template <class Kind>
static inline void add_columns(const EmbeddingBackwardArguments& a, int64_t column, int64_t columns) {
    for (int64_t i = 0; i < a.count;) {
        const int64_t id = a.ids[a.order[i]];
        float sums[STRIPE] = {};
        for (; i < a.count && a.ids[a.order[i]] == id; i++) {
            const float* from = a.dout + a.order[i] * a.width + column;
            for (int64_t c = 0; c < columns; c++) sums[c] += from[c];
        }
        auto* to = static_cast<typename Kind::Element*>(a.gradient) + id * a.width + column;
        for (int64_t c = 0; c < columns; c++) to[c] = Kind::narrowed(sums[c] * float(a.scale));
    }
}

static void embedding_backward(const EmbeddingBackwardArguments& a, Thread& thread) {
    const Span own = share(thread, a.width, 16);
    for (int64_t column = own.first; column < own.last; column += STRIPE) {
        const int64_t columns = least(STRIPE, own.last - column);
        switch (a.format) {
            case FLOAT32: add_columns<Float32>(a, column, columns); break;
            case FLOAT16: add_columns<Float16>(a, column, columns); break;
            default: add_columns<BFloat16>(a, column, columns);
        }
    }
}

}  // namespace ISA

OPERATION(embedding, EmbeddingArguments)
OPERATION(embedding_backward, EmbeddingBackwardArguments)
