// Dropout (Srivastava et al. 2014) with the counted random numbers of tinytorch_gpu/rng.py; forward and
// backward are the same kernel, since the backward draws the same numbers again and no mask is kept.
//
// A thread has 16 bytes of neighbours, which are one or two of Philox's groups of four numbers: ten rounds,
// some 80 operations, for four elements. Bytes: each element is read once and written once, the least
// possible; 16-bit elements ask for 20 operations each, which is still under what memory speed allows.
// Registers: about 32, no shared memory; 256 threads fill a multiprocessor's 2048.
#include "chunk.cuh"
#include "philox.cuh"

#define NEIGHBOURS (16 / (int)sizeof(REAL))

extern "C" __global__ void __launch_bounds__(256) dropout(
    const REAL* x, const unsigned long long* state, REAL* out, long long count, float p, float scale) {
    long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * NEIGHBOURS;
    if (first >= count) return;
    bool whole = first + NEIGHBOURS <= count && aligned(x, 16) && aligned(out, 16);
    int present = count - first < NEIGHBOURS ? (int)(count - first) : NEIGHBOURS;
    Chunk<NEIGHBOURS, REAL> chunk;
    float values[NEIGHBOURS];
    if (whole) chunk.read(x + first);
    unsigned long long seed = state[0], offset = state[1];
    if (whole) chunk.get(values);
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; i++) {
        if (!whole) values[i] = i < present ? widen(x[first + i]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; i += 4) {
        uint4 words = philox((unsigned long long)(first + i) >> 2, seed, offset);
        // A product also where an element goes: NaN and infinity become NaN, as in the reference.
#pragma unroll
        for (int j = 0; j < 4; j++) values[i + j] *= uniform(word_of(words, j)) >= p ? scale : 0.0f;
    }
    if (whole) store<NEIGHBOURS>(out + first, values);
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; i++) {
        if (!whole && i < present) out[first + i] = narrow<REAL>(values[i]);
    }
}
