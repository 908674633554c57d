// pairwise_kl_forward on CPU tensors, with the signature of its schema in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace dmmlkd {

std::tuple<at::Tensor, at::Tensor> pairwise_kl_cpu(const at::Tensor& logits,
                                                   const std::optional<at::Tensor>& mask, int64_t reduction,
                                                   bool with_gradient);

}  // namespace dmmlkd
