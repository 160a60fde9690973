// Rotary positions (Su et al. 2021): heads (B, T, H, D) turned by where their tokens stand.
//
// Layout: x and the result are packed. Each head falls into parts of 16 bytes; a thread takes one part of the
// first half together with its partner in the second, so both are read and written once: 2 D
// elements of traffic a head, the least there is, and D numbers of the tables, which the heads of a
// token share through the cache. The backward is the same turn the other way (sign = -1). Where the
// width or an address is odd, elements go one by one. Up to 56 registers (two parts and their
// cosines and sines), no shared memory; 256 threads, at least half of what a processor holds at once.
#include "rotary.cuh"

#define WIDE (16 / (int)sizeof(REAL))

template <int EACH> struct Turning {
    const REAL* x;
    REAL* out;
    Turn turn;
    int length, heads, turned_heads, width;

    __device__ void take(long long token, int head, int part) const {
        const bool turns = head < turned_heads;
        if (part >= parts_of<EACH>(width, turn, turns)) return;
        const unsigned of = (unsigned)token, batch = of / (unsigned)length;  // the launcher refuses more tokens
        const long long at = (token * heads + head) * width;
        const long long position = position_of(turn, (int)batch, (int)(of - batch * length));
        turn_part<EACH>(out + at, x + at, part, turn, turns, position);
    }
};

template <int EACH> __device__ inline void turn_all(
        const REAL* x, REAL* out, const Turn& turn, long long tokens, int length, int heads, int turned_heads, int width) {
    Turning<EACH> turning = {x, out, turn, length, heads, turned_heads, width};
    // Without a head that stays as it is, all have the parts of one that turns.
    each_part(tokens, heads, parts_of<EACH>(width, turn, turned_heads >= heads), turning);
}

extern "C" __global__ void __launch_bounds__(256) turn_heads(
        const REAL* __restrict__ x, REAL* __restrict__ out, const void* __restrict__ cos, const void* __restrict__ sin,
        const long long* __restrict__ positions, long long per_batch, int half_width, int kind, float sign,
        long long tokens, int length, int heads, int turned_heads, int width) {
    Turn turn = {cos, sin, positions, per_batch, half_width, kind, sign};
    if (in_parts<WIDE>(width, turn, x, out)) turn_all<WIDE>(x, out, turn, tokens, length, heads, turned_heads, width);
    else turn_all<1>(x, out, turn, tokens, length, heads, turned_heads, width);
}
