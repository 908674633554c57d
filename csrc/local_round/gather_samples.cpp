// gather_samples on CPU tensors: the batches of all devices in one pass, with their noise.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "../check.h"
#include "../encoder/copy_samples.h"
#include "../simd/recycle.h"

namespace dmmlkd {
namespace {

constexpr int64_t grain_values = 32768;  // worth a thread

// Contiguous tensors; noise and offsets are null where none is added.
template <class T>
void gather(const at::Tensor& values, const at::Tensor& indices, const at::Tensor& devices, const T* noise,
            int64_t places, const int64_t* offsets, const at::Tensor& out) {
  const int64_t batch = indices.size(1), samples = out.size(0) * batch, size = out.numel() / samples;
  const T* source = values.const_data_ptr<T>();
  const int64_t *index = indices.const_data_ptr<int64_t>(), *device = devices.const_data_ptr<int64_t>();
  T* target = out.mutable_data_ptr<T>();
  const auto sample = [&](int64_t i) { return source + index[device[i / batch] * batch + i % batch] * size; };
  const auto added = [&](int64_t i) {
    return noise ? noise + offsets[device[i / batch]] % places + i % batch * size : nullptr;
  };
  const int64_t grain = std::max<int64_t>(1, grain_values / std::max<int64_t>(1, size));
  at::parallel_for(0, samples, grain, [&](int64_t begin, int64_t end) {
    copy_samples(begin, end, size, sample, added, target);
  });
}

at::Tensor gather_samples(const at::Tensor& values, const at::Tensor& indices, const at::Tensor& devices,
                          const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& offsets) {
  check_gather_samples(values, indices, devices, noise, offsets);
  const at::Tensor source = values.contiguous(), all = indices.contiguous(), rows = devices.contiguous();
  check_range("gather_samples", "devices", rows, indices.size(0));
  std::vector<int64_t> shape = {devices.size(0), indices.size(1)};
  shape.insert(shape.end(), values.sizes().begin() + 1, values.sizes().end());
  const at::Tensor out = recycled_empty(shape, values.options());
  if (out.numel() == 0) return out;
  const at::Tensor table = noise ? noise->contiguous() : at::Tensor(),
                   begins = noise ? offsets->contiguous() : at::Tensor();
  const int64_t places = noise ? noise->size(0) - out[0].numel() + 1 : 1;
  const int64_t* offset = noise ? begins.const_data_ptr<int64_t>() : nullptr;
  for (int64_t row = 0; row < rows.numel(); ++row) {  // of the devices that are read alone
    const int64_t device = rows.const_data_ptr<int64_t>()[row], batch = all.size(1);
    check_range("gather_samples", "indices", all.const_data_ptr<int64_t>() + device * batch, batch,
                values.size(0));
    if (noise)
      check_range("gather_samples", "offsets", offset + device, 1, std::numeric_limits<int64_t>::max());
  }
  if (values.scalar_type() == at::kDouble)
    gather<double>(source, all, rows, noise ? table.const_data_ptr<double>() : nullptr, places, offset, out);
  else
    gather<float>(source, all, rows, noise ? table.const_data_ptr<float>() : nullptr, places, offset, out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) { m.impl("gather_samples", gather_samples); }

}  // namespace dmmlkd
