// class_moments_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"

namespace dmmlkd {
namespace {

void run(const ClassMoments<float>& m) { kernels().class_moments_float(m); }
void run(const ClassMoments<double>& m) { kernels().class_moments_double(m); }

template <class T>
void all_devices(const at::Tensor& features, const at::Tensor& labels, const at::Tensor& present,
                 const int64_t* devices, at::Tensor& count, at::Tensor& sum, at::Tensor& product) {
  const int64_t samples = features.size(1);
  ClassMoments<T> whole{};
  whole.feature_stride = features.stride(1), whole.samples = samples, whole.width = features.size(2);
  whole.full = product.dim() == 4;
  const int64_t values = samples * whole.width * (whole.full ? whole.width : 1);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, values));
  at::parallel_for(0, features.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      ClassMoments<T> m = whole;
      m.features = features.const_data_ptr<T>() + row * features.stride(0);
      m.labels = labels.const_data_ptr<int64_t>() + row * samples;
      m.present = present.const_data_ptr<bool>() + row * samples;
      m.count = count.mutable_data_ptr<T>() + devices[row] * count.stride(0);
      m.sum = sum.mutable_data_ptr<T>() + devices[row] * sum.stride(0);
      m.product = product.mutable_data_ptr<T>() + devices[row] * product.stride(0);
      run(m);
    }
  });
}

void class_moments(const at::Tensor& features, const at::Tensor& labels, const at::Tensor& present,
                   const at::Tensor& devices, at::Tensor& count, at::Tensor& sum, at::Tensor& product) {
  check_class_moments(features, labels, present, devices, count, sum, product);
  const at::Tensor own = features.stride(2) == 1 ? features : features.contiguous();
  const at::Tensor classes = labels.contiguous(), here = present.contiguous(), rows = devices.contiguous();
  check_range("class_moments", "labels", classes, count.size(1));
  const int64_t* device = rows.const_data_ptr<int64_t>();
  std::vector<bool> seen(static_cast<size_t>(count.size(0)));  // two rows of one would be added at once
  for (int64_t row = 0; row < rows.numel(); ++row) {
    TORCH_CHECK_VALUE(
        device[row] >= 0 && device[row] < count.size(0) && !seen[static_cast<size_t>(device[row])],
        "class_moments: devices must be different and in [0, ", count.size(0), "), got ", device[row],
        " at position ", row);
    seen[static_cast<size_t>(device[row])] = true;
  }
  if (features.scalar_type() == at::kDouble)
    all_devices<double>(own, classes, here, device, count, sum, product);
  else
    all_devices<float>(own, classes, here, device, count, sum, product);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("class_moments_", class_moments); }

}  // namespace dmmlkd
