// A prompt's rows times a weight of floats, or a training batch's times a weight in any format: as floats, panel by
// panel (product.h). A weight is widened once for all rows while it is packed, exactly: nothing of x is rounded.
#pragma once

#include "linear_quantized.h"
#include "product.h"

namespace ISA {

// Packing weights (outs, width), the right matrix (width, outs) of a product.

template <class Kind>
static void pack_halves(const Right& own, int64_t first, int64_t count, int64_t k, int64_t depth,
                        float* to, float* room) {
    const auto* from = static_cast<const typename Kind::Element*>(own.at) + first * own.column + k;
    for (int64_t row = 0; row < count; row++, from += own.column) {
        float* wide = room + row * depth;
        int64_t i = 0;
        for (; i + LANES <= depth; i += LANES) store(wide + i, Kind::load(from + i));
        for (; i < depth; i++) wide[i] = Kind::value(from[i]);
    }
    pack_rows<PANEL_COLUMNS>(room, depth, count, depth, to);
}

// A block of eight rows, to[i * pitch + row].
template <class Kind>
static inline void widen(const uint8_t* block, float* to, int64_t pitch) {
    for (int part = 0; part < 32 * Kind::SPAN / Kind::PART; part++, to += Kind::PART * pitch) {
        Floats8 scale, offset{};
        Kind::scales(block, part, scale, offset);
        if (Kind::CENTRE) offset = scale * float(-Kind::CENTRE);
        for (int v = 0; v < Kind::PART / 4; v++)
            widen_bytes<Kind::MOST == SIGNED>(Kind::values(block, part, v), scale, offset, to + 4 * v * pitch, pitch);
    }
}

// Rows that are missing to a group of eight are zeros in the weight; whole groups are made here.
template <class Kind>
static void pack_blocks_of(const Right& own, int64_t first, int64_t count, int64_t k, int64_t depth,
                           float* to, float*) {
    constexpr int64_t SPAN = 32 * Kind::SPAN;
    const uint8_t* weight = static_cast<const uint8_t*>(own.at);
    for (int64_t row = 0; row < PANEL_COLUMNS; row += GROUP) {
        const uint8_t* from = weight + ((first + row) / GROUP * (own.column / SPAN) + k / SPAN) * Kind::BYTES;
        for (int64_t i = 0; i < depth; i += SPAN, from += Kind::BYTES) {
            float* place = to + i * PANEL_COLUMNS + row;
            if (row < count) {
                widen<Kind>(from, place, PANEL_COLUMNS);
            } else {
                for (int64_t j = 0; j < SPAN; j++) memset(place + j * PANEL_COLUMNS, 0, 4 * GROUP);
            }
        }
    }
}

static inline Right right_of(const LinearArguments& a) {
    const auto kept = [&](int64_t grain, auto pack) { return Right{a.weight, 1, a.width, grain, pack}; };
    switch (a.format) {
        case FLOAT32: return kept(8, pack_floats);
        case FLOAT16: return kept(8, pack_halves<Float16>);
        case BFLOAT16: return kept(8, pack_halves<BFloat16>);
        case Q8_0: return kept(32, pack_blocks_of<Q8>);
        case Q4_0: return kept(32, pack_blocks_of<Q4<false>>);
        case Q4_1: return kept(32, pack_blocks_of<Q4<true>>);
        case Q4_K: return kept(256, pack_blocks_of<Q45K<false>>);
        case Q5_K: return kept(256, pack_blocks_of<Q45K<true>>);
        default: return kept(256, pack_blocks_of<Q6K>);
    }
}

static void multiply_many(const LinearArguments& a, Thread& thread) {
    const bool gated = is_gated(a.activation);  // then there is `inner`
    const bool plain = a.activation == NONE && !a.bias && !a.residual && !a.inner;
    const int64_t made = gated ? a.outs / 2 : a.outs;
    const Result to{a.inner ? a.inner : a.out, a.inner ? a.outs : a.pitch, a.rows, made, gated ? 2 : 1};
    const Left x{{a.x, a.width, 1}};
    const Right weight = right_of(a);
    multiply_panels(x, weight, a.width, to, thread, [&](int64_t row, int64_t rows, int64_t first, int64_t count) {
        if (plain) return;
        float* from = to.at + row * to.pitch + first;
        finish(a, {row, rows}, first, count, from, gated ? from + made : nullptr, to.pitch);
    });
}

}  // namespace ISA
