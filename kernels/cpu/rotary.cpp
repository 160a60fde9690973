// rotary: heads turned by their positions, and gradients turned back. Each number is read once and written once; the
// tables' rows stay in cache for all heads of a token.
#include "rotary.h"

namespace ISA {

struct RotaryArguments {
    const void* x;             // (tokens, heads, width) in `format`
    const float *cos, *sin;    // (positions, half)
    const int64_t* positions;  // (places,) of the tokens, for all rows of the batch if there are fewer
    void* out;                 // as x
    int64_t tokens, places, heads, width, format;
    int64_t turned, half;  // heads that are turned, and pairs of each; the rest is copied
    double sign;           // -1 turns back
};

template <class Kind>
static void turn_tokens(const RotaryArguments& a, Thread& thread) {
    typedef typename Kind::Element Element;
    const Span own = share(thread, a.tokens);
    const int64_t behind = a.width - 2 * a.half;
    for (int64_t token = own.first; token < own.last; token++) {
        const int64_t place = a.positions[token % a.places] * a.half;
        const Element* x = static_cast<const Element*>(a.x) + token * a.heads * a.width;
        Element* out = static_cast<Element*>(a.out) + token * a.heads * a.width;
        for (int64_t head = 0; head < a.turned; head++, x += a.width, out += a.width) {
            turn<Kind>(x, a.cos + place, a.sin + place, float(a.sign), a.half, out);
            memcpy(out + 2 * a.half, x + 2 * a.half, sizeof(Element) * size_t(behind));
        }
        memcpy(out, x, sizeof(Element) * size_t((a.heads - a.turned) * a.width));
    }
}

static void rotary(const RotaryArguments& a, Thread& thread) {
    switch (a.format) {
        case FLOAT32: return turn_tokens<Float32>(a, thread);
        case FLOAT16: return turn_tokens<Float16>(a, thread);
        default: return turn_tokens<BFloat16>(a, thread);
    }
}

}  // namespace ISA

OPERATION(rotary, RotaryArguments)
