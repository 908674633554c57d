// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#include "kernels.h"

#define DMMLKD_VECTOR_BYTES 16
#define DMMLKD_KERNELS base_kernels
#define DMMLKD_NAME "base"
#include "isa_kernels.inl"
