// The emulated device's threads: fibers that run until a meeting, and the meetings themselves.
//
// A block runs alone. Its warps take turns in an order that a seed shuffles, and so do the blocks of a
// grid. A *_sync operation is a meeting of the lanes in its mask, a __syncthreads one of all threads;
// whoever comes to another place than the rest is reported with the source line.
#include "runtime.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulated {
Thread threads[MAX_THREADS];
Thread* current;
Launch now;
Failure failure;

// --- fibers ---
static void (*entry_point)(void**);
static void** entry_arguments;
static void run_fiber();

#if defined(__x86_64__)
// Save the registers that a call must keep, and the stack pointer, and take up another's.
extern "C" void emulated_switch(void** save, void* to);
asm(".text\n.globl emulated_switch\nemulated_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
static void* home;
static void prepare(Thread& t) {
    void** top = reinterpret_cast<void**>(t.stack + STACK);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(run_fiber);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    t.context = top;
}
static void resume_fiber(Thread& t) { emulated_switch(&home, t.context); }
static void leave_fiber() { emulated_switch(&current->context, home); }
#else
static ucontext_t home, contexts[MAX_THREADS];
static void prepare(Thread& t) {
    ucontext_t& c = contexts[t.linear];
    getcontext(&c);
    c.uc_stack.ss_sp = t.stack;
    c.uc_stack.ss_size = STACK;
    c.uc_link = &home;
    makecontext(&c, run_fiber, 0);
}
static void resume_fiber(Thread& t) { swapcontext(&home, &contexts[t.linear]); }
static void leave_fiber() { swapcontext(&contexts[current->linear], &home); }
#endif

static void run_fiber() {
    entry_point(entry_arguments);
    current->state = DONE;
    leave_fiber();
    abort();
}

void fail(int line, const void* pc, const char* format, ...) {
    int n = 0;
    if (current) {
        uint3 b = now.block, t = current->index;
        n = snprintf(failure.text, sizeof failure.text, "block (%u, %u, %u) thread (%u, %u, %u): ",
                     b.x, b.y, b.z, t.x, t.y, t.z);
    }
    va_list given;
    va_start(given, format);
    vsnprintf(failure.text + n, sizeof failure.text - n, format, given);
    va_end(given);
    failure.line = line;
    failure.pc = pc;
    failure.happened = 1;
    if (current && current->state == RUNNING) {
        leave_fiber();  // never resumed
        abort();
    }
}

void trap(const char* what, int line) {
    fail(line, nullptr, "%s", what);
    abort();
}

// --- meetings ---
static void wait(State state, unsigned mask, int kind, int line) {
    current->state = state;
    current->mask = mask;
    current->kind = kind;
    current->line = line;
    leave_fiber();
}

static Slot* meet(unsigned mask, int kind, int line, const void* value, int bytes) {
    Thread& me = *current;
    if (!(mask >> me.lane & 1)) fail(line, nullptr, "a *_sync call by lane %d, which is not in its mask %08x", me.lane, mask);
    if (bytes) memcpy(me.given.bytes, value, bytes);
    wait(AT_WARP, mask, kind, line);
    return now.warps[me.warp].slots;
}

void exchange(unsigned mask, const void* value, void* result, int bytes, int source, int kind, int line) {
    Slot* slots = meet(mask, kind, line, value, bytes);
    counters.shuffles += current->first;
    if (!(mask >> source & 1)) fail(line, nullptr, "a shuffle reads lane %d, which is not in its mask %08x", source, mask);
    memcpy(result, slots[source].bytes, bytes);
}

unsigned ballot(unsigned mask, bool vote, int kind, int line) {
    Slot* slots = meet(mask, kind, line, &vote, 1);
    counters.votes += current->first;
    unsigned found = 0;
    for (int i = 0; i < 32; i++) found |= (mask >> i & 1) && slots[i].bytes[0] ? 1u << i : 0;
    return found;
}

void warp_barrier(unsigned mask, int line) { meet(mask, SYNC, line, nullptr, 0); }
void barrier(int line) { wait(AT_BLOCK, 0, 0, line); }

void mma(float* c, const unsigned* a, const unsigned* b, int depth, bool brain, int line) {
    struct { unsigned a[4], b[2]; } mine, other;
    memcpy(mine.a, a, 16);
    memcpy(mine.b, b, 8);
    Slot* slots = meet(~0u, MMA, line, &mine, sizeof mine);
    counters.matrix += current->first;
    int g = current->lane >> 2, t = current->lane & 3;
    double rows[2][16], columns[2][16];
    auto value = [&](unsigned word, int high) -> double {
        unsigned short bits = (unsigned short)(word >> (16 * high));
        if (!brain) return half_to_float(bits);
        return __uint_as_float((unsigned)bits << 16);
    };
    for (int lane = 0; lane < 4; lane++) {
        memcpy(&other, slots[4 * g + lane].bytes, sizeof other);
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 2; i++) rows[r & 1][2 * lane + i + 8 * (r >> 1)] = value(other.a[r], i);
        for (int n = 0; n < 2; n++) {
            memcpy(&other, slots[4 * (2 * t + n) + lane].bytes, sizeof other);
            for (int r = 0; r < 2; r++)
                for (int i = 0; i < 2; i++) columns[n][2 * lane + i + 8 * r] = value(other.b[r], i);
        }
    }
    for (int i = 0; i < 4; i++) {
        double sum = c[i];
        for (int k = 0; k < depth; k++) sum += rows[i >> 1][k] * columns[i & 1][k];
        c[i] = (float)sum;
    }
}

