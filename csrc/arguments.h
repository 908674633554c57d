// Operators of many arguments are called boxed: the arguments are read by the names that the schema gives
// them, and fill a struct. For ops.cpp alone: these headers cost more to compile than an operator.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <string>
#include <utility>
#include <vector>

#include "evaluate/cpu.h"
#include "local_round/cpu.h"

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
  // A copy if it is not contiguous; undefined if the argument is None.
  at::Tensor contiguous(const char* name) const {
    const at::Tensor given = tensor(name);
    return given.defined() ? given.contiguous() : given;
  }
  std::vector<at::Tensor> tensors(const char* name) const { return at(name).toTensorVector(); }
  std::vector<at::Tensor> contiguous_tensors(const char* name) const {
    std::vector<at::Tensor> list = tensors(name);
    for (at::Tensor& tensor : list) tensor = tensor.contiguous();
    return list;
  }
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

inline void fill(DeviceArguments& a, const Arguments& given) {
  a.parameters = given.tensors("parameters");
  a.devices = given.contiguous_tensors("devices");
  a.values = given.contiguous_tensors("values");
  a.labels = given.contiguous("labels");
  a.present = given.contiguous("present");
  a.kernels = given.integers("kernels");
  a.strides = given.integers("strides");
  a.layers = given.integers("layers");
  a.widths = given.integers("widths");
  a.classes = given.integer("classes");
}

inline void fill(RoundArguments& a, const Arguments& given) {
  fill(static_cast<DeviceArguments&>(a), given);
  a.starts = given.tensors("starts");
  a.momenta = given.tensors("momenta");
  a.indices = given.contiguous("indices");
  a.noise = given.contiguous("noise");
  a.offsets = given.contiguous("offsets");
  a.first_iterations = given.contiguous("first_iterations");
  a.iterations = given.contiguous("iterations");
  a.pool = given.contiguous("pool");
  a.known = given.contiguous("known");
  a.draws = given.contiguous("draws");
  a.count = given.tensor("count");
  a.sum = given.tensor("sum");
  a.product = given.tensor("product");
  a.weights = given.reals("weights");
  a.strength = given.real("strength");
  a.by_distance = given.flag("by_distance");
  a.modulation = given.text("modulation");
  a.modulation_strength = given.real("modulation_strength");
  a.gradient_noise = given.contiguous_tensors("gradient_noise");
  a.gradient_offsets = given.contiguous("gradient_offsets");
  a.clip_norm = given.real("clip_norm");
  a.learning_rate = given.real("learning_rate");
  a.momentum_factor = given.real("momentum_factor");
  a.weight_decay = given.real("weight_decay");
  a.proximal = given.real("proximal");
}

inline void fill(EvaluationArguments& a, const Arguments& given) {
  fill(static_cast<DeviceArguments&>(a), given);
  a.num_devices = given.integer("num_devices");
  a.chosen = given.contiguous("samples");
  a.common = given.tensors("common");
}

// The boxed form of a function that takes a struct and returns two tensors.
template <class Struct, std::pair<at::Tensor, at::Tensor> (*function)(const Struct&)>
void call_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Struct given;
  fill(given, Arguments(op, *stack));
  auto [first, second] = function(given);
  torch::jit::drop(*stack, op.schema().arguments().size());
  torch::jit::push(*stack, std::move(first), std::move(second));
}

}  // namespace dmmlkd
