// What the kernels share: dtypes, 16-byte packs, sums over threads. Compiles with nvcc, and with a C++
// compiler after ../emulation/cuda_emulation.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifndef DMMLKD_EMULATION
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DMMLKD_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define DMMLKD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)               \
  kernel<<<static_cast<unsigned>(grid), static_cast<unsigned>(block), shared_bytes, \
           static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

#include "launchers.h"

namespace dmmlkd::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kPackBytes = 16;

// Half precisions are stored as they are and computed in float.
template <typename scalar>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename scalar>
using compute_t = typename ComputeType<scalar>::type;

__host__ __device__ __forceinline__ float to_compute(float x) { return x; }
__host__ __device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_compute(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename scalar>
__device__ __forceinline__ scalar from_compute(compute_t<scalar> x) {
  if constexpr (std::is_same_v<scalar, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<scalar, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// e^x, for x <= 0 as in a softmax. The error of the product with log2(e) grows with |x|, but so shrinks e^x:
// its share of the softmax stays below float's rounding.
__device__ __forceinline__ float exponential(float x) {
  const float power = x * 1.4426950408889634f;
#ifdef DMMLKD_EMULATION
  return emulation::exp2_approximate(power);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
  return result;
#endif
}
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// As many elements as one 16-byte access moves.
template <typename scalar>
struct alignas(kPackBytes) Pack {
  static constexpr int kWidth = kPackBytes / static_cast<int>(sizeof(scalar));
  scalar values[kWidth];
};

// Neighbouring numbers to and from an aligned address, 16 bytes an access.
template <int kCount, typename compute>
__device__ __forceinline__ void load_run(const compute* from, compute (&values)[kCount]) {
  constexpr int kWidth = Pack<compute>::kWidth;
#pragma unroll
  for (int j = 0; j < kCount; j += kWidth) {
    const Pack<compute> pack = *reinterpret_cast<const Pack<compute>*>(from + j);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[j + i] = pack.values[i];
  }
}

template <int kCount, typename compute>
__device__ __forceinline__ void store_run(compute* to, const compute (&values)[kCount]) {
  constexpr int kWidth = Pack<compute>::kWidth;
#pragma unroll
  for (int j = 0; j < kCount; j += kWidth) {
    Pack<compute> pack;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) pack.values[i] = values[j + i];
    *reinterpret_cast<Pack<compute>*>(to + j) = pack;
  }
}

// n / divisor for n and divisor below 2^16, where one multiplication is exact.
struct FastDivisor {
  unsigned divisor = 1;
  unsigned magic = 0;

  FastDivisor() = default;
  explicit FastDivisor(unsigned d)
      : divisor(d), magic(d > 1 ? static_cast<unsigned>(((uint64_t{1} << 32) + d - 1) / d) : 0) {}

  __device__ __forceinline__ unsigned quotient(unsigned n) const {
    return magic != 0 ? __umulhi(n, magic) : n;
  }
};

// What is computed from the result is computed where it stands, not kept in registers from outside of a loop.
__device__ __forceinline__ int computed_here(int x) {
#ifndef DMMLKD_EMULATION
  asm volatile("" : "+r"(x));
#endif
  return x;
}

struct Add {
  template <typename value>
  __device__ __forceinline__ value operator()(value a, value b) const {
    return a + b;
  }
};

// Ignores NaN, which the sums notice.
struct Maximum {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ double operator()(double a, double b) const { return fmax(a, b); }
};

template <int kCount, typename value, typename Combine>
__device__ __forceinline__ void exchange(value (&values)[kCount], int offset, Combine combine) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    values[i] = combine(values[i], __shfl_xor_sync(kFullWarp, values[i], offset));
}

// Combines `values` over `lanes` consecutive threads (a power of two), with the same bits in each of them:
// the two sides of every exchange add the same two numbers. More than a warp goes through `scratch`, kCount
// values a warp of the block, which the caller must not use again before the next barrier.
template <int kCount, typename value, typename Combine>
__device__ __forceinline__ void combine_group(value (&values)[kCount], int lanes, value* scratch,
                                              Combine combine) {
  if (lanes < kWarpSize) {
#pragma unroll 1
    for (int offset = lanes / 2; offset > 0; offset /= 2) exchange(values, offset, combine);
    return;
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) exchange(values, offset, combine);
  if (lanes == kWarpSize) return;
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x % kWarpSize == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch[warp * kCount + i] = values[i];
  }
  __syncthreads();
  // Every warp adds up the warps of its group, each of which some of its lanes read.
  const int warps = lanes / kWarpSize;
  const value* partial = scratch + ((warp & -warps) + (static_cast<int>(threadIdx.x) & (warps - 1))) * kCount;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = partial[i];
#pragma unroll 1
  for (int offset = warps / 2; offset > 0; offset /= 2) exchange(values, offset, combine);
}

