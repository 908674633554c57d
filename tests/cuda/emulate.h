// What the emulated checks share: random arrays of the exact size, and how a failed check is told.
#pragma once

#include "../../csrc/emulation/cuda_emulation.h"

#include <random>

#include "../../csrc/cuda/common.cuh"

using namespace dmmlkd::cuda;

inline int checks = 0;
inline std::mt19937 generator(0);

inline void require(bool condition, const char* what) {
  ++checks;
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

inline void require_success(const char* error) { require(error == nullptr, error == nullptr ? "" : error); }

inline double normal() { return std::normal_distribution<double>()(generator); }
inline bool chance(double probability) {
  return std::uniform_real_distribution<double>()(generator) < probability;
}
inline int64_t between(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

// An array on the heap that begins `offset` elements behind an aligned address, with nothing usable around
// it.
template <typename scalar>
class Array {
 public:
  Array(int64_t size, int64_t offset = 0) : offset_(offset), memory_(new_memory(size + offset)) {
    for (int64_t i = 0; i < size; ++i)
      data()[i] = from_compute<scalar>(static_cast<compute_t<scalar>>(normal()));
  }
  scalar* data() { return memory_.get() + offset_; }
  double at(int64_t i) { return static_cast<double>(to_compute(data()[i])); }

 private:
  struct Free {
    void operator()(scalar* pointer) const { std::free(pointer); }
  };
  static scalar* new_memory(int64_t size) {
    void* bytes = nullptr;
    if (posix_memalign(&bytes, 16, static_cast<size_t>(size) * sizeof(scalar)) != 0) std::abort();
    return static_cast<scalar*>(bytes);
  }
  int64_t offset_;
  std::unique_ptr<scalar, Free> memory_;
};

template <typename scalar>
constexpr Dtype dtype_of() {
  if (std::is_same_v<scalar, float>) return Dtype::kFloat32;
  if (std::is_same_v<scalar, double>) return Dtype::kFloat64;
  return std::is_same_v<scalar, __half> ? Dtype::kFloat16 : Dtype::kBFloat16;
}

template <typename scalar>
constexpr double tolerance() {
  if (std::is_same_v<scalar, float>) return 1e-5;
  if (std::is_same_v<scalar, double>) return 1e-12;
  return std::is_same_v<scalar, __half> ? 2e-3 : 1e-2;
}

inline bool close(double value, double expected, double relative) {
  return std::abs(value - expected) <= relative * (std::abs(expected) + 0.05);
}

// emulate_orthogonality.cpp
template <typename scalar>
void check_orthogonality();
