// AVX-512 for machines without it: SIMDe's emulation under the names of the instructions, and those of
// them that the native operations use and SIMDe does not have. Stands in for the compiler's <immintrin.h>.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <string.h>

#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif

static inline simde__m512 _mm512_cvtph_ps(simde__m256i halves) {
    simde__m128i parts[2];
    simde__m256 wide[2];
    simde__m512 made;
    memcpy(parts, &halves, sizeof parts);
    for (int i = 0; i < 2; i++) wide[i] = simde_mm256_cvtph_ps(parts[i]);
    memcpy(&made, wide, sizeof made);
    return made;
}

static inline simde__m256i _mm512_cvtps_ph(simde__m512 values, int) {
    simde__m256 wide[2];
    simde__m128i parts[2];
    simde__m256i made;
    memcpy(wide, &values, sizeof wide);
    for (int i = 0; i < 2; i++) parts[i] = simde_mm256_cvtps_ph(wide[i], 0);
    memcpy(&made, parts, sizeof made);
    return made;
}

static inline simde__m128i _mm512_cvtepi32_epi8(simde__m512i values) {
    int32_t words[16];
    int8_t bytes[16];
    simde__m128i made;
    memcpy(words, &values, sizeof words);
    for (int i = 0; i < 16; i++) bytes[i] = int8_t(words[i]);  // the low byte, as the instruction takes it
    memcpy(&made, bytes, sizeof made);
    return made;
}
