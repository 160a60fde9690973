// Which instruction sets this processor has, best first, separated by spaces.
//
// `portable` is plain C++ with vectors of four floats, which any compiler turns into what it has.
#include "operation.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

EXPORTED const char* tinytorch_processor() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    if (avx512) return "avx512 avx2 portable";
    return avx2 ? "avx2 portable" : "portable";
#elif defined(__aarch64__) && defined(__APPLE__)
    return "neon portable";  // every one of them has dot products
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long DOT = 1ul << 20, HALF = 1ul << 9 | 1ul << 10;  // asimddp; fphp, asimdhp
    unsigned long has = getauxval(AT_HWCAP);
    return (has & DOT) && (has & HALF) == HALF ? "neon portable" : "portable";
#else
    return "portable";
#endif
}
