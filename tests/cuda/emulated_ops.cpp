// The CUDA operators on CPU tensors, for tests: the bindings and the .cu files as they are, run by the
// emulation under a namespace of their own, and a way to change the emulated device.
#include "../../csrc/emulation/cuda_emulation.h"

#include "../../csrc/cuda/bindings.cpp"

namespace {

void set_device(int64_t processors, int64_t max_shared, int64_t order) {
  auto& device = dmmlkd::emulation::device();
  device.processors = static_cast<int>(processors);
  device.max_shared = static_cast<int>(max_shared);
  device.order = static_cast<dmmlkd::emulation::Order>(order);
}

}  // namespace

TORCH_LIBRARY(dmmlkd_emulated, m) {
  m.def("set_device(int processors, int max_shared, int order) -> ()", set_device);
  m.def(
      "pairwise_kl_forward(Tensor logits, Tensor? mask, int reduction, bool with_gradient) -> (Tensor, "
      "Tensor)");
  m.def("pairwise_kl_backward(Tensor upstream, Tensor logits, Tensor? mask, int reduction) -> Tensor");
  m.def(
      "orthogonality_forward(Tensor common, Tensor specific, Tensor? mask, bool normalize, int reduction, "
      "bool common_gradient, bool specific_gradient) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gossip_mix_(Tensor local, Tensor row_pointers, Tensor columns, Tensor values, Tensor(a!) out, "
      "int column_begin, int column_end, bool measure) -> Tensor");
  m.def(
      "gossip_mix_inplace_(Tensor(a!) local, Tensor row_pointers, Tensor columns, Tensor values, "
      "int column_begin, int column_end) -> ()");
}

TORCH_LIBRARY_IMPL(dmmlkd_emulated, CPU, m) {
  m.impl("orthogonality_forward", dmmlkd::cuda::orthogonality_forward);
  m.impl("pairwise_kl_backward", dmmlkd::cuda::pairwise_kl_backward);
  m.impl("pairwise_kl_forward", dmmlkd::cuda::pairwise_kl_forward);
  m.impl("gossip_mix_", dmmlkd::cuda::gossip_mix_);
  m.impl("gossip_mix_inplace_", dmmlkd::cuda::gossip_mix_inplace_);
}
