// pairwise_kl_forward on CPU tensors, with the signature of its schema in dmmlkd_ext/ops/schemas.py.
#pragma once

#include <optional>
#include <tuple>

#include "../stable/tensor.h"

namespace dmmlkd {

std::tuple<Tensor, Tensor> pairwise_kl_cpu(const Tensor& logits, const std::optional<Tensor>& mask,
                                           int64_t reduction, bool with_gradient);

}  // namespace dmmlkd
