// The nonlinear functions of a feed-forward part, alone or as the end of a linear map: ReLU; GELU and its
// tanh approximation (Hendrycks and Gimpel 2016); SiLU (Elfwing et al. 2017); gated by a second half
// (Shazeer 2020, "GLU variants improve transformer"). And sums over rows, the gradient of a bias.
//
// Forward: out = function(inner + bias) + residual, backward: d inner = dout * slope(inner + bias). A row
// of a gated function is [gate, up] and gives function(gate) * up. One pass over memory: each input is read
// once and each output written once, which is the least possible; 10 to 30 operations an element.
//
// Layout. A thread has one chunk of a row of `width` results, a block blockDim.x chunks of blockDim.y rows, so
// that only blocks are numbered by dividing; without bias and gate all elements are one row. A chunk is 16
// bytes, or 4 elements where 16-bit and float32 arrays meet; where width or addresses do not allow that, its
// elements are taken one by one. All loads of a chunk are under way before the first one is used.
//
// tanh and the sigmoid come from p = 1 / (1 + e^-|z|) and 1 - p = e^-|z| p, which neither overflow nor
// cancel: 0.5 (1 + tanh(z / 2)) is sigmoid(z), and is p or 1 - p. Infinities end as in the reference.
//
// Registers: 48, so that 1280 threads have 20 KiB of loads and more under way; no shared memory but for the
// sums. 256 threads are enough rows or columns for whole sectors and few enough to fit five blocks.
#include "chunk.cuh"
#include "columns.cuh"

#define NO_FUNCTION 0
#define RELU 1
#define GELU 2
#define GELU_TANH 3
#define SILU 4

#define NEIGHBOURS (16 / (int)sizeof(REAL))

// Blocks that a multiprocessor should hold: the compiler for 10.0 cannot do with 48 registers.
#if __CUDA_ARCH__ == 1000
#define RESIDENT 4
#else
#define RESIDENT 5
#endif

// sigmoid(z) and sigmoid(z) (1 - sigmoid(z)).
struct Sigmoid {
    float value, product;

    __device__ inline explicit Sigmoid(float z) {
        float e = expf(-fabsf(z)), near = __fdividef(1.0f, 1.0f + e), far = e * near;
        value = z >= 0.0f ? near : far;
        product = near * far;
    }
};

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

__device__ inline float gelu_slope(float x) {
    float density = expf(-0.5f * x * x) * 0.39894228f;
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * density;
}

#define TWICE_SCALE 1.59576912f  // 2 sqrt(2 / pi)
#define CUBIC 0.044715f

__device__ inline float gelu_tanh(float x) { return x * Sigmoid(TWICE_SCALE * (x + CUBIC * (x * x * x))).value; }

__device__ inline float gelu_tanh_slope(float x) {
    float square = x * x;
    Sigmoid bent(TWICE_SCALE * (x + CUBIC * (square * x)));
    return bent.value + x * bent.product * (TWICE_SCALE * (1.0f + 3.0f * CUBIC * square));
}

__device__ inline float silu_slope(float x) {
    Sigmoid gate(x);
    return gate.value + x * gate.product;
}

// The branch is the same for all threads, and outside the loop over elements.
template <int N> __device__ inline void activate(float (&x)[N], int function) {
    if (function == RELU) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = x[i] < 0.0f ? 0.0f : x[i];
    } else if (function == GELU) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = gelu(x[i]);
    } else if (function == GELU_TANH) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = gelu_tanh(x[i]);
    } else if (function == SILU) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = x[i] * Sigmoid(x[i]).value;
    }
}

// x becomes the derivative at x.
template <int N> __device__ inline void differentiate(float (&x)[N], int function) {
    if (function == RELU) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = x[i] > 0.0f ? 1.0f : 0.0f;
    } else if (function == GELU) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = gelu_slope(x[i]);
    } else if (function == GELU_TANH) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = gelu_tanh_slope(x[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = silu_slope(x[i]);
    }
}

// An array of REAL, or of float32 if `wide`. null is an array of zeros that is not there.
template <class POINTER> struct Numbers {
    POINTER* at;
    bool wide;

    __device__ inline bool allows(int bytes) const { return aligned(at, bytes * (wide ? 4 : (int)sizeof(REAL))); }
};

