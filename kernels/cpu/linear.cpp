// linear: the products of a layer with its weight, in any storage that a weight has.
#include "linear_bytes.h"
#include "linear_float.h"
#include "linear_many.h"
#include "linear_quantized.h"

namespace ISA {

template <class Kind>
static void multiply_blocks(const LinearArguments& a, Thread& thread) {
    if (a.rows <= FEW_ROWS<Kind>) multiply_quantized<Kind>(a, thread);
    else multiply_bytes<Kind>(a, thread);
}

static void linear(const LinearArguments& a, Thread& thread) {
    if (a.exact || (a.format <= BFLOAT16 && a.rows >= MANY_ROWS)) return multiply_many(a, thread);
    switch (a.format) {
        case FLOAT32: return multiply_floats<Float32>(a, thread);
        case FLOAT16: return multiply_floats<Float16>(a, thread);
        case BFLOAT16: return multiply_floats<BFloat16>(a, thread);
        case Q8_0: return multiply_blocks<Q8>(a, thread);
        case Q4_0: return multiply_blocks<Q4<false>>(a, thread);
        case Q4_1: return multiply_blocks<Q4<true>>(a, thread);
        case Q4_K: return multiply_blocks<Q45K<false>>(a, thread);
        case Q5_K: return multiply_blocks<Q45K<true>>(a, thread);
        case Q6_K: return multiply_blocks<Q6K>(a, thread);
    }
}

}  // namespace ISA

OPERATION(linear, LinearArguments)
