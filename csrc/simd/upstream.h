// Multiplication of a saved gradient by the upstream one, without a pass over memory where that is 1.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

namespace dmmlkd {

// Reading the value is free on a CPU; elsewhere it would wait for the device, and under tracing there is
// none.
inline bool is_one(const at::Tensor& upstream) {
  if (upstream.dim() != 0 || !upstream.device().is_cpu() ||
      upstream.key_set().has(c10::DispatchKey::Python) || upstream.is_meta() || !upstream.has_storage())
    return false;
  if (upstream.scalar_type() == at::kFloat) return *upstream.const_data_ptr<float>() == 1.0f;
  if (upstream.scalar_type() == at::kDouble) return *upstream.const_data_ptr<double>() == 1.0;
  return false;
}

}  // namespace dmmlkd
