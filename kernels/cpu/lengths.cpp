// advance: counts the tokens of a step, in the memory that the next step reads its positions from.
#include "operation.h"

namespace ISA {

struct AdvanceArguments {
    int64_t* starts;  // (rows,) lengths before the step
    int64_t* ends;    // (rows,) and after it
    int64_t rows, count;
};

static void advance(const AdvanceArguments& a, Thread& thread) {
    const Span own = share(thread, a.rows);
    for (int64_t i = own.first; i < own.last; i++) {
        a.starts[i] += a.count;
        a.ends[i] += a.count;
    }
}

}  // namespace ISA

OPERATION(advance, AdvanceArguments)
