// activation and activation_backward: the functions between two linear maps, and their gradients.
//
// Each value is read once and written once; gated ones take a row's two halves to one. Rows are cut into
// chunks, so that threads share one long row as well as many short ones.
#include "activation.h"

namespace ISA {

constexpr int64_t CHUNK = 4096;

struct ActivationArguments {
    const float* x;  // (rows, width), or (rows, 2 width) if the activation is gated
    float* out;      // (rows, width)
    int64_t rows, width, activation;
};

struct ActivationBackwardArguments {
    const float* x;   // as above
    const float* dy;  // (rows, width): the gradient of the result
    float* dx;        // as x
    int64_t rows, width, activation;
};

// Calls `work(row, first, count)` for this thread's chunks of `rows` rows.
template <class Work>
static inline void each_chunk(int64_t rows, int64_t width, Thread& thread, Work work) {
    const int64_t chunks = (width + CHUNK - 1) / CHUNK;
    const Span own = share(thread, rows * chunks);
    for (int64_t i = own.first; i < own.last; i++) {
        const int64_t row = i / chunks, first = i % chunks * CHUNK;
        work(row, first, least(CHUNK, width - first));
    }
}

template <int64_t KIND>
static inline void forward(const ActivationArguments& a, Thread& thread) {
    constexpr bool gated = KIND == SWIGLU || KIND == GEGLU;
    each_chunk(a.rows, a.width, thread, [&](int64_t row, int64_t first, int64_t count) {
        const float* x = a.x + (gated ? 2 : 1) * row * a.width + first;
        float* out = a.out + row * a.width + first;
        for (int64_t i = 0; i < count; i += LANES) {
            Floats made = activated(KIND, load_some(x + i, count - i));
            if (gated) made *= load_some(x + a.width + i, count - i);
            store_some(out + i, made, count - i);
        }
    });
}

template <int64_t KIND>
static inline void backward(const ActivationBackwardArguments& a, Thread& thread) {
    constexpr bool gated = KIND == SWIGLU || KIND == GEGLU;
    each_chunk(a.rows, a.width, thread, [&](int64_t row, int64_t first, int64_t count) {
        const int64_t place = (gated ? 2 : 1) * row * a.width + first;
        const float *x = a.x + place, *dy = a.dy + row * a.width + first;
        float* dx = a.dx + place;
        for (int64_t i = 0; i < count; i += LANES) {
            const Floats inner = load_some(x + i, count - i), given = load_some(dy + i, count - i);
            Floats made = given * slope(KIND, inner);
            if (gated) {
                made *= load_some(x + a.width + i, count - i);
                store_some(dx + a.width + i, given * activated(KIND, inner), count - i);
            }
            store_some(dx + i, made, count - i);
        }
    });
}

static void activation(const ActivationArguments& a, Thread& thread) {
    switch (a.activation) {
        case RELU: return forward<RELU>(a, thread);
        case GELU: return forward<GELU>(a, thread);
        case GELU_TANH: return forward<GELU_TANH>(a, thread);
        case SILU: return forward<SILU>(a, thread);
        case SWIGLU: return forward<SWIGLU>(a, thread);
        case GEGLU: return forward<GEGLU>(a, thread);
    }
}

static void activation_backward(const ActivationBackwardArguments& a, Thread& thread) {
    switch (a.activation) {
        case RELU: return backward<RELU>(a, thread);
        case GELU: return backward<GELU>(a, thread);
        case GELU_TANH: return backward<GELU_TANH>(a, thread);
        case SILU: return backward<SILU>(a, thread);
        case SWIGLU: return backward<SWIGLU>(a, thread);
        case GEGLU: return backward<GEGLU>(a, thread);
    }
}

}  // namespace ISA

OPERATION(activation, ActivationArguments)
OPERATION(activation_backward, ActivationBackwardArguments)
