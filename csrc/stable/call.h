// Torch's own operators, called by name.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <optional>

#include "tensor.h"

namespace dmmlkd {

template <class T>
StableIValue boxed(const T& argument) {
  return torch::stable::detail::from(argument);
}
inline StableIValue boxed(const Tensor& argument) { return torch::stable::detail::from(argument.share()); }

// All arguments of the schema must be given.
template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  StableIValue stack[] = {boxed(arguments)...};
  check_torch(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION), name);
  return Tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

}  // namespace dmmlkd
