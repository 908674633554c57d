// A device "gpu" for machines without one. Its memory is the host's and every operator of ATen runs on the
// CPU, but by a GPU's rules: new memory holds NaN, arguments on different devices, generators of the CPU and
// operators without a kernel for the device are refused. Launches, waits for the device and copies between it
// and the host are counted by name; while they are forbidden, waits and copies raise.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/item.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;

constexpr auto kGpu = c10::DeviceType::PrivateUse1;
const at::Device gpu(kGpu, 0);

// "launch add" -> how often. Tests take differences, so it only grows.
c10::Dict<std::string, int64_t> counts;
bool forbidden = false;

void count(const std::string& kind, const std::string& name) {
  const std::string key = kind + " " + name;
  counts.insert_or_assign(key, counts.contains(key) ? counts.at(key) + 1 : 1);
}

void stop_the_flow(const std::string& kind, const std::string& name) {
  count(kind, name);
  TORCH_CHECK(!forbidden, "fake gpu: a ", kind, " is forbidden here, got one for ", name);
}

// ---- Memory
// --------------------------------------------------------------------------------------------------------

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes > 0 && posix_memalign(&data, 64, bytes) != 0) throw std::bad_alloc();
    if (data != nullptr) std::memset(data, 0xff, bytes);  // NaN in every floating dtype
    return {data, data, &std::free, gpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
} allocator;

void release(void* context) { delete static_cast<c10::Storage*>(context); }

// The same memory as seen from another device. What is such a view already gives back what it shows.
c10::Storage seen_from(const c10::Storage& storage, at::Device where) {
  if (storage.data_ptr().get_deleter() == &release) {
    const auto& shown = *static_cast<c10::Storage*>(storage.data_ptr().get_context());
    if (shown.device() == where) return shown;
  }
  void* data = const_cast<void*>(storage.data());
  at::DataPtr pointer(data, new c10::Storage(storage), &release, where);
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer),
          c10::GetAllocator(where.type()), true};
}

Tensor seen_from(const Tensor& tensor, at::Device where) {
  const auto key = where.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  Tensor twin = at::detail::make_tensor<c10::TensorImpl>(seen_from(tensor.storage(), where),
                                                         c10::DispatchKeySet(key), tensor.dtype());
  twin.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
  twin.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  return twin;
}

bool on_gpu(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kGpu; }

// ---- What torch asks of a device
// -----------------------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kGpu> {
  c10::Device exchangeDevice(c10::Device) const override { return gpu; }
  c10::Device getDevice() const override { return gpu; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, gpu);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, gpu);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return gpu; }
} hooks;

// ---- Every operator
// ------------------------------------------------------------------------------------------------

// The size of the result, or what is done next, depends on values: the host waits for them.
const std::set<std::string> waits = {"nonzero",  "masked_select",      "unique_dim",
                                     "_unique2", "unique_consecutive", "bincount",
                                     "equal",    "repeat_interleave",  "_linalg_check_errors"};

// The name alone: `add` for aten::add.out.
std::string short_name(const c10::FunctionSchema& schema) {
  return schema.name().substr(schema.name().find("::") + 2);
}

bool is_view(const c10::FunctionSchema& schema) {
  if (schema.name() == "aten::_unsafe_view") return true;
  if (schema.returns().empty()) return false;
  const auto* alias = schema.returns()[0].alias_info();
  return alias != nullptr && !alias->isWrite();
}

// Replaces the arguments of one call by the CPU's view of them, and the results by the GPU's.
class Call {
 public:
  Call(const c10::FunctionSchema& schema, torch::jit::Stack* stack)
      : name_(short_name(schema)), schema_(schema), stack_(*stack) {}

  void to_cpu() {
    for (size_t i = stack_.size() - schema_.arguments().size(); i < stack_.size(); ++i) {
      if (stack_[i].isDevice()) stack_[i] = at::Device(at::kCPU);
      TORCH_CHECK(!stack_[i].isGenerator(), "fake gpu: ", name_, " cannot draw by a generator of the CPU");
      if (stack_[i].isOptionalTensorList())  // the indices of an indexing
        for (const auto& index : stack_[i].toOptionalTensorVector())
          masked_ = masked_ || (index && on_gpu(*index) && index->scalar_type() == at::kBool);
      replace(stack_[i], [this](const Tensor& tensor) { return on_cpu(tensor); });
    }
    TORCH_CHECK(!(any_gpu_ && any_cpu_), "fake gpu: ", name_,
                " needs all tensors on one device, got gpu:0 and cpu");
  }

