// The known places of a cache in 8 bit as numbers (B, stop, K, D) of REAL, keys and values in one launch: for a prompt,
// whose attention is a kernel of its own.
//
// A thread takes eight neighbours, so that a warp reads and writes whole sectors. Bytes: the integers and scales once
// (neighbouring threads share a scale, through the cache) and the numbers once. It is bound by memory: some ten
// instructions a number.
#include "cache.cuh"

struct Known { int stop, heads, width; };

template <int EACH> __device__ inline void widen_places(REAL* out, const Cache& cache, const Known& known, bool value) {
    const int batch = blockIdx.y, parts = known.width / EACH, group = known.width / groups_of(known.width);
    const unsigned size = (unsigned)known.heads * parts;
    const long long count = (long long)known.stop * size, step = (long long)gridDim.x * blockDim.x;
    out += batch * count * EACH;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const int place = (int)(i / size), rest = (int)(i - (long long)place * size), head = rest / parts;
        const int column = (rest - head * parts) * EACH;
        const float scale = widen(cache.scales(value, batch, place, head)[column / group]);
        const CACHE* from = cache.row(value, batch, place, head) + column;
        float x[EACH];
        if constexpr (EACH == 1) {
            x[0] = from->value;
        } else {
            Chunk<EACH, CACHE> chunk;
            chunk.read(from);
            chunk.get(x);
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) x[k] *= scale;
        store<EACH>(out + i * EACH, x);
    }
}

// Block (x, b, 0) takes keys of row b, block (x, b, 1) values.
extern "C" __global__ void __launch_bounds__(256) dequantize_cache(
        CACHE* keys, CACHE* values, half* key_scales, half* value_scales, const int* table, REAL* known_keys, REAL* known_values,
        long long piece, long long place, long long head, long long scale_piece, long long scale_place, long long scale_head,
        int page, int pages, int capacity, bool wide, int stop, int heads, int width) {
    const Cache cache = {keys, values, key_scales, value_scales, table, {piece, place, head},
                         {scale_piece, scale_place, scale_head}, page, pages, capacity};
    const Known known = {stop, heads, width};
    const bool value = blockIdx.z;
    REAL* out = value ? known_values : known_keys;
    if (wide) widen_places<8>(out, cache, known, value);
    else widen_places<1>(out, cache, known, value);
}
