// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the numbers of
// tinytorch_gpu/rng.py, bit for bit. Draw i of [seed, offset] is word i % 4 of group i / 4.
#pragma once

__device__ inline uint4 philox(unsigned long long group, unsigned long long seed, unsigned long long offset) {
    uint4 c = make_uint4((unsigned)group, (unsigned)(group >> 32), (unsigned)offset, (unsigned)(offset >> 32));
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned left_high = __umulhi(0xD2511F53u, c.x), left_low = 0xD2511F53u * c.x;
        unsigned right_high = __umulhi(0xCD9E8D57u, c.z), right_low = 0xCD9E8D57u * c.z;
        c = make_uint4(right_high ^ c.y ^ k0, right_low, left_high ^ c.w ^ k1, left_low);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// 32 random bits to a float in (0, 1).
__device__ inline float uniform(unsigned bits) { return ((float)(bits >> 9) + 0.5f) * 1.1920928955078125e-7f; }

__device__ inline unsigned word_of(uint4 words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Draw `index` on its own: ten rounds for one number. Neighbours are cheaper by the group.
__device__ inline float draw(unsigned long long index, const unsigned long long* state) {
    return uniform(word_of(philox(index >> 2, state[0], state[1]), (int)(index & 3)));
}
