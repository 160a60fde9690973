// add: two arrays of one shape; cast: an array in other floats. Each value is read once and written once.
#include "storage.h"

namespace ISA {

struct AddArguments {
    const float* a;  // (count,)
    const float* b;  // (count,)
    float* out;      // (count,)
    int64_t count;
};

static void add(const AddArguments& a, Thread& thread) {
    const Span own = share(thread, a.count, LANES);
    int64_t i = own.first;
    for (; i + LANES <= own.last; i += LANES) store(a.out + i, load(a.a + i) + load(a.b + i));
    for (; i < own.last; i++) a.out[i] = a.a[i] + a.b[i];
}

struct CastArguments {
    const void* x;  // (count,) in `from`
    void* out;      // (count,) in `to`
    int64_t count, from, to;
};

template <class From, class To>
static void cast_between(const CastArguments& a, Thread& thread) {
    const auto* x = static_cast<const typename From::Element*>(a.x);
    auto* out = static_cast<typename To::Element*>(a.out);
    const Span own = share(thread, a.count, 64);
    int64_t i = own.first;
    for (; i + LANES <= own.last; i += LANES) To::store(out + i, From::load(x + i));
    for (; i < own.last; i++) out[i] = To::narrowed(From::value(x[i]));
}

template <class From>
static void cast_from(const CastArguments& a, Thread& thread) {
    switch (a.to) {
        case FLOAT32: return cast_between<From, Float32>(a, thread);
        case FLOAT16: return cast_between<From, Float16>(a, thread);
        default: return cast_between<From, BFloat16>(a, thread);
    }
}

static void cast(const CastArguments& a, Thread& thread) {
    switch (a.from) {
        case FLOAT32: return cast_from<Float32>(a, thread);
        case FLOAT16: return cast_from<Float16>(a, thread);
        default: return cast_from<BFloat16>(a, thread);
    }
}

}  // namespace ISA

OPERATION(add, AddArguments)
OPERATION(cast, CastArguments)
