// The next token from logits: sample, argmax, and what goes with them (penalize, mark_seen, feed).
//
// sample sorts nothing. One pass divides by the temperature and keeps the largest value of each 64 classes; a
// second, where top p or a draw from all classes needs it, adds up the mass of each 64. From then on only blocks
// that hold a possible candidate are looked at: those above the k-th largest block maximum for top k (so many
// classes are at least as large), those near the top for top p, further down until they hold enough mass. A
// quickselect of the candidates finds the smallest value that both cuts leave, and the draw runs
// through what is left in the order of the classes. The two passes are shared by all threads, the rest is short.
#include "choice.h"

namespace ISA {

struct SampleArguments {
    const float* logits;       // (rows, classes)
    const float* temperature;  // (rows,), as the rest
    const int64_t* top_k;
    const float* top_p;
    const float* min_p;
    const uint64_t* state;  // [seed, offset] at row * state_pitch
    float* scaled;          // (rows, classes), scratch
    float* tops;            // (rows, blocks), scratch
    double* masses;         // (rows, blocks), scratch
    int64_t* ids;           // (rows,)
    int64_t rows, classes, state_pitch;
};

// A row of it.
struct Choice {
    const SampleArguments& a;
    int64_t row, blocks;
    float *scaled, *tops;
    double* masses;

    Choice(const SampleArguments& a, int64_t row)
        : a(a), row(row), blocks((a.classes + CLASSES - 1) / CLASSES), scaled(a.scaled + row * a.classes),
          tops(a.tops + row * blocks), masses(a.masses + row * blocks) {}

    bool greedy() const { return a.temperature[row] == 0; }
    int64_t kept() const {  // 0 for all
        const int64_t k = a.top_k[row];
        return k > 0 && k < a.classes ? k : 0;
    }
    int64_t size(int64_t block) const { return least(CLASSES, a.classes - block * CLASSES); }

    // Divides by the temperature, and takes the largest of each block: NaN if it has one.
    void scale(Span some) const {
        const float* logits = a.logits + row * a.classes;
        const float factor = greedy() ? 1.0f : a.temperature[row];
        for (int64_t b = some.first; b < some.last; b++) {
            const int64_t count = size(b);
            float* to = scaled + b * CLASSES;
            Floats most = splat(-INFINITY), broken{};
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) {
                const Floats value = load(logits + b * CLASSES + i) / factor;
                store(to + i, value);
                most = greater(value, most);
                broken = value == value ? broken : value;
            }
            float top = -INFINITY, bad = 0;
            for (int l = 0; l < LANES; l++) {
                top = most[l] > top ? most[l] : top;
                if (broken[l] != broken[l]) bad = broken[l];
            }
            for (; i < count; i++) {
                to[i] = logits[b * CLASSES + i] / factor;
                top = to[i] > top ? to[i] : top;
                if (to[i] != to[i]) bad = to[i];
            }
            tops[b] = bad == bad ? top : bad;
        }
    }

    // The largest of all; NaN if one is.
    float top() const {
        float most = tops[0];
        for (int64_t b = 1; b < blocks; b++)
            if (tops[b] > most || tops[b] != tops[b]) most = tops[b];
        for (int64_t b = 0; b < blocks; b++)
            if (tops[b] != tops[b]) return tops[b];
        return most;
    }