void ldmatrix(unsigned* r, const void* row, bool transposed, int line) {
    read_shared(row, 16, line);
    Slot* slots = meet(~0u, LDMATRIX, line, &row, sizeof row);
    counters.matrix_loads += current->first;
    int g = current->lane >> 2, t = current->lane & 3;
    for (int m = 0; m < 4; m++) {
        unsigned short pair[2];
        for (int i = 0; i < 2; i++) {
            int from = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
            const unsigned short* base;
            memcpy(&base, slots[8 * m + from].bytes, sizeof base);
            pair[i] = base[column];
        }
        memcpy(&r[m], pair, 4);
    }
}

// --- a block ---
static void resume(Thread& t) {
    current = &t;
    t.state = RUNNING;
    resume_fiber(t);
}

// Let go on every group of lanes of a warp that has met; true if one has.
static bool release(int first, int last) {
    bool any = false;
    for (int i = first; i < last; i++) {
        Thread& t = threads[i];
        if (t.state != AT_WARP) continue;
        unsigned together = 0;
        for (int j = first; j < last; j++) {
            Thread& o = threads[j];
            bool same = o.state == AT_WARP && o.line == t.line && o.kind == t.kind && o.mask == t.mask;
            together |= same ? 1u << (j - first) : 0;
            if ((t.mask >> (j - first) & 1) && o.state == DONE) {
                current = &t;
                fail(t.line, nullptr, "a *_sync call waits for lane %d, which has returned", j - first);
                return false;
            }
        }
        unsigned exist = last - first == 32 ? ~0u : (1u << (last - first)) - 1;
        if ((t.mask & exist) & ~together) continue;
        bool leader = true;
        for (int j = first; j < last; j++)
            if (t.mask >> (j - first) & 1) {
                // A lane may come to its next meeting before another has read what it gave to this.
                now.warps[t.warp].slots[j - first] = threads[j].given;
                threads[j].state = READY;
                threads[j].first = leader;
                leader = false;
            }
        counters.absent_lanes += 32 - __builtin_popcount(t.mask & exist);
        warp_met(t.warp);
        any = true;
    }
    return any;
}

static bool run_warp(int warp, int n) {
    int first = warp * 32, last = first + 32 < n ? first + 32 : n;
    bool progress = false;
    for (bool again = true; again && !failure.happened;) {
        again = false;
        for (int i = first; i < last && !failure.happened; i++)
            if (threads[i].state == READY) {
                resume(threads[i]);
                again = progress = true;
            }
        if (!failure.happened && release(first, last)) again = progress = true;
    }
    return progress;
}

// After all warps have come as far as they can: the barrier, the end, or a fault. True at the end.
static bool settle(int n, bool progress) {
    int done = 0, waiting = -1, stuck = -1;
    bool apart = false;
    for (int i = 0; i < n; i++) {
        Thread& t = threads[i];
        if (t.state == DONE) done++;
        else if (t.state == AT_BLOCK) {
            apart |= waiting >= 0 && threads[waiting].line != t.line;
            waiting = i;
        } else stuck = i;
    }
    if (done == n) return true;
    if (stuck >= 0) {
        if (progress) return false;
        current = &threads[stuck];
        fail(current->line, nullptr, "a *_sync call with mask %08x waits for lanes that are elsewhere (%s)",
             current->mask, waiting >= 0 ? "at a __syncthreads" : "at another *_sync");
        return true;
    }
    current = &threads[waiting];
    if (apart) fail(current->line, nullptr, "threads of one block wait at different __syncthreads");
    else if (done) fail(current->line, nullptr, "%d of %d threads returned before this __syncthreads", done, n);
    counters.barriers++;
    block_met();
    for (int i = 0; i < n; i++) threads[i].state = READY;
    return failure.happened;
}

