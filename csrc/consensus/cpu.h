// Distances of devices from their mean, on CPU tensors, with the signatures of the schemas in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

namespace dmmlkd {

at::Tensor column_sums(at::TensorList blocks);
at::Tensor squared_distances(at::TensorList blocks, const at::Tensor& center);

}  // namespace dmmlkd