    void weigh(Span some, float top) const {
        for (int64_t b = some.first; b < some.last; b++) {
            const int64_t count = size(b);
            const float* from = scaled + b * CLASSES;
            double total = 0;
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) {
                const Floats powers = exp(load(from + i) - top);
                for (int l = 0; l < LANES; l++) total += double(powers[l]);
            }
            if (i < count) {
                const Floats powers = exp(load_some(from + i, count - i) - top);
                for (int l = 0; l < count - i; l++) total += double(powers[l]);
            }
            masses[b] = total;
        }
    }
    bool weighed() const { return !greedy() && !kept(); }

    // The first class with the largest value, or with NaN.
    int64_t first_of(float top) const {
        for (int64_t b = 0; b < blocks; b++) {
            if (!(tops[b] == top) && top == top) continue;
            for (int64_t i = b * CLASSES; i < b * CLASSES + size(b); i++)
                if (top == top ? scaled[i] == top : scaled[i] != scaled[i]) return i;
        }
        return 0;
    }

    // Classes from `edge` on up, in their order; returns how many. `places` may be null.
    int64_t gather(float edge, float top, Candidate* to, int64_t* places) const {
        int64_t count = 0;
        for (int64_t b = 0; b < blocks; b++) {
            if (tops[b] < edge) continue;
            for (int64_t i = b * CLASSES; i < b * CLASSES + size(b); i++) {
                if (scaled[i] < edge) continue;
                if (places) places[count] = i;
                to[count++] = {scaled[i], 0};
            }
        }
        for (int64_t i = 0; i < count; i += LANES) {
            Floats values{};
            const int64_t some = least(LANES, count - i);
            for (int l = 0; l < some; l++) values[l] = to[i + l].value;
            const Floats powers = exp(values - top);
            for (int l = 0; l < some; l++) to[i + l].power = powers[l];
        }
        return count;
    }

    // The smallest value that top k and top p leave.
    float edge(float top, Candidate* room, float* spare) const {
        const double share = double(a.top_p[row]);
        float edge = -INFINITY;
        double total = 0;
        Above above;
        if (kept()) {
            if (kept() <= blocks) {
                memcpy(spare, tops, 4 * size_t(blocks));
                edge = nth_largest(spare, blocks, kept());
            }
            const int64_t count = gather(edge, top, room, nullptr);
            edge = edge_of(room, count, kept(), INFINITY, above);
            const double last = double(exp(splat(edge - top))[0]);
            total = above.mass + double(kept() - above.count) * last;
            if (share >= 1) return edge;
            const float nucleus = edge_of(room, count, a.classes + 1, share * total, above);
            return nucleus > edge ? nucleus : edge;
        }
        if (share >= 1) return edge;
        for (int64_t b = 0; b < blocks; b++) total += masses[b];
        for (float reach = 4;; reach *= 2) {
            const float floor = reach > 64 ? -INFINITY : top - reach;
            const int64_t count = gather(floor, top, room, nullptr);
            double held = 0;
            for (int64_t i = 0; i < count; i++) held += double(room[i].power);
            if (held >= share * total || reach > 64)
                return edge_of(room, count, a.classes + 1, share * total, above);
        }
    }

    int64_t draw(float top, void* memory) const {
        Candidate* room = static_cast<Candidate*>(memory);
        int64_t* places = reinterpret_cast<int64_t*>(room + a.classes);
        const double number = uniform(a.state[row * a.state_pitch], a.state[row * a.state_pitch + 1], row);
        const float low = edge(top, room, reinterpret_cast<float*>(places)), least_share = a.min_p[row];
        if (low == -INFINITY && !(least_share > 0) && weighed()) return from_all(top, number);
        // A little lower than min p asks for: the comparison below is the reference's.
        const float floor = least_share > 0 ? top + logf(least_share) - 1e-3f * (1 + fabsf(top)) : low;
        const int64_t count = gather(low > floor ? low : floor, top, room, places);
        double total = 0;
        for (int64_t i = 0; i < count; i++) {
            if (room[i].power < least_share) room[i].power = 0;
            total += double(room[i].power);
        }
        const double goal = number * total;
        double sum = 0;
        for (int64_t i = 0; i < count; i++) {
            sum += double(room[i].power);
            if (sum > goal) return places[i];
        }
        return count ? places[count - 1] : 0;
    }

    int64_t from_all(float top, double number) const {
        double total = 0, sum = 0;
        for (int64_t b = 0; b < blocks; b++) total += masses[b];
        const double goal = number * total;
        int64_t last = 0;
        for (int64_t b = 0; b < blocks; b++) {
            if (sum + masses[b] <= goal) {
                sum += masses[b];
                continue;
            }
            for (int64_t i = 0; i < size(b); i += LANES) {
                const int64_t some = least(LANES, size(b) - i);
                const Floats powers = exp(load_some(scaled + b * CLASSES + i, some) - top);
                for (int l = 0; l < some; l++) {
                    sum += double(powers[l]);
                    last = b * CLASSES + i + l;
                    if (sum > goal) return last;
                }
            }
        }
        return last;
    }

    void choose(void* memory) const {
        const float most = top();
        const bool ordinary = most - most == 0;  // broken logits: whoever reads the choice looks at them
        a.ids[row] = greedy() || !ordinary ? first_of(most) : draw(most, memory);
    }
};