static void run_block(int n) {
    int warps = (n + 31) / 32, order[MAX_THREADS / 32];
    for (int i = 0; i < n; i++) {
        Thread& t = threads[i];
        t.state = READY;
        t.first = false;
        prepare(t);
    }
    for (int i = 0; i < warps; i++) order[i] = i;
    block_begins();
    for (bool end = false; !end && !failure.happened;) {
        shuffle(order, warps);
        bool progress = false;
        for (int i = 0; i < warps && !failure.happened; i++) progress |= run_warp(order[i], n);
        if (!failure.happened) end = settle(n, progress);
    }
    if (!failure.happened) block_ends();
}

// --- a launch ---
uint3 thread_index() { return current->index; }
uint3 block_index() { return now.block; }
dim3 block_size() { return now.block_size; }
dim3 grid_size() { return now.grid; }
int lane() { return current->lane; }

unsigned random_below(unsigned n) {
    now.seed = now.seed * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((now.seed >> 33) % n);
}

void shuffle(int* order, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)random_below((unsigned)i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static float halves[1 << 16];

float half_to_float(unsigned short bits) { return halves[bits]; }

unsigned short float_to_half(float x) {
    _Float16 h = (_Float16)x;
    unsigned short bits;
    memcpy(&bits, &h, 2);
    return bits;
}

static void set_up() {
    static bool done = false;
    if (done) return;
    done = true;
    for (int i = 0; i < 1 << 16; i++) {
        unsigned short bits = (unsigned short)i;
        _Float16 h;
        memcpy(&h, &bits, 2);
        halves[i] = (float)h;
    }
    for (int i = 0; i < MAX_THREADS; i++) {
        void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        threads[i].stack = stack == MAP_FAILED ? nullptr : static_cast<char*>(stack);
    }
}

// Run `entry` over the grid. Returns 0, or 1 with `failure` filled. The number of blocks is below 2^31.
extern "C" int emulated_run(void (*entry)(void**), const unsigned* sizes, unsigned long long dynamic,
                            unsigned long long seed, void** arguments) {
    set_up();
    now.grid = dim3{sizes[0], sizes[1], sizes[2]};
    now.block_size = dim3{sizes[3], sizes[4], sizes[5]};
    now.seed = seed * 2862933555777941757ull + 3037000493ull;
    entry_point = entry;
    entry_arguments = arguments;
    failure.happened = 0;
    current = nullptr;
    unsigned long long n = 1ull * sizes[3] * sizes[4] * sizes[5];
    if (n == 0 || n > MAX_THREADS) fail(0, nullptr, "a block of %llu threads: 1 to %d are possible", n, MAX_THREADS);
    if (!threads[MAX_THREADS - 1].stack) fail(0, nullptr, "no memory for the stacks of %d threads", MAX_THREADS);
    launch_begins(dynamic);
    if (failure.happened) return 1;
    for (unsigned i = 0; i < n; i++) {
        Thread& t = threads[i];
        t.index = uint3{i % sizes[3], i / sizes[3] % sizes[4], i / (sizes[3] * sizes[4])};
        t.linear = (int)i;
        t.lane = (int)i & 31;
        t.warp = (int)i >> 5;
    }
    int blocks = (int)(sizes[0] * sizes[1] * sizes[2]);
    int* order = static_cast<int*>(malloc(sizeof(int) * (size_t)blocks));
    for (int i = 0; i < blocks; i++) order[i] = i;
    shuffle(order, blocks);
    for (int i = 0; i < blocks && !failure.happened; i++) {
        unsigned b = (unsigned)order[i];
        now.block = uint3{b % sizes[0], b / sizes[0] % sizes[1], b / (sizes[0] * sizes[1])};
        counters.threads += n;
        run_block((int)n);
    }
    free(order);
    current = nullptr;
    launch_ends();
    return failure.happened;
}

extern "C" const Failure* emulated_failure() { return &failure; }
}  // namespace emulated
