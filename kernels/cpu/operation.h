// The convention of the CPU's native operations.
//
// An operation is a function over a struct of arguments. Python packs the struct once and either calls it
// alone or puts it into a list that one call replays (tinytorch_run): a captured decode step is such a list.
//
//   - Every field of an arguments struct is 8 bytes wide: a pointer, an int64_t or a double. Python
//     packs them in the order of their declaration, and compares the number of fields when it loads an
//     operation, so the two cannot drift apart unnoticed.
//   - What changes from step to step (ids, positions, lengths) is read through a pointer, never given
//     as a number: a replay sees what the memory holds by then.
//   - All threads of the team call the function at once, each with its own Thread, and divide the work
//     themselves: `thread.share(items, grain)` is this thread's part. Between two operations of a list
//     there is a barrier; inside one, `thread.barrier()`. Every thread must reach each barrier.
//   - A file with operations is compiled once per instruction set, with that set's flags, into a
//     namespace of its own (ISA). It must not use templates or inline functions of the standard library:
//     the linker keeps one copy of those, perhaps the one with AVX-512 in it. <math.h> is fine.
//
// OPERATION(linear, LinearArguments) at the end of a file exports ISA::linear as `linear_avx2` and so on,
// and the number of fields as `linear_avx2_fields`.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct Team;

// One of a team's threads, while it runs an operation.
struct Thread {
    int64_t index, count;
    Team* team;

    // Waits until all threads of the team are here.
    void barrier();
    // Memory of this thread's own, 64-byte aligned, valid until its next request in the same operation.
    void* scratch(size_t bytes);
};

struct Operation {
    void (*run)(const void* arguments, Thread* thread);
    const void* arguments;
};

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define JOINED_(name, isa) name##_##isa
#define JOINED(name, isa) JOINED_(name, isa)
#define FIELDS_(name, isa) name##_##isa##_fields
#define FIELDS(name, isa) FIELDS_(name, isa)

#define OPERATION(name, Arguments)                                              \
    EXPORTED void JOINED(name, ISA)(const void* arguments, Thread* thread) {    \
        ISA::name(*static_cast<const ISA::Arguments*>(arguments), *thread);          \
    }                                                                           \
    EXPORTED const int64_t FIELDS(name, ISA);                                   \
    const int64_t FIELDS(name, ISA) = sizeof(ISA::Arguments) / 8;

#ifdef ISA
namespace ISA {

struct Span {
    int64_t first, last;
};

// The part of `items` that is this thread's, in whole multiples of `grain` (but for the last one).
static inline Span share(const Thread& thread, int64_t items, int64_t grain = 1) {
    int64_t grains = (items + grain - 1) / grain;
    int64_t first = grains * thread.index / thread.count * grain;
    int64_t last = grains * (thread.index + 1) / thread.count * grain;
    return {first < items ? first : items, last < items ? last : items};
}

static constexpr inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace ISA
#endif
