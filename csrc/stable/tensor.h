// What the operators need of a tensor, through LibTorch's stable C interface as of torch 2.11: a library
// built on it serves that torch and all later ones.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace at {
class Tensor;
}

namespace dmmlkd {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
constexpr ScalarType kHalf = ScalarType::Half, kBFloat16 = ScalarType::BFloat16, kFloat = ScalarType::Float,
                     kDouble = ScalarType::Double, kLong = ScalarType::Long, kBool = ScalarType::Bool;

// Raises if a call into torch has failed; torch itself has written why to the standard error stream.
inline void check_torch(AOTITorchError error, const char* what) {
  if (error) throw std::runtime_error(std::string("dmmlkd_ext: torch failed in ") + what);
}

// Torch numbers types at run time. Undefined stands for those that no operator takes.
ScalarType type_of(int32_t code);
int32_t code_of(ScalarType type);

inline int64_t numel(Sizes sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

struct Device {
  int32_t type, index;
  bool operator==(const Device&) const = default;
};

class Tensor {
 public:
  Tensor() = default;  // undefined
  // Takes over a handle.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {
    int64_t *sizes = nullptr, *strides = nullptr;
    check_torch(aoti_torch_get_dim(handle, &dim_), "dim");
    check_torch(aoti_torch_get_sizes(handle, &sizes), "sizes");
    check_torch(aoti_torch_get_strides(handle, &strides), "strides");
    sizes_ = sizes, strides_ = strides;
  }
  // To and from ATen, where a library is built for one torch alone, as that of the CUDA kernels is.
  Tensor(const at::Tensor& tensor)  // NOLINT: implicit
      : Tensor(new_handle(reinterpret_cast<AtenTensorHandle>(const_cast<at::Tensor*>(&tensor)))) {}
  template <class T, class = std::enable_if_t<std::is_same_v<T, at::Tensor>>>
  operator T() const {
    return handle_ ? *reinterpret_cast<const T*>(handle_) : T();
  }

  Tensor(const Tensor& other) : Tensor(other.handle_ ? Tensor(new_handle(other.handle_)) : Tensor()) {}
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  bool defined() const { return handle_ != nullptr; }
  AtenTensorHandle handle() const { return handle_; }
  // Another handle of the same tensor, for whom it is given to.
  AtenTensorHandle share() const { return new_handle(handle_); }

  int64_t dim() const { return dim_; }
  Sizes sizes() const { return {sizes_, static_cast<size_t>(dim_)}; }
  Sizes strides() const { return {strides_, static_cast<size_t>(dim_)}; }
  int64_t size(int64_t dimension) const { return sizes_[dimension < 0 ? dimension + dim_ : dimension]; }
  int64_t stride(int64_t dimension) const { return strides_[dimension < 0 ? dimension + dim_ : dimension]; }
  int64_t numel() const { return dmmlkd::numel(sizes()); }
  ScalarType scalar_type() const { return type_of(code()); }
  int64_t element_size() const { return static_cast<int64_t>(aoti_torch_dtype_element_size(code())); }
  Device device() const {
    Device device{};
    check_torch(aoti_torch_get_device_type(handle_, &device.type), "device");
    check_torch(aoti_torch_get_device_index(handle_, &device.index), "device");
    return device;
  }
  bool is_contiguous() const;
  // Whether its values fill a range of memory, each once, in whatever order of dimensions.
  bool is_dense() const;

  const void* const_data_ptr() const {
    const void* data = nullptr;
    check_torch(torch_get_const_data_ptr(handle_, &data), "const_data_ptr");
    return data;
  }
  void* mutable_data_ptr() const {
    void* data = nullptr;
    check_torch(torch_get_mutable_data_ptr(handle_, &data), "mutable_data_ptr");
    return data;
  }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }
  // The end of the memory that the tensor is a part of.
  const void* storage_end() const;

  // A view of the same memory that begins `begin` values further on.
  Tensor strided(Sizes sizes, Sizes strides, int64_t begin = 0) const;
  Tensor expand(Sizes sizes) const;
  Tensor select_first(int64_t index) const;
  // Itself if it is contiguous, or of the type.
  Tensor contiguous() const;
  Tensor to(ScalarType type) const;

  Tensor new_empty(Sizes sizes) const { return new_empty(sizes, scalar_type()); }
  Tensor new_empty(Sizes sizes, ScalarType type) const;
  Tensor new_zeros(Sizes sizes) const { return new_empty(sizes).zero_(); }
  Tensor new_zeros(Sizes sizes, ScalarType type) const { return new_empty(sizes, type).zero_(); }
  Tensor zero_() const;

 private:
  static AtenTensorHandle new_handle(AtenTensorHandle handle) {
    AtenTensorHandle made = nullptr;
    check_torch(aoti_torch_new_tensor_handle(handle, &made), "new_tensor_handle");
    return made;
  }
  int32_t code() const {
    int32_t code = 0;
    check_torch(aoti_torch_get_dtype(handle_, &code), "dtype");
    return code;
  }
  void swap(Tensor& other) noexcept {
    std::swap(handle_, other.handle_), std::swap(dim_, other.dim_);
    std::swap(sizes_, other.sizes_), std::swap(strides_, other.strides_);
  }

  AtenTensorHandle handle_ = nullptr;
  int64_t dim_ = 0;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;  // torch's own, as long as the tensor lives
};

// Strides of contiguous memory.
std::vector<int64_t> contiguous_strides(Sizes sizes);

Tensor empty_cpu(Sizes sizes, ScalarType type);
Tensor empty_strided_cpu(Sizes sizes, Sizes strides, ScalarType type);

}  // namespace dmmlkd
