// A row of any length at any address, read 16 bytes at a time: scalars up to the first boundary of 16
// bytes and after the last, vectors between. Each thread of a group gets the same elements every time.
#pragma once
#include "memory.cuh"

// Elements from `at` on before the first boundary of 16 bytes, of `length` at most.
template <class T> __device__ inline int before_boundary(const T* at, int length) {
    int past = (int)((unsigned long long)at & 15ull) / (int)sizeof(T);
    int head = past ? 16 / (int)sizeof(T) - past : 0;
    return head < length ? head : length;
}

template <class T, class Visitor> __device__ inline void visit_one(const T* row, int index, Visitor& visitor) {
    float x[1] = {widen(row[index])};
    visitor.take(index, x);
}

// The elements of 16 bytes, widened.
template <class T, int N> __device__ inline void unpack(float (&x)[N], uint4 bits) {
    static_assert(N * sizeof(T) == 16, "a vector is 16 bytes");
    T elements[N];
    memcpy(elements, &bits, 16);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = widen(elements[i]);
}

// Show every element of `row` to one thread of a group of at least 8: `visitor.take(index, x)` with the
// float[N] that begins at `index`. BATCH loads of a thread are under way at once, which is what
// hides the latency of memory with few warps on a multiprocessor.
template <int BATCH = 4, class T, class Visitor>
__device__ inline void visit_row(const T* row, int length, int thread, int threads, Visitor& visitor) {
    const int each = 16 / (int)sizeof(T);
    int head = before_boundary(row, length);
    int vectors = (length - head) / each;
    int done = head + vectors * each;
    if (thread < head) visit_one(row, thread, visitor);
    const uint4* body = (const uint4*)(row + head);
    int v = thread;
    for (; v < vectors - (BATCH - 1) * threads; v += BATCH * threads) {
        uint4 bits[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) bits[i] = body[v + i * threads];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float x[each];
            unpack<T>(x, bits[i]);
            visitor.take(head + (v + i * threads) * each, x);
        }
    }
    for (; v < vectors; v += threads) {
        float x[each];
        unpack<T>(x, body[v]);
        visitor.take(head + v * each, x);
    }
    if (thread < length - done) visit_one(row, done + thread, visitor);
}