static void sample(const SampleArguments& a, Thread& thread) {
    void* memory = thread.scratch(16 * size_t(a.classes));
    for (int64_t row = 0; row < a.rows; row++) {
        const Choice one(a, row);
        one.scale(share(thread, one.blocks));
    }
    thread.barrier();
    bool weighed = false;
    for (int64_t row = 0; row < a.rows; row++) {
        const Choice one(a, row);
        if (!one.weighed()) continue;
        weighed = true;
        const float top = one.top();
        if (top - top == 0) one.weigh(share(thread, one.blocks), top);
    }
    if (weighed) thread.barrier();
    const Span own = share(thread, a.rows);
    for (int64_t row = own.first; row < own.last; row++) Choice(a, row).choose(memory);
}

struct ArgmaxArguments {
    const float* logits;  // (rows, classes)
    float* tops;          // (rows, blocks), scratch
    int64_t* ids;         // (rows,)
    int64_t rows, classes;
};

static void argmax(const ArgmaxArguments& a, Thread& thread) {
    const int64_t blocks = (a.classes + CLASSES - 1) / CLASSES;
    const Span own = share(thread, blocks);
    for (int64_t row = 0; row < a.rows; row++) {
        for (int64_t b = own.first; b < own.last; b++) {
            const float* from = a.logits + row * a.classes + b * CLASSES;
            const int64_t count = least(CLASSES, a.classes - b * CLASSES);
            Floats most = splat(-INFINITY), broken{};
            int64_t i = 0;
            for (; i + LANES <= count; i += LANES) {
                const Floats value = load(from + i);
                most = greater(value, most);
                broken += value - value;  // NaN of an infinite one too
            }
            float top = -INFINITY;
            for (int l = 0; l < LANES; l++) top = most[l] > top ? most[l] : top;
            const bool odd = sum(broken) != 0;
            for (int64_t j = odd ? 0 : i; j < count; j++) {
                if (from[j] != from[j]) top = from[j];
                if (top != top) break;
                top = from[j] > top ? from[j] : top;
            }
            a.tops[row * blocks + b] = top;
        }
    }
    thread.barrier();
    const Span rows = share(thread, a.rows);
    for (int64_t row = rows.first; row < rows.last; row++) {
        const float* tops = a.tops + row * blocks;
        int64_t best = 0;
        for (int64_t b = 0; b < blocks && tops[best] == tops[best]; b++)
            if (tops[b] > tops[best] || tops[b] != tops[b]) best = b;
        const float* from = a.logits + row * a.classes;
        int64_t i = best * CLASSES;
        while (i + 1 < a.classes && (tops[best] == tops[best] ? from[i] != tops[best] : from[i] == from[i])) i++;
        a.ids[row] = i;
    }
}

struct PenalizeArguments {
    const float* logits;   // (rows, classes)
    const uint8_t* seen;   // (rows, classes), 0 or 1
    const float* penalty;  // (rows,)
    float* out;            // (rows, classes)
    int64_t rows, classes;
};

static void penalize(const PenalizeArguments& a, Thread& thread) {
    const Span own = share(thread, a.classes, CLASSES);
    for (int64_t row = 0; row < a.rows; row++) {
        const float factor = a.penalty[row];
        const int64_t at = row * a.classes;
        for (int64_t i = own.first; i < own.last; i++) {
            const float x = a.logits[at + i];
            const float changed = x > 0 ? x / factor : x * factor;
            a.out[at + i] = a.seen[at + i] ? changed : x;
        }
    }
}

struct MarkSeenArguments {
    uint8_t* seen;       // (rows, classes)
    const int64_t* ids;  // (rows, count), -1 for none
    int64_t rows, classes, count;
};

static void mark_seen(const MarkSeenArguments& a, Thread& thread) {
    const Span own = share(thread, a.rows);
    for (int64_t i = own.first * a.count; i < own.last * a.count; i++)
        if (a.ids[i] >= 0 && a.ids[i] < a.classes) a.seen[i / a.count * a.classes + a.ids[i]] = 1;
}

struct FeedArguments {
    int64_t* held;       // (rows,), where the next step reads
    const int64_t* ids;  // (rows,)
    uint64_t* state;     // (states, 2) of [seed, offset]
    int64_t rows, states;
};

static void feed(const FeedArguments& a, Thread& thread) {
    if (thread.index != 0) return;
    for (int64_t i = 0; i < a.rows; i++) a.held[i] = a.ids[i];
    for (int64_t i = 0; i < a.states; i++) a.state[2 * i + 1]++;
}

}  // namespace ISA

OPERATION(sample, SampleArguments)
OPERATION(argmax, ArgmaxArguments)
OPERATION(penalize, PenalizeArguments)
OPERATION(mark_seen, MarkSeenArguments)
OPERATION(feed, FeedArguments)
