// heads_entropy on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"

namespace dmmlkd {
namespace {

float run(const HeadsEntropy<float>& h) { return kernels().heads_entropy_float(h); }
double run(const HeadsEntropy<double>& h) { return kernels().heads_entropy_double(h); }

template <class T>
std::tuple<at::Tensor, at::Tensor> all_devices(const at::Tensor& features, const at::Tensor& heads,
                                               const at::Tensor& row_pointers, const at::Tensor& rows,
                                               const at::Tensor& labels) {
  const int64_t devices = features.size(0), own = features.size(1) * features.size(2);
  const at::Tensor loss = at::empty({devices}, features.options());
  const at::Tensor gradient = at::empty(features.sizes(), features.options());
  const int64_t* pointers = row_pointers.const_data_ptr<int64_t>();
  HeadsEntropy<T> whole{};
  whole.heads = heads.const_data_ptr<T>(), whole.head_stride = heads.stride(0);
  whole.labels = labels.const_data_ptr<int64_t>();
  whole.samples = features.size(1), whole.width = features.size(2), whole.classes = heads.size(2);
  at::parallel_for(0, devices, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(heads_entropy_scratch(whole.samples, whole.width, whole.classes));
    for (int64_t device = begin; device < end; ++device) {
      HeadsEntropy<T> h = whole;
      h.features = features.const_data_ptr<T>() + device * own;
      h.rows = rows.const_data_ptr<int64_t>() + pointers[device];
      h.num_heads = pointers[device + 1] - pointers[device];
      h.gradient = gradient.mutable_data_ptr<T>() + device * own;
      h.scratch = scratch.data();
      loss.mutable_data_ptr<T>()[device] = run(h);
    }
  });
  return {loss, gradient};
}

std::tuple<at::Tensor, at::Tensor> heads_entropy(const at::Tensor& features, const at::Tensor& heads,
                                                 const at::Tensor& row_pointers, const at::Tensor& rows,
                                                 const at::Tensor& labels) {
  check_heads_entropy(features, heads, row_pointers, rows, labels);
  const at::Tensor own = features.contiguous(), pointers = row_pointers.contiguous();
  const at::Tensor received = rows.contiguous(), classes = labels.contiguous();
  const at::Tensor sent = rows_are_contiguous(heads) ? heads : heads.contiguous();
  check_compressed_rows("heads_entropy", pointers.const_data_ptr<int64_t>(), features.size(0),
                        received.const_data_ptr<int64_t>(), received.numel(), heads.size(0));
  check_range("heads_entropy", "labels", classes, heads.size(2));
  if (features.scalar_type() == at::kDouble)
    return all_devices<double>(own, sent, pointers, received, classes);
  return all_devices<float>(own, sent, pointers, received, classes);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("heads_entropy", heads_entropy); }

}  // namespace dmmlkd
