// Sums of two arrays of one shape: the residual and position additions that no other kernel takes along.
//
// Layout: both inputs and the output are the same run of elements, split into groups of 16 bytes, one
// group a thread; a last block does what is left over one by one. Two reads and one write of each element
// is the least possible and what is done. A dozen registers, no shared memory; 256 threads hide
// the latency of three streams on every card.
#include "memory.cuh"

#define WIDE (16 / (int)sizeof(REAL))

extern "C" __global__ void __launch_bounds__(256) add_elements(
        const REAL* __restrict__ a, const REAL* __restrict__ b, REAL* __restrict__ out, long long n) {
    bool wide = aligned(a, 16) && aligned(b, 16) && aligned(out, 16);
    long long groups = wide ? n / WIDE : 0, stride = (long long)gridDim.x * blockDim.x;
    long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (long long i = first; i < groups; i += stride) {
        float left[WIDE], right[WIDE];
        load<WIDE>(left, a + i * WIDE);
        load<WIDE>(right, b + i * WIDE);
#pragma unroll
        for (int k = 0; k < WIDE; k++) left[k] += right[k];
        store<WIDE>(out + i * WIDE, left);
    }
    for (long long i = groups * WIDE + first; i < n; i += stride) out[i] = narrow<REAL>(widen(a[i]) + widen(b[i]));
}
