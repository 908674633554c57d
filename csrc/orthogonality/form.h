// Which form of orthogonality_difference costs less, and who computes it, in one place for all who need to
// agree.
#pragma once

#include <optional>
#include <tuple>

#include "../stable/tensor.h"

namespace dmmlkd {

// Our kernels compute half of a symmetric matrix: 3/2 B^2 (d + e) multiplications against 3 B d e.
inline bool native_by_samples(int64_t b, int64_t d, int64_t e) { return b * (d + e) < 2 * d * e; }

// Whether the CPU's kernels of the instruction set in use are faster than the GEMM library.
bool prefers_native(int64_t b, int64_t d, int64_t e, bool normalize);

using LossAndGradients = std::tuple<Tensor, Tensor, Tensor>;

// orthogonality_forward of float32 or float64 on any device.
LossAndGradients orthogonality_by_library(const Tensor& common, const Tensor& specific,
                                          const std::optional<Tensor>& mask, bool normalize,
                                          int64_t reduction, bool with_common, bool with_specific);

}  // namespace dmmlkd
