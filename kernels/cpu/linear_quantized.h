// Products with a quantized weight: bytes times bytes, without ever making the weight's floats.
//
// The rows of x are rounded to 8 bits, 32 values to a scale of their own, once per call; then 32 products are
// a few byte instructions, and what remains in floating point is one scale per block and output. A lane of a vector
// is an output (blocks.h): eight outputs' weights come in with one load, x's four bytes go to all lanes,
// and no sum ever crosses lanes. A block is taken apart once for all of a few rows of x; many of them
// have a way of their own (linear_bytes.h).
//
// Moved: the weight once, in its packed bytes (the least possible), and x from a cache.
//
// How the weights are taken apart follows ggml's formats: value * scale (Q8_0), (value - 8) * scale
// (Q4_0), value * scale + minimum (Q4_1), and in blocks of 256 small integers for the scales (Q4_K, Q5_K, Q6_K).
#pragma once

#include "blocks.h"

namespace ISA {

// 32 values of x: their scale, their sum when rounded, and the sums of each 16 in units of the scale.
struct Rounded {
    float scale, sum;
    int32_t halves[2];
    int32_t whole() const { return halves[0] + halves[1]; }
};

// Rows of x in 8 bits. A row is `width` bytes and then a Rounded for each 32 of them.
struct RoundedRows {
    uint8_t* memory;
    int64_t width, pitch;

    static int64_t pitch_of(int64_t width) {
        return (width + width / 32 * int64_t(sizeof(Rounded)) + 63) / 64 * 64;
    }
    const uint8_t* row(int64_t r) const { return memory + r * pitch; }
};

static inline void round_row(const float* x, uint8_t* to, int64_t width) {
    Rounded* blocks = reinterpret_cast<Rounded*>(to + width);
    for (int64_t b = 0; b < width / 32; b++) {
        const float* from = x + 32 * b;
        Floats most{}, zero{};
        for (int i = 0; i < 32; i += LANES) {
            const Floats value = load(from + i);
            most = greater(value < 0.0f ? -value : value, most);
            zero += value * 0.0f;  // NaN if one of them is infinite or NaN
        }
        float top = 0;
        for (int i = 0; i < LANES; i++) top = most[i] > top ? most[i] : top;
        const float magic = 12582912.0f;  // adding it rounds to a whole number
        const Floats inverse = splat(top > 0 ? 127.0f / top : 0.0f);
        Ints sums[2] = {};
        for (int i = 0; i < 32; i += LANES) {
            const Ints whole = bits(load(from + i) * inverse + magic) - 0x4B400000;
            sums[i / 16] += whole;
            store_bytes(to + 32 * b + i, whole);
        }
        for (int half = 0; half < 2; half++) {
            int32_t total = 0;
            for (int i = 0; i < LANES; i++) total += sums[half][i];
            blocks[b].halves[half] = total;
        }
        blocks[b].scale = top / 127.0f + sum(zero);
        blocks[b].sum = blocks[b].scale * float(blocks[b].whole());
    }
}

// The rows of x of an operation, made by all threads together.
static inline RoundedRows rounded_rows(const LinearArguments& a, Thread& thread) {
    const RoundedRows x{static_cast<uint8_t*>(a.scratch), a.width, RoundedRows::pitch_of(a.width)};
    const Span rows = share(thread, a.rows);
    for (int64_t r = rows.first; r < rows.last; r++)
        round_row(a.x + r * a.width, x.memory + r * x.pitch, a.width);
    thread.barrier();
    return x;
}

// What a tile of ROWS rows of x needs at block `b` of 32.
template <int ROWS>
struct Tile {
    const uint8_t* rows[ROWS];
    const Rounded* blocks[ROWS];

