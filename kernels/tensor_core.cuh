// The inline assembly: matrix products, matrix loads and asynchronous copies, one instruction each.
// The host twin is the emulated device's; what only the GPU runs stays as thin as this.
//
// Fragments of mma.sync (PTX ISA, "Matrix fragments"), for lane = 4 g + t, g = 0..7, t = 0..3:
//   A 16 x 16 by rows: a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8), two columns each
//   B 16 x 8 by columns: b0 (2t, g), b1 (2t + 8, g), two rows each
//   C 16 x 8: c0 (g, 2t), c1 (g, 2t + 1), c2 (g + 8, 2t), c3 (g + 8, 2t + 1)
#pragma once
#include "numbers.cuh"

// c += a b for float16 or bfloat16 a and b; compute capability 8.0 and later.
template <class T> __device__ inline void mma_16x8x16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

#if defined(EMULATED) || __CUDA_ARCH__ >= 800
template <> __device__ inline void mma_16x8x16<half>(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMULATED
    emulated::mma(c, a, b, 16, false);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <> __device__ inline void mma_16x8x16<bfloat16>(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMULATED
    emulated::mma(c, a, b, 16, true);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// The same over 8 columns of A, float16 only: compute capability 7.5. A: a0 (g, 2t), a1 (g + 8, 2t);
// B: b (2t, g).
__device__ inline void mma_16x8x8(float (&c)[4], unsigned a0, unsigned a1, unsigned b) {
#ifdef EMULATED
    unsigned a[4] = {a0, a1, 0, 0}, both[2] = {b, 0};
    emulated::mma(c, a, both, 8, false);
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
#endif
}

#ifndef EMULATED
__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane i gives the address of row i % 8 of
// matrix i / 8 and gets elements (lane / 4, 2 (lane % 4)) and the next of each. Rows of 16 bytes.
__device__ inline void ldmatrix_x4(unsigned (&r)[4], const void* row) {
#ifdef EMULATED
    emulated::ldmatrix(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// The same with each matrix transposed on the way.
__device__ inline void ldmatrix_x4_transposed(unsigned (&r)[4], const void* row) {
#ifdef EMULATED
    emulated::ldmatrix(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// Copy 16 bytes from global to shared memory behind the thread's back; 16 zeros where not `present`
// (then `from` is not read but must be a valid address). Before compute capability 8.0: at once.
__device__ inline void copy_async(void* to, const void* from, bool present) {
#ifdef EMULATED
    emulated::copy_async(to, from, present);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared_address(to)), "l"(from), "r"(present ? 16 : 0) : "memory");
#else
    *(uint4*)to = present ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

// Close the group of copies begun since the last one.
__device__ inline void copy_commit() {
#ifdef EMULATED
    emulated::copy_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most `PENDING` of this thread's groups are under way. The other threads' copies are
// seen after a barrier that follows.
template <int PENDING> __device__ inline void copy_wait() {
#ifdef EMULATED
    emulated::copy_wait(PENDING);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
#endif
}
