// The thread team: one for the process, kept between calls, asleep when there is nothing to do.
//
// A token is some 200 operations of 10 to 100 microseconds, so threads that must be woken for each would
// cost as much as the work. Here all threads go through the whole list of operations side by side and
// meet at a barrier after each; a barrier of two spinning threads costs 0.2 microseconds. Between two lists
// they spin for a moment, since in decoding the next one follows soon, and then sleep in the kernel.
//
// The caller is thread 0. A call from another thread while the team is busy, or from inside an operation,
// runs alone on its caller. After a fork the child has no workers, and makes new ones.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "operation.h"

namespace {

constexpr int MOST_THREADS = 255;
// Rounds of spinning, some 30 ns each, before a thread sleeps: about 100 microseconds.
constexpr int SPINS = 3000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

// Waits until `word` is no longer `old`; returns what it is.
uint32_t changed(const std::atomic<uint32_t>& word, uint32_t old) {
    for (;;) {
        for (int i = 0; i < SPINS; i++) {
            uint32_t now = word.load(std::memory_order_acquire);
            if (now != old) return now;
            pause();
        }
        word.wait(old, std::memory_order_acquire);
    }
}

struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Scratch() { free(memory); }
};

thread_local Scratch own_scratch;
thread_local bool inside = false;  // an operation is running on this thread

}  // namespace

struct Team {
    // Which call this is and how many threads it is for, in one word: a thread that is not wanted
    // may be late, and must not mix the numbers of two calls.
    alignas(64) std::atomic<uint32_t> call{0};
    alignas(64) std::atomic<uint32_t> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
    // The call's list. A worker copies these first: behind the last barrier they may be the next call's.
    const Operation* list = nullptr;
    int64_t operations = 0;
    int workers = 0;

    void barrier(uint32_t count) {
        uint32_t now = phase.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            phase.fetch_add(1, std::memory_order_release);
            phase.notify_all();
        } else {
            changed(phase, now);
        }
    }

    void work(int index, int count) {
        const Operation* const all = list;
        const int64_t last = operations;
        Thread thread{index, count, this};
        for (int64_t i = 0; i < last; i++) {
            all[i].run(all[i].arguments, &thread);
            barrier(uint32_t(count));
        }
    }

    void serve(int index, uint32_t seen) {
        inside = true;
        for (;;) {
            seen = changed(call, seen);
            int count = int(seen & 255);
            if (index < count) work(index, count);
        }
    }

    // Starts workers until there are `count` threads; returns how many there are.
    int grow(int count) {
        // Signals are for the threads of the program: a worker would hold up Ctrl-C.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        uint32_t seen = call.load();
        try {
            while (workers + 1 < count) {
                std::thread(&Team::serve, this, workers + 1, seen).detach();
                workers++;
            }
        } catch (...) {  // no more threads to be had: fewer do the work
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return workers + 1 < count ? workers + 1 : count;
    }

    void run(const Operation* given, int64_t count, int threads) {
        int wanted = grow(threads);
        list = given;
        operations = count;
        uint32_t next = ((call.load(std::memory_order_relaxed) >> 8) + 1) << 8 | uint32_t(wanted);
        call.store(next, std::memory_order_release);
        call.notify_all();
        inside = true;
        work(0, wanted);
        inside = false;
    }
};

namespace {

// Never destroyed: the workers look at it until the process ends.
struct Shared {
    std::mutex busy;
    Team* team = new Team;
};

Shared* shared = nullptr;
std::once_flag made;

void after_fork() { shared = new Shared; }  // the old one's workers are not in this process

void make() {
    shared = new Shared;
    pthread_atfork(nullptr, nullptr, after_fork);
}

}  // namespace

void Thread::barrier() {
    if (count > 1) team->barrier(uint32_t(count));
}

void* Thread::scratch(size_t bytes) {
    if (own_scratch.bytes < bytes) {
        size_t rounded = (bytes + 4095) / 4096 * 4096;
        free(own_scratch.memory);
        own_scratch.memory = aligned_alloc(4096, rounded);
        own_scratch.bytes = own_scratch.memory ? rounded : 0;
        if (!own_scratch.memory) abort();
    }
    return own_scratch.memory;
}

// Runs `count` operations one after another on up to `threads` threads.
EXPORTED void tinytorch_run(const Operation* list, int64_t count, int64_t threads) {
    if (count <= 0) return;
    std::call_once(made, make);
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    if (threads > 1 && !inside) {
        std::unique_lock<std::mutex> lock(shared->busy, std::try_to_lock);
        if (lock.owns_lock()) return shared->team->run(list, count, int(threads));
    }
    Thread alone{0, 1, nullptr};
    bool before = inside;
    inside = true;
    for (int64_t i = 0; i < count; i++) list[i].run(list[i].arguments, &alone);
    inside = before;
}

// One operation.
EXPORTED void tinytorch_call(void (*run)(const void*, Thread*), const void* arguments,
                             int64_t threads) {
    Operation one{run, arguments};
    tinytorch_run(&one, 1, threads);
}

// How many threads the team has by now, the caller's among them.
EXPORTED int64_t tinytorch_team() {
    std::call_once(made, make);
    return shared->team->workers + 1;
}