    // If there are fewer, the last one stands for those that are missing.
    Tile(const RoundedRows& x, Rows some) {
        UNROLLED for (int r = 0; r < ROWS; r++) {
            rows[r] = x.row(some.first + least(r, some.count - 1));
            blocks[r] = reinterpret_cast<const Rounded*>(rows[r] + x.width);
        }
    }
    // Values 4 v to 4 v + 3 of the block.
    int32_t word(int r, int64_t b, int v) const {
        int32_t made;
        memcpy(&made, rows[r] + 32 * b + 4 * v, 4);
        return made;
    }
    const Rounded& block(int r, int64_t b) const { return blocks[r][b]; }
};

static inline Bytes load_bytes(const uint8_t* from) {
    Bytes made;
    memcpy(&made, from, sizeof made);
    return made;
}

static inline Floats8 floats(Ints8 values) { return __builtin_convertvector(values, Floats8); }

// Eight numbers of one byte, one for each row.
template <class Byte>
static inline Ints8 load_small(const uint8_t* from) {
    typedef Byte Small __attribute__((vector_size(8)));
    Small made;
    memcpy(&made, from, sizeof made);
    return __builtin_convertvector(made, Ints8);
}

// Four weights of each of eight rows as floats, to[i * pitch + row]: number * scale + offset.
template <bool WITH_SIGN>
static inline void widen_bytes(Bytes weights, Floats8 scale, Floats8 offset, float* to, int64_t pitch) {
    Ints8 words;
    memcpy(&words, &weights, sizeof words);
    UNROLLED for (int i = 0; i < 4; i++) {
        const Ints8 value = WITH_SIGN ? words << (24 - 8 * i) >> 24 : words >> 8 * i & 255;
        const Floats8 made = floats(value) * scale + offset;
        memcpy(to + i * pitch, &made, sizeof made);
    }
}

// Each format: how many blocks of 32 a block of it spans (SPAN), and its BYTES for eight rows. It has parts of PART
// values with a scale of their own: (value - CENTRE) * scale, or value * scale + offset (MINIMUM), `values` being
// bytes from 0 to MOST or SIGNED, four neighbours of each row at a time.

// What a block adds to the sums of a tile.
template <class Kind, int ROWS>
static inline void add(const uint8_t* block, const Tile<ROWS>& x, int64_t b, Floats8* sums) {
    constexpr int STEPS = Kind::PART / 4, PARTS = 32 / Kind::PART;
    for (int part = 0; part < Kind::SPAN * PARTS; part++) {
        const int64_t place = b + part / PARTS;
        const int side = part % PARTS;
        Products<Kind::MOST> products[ROWS];
        UNROLLED for (int v = 0; v < STEPS; v++) {
            const Bytes weights = Kind::values(block, part, v);
            UNROLLED for (int r = 0; r < ROWS; r++) products[r].add(weights, x.word(r, place, STEPS * side + v));
            if (v + 1 < STEPS && (v + 1) % Products<Kind::MOST>::TOGETHER) continue;
            UNROLLED for (int r = 0; r < ROWS; r++) products[r].fold();
        }
        Floats8 scale, offset;
        Kind::scales(block, part, scale, offset);
        UNROLLED for (int r = 0; r < ROWS; r++) {
            const Rounded& own = x.block(r, place);
            const int32_t whole = PARTS == 1 ? own.whole() : own.halves[side];
            const Ints8 total = products[r].total(whole) - Kind::CENTRE * whole;
            sums[r] += floats(total) * (scale * own.scale);
            if (Kind::MINIMUM) sums[r] += offset * own.sum;
        }
    }
}

struct Q8 {
    static constexpr int SPAN = 1, BYTES = 272, PART = 32, MOST = SIGNED, CENTRE = 0;
    static constexpr bool MINIMUM = false;

    static inline Bytes values(const uint8_t* block, int, int v) { return load_bytes(block + 16 + 32 * v); }

