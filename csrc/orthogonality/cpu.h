// orthogonality_forward on CPU tensors, with the signature of its schema in ops.cpp.
#pragma once

#include "form.h"

namespace dmmlkd {

LossAndGradients orthogonality_cpu(const at::Tensor& common, const at::Tensor& specific,
                                   const std::optional<at::Tensor>& mask, bool normalize, int64_t reduction,
                                   bool with_common, bool with_specific);

}  // namespace dmmlkd
