#include "tensor.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "call.h"

namespace dmmlkd {
namespace {

struct Type {
  int32_t code;
  ScalarType type;
};

const std::array<Type, 13>& types() {
  static const std::array<Type, 13> known = {{
      {aoti_torch_dtype_float32(), ScalarType::Float},
      {aoti_torch_dtype_float64(), ScalarType::Double},
      {aoti_torch_dtype_int64(), ScalarType::Long},
      {aoti_torch_dtype_bool(), ScalarType::Bool},
      {aoti_torch_dtype_float16(), ScalarType::Half},
      {aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
      {aoti_torch_dtype_int32(), ScalarType::Int},
      {aoti_torch_dtype_int16(), ScalarType::Short},
      {aoti_torch_dtype_int8(), ScalarType::Char},
      {aoti_torch_dtype_uint8(), ScalarType::Byte},
      {aoti_torch_dtype_complex32(), ScalarType::ComplexHalf},
      {aoti_torch_dtype_complex64(), ScalarType::ComplexFloat},
      {aoti_torch_dtype_complex128(), ScalarType::ComplexDouble},
  }};
  return known;
}

Tensor empty_strided(Sizes sizes, Sizes strides, ScalarType type, Device device) {
  AtenTensorHandle made = nullptr;
  check_torch(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                       code_of(type), device.type, device.index, &made),
              "empty_strided");
  return Tensor(made);
}

}  // namespace

ScalarType type_of(int32_t code) {
  for (const Type& known : types())
    if (known.code == code) return known.type;
  return ScalarType::Undefined;
}

int32_t code_of(ScalarType type) {
  for (const Type& known : types())
    if (known.type == type) return known.code;
  throw std::runtime_error("dmmlkd_ext: no tensors are made of this type");
}

std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(1, sizes[i]);
  return strides;
}

Tensor empty_cpu(Sizes sizes, ScalarType type) {
  return empty_strided_cpu(sizes, contiguous_strides(sizes), type);
}

Tensor empty_strided_cpu(Sizes sizes, Sizes strides, ScalarType type) {
  return empty_strided(sizes, strides, type, {aoti_torch_device_type_cpu(), -1});
}

bool Tensor::is_contiguous() const {
  bool is = false;
  check_torch(aoti_torch_is_contiguous(handle_, &is), "is_contiguous");
  return is;
}

bool Tensor::is_dense() const {
  std::vector<int64_t> order(static_cast<size_t>(dim_));
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int64_t i) { return size(i) == 1; });
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return stride(i) < stride(j); });
  int64_t values = 1;
  for (const int64_t i : order) {
    if (stride(i) != values) return numel() == 0;
    values *= size(i);
  }
  return true;
}

const void* Tensor::storage_end() const {
  int64_t bytes = 0, offset = 0;
  check_torch(aoti_torch_get_storage_size(handle_, &bytes), "storage_size");
  check_torch(aoti_torch_get_storage_offset(handle_, &offset), "storage_offset");
  return static_cast<const char*>(const_data_ptr()) - offset * element_size() + bytes;
}

Tensor Tensor::strided(Sizes sizes, Sizes strides, int64_t begin) const {
  AtenTensorHandle made = nullptr;
  check_torch(aoti_torch__reinterpret_tensor(handle_, static_cast<int64_t>(sizes.size()), sizes.data(),
                                             strides.data(), begin, &made),
              "reinterpret_tensor");
  return Tensor(made);
}

Tensor Tensor::expand(Sizes sizes) const {
  std::vector<int64_t> strides(sizes.size(), 0);
  const size_t added = sizes.size() - static_cast<size_t>(dim_);
  for (size_t i = added; i < sizes.size(); ++i)
    if (sizes_[i - added] == sizes[i]) strides[i] = strides_[i - added];
  return strided(sizes, strides);
}

Tensor Tensor::select_first(int64_t index) const {
  return strided(sizes().slice(1), strides().slice(1), index * stride(0));
}

Tensor Tensor::contiguous() const {
  return is_contiguous() ? *this
                         : call("aten::contiguous", "", *this, torch::headeronly::MemoryFormat::Contiguous);
}

Tensor Tensor::to(ScalarType type) const {
  return scalar_type() == type ? *this : call("aten::to", "dtype", *this, type, false, false, std::nullopt);
}

Tensor Tensor::new_empty(Sizes sizes, ScalarType type) const {
  return empty_strided(sizes, contiguous_strides(sizes), type, device());
}

Tensor Tensor::zero_() const {
  check_torch(aoti_torch_zero_(handle_), "zero_");
  return *this;
}

}  // namespace dmmlkd