    static inline void scales(const uint8_t* block, int, Floats8& scale, Floats8&) {
        scale = load_half8(reinterpret_cast<const uint16_t*>(block));
    }
};

template <bool OWN_MINIMUM>
struct Q4 {
    static constexpr int SPAN = 1, HEAD = OWN_MINIMUM ? 32 : 16, BYTES = HEAD + 128;
    static constexpr int PART = 32, MOST = 15, CENTRE = 0;
    static constexpr bool MINIMUM = true;

    static inline Bytes values(const uint8_t* block, int, int v) {
        const Bytes packed = load_bytes(block + HEAD + 32 * (v % 4));
        return v < 4 ? packed & 15 : packed >> 4;
    }

    static inline void scales(const uint8_t* block, int, Floats8& scale, Floats8& offset) {
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
        scale = load_half8(halves);
        offset = OWN_MINIMUM ? load_half8(halves + 8) : scale * -8.0f;
    }
};

// The scales and minima of Q4_K and Q5_K, 6 bits each, of group `g`: the first four lie whole, the upper
// two bits of the others are over theirs.
static inline void small_scales(const uint8_t* packed, int g, Ints8& scale, Ints8& minimum) {
    if (g < 4) {
        scale = load_small<uint8_t>(packed + 8 * g) & 63;
        minimum = load_small<uint8_t>(packed + 8 * (g + 4)) & 63;
    } else {
        const Ints8 both = load_small<uint8_t>(packed + 8 * (g + 4));
        scale = (both & 15) | (load_small<uint8_t>(packed + 8 * (g - 4)) >> 2 & 48);
        minimum = both >> 4 | (load_small<uint8_t>(packed + 8 * g) >> 2 & 48);
    }
}

// Groups of 32: value * (d * scale) - dmin * minimum. FIFTH: a fifth bit of each value lies apart.
template <bool FIFTH>
struct Q45K {
    static constexpr int SPAN = 8, SMALL = 32, BITS = SMALL + 96, LOW = BITS + (FIFTH ? 256 : 0);
    static constexpr int BYTES = LOW + 1024, PART = 32, MOST = FIFTH ? 31 : 15, CENTRE = 0;
    static constexpr bool MINIMUM = true;

    // Values 4 v to 4 v + 3 of group `g`.
    static inline Bytes values(const uint8_t* block, int g, int v) {
        Bytes made = load_bytes(block + LOW + 256 * (g / 2) + 32 * v);
        made = g % 2 ? made >> 4 : made & 15;
        if (FIFTH) made |= (load_bytes(block + BITS + 32 * v) >> g & 1) << 4;
        return made;
    }

    static inline void scales(const uint8_t* block, int g, Floats8& scale, Floats8& offset) {
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
        Ints8 small, minimum;
        small_scales(block + SMALL, g, small, minimum);
        scale = load_half8(halves) * floats(small);
        offset = -(load_half8(halves + 8) * floats(minimum));
    }
};

// Groups of 16: (value - 32) * (d * scale). The lower four bits of two groups lie in one byte, the upper
// two bits of four.
struct Q6K {
    static constexpr int SPAN = 8, SMALL = 16, LOW = SMALL + 128, UPPER = LOW + 1024;
    static constexpr int BYTES = UPPER + 512, PART = 16, MOST = 63, CENTRE = 32;
    static constexpr bool MINIMUM = false;

    // Values 4 i to 4 i + 3 of group `g`, 32 too large.
    static inline Bytes values(const uint8_t* block, int g, int i) {
        const int half = g / 8, part = g / 2 % 4, v = 4 * (g % 2) + i;
        const Bytes low = load_bytes(block + LOW + 32 * (16 * half + 8 * (part % 2) + v));
        const Bytes upper = load_bytes(block + UPPER + 32 * (8 * half + v));
        return (part < 2 ? low & 15 : low >> 4) | (upper >> 2 * part & 3) << 4;
    }

