// Quantized weights as they lie in memory here: the rows of the file, eight and eight interleaved.
//
// A file stores each output's row by itself, in blocks of 32 or 256 weights. To multiply eight rows at once,
// each lane of a vector another row, the same bytes of eight rows must lie together. So the blocks at one place of eight
// rows become one block of eight times the bytes, in which every field of the file's block is followed
// by that of the next row: scales one by one, packed weights by fours. Nothing is decoded, added or lost; a table
// says which bytes go where, for the way there and the way back. Rows that are missing to a multiple of
// eight are zeros.
#pragma once

#include <string.h>

#include "linear.h"

namespace ISA {

constexpr int GROUP = 8;  // rows that are interleaved

// `count` pieces of `bytes` each, from byte `from` of a block in the file.
struct Piece {
    int from, bytes, count;
};

struct Layout {
    int weights, bytes;  // of a block in the file
    Piece pieces[5];     // in the order in which they are stored here
};

static inline const Layout& layout_of(int64_t format) {
    static constexpr Layout q8_0{32, 34, {{0, 2, 1}, {2, 4, 8}}};
    static constexpr Layout q4_0{32, 18, {{0, 2, 1}, {2, 4, 4}}};
    static constexpr Layout q4_1{32, 20, {{0, 2, 1}, {2, 2, 1}, {4, 4, 4}}};
    static constexpr Layout q4_k{256, 144, {{0, 2, 1}, {2, 2, 1}, {4, 1, 12}, {16, 4, 32}}};
    static constexpr Layout q5_k{
        256, 176, {{0, 2, 1}, {2, 2, 1}, {4, 1, 12}, {16, 4, 8}, {48, 4, 32}}};
    static constexpr Layout q6_k{256, 210, {{208, 2, 1}, {192, 1, 16}, {0, 4, 32}, {128, 4, 16}}};
    switch (format) {
        case Q8_0: return q8_0;
        case Q4_0: return q4_0;
        case Q4_1: return q4_1;
        case Q4_K: return q4_k;
        case Q5_K: return q5_k;
        default: return q6_k;
    }
}

static inline void copy_piece(uint8_t* to, const uint8_t* from, int bytes) {
    if (bytes == 4) memcpy(to, from, 4);
    else if (bytes == 2) memcpy(to, from, 2);
    else *to = *from;
}

// A piece of the blocks of `rows` rows, `stride` bytes apart in the file, into an interleaved block.
template <int BYTES>
static inline void put_piece(
    const Piece& piece, int rows, const uint8_t* from, int64_t stride, uint8_t* to) {
    for (int i = 0; i < piece.count; i++)
        for (int row = 0; row < rows; row++)
            memcpy(to + (i * GROUP + row) * BYTES, from + row * stride + i * BYTES, BYTES);
}

// The blocks at one place of `rows` rows, from the file's order into an interleaved block.
static inline void put_blocks(
    const Layout& layout, int rows, const uint8_t* blocks, int64_t stride, uint8_t* group) {
    for (const Piece& piece : layout.pieces) {
        const uint8_t* from = blocks + piece.from;
        if (piece.bytes == 4) put_piece<4>(piece, rows, from, stride, group);
        else if (piece.bytes == 2) put_piece<2>(piece, rows, from, stride, group);
        else put_piece<1>(piece, rows, from, stride, group);
        group += GROUP * piece.bytes * piece.count;
    }
}

// One row of one block, from its place `row` in an interleaved block into the file's order.
static inline void take_block(const Layout& layout, int row, const uint8_t* group, uint8_t* block) {
    for (const Piece& piece : layout.pieces) {
        for (int i = 0; i < piece.count; i++)
            copy_piece(block + piece.from + i * piece.bytes,
                       group + (i * GROUP + row) * piece.bytes, piece.bytes);
        group += GROUP * piece.bytes * piece.count;
    }
}

}  // namespace ISA
