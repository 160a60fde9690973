// cross_entropy and its gradient over rows of logits.
//
// A row of 50257 logits is 200 KB, which a second-level cache holds: its largest value is found first and
// then the sum of powers, one trip through memory for both. The gradient reads each logit once and writes one
// value, made from the log-sum-exp that the forward has saved.
#include "simd.h"

namespace ISA {

// Powers that are added up in float before the sum goes on in double.
constexpr int64_t ADDED = 2048;

struct CrossEntropyArguments {
    const float* logits;  // (rows, classes)
    float* lse;           // (rows,)
    double* sums;         // (rows,) of the logits, for label smoothing; or null
    int64_t rows, classes;
};

static inline float largest(const float* x, int64_t count) {
    Floats top[4];
    for (Floats& each : top) each = splat(-INFINITY);
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        UNROLLED for (int s = 0; s < 4; s++) top[s] = greater(load(x + i + s * LANES), top[s]);
    top[0] = greater(greater(top[0], top[1]), greater(top[2], top[3]));
    float found = -INFINITY;
    for (; i < count; i++) found = x[i] > found ? x[i] : found;
    for (int lane = 0; lane < LANES; lane++) found = top[0][lane] > found ? top[0][lane] : found;
    return found;
}

// The sum of e ** (x - top).
static inline double powers(const float* x, int64_t count, float top) {
    double total = 0;
    for (int64_t first = 0; first < count; first += ADDED) {
        const int64_t stop = least(count, first + ADDED);
        Floats sums[2] = {};
        int64_t i = first;
        for (; i + 2 * LANES <= stop; i += 2 * LANES)
            UNROLLED for (int s = 0; s < 2; s++) sums[s] += exp(load(x + i + s * LANES) - top);
        for (; i < stop; i += LANES) {
            Floats rest = splat(-INFINITY);
            memcpy(&rest, x + i, 4 * least(LANES, stop - i));
            sums[0] += exp(rest - top);
        }
        total += sum(sums[0] + sums[1]);
    }
    return total;
}

static void cross_entropy(const CrossEntropyArguments& a, Thread& thread) {
    const Span own = share(thread, a.rows);
    for (int64_t row = own.first; row < own.last; row++) {
        const float* x = a.logits + row * a.classes;
        const float top = largest(x, a.classes);
        a.lse[row] = float(top + log(powers(x, a.classes, top)));
        if (!a.sums) continue;
        double total = 0;
        for (int64_t i = 0; i < a.classes; i += ADDED) {
            float part = 0;
            for (int64_t j = i; j < least(a.classes, i + ADDED); j++) part += x[j];
            total += part;
        }
        a.sums[row] = total;
    }
}

struct CrossEntropyBackwardArguments {
    const float* logits;     // (rows, classes)
    const float* lse;        // (rows,)
    const float* factors;    // (rows,) what the gradient of a row is multiplied by
    const int64_t* targets;  // (rows,) from 0 on
    float* gradient;         // (rows, classes)
    int64_t rows, classes;
    double smoothing;
};

static void cross_entropy_backward(const CrossEntropyBackwardArguments& a, Thread& thread) {
    const Span own = share(thread, a.rows);
    const float each = float(a.smoothing / double(a.classes));
    for (int64_t row = own.first; row < own.last; row++) {
        const float *x = a.logits + row * a.classes, lse = a.lse[row], factor = a.factors[row];
        float* gradient = a.gradient + row * a.classes;
        int64_t i = 0;
        for (; i + LANES <= a.classes; i += LANES)
            store(gradient + i, (exp(load(x + i) - lse) - each) * factor);
        if (i < a.classes) {
            const int64_t rest = a.classes - i;
            store_some(gradient + i, (exp(load_some(x + i, rest) - lse) - each) * factor, rest);
        }
        // The target's again: its power and what is taken off may be near each other.
        const int64_t target = a.targets[row];
        const Floats power = exp(splat(x[target] - lse));
        gradient[target] = (power[0] - float(1 - a.smoothing) - each) * factor;
    }
}

}  // namespace ISA

OPERATION(cross_entropy, CrossEntropyArguments)
OPERATION(cross_entropy_backward, CrossEntropyBackwardArguments)