// Sums of squares of a thread: in the type of the sums, and in float64 those that float32 cannot hold.
template <typename compute>
struct Squares {
  compute usual = 0;
  double unusual = 0;

  template <int kWidth>
  __device__ __forceinline__ void add(const compute (&values)[kWidth]) {
    compute sum = 0;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fma(values[j], values[j], sum);
    // Above the least no square that counts was lost below the smallest number, and below the most the sum
    // over a row of a tile cannot overflow. Zeros, of a row that did not change, cost no float64.
    const bool kept =
        std::is_same_v<compute, double> || (sum >= compute(0x1p-100) && sum <= compute(0x1p100));
    if (kept) {
      usual += sum;
      return;
    }
    bool zeros = true;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) zeros = zeros && values[j] == compute(0);
    if (zeros) return;
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      unusual = fma(static_cast<double>(values[j]), static_cast<double>(values[j]), unusual);
  }
  __device__ __forceinline__ double total() const { return static_cast<double>(usual) + unusual; }
};

constexpr int kSumThreads = 256;

// sums[row] = scale * (partials[row, 0] + ... + partials[row, count - 1]), in an order that depends on count
// alone.
template <typename scalar>
__global__ void __launch_bounds__(kSumThreads)
    sum_partials(const double* partials, int64_t count, double scale, scalar* sums) {
  DMMLKD_DYNAMIC_SHARED(shared);
  const double* row = partials + static_cast<int64_t>(blockIdx.x) * count;
  double total[1] = {0.0};
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) total[0] += row[i];
  combine_group(total, kSumThreads, reinterpret_cast<double*>(shared), Add{});
  if (threadIdx.x == 0)
    sums[blockIdx.x] = from_compute<scalar>(static_cast<compute_t<scalar>>(scale * total[0]));
}
constexpr int kSumShared = kSumThreads / kWarpSize * static_cast<int>(sizeof(double));

inline const char* last_launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Above 48 KB a kernel must be allowed its shared memory, once a kernel and device; to repeat it is cheap.
inline bool allow_shared(const void* kernel, int bytes) {
  return bytes <= 48 * 1024 ||
         cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
}

struct DeviceLimits {
  int processors = 0;
  int max_shared = 0;

  // The device must be set in the launcher's runtime too: torch may use another copy of it.
  const char* read(int device) {
    if (cudaSetDevice(device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
      return cudaGetErrorString(cudaGetLastError());
    }
    return nullptr;
  }
};

// Calls `body` with a null pointer of the scalar type.
template <typename Body>
const char* dispatch(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(static_cast<float*>(nullptr));
    case Dtype::kFloat64:
      return body(static_cast<double*>(nullptr));
    case Dtype::kFloat16:
      return body(static_cast<__half*>(nullptr));
    case Dtype::kBFloat16:
      return body(static_cast<__nv_bfloat16*>(nullptr));
  }
  return "unknown dtype";
}

}  // namespace dmmlkd::cuda
