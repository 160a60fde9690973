// Rows of GGUF's blocks (PARAM) in floating point (REAL): all of a weight, for a product of many rows that the library
// does, or those that `ids` name, for an embedding.
//
// A thread takes packs of eight weights, neighbours in a row, so that a warp writes whole sectors. Bytes: the blocks
// once (neighbouring threads share a block's, through the cache) and the result once. It is bound by memory: about
// four instructions a weight.
#include "fine_blocks.cuh"

// Row n of `out` (rows, width) is row ids[n] of `blocks`, `pitch` bytes each, times `scale`; without ids row n. An id
// out of range, which the caller has excluded, gives NaN.
extern "C" __global__ void __launch_bounds__(256) dequantize_rows(
    const unsigned char* blocks, long long pitch, long long count, const void* ids, int id_bytes, float scale,
    REAL* out, long long rows, long long width
) {
    long long packs = width / 8, step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * packs; i += step) {
        long long n = i / packs, pack = i - n * packs, row = n;
        if (ids) row = id_bytes == 8 ? ((const long long*)ids)[n] : ((const int*)ids)[n];
        float w[8], low[4], high[4];
        bool known = row >= 0 && row < count;
        if (known) Blocks<PARAM>::take(w, blocks + row * pitch, (int)pack);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            low[k] = known ? w[k] * scale : NOT_A_NUMBER;
            high[k] = known ? w[k + 4] * scale : NOT_A_NUMBER;
        }
        REAL* to = out + n * width;
        store<4>(to + Blocks<PARAM>::first((int)pack), low);
        store<4>(to + Blocks<PARAM>::second((int)pack), high);
    }
}