  void account() const {
    if (waits.count(name_) > 0) stop_the_flow("wait", name_);
    if (masked_) stop_the_flow("wait", name_ + " by a mask");
    if (!is_view(schema_)) count("launch", name_);
  }

  void to_gpu() {
    for (size_t i = stack_.size() - schema_.returns().size(); i < stack_.size(); ++i)
      replace(stack_[i], [this](const Tensor& tensor) { return result(tensor); });
  }

 private:
  template <typename Function>
  static void replace(c10::IValue& value, Function by) {
    if (value.isTensor()) {
      value = by(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors = value.toTensorVector();
      for (Tensor& tensor : tensors) tensor = by(tensor);
      value = std::move(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const auto& tensor : value.toOptionalTensorVector())
        tensors.push_back(tensor ? std::make_optional(by(*tensor)) : std::nullopt);
      value = std::move(tensors);
    }
  }

  Tensor on_cpu(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!on_gpu(tensor)) {
      any_cpu_ = any_cpu_ || tensor.dim() > 0;  // numbers of Python are tensors without dimensions
      return tensor;
    }
    any_gpu_ = true;
    twins_.emplace_back(tensor, seen_from(tensor, at::kCPU));
    return twins_.back().second;
  }

  Tensor result(const Tensor& tensor) const {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    for (const auto& [here, twin] : twins_) {
      if (!twin.is_same(tensor)) continue;
      if (here.storage().data() != tensor.storage().data())  // it was enlarged
        here.unsafeGetTensorImpl()->set_storage_keep_dtype(seen_from(tensor.storage(), gpu));
      here.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
      return here;
    }
    return seen_from(tensor, gpu);
  }

  std::string name_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack& stack_;
  std::vector<std::pair<Tensor, Tensor>> twins_;  // on the GPU, its view on the CPU
  bool any_gpu_ = false, any_cpu_ = false, masked_ = false;
};

// Of other libraries than ATen, the emulated kernels are a GPU's.
bool has_kernel(const std::string& name) {
  return name.rfind("aten::", 0) == 0 || name.find("_emulated::") != std::string::npos;
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(has_kernel(op.schema().name()), "fake gpu: ", op.schema().name(),
                              " has no kernel for this device");
  Call call(op.schema(), stack);
  call.to_cpu();
  call.account();
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.to_gpu();
}

// ---- Operators that cannot run on the CPU's view
// -------------------------------------------------------------------

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (on_gpu(from) && on_gpu(to)) count("launch", "copy_");
  if (on_gpu(from) && !on_gpu(to)) stop_the_flow("wait", "a copy to the host");
  if (!on_gpu(from)) stop_the_flow("copy", "host to device");
  Tensor target = on_gpu(to) ? seen_from(to, at::kCPU) : to;
  target.copy_(on_gpu(from) ? seen_from(from, at::kCPU) : from);
  return to;
}

at::Scalar item(const Tensor& tensor) {
  stop_the_flow("wait", "item");
  return seen_from(tensor, at::kCPU).item();
}

void start() {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(kGpu, &allocator);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_local_scalar_dense", item);
  // torch has general kernels for these, made of many operators; a GPU has its own.
  std::vector<std::string> whole = {"convolution", "convolution_backward"};
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames())
    if (op.name.rfind("aten::_foreach_", 0) == 0)
      whole.push_back(op.name.substr(6) + (op.overload_name.empty() ? "" : "." + op.overload_name));
  for (const std::string& name : whole)
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY(fake_gpu, m) {
  m.def("start() -> ()", &start);
  m.def("counts() -> Dict(str, int)", [] { return counts.copy(); });
  m.def("forbid(bool on) -> bool", [](bool on) { return std::exchange(forbidden, on); });
}
