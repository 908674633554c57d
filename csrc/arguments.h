// The arguments of an operator that is called boxed, by the names that its schema gives them.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <string>
#include <utility>
#include <vector>

namespace dmmlkd {

class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, const torch::jit::Stack& stack)
      : schema_(op.schema()), values_(torch::jit::last(stack, schema_.arguments().size())) {}

  // Undefined where the argument is None.
  at::Tensor tensor(const char* name) const {
    const c10::IValue& value = at(name);
    return value.isNone() ? at::Tensor() : value.toTensor();
  }
  // A copy where the values do not lie in their order; undefined where the argument is None.
  at::Tensor contiguous(const char* name) const {
    const at::Tensor given = tensor(name);
    return given.defined() ? given.contiguous() : given;
  }
  std::vector<at::Tensor> tensors(const char* name) const { return at(name).toTensorVector(); }
  std::vector<int64_t> integers(const char* name) const { return at(name).toIntVector(); }
  std::vector<double> reals(const char* name) const { return at(name).toDoubleVector(); }
  int64_t integer(const char* name) const { return at(name).toInt(); }
  double real(const char* name) const { return at(name).toDouble(); }
  bool flag(const char* name) const { return at(name).toBool(); }
  const std::string& text(const char* name) const { return at(name).toStringRef(); }

 private:
  const c10::IValue& at(const char* name) const {
    const auto index = schema_.argumentIndexWithName(name);
    TORCH_INTERNAL_ASSERT(index.has_value(), schema_.name(), " has no argument ", name);
    return values_[static_cast<size_t>(*index)];
  }

  const c10::FunctionSchema& schema_;
  const at::ArrayRef<c10::IValue> values_;
};

// Takes an operator's arguments from the stack and leaves its results there.
template <class... Results>
void give_results(const c10::OperatorHandle& op, torch::jit::Stack* stack, Results&&... results) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  torch::jit::push(*stack, std::forward<Results>(results)...);
}

}  // namespace dmmlkd
