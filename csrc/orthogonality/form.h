// Which form of orthogonality_difference costs less, and who computes it, in one place for all who need to
// agree.
#pragma once

#include <ATen/core/Tensor.h>

namespace dmmlkd {

// Multiplications of a loss and its gradient by the GEMM library: 2 B^2 (d + e) by samples against 3 B d e by
// features.
inline bool by_samples(const at::Tensor& common, const at::Tensor& specific) {
  const int64_t b = common.sym_size(-2).guard_int(__FILE__, __LINE__);
  const int64_t d = common.sym_size(-1).guard_int(__FILE__, __LINE__);
  const int64_t e = specific.sym_size(-1).guard_int(__FILE__, __LINE__);
  return 2 * b * (d + e) < 3 * d * e;
}

// The kernels of our own compute half of a symmetric matrix: 3/2 B^2 (d + e).
inline bool native_by_samples(int64_t b, int64_t d, int64_t e) { return b * (d + e) < 2 * d * e; }

// Whether the CPU's kernels of the instruction set in use are faster than the GEMM library.
bool prefers_native(int64_t b, int64_t d, int64_t e, bool normalize);

}  // namespace dmmlkd
