// CUDA's execution model for the host compiler: what a .cu file of this folder needs to be ordinary
// C++20. One fiber per CUDA thread, one block at a time; the work is in scheduler.cpp and memory.cpp,
// compiled without instrumentation. Here are only thin declarations, since this header is compiled
// with -fsanitize=thread like the kernel: every load and store of a kernel calls memory.cpp.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __CUDACC__ 1
#define PLAIN __attribute__((no_sanitize("thread"), noinline))  // not seen by the checks

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };

namespace emulated {
// Memory, memory.cpp. A line of 0 means: find it from the program counter.
void move(void* to, const void* from, int bytes, const void* pc);
void atomic(const void* at, int bytes, int line);
void fence(int line);
void copy_async(void* to, const void* from, bool present, int line = __builtin_LINE());
void copy_commit();
void copy_wait(int pending);
// Threads and their meetings, scheduler.cpp.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
dim3 block_size() __attribute__((const));
dim3 grid_size() __attribute__((const));
void* dynamic_shared();
void* shared_variable(int number, size_t bytes, size_t alignment);
void barrier(int line);
void warp_barrier(unsigned mask, int line);
void exchange(unsigned mask, const void* value, void* result, int bytes, int source, int kind, int line);
unsigned ballot(unsigned mask, bool vote, int kind, int line);
int lane();
void mma(float* c, const unsigned* a, const unsigned* b, int depth, bool brain, int line = __builtin_LINE());
void ldmatrix(unsigned* r, const void* row, bool transposed, int line = __builtin_LINE());
[[noreturn]] void trap(const char* what, int line);
// Numbers, scheduler.cpp.
float half_to_float(unsigned short bits);
unsigned short float_to_half(float x);

// A vector of CUDA's: copied by one access of its whole size, as the hardware does.
template <class T, int N> struct alignas(N * sizeof(T) > 16 ? 16 : N * sizeof(T)) Lanes;
template <class T> struct alignas(2 * sizeof(T)) Lanes<T, 2> { T x, y; };
template <class T> struct Lanes<T, 3> { T x, y, z; };
template <class T> struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) Lanes<T, 4> { T x, y, z, w; };

template <class T, int N> struct Vector : Lanes<T, N> {
    Vector() = default;
    template <class... V> Vector(T first, V... rest) : Lanes<T, N>{first, static_cast<T>(rest)...} {}
    PLAIN Vector(const Vector& from) : Lanes<T, N>() { move(this, &from, sizeof(Vector), __builtin_return_address(0)); }
    PLAIN Vector& operator=(const Vector& from) {
        move(this, &from, sizeof(Vector), __builtin_return_address(0));
        return *this;
    }
};

template <class T, int NUMBER> inline T& shared(size_t alignment = alignof(T)) {
    return *static_cast<T*>(shared_variable(NUMBER, sizeof(T), alignment));
}
}  // namespace emulated

#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::block_size())
#define gridDim (::emulated::grid_size())
#define warpSize 32
#define AT_LINE int line = __builtin_LINE()

#define EMULATED_VECTOR(T, name) \
    using name##2 = emulated::Vector<T, 2>; using name##4 = emulated::Vector<T, 4>; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float)
EMULATED_VECTOR(int, int)
EMULATED_VECTOR(unsigned, uint)
EMULATED_VECTOR(short, short)
EMULATED_VECTOR(unsigned short, ushort)
EMULATED_VECTOR(signed char, char)
EMULATED_VECTOR(unsigned char, uchar)
EMULATED_VECTOR(double, double)
EMULATED_VECTOR(long long, longlong)
EMULATED_VECTOR(unsigned long long, ulonglong)

// --- meetings ---
inline void __syncthreads(AT_LINE) { emulated::barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, AT_LINE) { emulated::warp_barrier(mask, line); }