    static inline void scales(const uint8_t* block, int g, Floats8& scale, Floats8&) {
        scale = load_half8(reinterpret_cast<const uint16_t*>(block)) *
                floats(load_small<int8_t>(block + SMALL + 8 * g));
    }
};

// How many rows of x are few: a weight that lies in memory is read once for them, straight from there. Of blocks of
// 256, which are long to take apart, not so many.
template <class Kind>
constexpr int64_t FEW_ROWS = Kind::SPAN > 1 ? 4 : 8;

template <class Kind>
struct QuantizedWeight {
    const uint8_t* weight;
    RoundedRows x;
    int64_t rows;

    // Up to ROWS rows of x with groups that lie `apart` bytes, and their outputs `to_apart`, from each other; of each
    // group `count` outputs. Not inlined: GCC keeps the sums in registers only if it sees this function by itself.
    template <int ROWS, int GROUPS>
    __attribute__((noinline)) void tile(const uint8_t* group, int64_t apart, int64_t count, float* to,
                                        int64_t to_apart, int64_t pitch) {
        const Tile<ROWS> some(x, {0, rows});
        Floats8 sums[GROUPS][ROWS] = {};
        const int64_t blocks = x.width / 32;
        for (int64_t b = 0; b < blocks; b += Kind::SPAN, group += Kind::BYTES) {
            UNROLLED for (int g = 0; g < GROUPS; g++) prefetch(group + g * apart, Kind::BYTES);
            UNROLLED for (int g = 0; g < GROUPS; g++) add<Kind>(group + g * apart, some, b, sums[g]);
        }
        UNROLLED for (int g = 0; g < GROUPS; g++)
            UNROLLED for (int r = 0; r < ROWS; r++)
                if (r < rows) memcpy(to + r * pitch + g * to_apart, sums[g] + r, 4 * size_t(count));
    }

    // Many rows, and blocks of 256, take so long that memory keeps up with one place.
    template <int ROWS>
    void tiles(int64_t first, int64_t count, float* to, int64_t pitch) {
        constexpr int APART = ROWS > 4 || Kind::SPAN > 1 ? 1 : STREAMS;
        const int64_t bytes = x.width / 32 / Kind::SPAN * Kind::BYTES, each = count / GROUP / APART;
        const uint8_t* group = weight + first / GROUP * bytes;
        for (int64_t g = 0; g < each; g++)
            tile<ROWS, APART>(group + g * bytes, each * bytes, GROUP, to + g * GROUP, each * GROUP, pitch);
        for (int64_t o = APART * each * GROUP; o < count; o += GROUP)
            tile<ROWS, 1>(group + o / GROUP * bytes, 0, least(GROUP, count - o), to + o, 0, pitch);
    }

    // `count` outputs from `first` on.
    void product(int64_t first, int64_t count, float* to, int64_t pitch) {
        if (rows == 1) return tiles<1>(first, count, to, pitch);
        if (rows == 2) return tiles<2>(first, count, to, pitch);
        if (rows <= 4) return tiles<4>(first, count, to, pitch);
        if constexpr (FEW_ROWS<Kind> == 8) tiles<8>(first, count, to, pitch);
    }
};

// One row is rounded by each thread for itself, which costs less than to wait for one another; more of them are
// shared out.
template <class Kind>
static void multiply_quantized(const LinearArguments& a, Thread& thread) {
    const int64_t pitch = RoundedRows::pitch_of(a.width);
    const size_t room = 4 * size_t(few_room(a));
    uint8_t* own = static_cast<uint8_t*>(thread.scratch(room + size_t(pitch)));
    RoundedRows x{own + room, a.width, pitch};
    if (a.scratch) x = rounded_rows(a, thread);
    else round_row(a.x, x.memory, a.width);
    QuantizedWeight<Kind> weight{static_cast<const uint8_t*>(a.weight), x, a.rows};
    multiply_few(a, thread, weight, reinterpret_cast<float*>(own));
}

}  // namespace ISA
