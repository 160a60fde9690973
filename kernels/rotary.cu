// Rotary positions (Su et al. 2021): heads (B, T, H, D) turned by where their tokens stand.
//
// Layout: x and the result are packed. Each head falls into parts of 16 bytes; a thread takes one part of the
// first half together with its partner in the second, so both are read and written once: 2 D
// elements of traffic a head, the least there is, and D / 2 numbers of the tables, which the heads
// of a token share through the cache. The backward is the same turn the other way (sign = -1). Odd
// widths go element by element. Some twenty registers, no shared memory, 256 threads.
#include "rotary.cuh"

#define WIDE (16 / (int)sizeof(REAL))

template <int EACH> __device__ inline void turn_all(
        const REAL* x, REAL* out, const Turn& turn, long long tokens, int length, int heads, int turned_heads, int width) {
    int most = parts_of<EACH>(width, turn, false);  // of a head that does not turn: it has the most
    long long total = tokens * heads * most, stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += stride) {
        int part = (int)(i % most), head = (int)(i / most % heads);
        long long token = i / most / heads, at = (token * heads + head) * width;
        bool turns = head < turned_heads;
        if (part >= parts_of<EACH>(width, turn, turns)) continue;
        long long position = position_of(turn, (int)(token / length), (int)(token % length));
        turn_part<EACH>(out + at, x + at, part, turn, turns, position);
    }
}

extern "C" __global__ void __launch_bounds__(256) turn_heads(
        const REAL* __restrict__ x, REAL* __restrict__ out, const void* __restrict__ cos, const void* __restrict__ sin,
        const long long* __restrict__ positions, long long per_batch, int half_width, int kind, float sign,
        long long tokens, int length, int heads, int turned_heads, int width) {
    Turn turn = {cos, sin, positions, per_batch, half_width, kind, sign};
    if (in_parts<WIDE>(width, turn, x, out)) turn_all<WIDE>(x, out, turn, tokens, length, heads, turned_heads, width);
    else turn_all<1>(x, out, turn, tokens, length, heads, turned_heads, width);
}