namespace emulated {
enum Kind { SHUFFLE_XOR = 1, SHUFFLE_DOWN, SHUFFLE_UP, SHUFFLE, BALLOT, ANY, ALL, SYNC, MMA, LDMATRIX };
template <class T> inline T shuffle(unsigned mask, T value, int source, int kind, int line) {
    T result;
    exchange(mask, &value, &result, sizeof(T), source, kind, line);
    return result;
}
}  // namespace emulated

template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, AT_LINE) {
    int lane = emulated::lane(), from = lane ^ bits;
    if ((from & ~(width - 1)) > (lane & ~(width - 1))) from = lane;
    return emulated::shuffle(mask, v, from, emulated::SHUFFLE_XOR, line);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, AT_LINE) {
    int lane = emulated::lane(), inside = (lane & (width - 1)) + (int)by;
    return emulated::shuffle(mask, v, inside >= width ? lane : lane + (int)by, emulated::SHUFFLE_DOWN, line);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, AT_LINE) {
    int lane = emulated::lane(), inside = (lane & (width - 1)) - (int)by;
    return emulated::shuffle(mask, v, inside < 0 ? lane : lane - (int)by, emulated::SHUFFLE_UP, line);
}
template <class T> inline T __shfl_sync(unsigned mask, T v, int from, int width = 32, AT_LINE) {
    int lane = emulated::lane();
    return emulated::shuffle(mask, v, (lane & ~(width - 1)) | (from & (width - 1)), emulated::SHUFFLE, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, AT_LINE) { return emulated::ballot(mask, p, emulated::BALLOT, line); }
inline int __any_sync(unsigned mask, int p, AT_LINE) { return emulated::ballot(mask, p, emulated::ANY, line) != 0; }
inline int __all_sync(unsigned mask, int p, AT_LINE) { return emulated::ballot(mask, p, emulated::ALL, line) == mask; }
inline void __threadfence(AT_LINE) { emulated::fence(line); }
inline void __threadfence_block(AT_LINE) { (void)line; }
inline void __trap(AT_LINE) { emulated::trap("__trap()", line); }

// --- atomics: a fiber gives way only at meetings, so plain code is indivisible ---
#define EMULATED_ATOMIC(name, expression) \
    template <class T, class U> PLAIN T name(T* p, U given, AT_LINE) { \
        emulated::atomic(p, sizeof(T), line); \
        T old = *p, value = (T)given; \
        *p = (expression); \
        return old; \
    }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMax, old > value ? old : value)
EMULATED_ATOMIC(atomicMin, old < value ? old : value)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicAnd, old & value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
template <class T, class U, class V> PLAIN T atomicCAS(T* p, U expected, V value, AT_LINE) {
    emulated::atomic(p, sizeof(T), line);
    T old = *p;
    if (old == (T)expected) *p = (T)value;
    return old;
}

// --- numbers ---
inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float __uint_as_float(unsigned i) { float f; memcpy(&f, &i, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
inline long long __double_as_longlong(double d) { long long i; memcpy(&i, &d, 8); return i; }
inline double __longlong_as_double(long long i) { double d; memcpy(&d, &i, 8); return d; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= (x >> i & 1u) << (31 - i); return r; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return x > 1 ? 1.0f : x > 0 ? x : 0.0f; }
inline int __float2int_rn(float x) { return (int)rintf(x); }
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
// CUDA has these for every mix of numbers.
template <class A, class B> inline auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <class A, class B> inline auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }

// --- the entry: a kernel called with an array of pointers to its arguments, as cuLaunchKernel does ---
namespace emulated {
template <class T> struct Plain { typedef T type; };
template <class T> struct Plain<const T> { typedef T type; };
template <int... I> struct Places {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Places<I...> type; };
template <class... A, int... I> PLAIN void call(void (*kernel)(A...), void** arguments, Places<I...>) {
    kernel(*static_cast<typename Plain<A>::type*>(arguments[I])...);
}
template <class... A> PLAIN void enter(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, typename Count<sizeof...(A)>::type());
}
}  // namespace emulated
