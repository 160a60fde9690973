// Turning a head by its position: the pairs (i, i + half) rotate, the rest of the head stays.
#pragma once
#include "memory.cuh"

// Tables of cos and sin (places, half), of float, half or bfloat16 (kind 0, 1, 2); null: nothing turns.
struct Turn { const void *cos, *sin; const long long* positions; long long per_batch; int half_width, kind; float sign; };

__device__ inline float table_at(const void* table, int kind, long long i) {
    if (kind == 1) return widen(((const half*)table)[i]);
    if (kind == 2) return widen(((const bfloat16*)table)[i]);
    return ((const float*)table)[i];
}

__device__ inline long long position_of(const Turn& turn, int batch, int token) {
    return turn.positions[batch * turn.per_batch + token];
}

// Element i of a head that stands at `position`, rounded to REAL as a turned head in memory would be.
__device__ inline float turned(const REAL* head, int i, const Turn& turn, long long position) {
    int h = turn.half_width;
    if (!turn.cos || i >= 2 * h) return widen(head[i]);
    int pair = i < h ? i : i - h;
    float c = table_at(turn.cos, turn.kind, position * h + pair), s = turn.sign * table_at(turn.sin, turn.kind, position * h + pair);
    float left = widen(head[pair]), right = widen(head[pair + h]);
    return widen(narrow<REAL>(i < h ? left * c - right * s : right * c + left * s));
}

// Into how many parts of `EACH` elements (pairs of parts where it turns) a head falls.
template <int EACH> __device__ inline int parts_of(int width, const Turn& turn, bool turns) {
    int h = turns ? turn.half_width : 0;
    return h / EACH + (width - 2 * h) / EACH;
}

// One such part of a head from `from` to `to`, each element read and written once.
template <int EACH, class TO> __device__ inline void turn_part(
        TO* to, const REAL* from, int part, const Turn& turn, bool turns, long long position) {
    int h = turns ? turn.half_width : 0;
    float left[EACH];
    if (part * EACH >= h) {
        int i = 2 * h + part * EACH - h;
        load<EACH>(left, from + i);
        store<EACH>(to + i, left);
        return;
    }
    float right[EACH];
    int i = part * EACH;
    load<EACH>(left, from + i);
    load<EACH>(right, from + i + h);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        float c = table_at(turn.cos, turn.kind, position * h + i + k), s = turn.sign * table_at(turn.sin, turn.kind, position * h + i + k);
        float one = left[k], two = right[k];
        left[k] = widen(narrow<REAL>(one * c - two * s));
        right[k] = widen(narrow<REAL>(two * c + one * s));
    }
    store<EACH>(to + i, left);
    store<EACH>(to + i + h, right);
}

// Whether a head of this shape may be moved `EACH` elements at a time.
template <int EACH> __device__ inline bool in_parts(int width, const Turn& turn, const void* a, const void* b) {
    return width % EACH == 0 && (!turn.cos || turn.half_width % EACH == 0) && aligned(a, 16) && aligned(b, 16);
}
