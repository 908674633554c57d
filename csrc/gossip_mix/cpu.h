// gossip_mix on CPU tensors, with the signatures of its schemas in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace dmmlkd {

at::Tensor gossip_mix_cpu(const at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                          const at::Tensor& values, std::optional<int64_t> transposed);

at::Tensor gossip_mix_into_cpu(const at::Tensor& local, const at::Tensor& row_pointers,
                               const at::Tensor& columns, const at::Tensor& values, at::Tensor& out,
                               int64_t begin, int64_t end, bool measure);

void gossip_mix_inplace_cpu(at::Tensor& local, const at::Tensor& row_pointers, const at::Tensor& columns,
                            const at::Tensor& values, int64_t begin, int64_t end);

}  // namespace dmmlkd
