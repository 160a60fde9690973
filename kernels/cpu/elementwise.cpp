// add: two arrays of one shape. Three passes through memory, the least there are.
#include "simd.h"

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

}  // namespace ISA

OPERATION(add, AddArguments)
