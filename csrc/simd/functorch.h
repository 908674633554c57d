// Whether a torch.func transform is at work. C++ autograd functions do not compose with those, so that the
// operators then compute by differentiable ATen operations.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace dmmlkd {

// An interpreter of torch.func, while it works, keeps its back mode in the thread's included keys.
inline bool inside_functorch() {
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_.has(c10::DispatchKey::FuncTorchDynamicLayerBackMode) ||
         keys.included_.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

}  // namespace dmmlkd
