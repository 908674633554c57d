// Functions as torch calls them through the stable interface: arguments come, in the order of the schema, on
// a stack, to be taken over, and the results go there.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tensor.h"

namespace dmmlkd {

template <class T>
struct Unboxed {
  static T take(StableIValue value) { return torch::stable::detail::to<T>(value); }
};
template <>
struct Unboxed<Tensor> {
  static Tensor take(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};
template <>
struct Unboxed<std::optional<Tensor>> {
  static std::optional<Tensor> take(StableIValue value) {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    return handle ? std::optional(Tensor(*handle)) : std::nullopt;
  }
};
template <>
struct Unboxed<std::vector<Tensor>> {
  static std::vector<Tensor> take(StableIValue value) {
    const auto handles = torch::stable::detail::to<std::vector<AtenTensorHandle>>(value);
    std::vector<Tensor> tensors;
    for (const AtenTensorHandle handle : handles) tensors.emplace_back(handle);
    return tensors;
  }
};
template <>  // torch 2.13's own leaks
struct Unboxed<std::string> {
  static std::string take(StableIValue value) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    const char* text = nullptr;
    size_t length = 0;
    check_torch(torch_string_c_str(handle, &text), "string_c_str");
    check_torch(torch_string_length(handle, &length), "string_length");
    std::string copy(text, length);
    check_torch(torch_delete_string(handle), "delete_string");
    return copy;
  }
};

class Arguments {
 public:
  explicit Arguments(const StableIValue* stack) : next_(stack) {}

  template <class T>
  T take() {
    return Unboxed<T>::take(*next_++);
  }
  // Undefined where the argument is None.
  Tensor tensor_or_none() { return take<std::optional<Tensor>>().value_or(Tensor()); }
  Tensor contiguous() { return take<Tensor>().contiguous(); }
  Tensor contiguous_or_none() {
    const Tensor given = tensor_or_none();
    return given.defined() ? given.contiguous() : given;
  }
  std::vector<Tensor> contiguous_list() {
    std::vector<Tensor> list = take<std::vector<Tensor>>();
    for (Tensor& tensor : list) tensor = tensor.contiguous();
    return list;
  }

 private:
  const StableIValue* next_;
};

inline void give(StableIValue* stack, const Tensor& result) {
  *stack = torch::stable::detail::from(result.share());
}
template <class... Results>
void give(StableIValue* stack, const std::tuple<Results...>& results) {
  std::apply([&](const auto&... result) { (give(stack++, result), ...); }, results);
}
inline void give(StableIValue* stack, const std::pair<Tensor, Tensor>& results) {
  give(stack, results.first), give(stack + 1, results.second);
}

// Boxed<function>::run is the form of `function` that the library is given.
template <auto function>
struct Boxed;
template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Boxed<function> {
  static void run(StableIValue* stack, uint64_t, uint64_t) {
    Arguments given(stack);
    std::tuple<std::decay_t<Parameters>...> arguments{given.take<std::decay_t<Parameters>>()...};
    if constexpr (std::is_void_v<Result>)
      std::apply(function, arguments);
    else
      give(stack, std::apply(function, arguments));
  }
};

// Likewise of a function of one struct, which `read` makes of the arguments.
template <auto read, auto function>
void run_boxed(StableIValue* stack, uint64_t, uint64_t) {
  Arguments given(stack);
  if constexpr (std::is_void_v<decltype(function(read(given)))>)
    function(read(given));
  else
    give(stack, function(read(given)));
}

}  // namespace dmmlkd