// A chunk of such an array, on its way. MIXED: whether there are wide arrays beside 16-bit ones.
template <int N, bool MIXED> struct AnyChunk {
    Chunk<N, REAL> narrow_bits;
    Chunk<MIXED ? N : 1, float> wide_bits;

    template <class P> __device__ inline void read(const Numbers<P>& from, long long i) {
        if (MIXED && from.wide) wide_bits.read((const float*)from.at + i);
        else narrow_bits.read((const REAL*)from.at + i);
    }

    template <class P> __device__ inline void get(float (&out)[N], const Numbers<P>& from) const {
        if (MIXED && from.wide) memcpy(out, wide_bits.words, sizeof(float) * (MIXED ? N : 1));
        else narrow_bits.get(out);
    }
};

template <int N, bool MIXED>
__device__ inline void write(const Numbers<void>& to, long long i, const float (&values)[N]) {
    if (MIXED && to.wide) store<N>((float*)to.at + i, values);
    else store<N>((REAL*)to.at + i, values);
}

// The first element of this thread's chunk of n: blocks are numbered along a row first.
struct Place {
    long long row, column;

    __device__ inline Place(int n, int blocks_a_row)
        : row((long long)(blockIdx.x / blocks_a_row) * blockDim.y + threadIdx.y),
          column(((long long)(blockIdx.x % blocks_a_row) * blockDim.x + threadIdx.x) * n) {}

    // Whether the chunk is whole and aligned, given that the arrays begin as chunks have to (`fits`).
    // A row that is alone may end in a part of one.
    __device__ inline bool whole(int n, long long rows, long long width, bool gated, bool fits) const {
        return fits && column + n <= width && (width % n == 0 || (rows == 1 && !gated));
    }
};

struct Forward {
    Numbers<void> inner;
    Numbers<const void> bias, residual;
    Numbers<void> out;
    int function;
    bool gated, keep;  // keep: write inner + bias back
};

// inner + bias of one chunk, on its way and then there.
template <int N, bool MIXED> struct Sum {
    AnyChunk<N, MIXED> inner, bias;

    __device__ inline void read(const Forward& a, long long i, long long column) {
        inner.read(a.inner, i);
        if (a.bias.at) bias.read(a.bias, column);
    }

    __device__ inline void get(float (&out)[N], const Forward& a, long long i) const {
        inner.get(out, a.inner);
        if (!a.bias.at) return;
        float more[N];
        bias.get(more, a.bias);
#pragma unroll
        for (int j = 0; j < N; j++) out[j] += more[j];
        if (a.keep) write<N, MIXED>(a.inner, i, out);
    }
};

template <int N, bool MIXED>
__device__ inline void forward(const Forward& a, long long row, long long width, long long i) {
    long long inner_width = a.gated ? 2 * width : width;
    long long from = row * inner_width + i, to = row * width + i;
    Sum<N, MIXED> first, second;
    AnyChunk<N, MIXED> residual;
    first.read(a, from, i);
    if (a.gated) second.read(a, from + width, i + width);
    if (a.residual.at) residual.read(a.residual, to);
    float out[N], more[N];
    first.get(out, a, from);
    activate<N>(out, a.function);
    if (a.gated) {
        second.get(more, a, from + width);
#pragma unroll
        for (int j = 0; j < N; j++) out[j] *= more[j];
    }
    if (a.residual.at) {
        residual.get(more, a.residual);
#pragma unroll
        for (int j = 0; j < N; j++) out[j] += more[j];
    }
    write<N, MIXED>(a.out, to, out);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT) activation_forward(
    void* inner, const void* bias, const void* residual, void* out, long long rows, long long width, int blocks_a_row,
    int function, bool gated, bool keep, bool inner_wide, bool bias_wide, bool residual_wide, bool out_wide) {
    Forward a = {{inner, inner_wide}, {bias, bias_wide}, {residual, residual_wide}, {out, out_wide},
                 function, gated, keep};
    bool mixed = inner_wide || bias_wide || residual_wide || out_wide;
    int n = mixed ? 4 : NEIGHBOURS;
    Place place(n, blocks_a_row);
    if (place.row >= rows) return;
    bool fits = a.inner.allows(n) && a.bias.allows(n) && a.residual.allows(n) && a.out.allows(n);
    if (!place.whole(n, rows, width, gated, fits)) {
        long long end = place.column + n < width ? place.column + n : width;
        for (long long i = place.column; i < end; i++) forward<1, true>(a, place.row, width, i);
    } else if (mixed) forward<4, true>(a, place.row, width, place.column);
    else forward<NEIGHBOURS, false>(a, place.row, width, place.column);
}

