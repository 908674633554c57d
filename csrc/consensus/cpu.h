// Distances of devices from their mean, on CPU tensors, with the signatures of the schemas in
// dmmlkd_ext/ops/schemas.py.
#pragma once

#include "../stable/tensor.h"

namespace dmmlkd {

Tensor column_sums(const std::vector<Tensor>& blocks);
Tensor squared_distances(const std::vector<Tensor>& blocks, const Tensor& center);

}  // namespace dmmlkd
