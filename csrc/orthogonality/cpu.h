// orthogonality_forward on CPU tensors, with the signature of its schema in dmmlkd_ext/ops/schemas.py.
#pragma once

#include "form.h"

namespace dmmlkd {

LossAndGradients orthogonality_cpu(const Tensor& common, const Tensor& specific,
                                   const std::optional<Tensor>& mask, bool normalize, int64_t reduction,
                                   bool with_common, bool with_specific);

}  // namespace dmmlkd
