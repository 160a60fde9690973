// dropout: elements times what is drawn for them, the gradient likewise. Each is read once and written once; drawing
// takes about as long as memory does.
#include "dropout.h"
#include "storage.h"

namespace ISA {

struct DropoutArguments {
    const void* x;          // (count,) in `format`
    const uint64_t* state;  // seed and offset
    void* out;              // as x
    int64_t count, format;
    double p;
};

constexpr int64_t CHUNK = 1024;

template <class Kind>
static void drop(const DropoutArguments& a, Thread& thread) {
    const Dropout dropout(a.state, a.p);
    const Span own = share(thread, a.count, CHUNK);
    for (int64_t first = own.first; first < own.last; first += CHUNK) {
        float room[Dropout::room(CHUNK)];
        const int64_t count = least(CHUNK, own.last - first);
        const float* factors = dropout.factors(first, count, room);
        const auto* x = static_cast<const typename Kind::Element*>(a.x) + first;
        auto* out = static_cast<typename Kind::Element*>(a.out) + first;
        int64_t i = 0;
        // A product also where an element goes: NaN and infinity become NaN, as in the reference.
        for (; i + LANES <= count; i += LANES) Kind::store(out + i, Kind::load(x + i) * load(factors + i));
        for (; i < count; i++) out[i] = Kind::narrowed(Kind::value(x[i]) * factors[i]);
    }
}

static void dropout(const DropoutArguments& a, Thread& thread) {
    switch (a.format) {
        case FLOAT32: return drop<Float32>(a, thread);
        case FLOAT16: return drop<Float16>(a, thread);
        default: return drop<BFloat16>(a, thread);
    }
}

}  // namespace ISA

OPERATION(dropout, DropoutArguments)
