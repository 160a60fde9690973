// pack_blocks and unpack_blocks: quantized rows between the file's order and the interleaved one of
// blocks.h. Each byte is read once and written once.
#include "blocks.h"

namespace ISA {

struct PackArguments {
    const uint8_t* rows;  // (outs, bytes of a row), as the file has them
    uint8_t* packed;      // (outs rounded up to 8, bytes of a row)
    int64_t outs, width, format;
};

static void pack_blocks(const PackArguments& a, Thread& thread) {
    const Layout& layout = layout_of(a.format);
    const int64_t blocks = a.width / layout.weights, bytes = layout.bytes;
    const Span own = share(thread, (a.outs + GROUP - 1) / GROUP);
    for (int64_t group = own.first; group < own.last; group++) {
        const int rows = int(least(GROUP, a.outs - group * GROUP));
        const uint8_t* from = a.rows + group * GROUP * blocks * bytes;
        uint8_t* to = a.packed + group * GROUP * blocks * bytes;
        if (rows < GROUP) memset(to, 0, GROUP * blocks * bytes);
        for (int64_t b = 0; b < blocks; b++)
            put_blocks(layout, rows, from + b * bytes, blocks * bytes, to + b * GROUP * bytes);
    }
}

struct UnpackArguments {
    const uint8_t* packed;
    const int64_t* ids;  // (count,) which rows
    uint8_t* rows;       // (count, bytes of a row)
    int64_t count, width, format;
};

static void unpack_blocks(const UnpackArguments& a, Thread& thread) {
    const Layout& layout = layout_of(a.format);
    const int64_t blocks = a.width / layout.weights, bytes = layout.bytes;
    const Span own = share(thread, a.count);
    for (int64_t i = own.first; i < own.last; i++) {
        const uint8_t* from = a.packed + a.ids[i] / GROUP * GROUP * blocks * bytes;
        for (int64_t b = 0; b < blocks; b++)
            take_block(layout, int(a.ids[i] % GROUP), from + b * GROUP * bytes,
                       a.rows + (i * blocks + b) * bytes);
    }
}

}  // namespace ISA

OPERATION(pack_blocks, PackArguments)
OPERATION(unpack_blocks, UnpackArguments)
