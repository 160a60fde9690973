// The emulated device's memory: checks and counts of every access of a kernel.
//
// The kernel is compiled with -fsanitize=thread but linked with the functions at the end of this file
// instead of the sanitizer's. For each piece of memory a cell remembers who wrote and read it last and
// when, by a clock that ticks at every barrier, warp meeting and fence; two accesses with none of these
// between them are a race. Accesses of a warp are collected per meeting and grouped into requests, whose
// sectors and bank conflicts are counted.
#include "runtime.h"
#include <algorithm>
#include <stdio.h>
#include <unordered_map>
#include <vector>

namespace emulated {
Counters counters;

namespace {
const int SHARED = 256 << 10, RED_ZONE = 64;

struct Cell {
    uint32_t written, read;      // the clock then; 0 for never
    uint16_t writer, reader;     // linear thread
    uint8_t readers;             // since the last write: 0 none, 1 one, 2 of one warp, 3 of several
    uint8_t how;                 // see below
};
enum How : uint8_t { PLAINLY = 0, ATOMICALLY = 1, PENDING = 2 };

struct Span { uintptr_t low, high; bool writable; int argument, grain; uint8_t* valid; };
struct Region { uintptr_t low, high; int shift; std::vector<Cell> cells; };
struct Entry { uintptr_t site, at; uint8_t size; bool writes, shared; };
struct Site { uint64_t requests, lanes, bytes, wavefronts, ideal, worst; bool writes, shared; };
struct Copy { void* to; const void* from; bool present; int group; };
struct Finished { uint32_t start, released; uint16_t thread; std::vector<uint32_t> fences; };

bool checking = true, counting = true;
std::vector<Span> spans;
std::vector<Region> regions;
std::vector<std::pair<uintptr_t, uintptr_t>> constants;  // of loaded kernels
std::vector<Finished> blocks;
uint32_t now_clock, block_start, last_barrier, warp_met_at[MAX_THREADS / 32], first_atomic;
std::vector<Entry> log_of[MAX_THREADS];
std::unordered_map<uintptr_t, Site> sites;
std::vector<Copy> copies[MAX_THREADS];
int groups[MAX_THREADS];

alignas(4096) unsigned char arena[SHARED];
Cell shared_cells[SHARED / 2];
size_t dynamic_bytes, arena_used;
struct Variable { int number; size_t offset, bytes; };
std::vector<Variable> variables;
}  // namespace

// --- shared memory: dynamic first, then each variable after a red zone ---
void* dynamic_shared() { return arena; }

void* shared_variable(int number, size_t bytes, size_t alignment) {
    for (auto& v : variables)
        if (v.number == number && v.bytes == bytes) return arena + v.offset;
    size_t to = std::max<size_t>(alignment, 16), offset = (arena_used + RED_ZONE + to - 1) / to * to;
    if (offset + bytes > SHARED) fail(0, nullptr, "more than %d bytes of shared memory", SHARED);
    variables.push_back({number, offset, bytes});
    arena_used = offset + bytes;
    memset(arena + offset, 0xff, bytes);
    return arena + offset;
}

static bool is_shared(uintptr_t at) { return at - (uintptr_t)arena < (uintptr_t)SHARED; }

static bool shared_holds(uintptr_t at, int size) {
    size_t offset = at - (uintptr_t)arena;
    if (offset + size <= dynamic_bytes) return true;
    for (auto& v : variables)
        if (offset >= v.offset && offset + size <= v.offset + v.bytes) return true;
    return false;
}

// --- races ---
static bool same_warp(uint16_t thread) { return thread >> 5 == current->warp; }

// Whether what another block did at `clock` is known here: it fenced and told by an atomic operation,
// and this thread has looked at one since.
static bool published(uint32_t clock, uint16_t thread) {
    auto after = std::upper_bound(blocks.begin(), blocks.end(), clock,
                                  [](uint32_t c, const Finished& b) { return c < b.start; });
    const Finished& b = *(after - 1);
    bool told = b.released > clock || (b.fences.size() > thread && b.fences[thread] > clock && b.released);
    bool heard = current->acquired || (first_atomic && first_atomic <= std::max(last_barrier, warp_met_at[current->warp]));
    return told && heard;
}

// Whether an access at `clock` by `thread` is ordered before this one.
static bool ordered(uint32_t clock, uint16_t thread, bool several_warps, bool several_lanes) {
    if (clock < block_start) return published(clock, thread);
    if (clock < last_barrier) return true;
    if (several_warps) return false;
    if (same_warp(thread)) return (thread == current->linear && !several_lanes) || clock < warp_met_at[current->warp];
    return false;
}

static const char* name_of(const void* at, int* argument) {
    for (auto& s : spans)
        if ((uintptr_t)at >= s.low && (uintptr_t)at < s.high) { *argument = s.argument; return "argument"; }
    *argument = -1;
    return is_shared((uintptr_t)at) ? "shared memory" : "memory";
}

static void race(const void* at, const Cell& c, bool writes, bool with_write, int line, const void* pc) {
    int argument;
    const char* where = name_of(at, &argument);
    uint32_t clock = with_write ? c.written : c.read;
    const char* across = clock < block_start ? " of another block" : "";
    char number[16] = "";
    if (argument >= 0) snprintf(number, sizeof number, " %d", argument);
    fail(line, pc, "race: %s of %s%s after a %s by thread %d%s%s, with no barrier between",
         writes ? "write" : "read", where, number, with_write ? "write" : "read",
         with_write ? c.writer : c.reader, !with_write && c.readers > 1 ? " and others" : "", across);
}

static void check_cell(Cell& c, const void* at, bool writes, uint8_t how, int line, const void* pc) {
    if (c.written && !(how == ATOMICALLY && c.how == ATOMICALLY) && !ordered(c.written, c.writer, false, false))
        race(at, c, writes, true, line, pc);
    if (c.written >= block_start && c.how == PENDING && how != PENDING)
        fail(line, pc, "%s of shared memory that an asynchronous copy has not been waited for", writes ? "write" : "read");
    if (writes && c.readers && !(how == ATOMICALLY && c.how == ATOMICALLY && c.readers == 1) &&
        !ordered(c.read, c.reader, c.readers == 3, c.readers == 2))
        race(at, c, writes, false, line, pc);
    uint16_t me = (uint16_t)current->linear;
    if (writes) {
        c.written = now_clock;
        c.writer = me;
        c.how = how;
        c.readers = 0;
    } else {
        bool fresh = !c.readers || c.read < block_start || c.read < last_barrier;
        if (fresh) c.readers = 1;
        else if (!same_warp(c.reader)) c.readers = 3;
        else if (c.reader != me && c.readers == 1) c.readers = 2;
        c.reader = me;
        c.read = now_clock;
    }
}

// --- one access ---
static void shared_access(uintptr_t at, int size, bool writes, uint8_t how, int line, const void* pc) {
    if (!shared_holds(at, size))
        fail(line, pc, "%s of %d bytes outside every shared variable", writes ? "write" : "read", size);
    size_t first = (at - (uintptr_t)arena) / 2, last = (at + size - 1 - (uintptr_t)arena) / 2;
    for (size_t i = first; i <= last; i++) {
        Cell& c = shared_cells[i];
        if (c.written < block_start) {
            if (!writes) fail(line, pc, "read of shared memory that this block has not written");
            c = Cell();
        }
        check_cell(c, (const void*)at, writes, how, line, pc);
    }
}

static void global_access(uintptr_t at, int size, bool writes, uint8_t how, int line, const void* pc) {
    const Span* inside = nullptr;
    for (auto& s : spans)
        if (at >= s.low && at + size <= s.high && (!writes || s.writable)) { inside = &s; break; }
    if (!inside) {
        for (auto& c : constants)
            if (!writes && at >= c.first && at + size <= c.second) return;
        int argument;
        name_of((const void*)at, &argument);
        if (argument >= 0) {
            for (auto& s : spans)
                if (at >= s.low && at + size <= s.high)
                    fail(line, pc, "write to argument %d, which is const", argument);
            fail(line, pc, "%s of %d bytes across the end of argument %d", writes ? "write" : "read", size, argument);
        }
        uintptr_t nearest = ~(uintptr_t)0;
        for (auto& s : spans) {
            uintptr_t away = at < s.low ? s.low - at : at - s.high;
            if (away < nearest) { nearest = away; argument = s.argument; }
        }
        if (argument >= 0 && nearest < (1u << 20))
            fail(line, pc, "%s of %d bytes, %zu bytes outside argument %d", writes ? "write" : "read", size, (size_t)nearest, argument);
        fail(line, pc, "%s of %d bytes at an address that is no argument's", writes ? "write" : "read", size);
    }
    if (inside->valid) {
        uint8_t* valid = inside->valid + (at - inside->low);
        for (int i = 0; i < size; i++) {
            if (!writes && !valid[i]) fail(line, pc, "read of argument %d where nothing has been written", inside->argument);
            if (writes) valid[i] = 1;
        }
    }
    for (auto& r : regions)
        if (at >= r.low && at < r.high) {
            size_t last = (at + size - 1 - r.low) >> r.shift;
            for (size_t i = (at - r.low) >> r.shift; i <= last; i++)
                check_cell(r.cells[i], (const void*)at, writes, how, line, pc);
            return;
        }
}

// A thread of a block that fits this device makes fewer.
static const size_t MOST_ACCESSES = 1 << 22;

static void access(uintptr_t at, int size, bool writes, int alignment, const void* pc, int line = 0, uint8_t how = PLAINLY) {
    if (!current || !checking) return;
    if (at - (uintptr_t)current->stack < STACK) return;
    if (alignment > 1 && at % (unsigned)alignment)
        fail(line, pc, "%s of %d bytes at an address that is not a multiple of %d", writes ? "write" : "read", size, alignment);
    bool shared = is_shared(at);
    (shared ? shared_access : global_access)(at, size, writes, how, line, pc);
    if (!counting || how == ATOMICALLY) return;
    auto& log = log_of[current->linear];
    if (log.size() >= MOST_ACCESSES) fail(line, pc, "%zu accesses by one thread: a loop that does not end?", log.size());
    // Twice the place, so that the read and the write of a copied vector are two instructions.
    log.push_back({2 * (pc ? (uintptr_t)pc : (uintptr_t)line) + writes, at, (uint8_t)size, writes, shared});
}

void move(void* to, const void* from, int bytes, const void* pc) {
    access((uintptr_t)from, bytes, false, bytes > 16 ? 16 : bytes, pc);
    access((uintptr_t)to, bytes, true, bytes > 16 ? 16 : bytes, pc);
    memcpy(to, from, bytes);
}

void read_shared(const void* at, int bytes, int line) {
    if (checking && !is_shared((uintptr_t)at)) fail(line, nullptr, "ldmatrix from an address outside shared memory");
    access((uintptr_t)at, bytes, false, bytes, nullptr, line);
}

void atomic(const void* at, int bytes, int line) {
    counters.atomics++;
    if (!checking) return;
    access((uintptr_t)at, bytes, true, bytes, nullptr, line, ATOMICALLY);
    if (!is_shared((uintptr_t)at)) {
        current->acquired = true;
        if (!first_atomic) first_atomic = now_clock;
        Finished& b = blocks.back();
        if (current->fenced) b.released = std::max(b.released, current->fenced);
    }
}

void fence(int) { current->fenced = ++now_clock; }

// --- asynchronous copies: made by the wait that covers them, so that a missing wait shows ---
void copy_async(void* to, const void* from, bool present, int line) {
    counters.copies++;
    if (checking) {
        if (!is_shared((uintptr_t)to)) fail(line, nullptr, "an asynchronous copy to an address outside shared memory");
        if (present) access((uintptr_t)from, 16, false, 16, nullptr, line);
        access((uintptr_t)to, 16, true, 16, nullptr, line, PENDING);
    }
    memset(to, 0xff, 16);
    copies[current->linear].push_back({to, from, present, groups[current->linear]});
}

void copy_commit() { groups[current->linear]++; }

void copy_wait(int pending) {
    auto& mine = copies[current->linear];
    int newest = groups[current->linear] - pending;
    size_t kept = 0;
    for (auto& c : mine) {
        if (c.group >= newest) { mine[kept++] = c; continue; }
        if (c.present) memcpy(c.to, c.from, 16);
        else memset(c.to, 0, 16);
        size_t first = ((unsigned char*)c.to - arena) / 2;
        for (size_t i = first; i < first + 8; i++) {
            shared_cells[i].written = now_clock;
            shared_cells[i].how = PLAINLY;
        }
    }
    mine.resize(kept);
}

// --- requests: the same instruction of the lanes of a warp ---
static void count_request(const Entry* const* lanes, int n) {
    const Entry& first = *lanes[0];
    Site& site = sites[first.site];
    site.requests++;
    site.lanes += n;
    site.writes = first.writes;
    site.shared = first.shared;
    counters.absent_lanes += 32 - n;
    if (!first.shared) {
        uintptr_t bytes = 0, sectors = 0, seen_byte = 0, seen_sector = ~(uintptr_t)0;
        std::pair<uintptr_t, int> parts[32];
        for (int i = 0; i < n; i++) parts[i] = {lanes[i]->at, lanes[i]->size};
        std::sort(parts, parts + n);
        for (int i = 0; i < n; i++) {
            uintptr_t low = std::max(parts[i].first, seen_byte), high = parts[i].first + parts[i].second;
            if (high > low) { bytes += high - low; seen_byte = high; }
            for (uintptr_t s = parts[i].first / 32; s <= (high - 1) / 32; s++)
                if (seen_sector == ~(uintptr_t)0 || s > seen_sector) { sectors++; seen_sector = s; }
        }
        uint64_t ideal = (bytes + 31) / 32;
        (first.writes ? counters.written_bytes : counters.read_bytes) += bytes;
        (first.writes ? counters.written_sectors : counters.read_sectors) += sectors;
        counters.ideal_sectors += ideal;
        site.bytes += bytes;
        site.wavefronts += sectors;
        site.ideal += ideal;
        return;
    }
    // 128 bytes of shared memory are served at a time: half a warp for 8 bytes a lane, a quarter for 16.
    int each = first.size > 8 ? 8 : first.size > 4 ? 16 : 32;
    for (int start = 0; start < 32; start += each) {
        uintptr_t words[32 * 4];
        int count = 0, in_bank[32] = {}, most = 0;
        for (int i = start; i < std::min(n, start + each); i++)
            for (int k = 0; k < (lanes[i]->size + 3) / 4; k++) words[count++] = lanes[i]->at / 4 + k;
        if (!count) break;
        std::sort(words, words + count);
        count = (int)(std::unique(words, words + count) - words);
        for (int i = 0; i < count; i++) most = std::max(most, ++in_bank[words[i] & 31]);
        uint64_t ideal = (count + 31) / 32;
        counters.shared_wavefronts += most;
        counters.ideal_wavefronts += ideal;
        site.wavefronts += most;
        site.ideal += ideal;
        site.worst = std::max<uint64_t>(site.worst, most);
        counters.worst_conflict = std::max<uint64_t>(counters.worst_conflict, most);
    }
}

static void flush(int warp) {
    if (!counting) return;
    std::vector<Entry>* logs = &log_of[warp * 32];
    bool alike = true;
    int lead = -1;
    for (int i = 0; i < 32; i++) {
        if (logs[i].empty()) continue;
        if (lead < 0) lead = i;
        alike = alike && logs[i].size() == logs[lead].size();
    }
    if (lead < 0) return;
    const Entry* lanes[32];
    for (size_t k = 0; alike && k < logs[lead].size(); k++)
        for (int i = 0; i < 32; i++) alike = alike && (logs[i].empty() || logs[i][k].site == logs[lead][k].site);
    if (alike) {
        for (size_t k = 0; k < logs[lead].size(); k++) {
            int n = 0;
            for (int i = 0; i < 32; i++)
                if (!logs[i].empty()) lanes[n++] = &logs[i][k];
            count_request(lanes, n);
        }
    } else {
        // Lanes that went different ways: the n-th time an instruction is met by each is one request.
        std::unordered_map<uintptr_t, std::vector<std::vector<const Entry*>>> met;
        for (int i = 0; i < 32; i++) {
            std::unordered_map<uintptr_t, size_t> times;
            for (auto& e : logs[i]) {
                size_t time = times[e.site]++;
                auto& requests = met[e.site];
                if (requests.size() <= time) requests.emplace_back();
                requests[time].push_back(&e);
            }
        }
        for (auto& of : met)
            for (auto& request : of.second) count_request(request.data(), (int)request.size());
    }
    for (int i = 0; i < 32; i++) logs[i].clear();
}

// --- what the scheduler tells ---
void warp_met(int warp) {
    flush(warp);
    warp_met_at[warp] = ++now_clock;
}

static int warps() { return (int)(now.block_size.x * now.block_size.y * now.block_size.z + 31) / 32; }

void block_met() {
    for (int w = 0; w < warps(); w++) flush(w);
    last_barrier = ++now_clock;
}

void block_begins() {
    block_start = last_barrier = ++now_clock;
    first_atomic = 0;
    blocks.push_back({block_start, 0, 0, {}});
    if (checking) memset(arena, 0xff, arena_used);  // NaN
    for (int i = 0; i < warps() * 32; i++) {
        Thread& t = threads[i];
        t.fenced = 0;
        t.acquired = false;
        copies[i].clear();
        groups[i] = 0;
        log_of[i].clear();
    }
    for (int w = 0; w < warps(); w++) warp_met_at[w] = block_start;
}

void block_ends() {
    for (int w = 0; w < warps(); w++) flush(w);
    for (int i = 0; i < warps() * 32; i++)
        if (threads[i].fenced) {
            auto& fences = blocks.back().fences;
            fences.resize(std::max<size_t>(fences.size(), i + 1));
            fences[i] = threads[i].fenced;
        }
    now_clock++;
}

void launch_begins(size_t dynamic) {
    variables.clear();
    dynamic_bytes = dynamic;
    arena_used = dynamic;
    counters = Counters();
    sites.clear();
    blocks.clear();
    now_clock = 0;
    memset(shared_cells, 0, sizeof shared_cells);
    if (dynamic > SHARED) fail(0, nullptr, "%zu bytes of dynamic shared memory are too many", dynamic);
    // One region of cells for spans that overlap, such as views of one array.
    regions.clear();
    if (!checking) return;
    std::vector<Span> sorted = spans;
    std::sort(sorted.begin(), sorted.end(), [](const Span& a, const Span& b) { return a.low < b.low; });
    for (auto& s : sorted) {
        int shift = s.grain >= 4 ? 2 : s.grain == 2 ? 1 : 0;
        if (!regions.empty() && s.low < regions.back().high) {
            regions.back().high = std::max(regions.back().high, s.high);
            regions.back().shift = std::min(regions.back().shift, shift);
        } else regions.push_back({s.low, s.high, shift, {}});
    }
    for (auto& r : regions) {
        r.low &= ~(uintptr_t)3;
        r.cells.resize(((r.high - r.low) >> r.shift) + 1);
    }
}

void launch_ends() {}

// --- for Python ---
extern "C" void emulated_spans(int n, const unsigned long long* of) {
    spans.clear();
    for (int i = 0; i < n; i++, of += 6)
        spans.push_back({of[0], of[1], of[2] != 0, (int)of[3], (int)of[4], (uint8_t*)of[5]});
}
extern "C" void emulated_checks(int check, int count) { checking = check; counting = check && count; }
extern "C" void emulated_constants(unsigned long long low, unsigned long long high) { constants.push_back({low, high}); }
extern "C" const Counters* emulated_counters() { return &counters; }
extern "C" int emulated_sites(unsigned long long* out, int room) {
    int n = 0;
    for (auto& of : sites) {
        if (n == room) break;
        const Site& s = of.second;
        const unsigned long long row[9] = {of.first / 2, s.requests, s.lanes, s.bytes, s.wavefronts, s.ideal, s.worst, s.writes, s.shared};
        memcpy(out + 9 * n++, row, sizeof row);
    }
    return n;
}
}  // namespace emulated

