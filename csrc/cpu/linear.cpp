// linear_forward and linear_backward_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"
#include "kernels.h"
#include "scratch.h"

namespace dmmlkd {
namespace {

void run(const LinearLayer<float>& layer) { kernels().linear_forward_float(layer); }
void run(const LinearLayer<double>& layer) { kernels().linear_forward_double(layer); }
void run(const LinearGradient<float>& layer) { kernels().linear_backward_float(layer); }
void run(const LinearGradient<double>& layer) { kernels().linear_backward_double(layer); }

// A tensor whose devices may lie at any distance, each contiguous; another is copied.
at::Tensor dense(const at::Tensor& tensor) {
  return rows_are_contiguous(tensor) ? tensor : tensor.contiguous();
}

struct Sizes {
  int64_t devices, samples, inputs, outputs;

  Sizes(const at::Tensor& input, const at::Tensor& weight)
      : devices(input.size(0)), samples(input.size(1)), inputs(input.size(2)), outputs(weight.size(2)) {}
  int64_t scratch() const { return linear_scratch(samples, inputs, outputs); }
  int64_t grain() const {
    return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, samples * inputs * outputs));
  }
};

template <class T>
at::Tensor forward(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias, bool rectify) {
  const Sizes sizes(inputs, weight);
  const at::Tensor outputs = at::empty({sizes.devices, sizes.samples, sizes.outputs}, inputs.options());
  const T *from = inputs.const_data_ptr<T>(), *weights = weight.const_data_ptr<T>();
  const T* biases = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  T* to = outputs.mutable_data_ptr<T>();
  at::parallel_for(0, sizes.devices, sizes.grain(), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(sizes.scratch());
    for (int64_t device = begin; device < end; ++device)
      run(LinearLayer<T>{from + device * inputs.stride(0), weights + device * weight.stride(0),
                         biases ? biases + device * bias.stride(0) : nullptr, sizes.samples, sizes.inputs,
                         sizes.outputs, rectify, to + device * sizes.samples * sizes.outputs,
                         scratch.data()});
  });
  return outputs;
}

at::Tensor linear_forward(const at::Tensor& inputs, const at::Tensor& weight,
                          const std::optional<at::Tensor>& bias, bool rectify) {
  check_linear(inputs, weight, bias);
  const at::Tensor from = dense(inputs), weights = dense(weight), biases = bias ? dense(*bias) : at::Tensor();
  if (inputs.scalar_type() == at::kDouble) return forward<double>(from, weights, biases, rectify);
  return forward<float>(from, weights, biases, rectify);
}

template <class T>
at::Tensor backward(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& outputs,
                    const at::Tensor& gradient, at::Tensor& weight_gradient, at::Tensor& bias_gradient,
                    bool with_input_gradient) {
  const Sizes sizes(inputs, weight);
  const at::Tensor result =
      with_input_gradient ? at::empty(inputs.sizes(), inputs.options()) : at::empty({0}, inputs.options());
  LinearGradient<T> whole{};
  whole.inputs = inputs.const_data_ptr<T>(), whole.weight = weight.const_data_ptr<T>();
  whole.gradient = gradient.const_data_ptr<T>();
  whole.outputs = outputs.defined() ? outputs.const_data_ptr<T>() : nullptr;
  whole.samples = sizes.samples, whole.inputs_width = sizes.inputs, whole.outputs_width = sizes.outputs;
  whole.weight_gradient = weight_gradient.mutable_data_ptr<T>();
  whole.bias_gradient = bias_gradient.defined() ? bias_gradient.mutable_data_ptr<T>() : nullptr;
  whole.input_gradient = with_input_gradient ? result.mutable_data_ptr<T>() : nullptr;
  at::parallel_for(0, sizes.devices, sizes.grain(), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(sizes.scratch());
    for (int64_t device = begin; device < end; ++device) {
      LinearGradient<T> own = whole;
      own.inputs += device * inputs.stride(0), own.weight += device * weight.stride(0);
      own.gradient += device * gradient.stride(0);
      own.weight_gradient += device * weight_gradient.stride(0);
      if (own.outputs) own.outputs += device * outputs.stride(0);
      if (own.bias_gradient) own.bias_gradient += device * bias_gradient.stride(0);
      if (own.input_gradient) own.input_gradient += device * sizes.samples * sizes.inputs;
      own.scratch = scratch.data();
      run(own);
    }
  });
  return result;
}

at::Tensor linear_backward(const at::Tensor& inputs, const at::Tensor& weight,
                           const std::optional<at::Tensor>& outputs, const at::Tensor& gradient,
                           at::Tensor& weight_gradient, const std::optional<at::Tensor>& bias_gradient,
                           bool with_input_gradient) {
  check_linear(inputs, weight, std::nullopt);
  check_linear_gradient(inputs, weight, outputs, gradient, weight_gradient, bias_gradient);
  const at::Tensor from = dense(inputs), weights = dense(weight), upstream = dense(gradient);
  const at::Tensor made = outputs ? dense(*outputs) : at::Tensor();
  at::Tensor to_bias = bias_gradient.value_or(at::Tensor());
  if (inputs.scalar_type() == at::kDouble)
    return backward<double>(from, weights, made, upstream, weight_gradient, to_bias, with_input_gradient);
  return backward<float>(from, weights, made, upstream, weight_gradient, to_bias, with_input_gradient);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("linear_forward", linear_forward);
  m.impl("linear_backward_", linear_backward);
}

}  // namespace dmmlkd
