// Rows copied between matrices whose rows lie differently far apart: into columns of a wider one, or out of one.
//
// Layout: blockDim.y rows a block, blockDim.x threads along each, AHEAD words a thread that are all under way before one
// is stored. A word is 16 bytes where both matrices allow that, else one element; neighbours in a warp have neighbouring
// words either way, so both sides move whole sectors, but for a warp's first and last in rows of odd width. Each byte is
// read and written once; columns beyond those given are zeros. 32 to 48 registers, no shared memory.
#include "memory.cuh"

template <int N, int AHEAD>
__device__ inline void copy(const REAL* from, REAL* to, long long rows, int width, int filled, long long from_pitch,
                            long long to_pitch) {
    typedef typename Word<N * (int)sizeof(REAL)>::type word;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const word* source = (const word*)(from + row * from_pitch);
    word* target = (word*)(to + row * to_pitch);
    const int first = blockIdx.y * blockDim.x * AHEAD + threadIdx.x, given = width / N, stop = filled / N;
    word held[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const int i = first + k * blockDim.x;
        held[k] = word{};
        if (i < given) held[k] = source[i];
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const int i = first + k * blockDim.x;
        if (i < stop) target[i] = held[k];
    }
}

extern "C" __global__ void __launch_bounds__(256) copy_rows(
        const REAL* from, REAL* to, long long rows, int width, int filled, long long from_pitch, long long to_pitch,
        bool vectors) {
    if (vectors) copy<16 / (int)sizeof(REAL), 2>(from, to, rows, width, filled, from_pitch, to_pitch);
    else copy<1, 8>(from, to, rows, width, filled, from_pitch, to_pitch);
}