// --- what the compiler calls for each access of an instrumented file ---
#define PC __builtin_return_address(0)
#define ACCESS(n) \
    extern "C" void __tsan_read##n(void* a) { emulated::access((uintptr_t)a, n, false, n, PC); } \
    extern "C" void __tsan_write##n(void* a) { emulated::access((uintptr_t)a, n, true, n, PC); } \
    extern "C" void __tsan_unaligned_read##n(void* a) { emulated::access((uintptr_t)a, n, false, n, PC); } \
    extern "C" void __tsan_unaligned_write##n(void* a) { emulated::access((uintptr_t)a, n, true, n, PC); } \
    extern "C" void __tsan_volatile_read##n(void* a) { emulated::access((uintptr_t)a, n, false, n, PC); } \
    extern "C" void __tsan_volatile_write##n(void* a) { emulated::access((uintptr_t)a, n, true, n, PC); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
extern "C" void __tsan_read_range(void* a, size_t n) { emulated::access((uintptr_t)a, (int)n, false, 1, PC); }
extern "C" void __tsan_write_range(void* a, size_t n) { emulated::access((uintptr_t)a, (int)n, true, 1, PC); }
// The compiler's own check of an index into an array whose size it knows: registers and local memory too.
struct Indexed {
    struct { const char* file; uint32_t line, column; } where;
    struct Type { uint16_t kind, info; char name[1]; } *array, *index;
};
extern "C" void __ubsan_handle_out_of_bounds(const Indexed* at, uintptr_t index) {
    emulated::fail((int)at->where.line, PC, "element %lld of a %s", (long long)index, at->array->name);
}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
