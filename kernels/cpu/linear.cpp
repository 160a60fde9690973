// linear: the products of a layer with its weight, in any storage that a weight has.
#include "linear_float.h"

namespace ISA {

static void linear(const LinearArguments& a, Thread& thread) {
    switch (a.format) {
        case FLOAT32: return multiply_floats<Float32>(a, thread);
        case FLOAT16: return multiply_floats<Float16>(a, thread);
        case BFLOAT16: return multiply_floats<BFloat16>(a, thread);
    }
}

}  // namespace ISA

OPERATION(linear, LinearArguments)