struct Backward {
    Numbers<const void> inner, dout;
    Numbers<void> dinner;
    int function;
    bool gated;
};

template <int N, bool MIXED>
__device__ inline void backward(const Backward& a, long long row, long long width, long long i) {
    long long inner_width = a.gated ? 2 * width : width;
    long long from = row * inner_width + i;
    AnyChunk<N, MIXED> first, second, gradient;
    first.read(a.inner, from);
    if (a.gated) second.read(a.inner, from + width);
    gradient.read(a.dout, row * width + i);
    float x[N], dy[N], more[N];
    first.get(x, a.inner);
    gradient.get(dy, a.dout);
    if (a.gated) {
        float out[N];
#pragma unroll
        for (int j = 0; j < N; j++) out[j] = x[j];
        activate<N>(out, a.function);
        second.get(more, a.inner);
#pragma unroll
        for (int j = 0; j < N; j++) {
            out[j] *= dy[j];
            dy[j] *= more[j];
        }
        write<N, MIXED>(a.dinner, from + width, out);
    }
    differentiate<N>(x, a.function);
#pragma unroll
    for (int j = 0; j < N; j++) x[j] *= dy[j];
    write<N, MIXED>(a.dinner, from, x);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT) activation_backward(
    const void* inner, const void* dout, void* dinner, long long rows, long long width, int blocks_a_row,
    int function, bool gated, bool inner_wide, bool dout_wide, bool dinner_wide) {
    Backward a = {{inner, inner_wide}, {dout, dout_wide}, {dinner, dinner_wide}, function, gated};
    bool mixed = inner_wide || dout_wide || dinner_wide;
    int n = mixed ? 4 : NEIGHBOURS;
    Place place(n, blocks_a_row);
    if (place.row >= rows) return;
    bool fits = a.inner.allows(n) && a.dout.allows(n) && a.dinner.allows(n);
    if (!place.whole(n, rows, width, gated, fits)) {
        long long end = place.column + n < width ? place.column + n : width;
        for (long long i = place.column; i < end; i++) backward<1, true>(a, place.row, width, i);
    } else if (mixed) backward<4, true>(a, place.row, width, place.column);
    else backward<NEIGHBOURS, false>(a, place.row, width, place.column);
}

// The sums of the columns of x over the rows of this block, N columns a thread.
template <int N>
__device__ inline void sum_chunks(const REAL* x, float* partial, long long rows, int width, float* sums) {
    long long first_row = (long long)blockIdx.y * blockDim.y + threadIdx.y, step = (long long)gridDim.y * blockDim.y;
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int first = blockIdx.x * blockDim.x * N; first < width; first += gridDim.x * blockDim.x * N) {
        int column = first + threadIdx.x * N;
        float sum[N], more[N];
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = 0.0f;
        if (column < width) {
#pragma unroll 4
            for (long long row = first_row; row < rows; row += step) {
                load<N>(more, x + row * width + column);
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += more[j];
            }
        }
#pragma unroll
        for (int j = 0; j < N; j++) sums[j * 256 + thread] = sum[j];
        __syncthreads();
        if (threadIdx.y == 0 && column < width) {
            for (int y = 1; y < blockDim.y; y++) {
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += sums[j * 256 + y * blockDim.x + threadIdx.x];
            }
            store<N>(partial + (long long)blockIdx.y * width + column, sum);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256) sum_columns(
    const REAL* x, float* partial, long long rows, int width) {
    __shared__ float sums[256 * NEIGHBOURS];
    bool whole = width % NEIGHBOURS == 0 && aligned(x, 16) && aligned(partial, 16);
    if (whole) sum_chunks<NEIGHBOURS>(x, partial, rows, width, sums);
    else sum_chunks<1>(x, partial, rows, width, sums);
}

// `out` is of floats if it is `wide`.
extern "C" __global__ void __launch_bounds__(256) add_column_sums(
    const float* partial, void* out, int count, int width, bool wide) {
    if (wide) sum_partial_rows(partial, count, width, (float*)out);
    else sum_partial_rows(partial, count, width, (REAL*)out);
}
