// What scheduler.cpp and memory.cpp share.
#pragma once
#include "emulated.h"

namespace emulated {
const int MAX_THREADS = 1024;
const size_t STACK = 256 << 10;

enum State : unsigned char { READY, RUNNING, AT_WARP, AT_BLOCK, DONE };

struct Slot { alignas(16) unsigned char bytes[32]; };
struct Warp { Slot slots[32]; };

struct Thread {
    void* context;
    char* stack;
    uint3 index;
    int linear, lane, warp;
    State state;
    unsigned mask;   // of the *_sync call it waits at
    int kind, line;
    bool first;      // whether it is the lane that counts a meeting
    Slot given;      // what it brings to a meeting
    uint32_t fenced; // when it last executed a __threadfence
    bool acquired;   // whether it has seen other blocks' atomics
};

struct Launch {
    dim3 grid, block_size;
    uint3 block;
    unsigned long long seed;
    Warp warps[MAX_THREADS / 32];
};

struct Failure { int happened, line; const void* pc; char text[1024]; };

// What a launch did; read by Python in this order.
struct Counters {
    uint64_t threads, barriers, shuffles, votes, matrix, matrix_loads, atomics, copies, absent_lanes;
    uint64_t read_bytes, written_bytes;         // of global memory, each byte once per request of a warp
    uint64_t read_sectors, written_sectors;     // of 32 bytes
    uint64_t ideal_sectors;                     // the fewest that these bytes can lie in
    uint64_t shared_wavefronts, ideal_wavefronts;
    uint64_t worst_conflict;                    // ways of the worst bank conflict
};

extern Thread threads[MAX_THREADS];
extern Thread* current;
extern Launch now;
extern Failure failure;
extern Counters counters;

__attribute__((format(printf, 3, 4))) void fail(int line, const void* pc, const char* format, ...);
void shuffle(int* order, int n);
unsigned random_below(unsigned n);
void read_shared(const void* at, int bytes, int line);
void launch_begins(size_t dynamic);
void launch_ends();
void block_begins();
void block_ends();
void block_met();
void warp_met(int warp);
}  // namespace emulated
