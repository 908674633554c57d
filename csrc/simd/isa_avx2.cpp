// The kernels for AVX2 and FMA.
#include "kernels.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define DMMLKD_VECTOR_BYTES 32
#define DMMLKD_KERNELS avx2_kernels
#define DMMLKD_NAME "avx2"
#include "isa_kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
