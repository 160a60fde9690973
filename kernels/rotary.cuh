// Turning a head by its position: the pairs (i, i + half) rotate, the rest of the head stays.
#pragma once
#include "memory.cuh"

// Tables of cos and sin (places, half), of float, half or bfloat16 (kind 0, 1, 2); null: nothing turns.
// Positions (B, T), or (T,) with a per_batch of 0.
struct Turn { const void *cos, *sin; const long long* positions; long long per_batch; int half_width, kind; float sign; };

// N numbers of a table from element i on.
template <int N> __device__ inline void table_at(float (&out)[N], const void* table, int kind, long long i) {
    if (kind == 1) load<N>(out, (const half*)table + i);
    else if (kind == 2) load<N>(out, (const bfloat16*)table + i);
    else load<N>(out, (const float*)table + i);
}

__device__ inline long long position_of(const Turn& turn, int batch, int token) {
    return turn.cos ? turn.positions[batch * turn.per_batch + token] : 0;
}

// Elements i and i + half of a head, turned, and rounded to REAL as they would be in memory.
__device__ inline void turn_pair(float& left, float& right, float c, float s) {
    const float one = left, two = right;
    left = widen(narrow<REAL>(one * c - two * s));
    right = widen(narrow<REAL>(two * c + one * s));
}

// A head falls into parts of EACH elements; where it turns, a part comes with its partner, so there are fewer.
template <int EACH> __device__ inline int parts_of(int width, const Turn& turn, bool turns) {
    return (width - (turns ? turn.half_width : 0)) / EACH;
}

// One part of a head from `from` to `to`, each element read and written once.
template <int EACH, class TO> __device__ inline void turn_part(
        TO* to, const REAL* from, int part, const Turn& turn, bool turns, long long position) {
    const int h = turns ? turn.half_width : 0, i = part * EACH;
    float left[EACH];
    if (i >= h) {
        load<EACH>(left, from + i + h);
        store<EACH>(to + i + h, left);
        return;
    }
    float right[EACH], c[EACH], s[EACH];
    load<EACH>(left, from + i);
    load<EACH>(right, from + i + h);
    table_at(c, turn.cos, turn.kind, position * h + i);
    table_at(s, turn.sin, turn.kind, position * h + i);
#pragma unroll
    for (int k = 0; k < EACH; k++) turn_pair(left[k], right[k], c[k], turn.sign * s[k]);
    store<EACH>(to + i, left);
    store<EACH>(to + i + h, right);
}

// Whether heads of this shape may be moved EACH elements at a time.
template <int EACH> __device__ inline bool in_parts(int width, const Turn& turn, const void* a, const void* b) {
    bool tables = !turn.cos || (turn.half_width % EACH == 0 && aligned(turn.cos, 16) && aligned(turn.sin, 16));
    return tables && width % EACH == 0 && aligned(a, 16) && aligned(b, 16);
}

// Shows every part of every head of all tokens to one thread of the grid: visitor.take(token, head, part).
// A block takes as many whole tokens at a time as give its threads about four parts each, so that only
// the small numbers inside have to be divided.
template <class Visitor> __device__ inline void each_part(long long tokens, int heads, int parts, Visitor& visitor) {
    const unsigned size = (unsigned)heads * parts, at_once = max(1u, 4 * blockDim.x / max(1u, size));
    const long long step = (long long)gridDim.x * at_once;
    for (long long first = (long long)blockIdx.x * at_once; first < tokens; first += step) {
        const unsigned count = (unsigned)min((long long)at_once, tokens - first) * size;
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
            const unsigned token = i / size, rest = i - token * size, head = rest / parts;
            visitor.take(first + token, (int)head, (int)(rest - head * parts));
        }
    }
}
