// The kernels for AVX-512.
#include "kernels.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif

#define DMMLKD_VECTOR_BYTES 64
#define DMMLKD_KERNELS avx512_kernels
#define DMMLKD_NAME "avx512"
#include "isa_kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
