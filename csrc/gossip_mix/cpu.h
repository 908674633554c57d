// gossip_mix on CPU tensors, with the signatures of its schemas in dmmlkd_ext/ops/schemas.py.
#pragma once

#include <optional>

#include "../stable/tensor.h"

namespace dmmlkd {

Tensor gossip_mix_cpu(const Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                      const Tensor& values, std::optional<int64_t> transposed);

Tensor gossip_mix_into_cpu(const Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                           const Tensor& values, Tensor& out, int64_t begin, int64_t end, bool measure);

void gossip_mix_inplace_cpu(Tensor& local, const Tensor& row_pointers, const Tensor& columns,
                            const Tensor& values, int64_t begin, int64_t end);

}  // namespace dmmlkd
