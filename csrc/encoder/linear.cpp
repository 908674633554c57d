// linear_layers and linear_layers_backward_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../check.h"
#include "../simd/scratch.h"
#include "linear_stack.h"

namespace dmmlkd {
namespace {

constexpr int64_t grain_products = 65536;  // multiply-adds worth a thread

// A tensor whose devices may lie at any distance, each contiguous; another is copied.
at::Tensor dense(const at::Tensor& tensor) {
  return rows_are_contiguous(tensor) ? tensor : tensor.contiguous();
}

std::vector<at::Tensor> dense(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors) all.push_back(dense(tensor));
  return all;
}

int64_t grain(const LinearStack& stack) { return std::max<int64_t>(1, grain_products / stack.products()); }

template <class T>
void forward(const LinearStack& stack) {
  at::parallel_for(0, stack.devices(), grain(stack), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(stack.forward_scratch());
    for (int64_t device = begin; device < end; ++device) stack.forward(device, scratch.data());
  });
}

std::vector<at::Tensor> linear_layers(const at::Tensor& inputs, at::TensorList weights, at::TensorList biases,
                                      int64_t rectified) {
  check_linear_layers(inputs, weights, biases, rectified);
  LinearStack stack{{dense(inputs)}, dense(weights), dense(biases), static_cast<size_t>(rectified)};
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& weight : weights) {
    outputs.push_back(at::empty({inputs.size(0), inputs.size(1), weight.size(2)}, inputs.options()));
    stack.values.push_back(outputs.back());
  }
  if (inputs.scalar_type() == at::kDouble)
    forward<double>(stack);
  else
    forward<float>(stack);
  return outputs;
}

template <class T>
void backward(const LinearStack& stack, const at::Tensor& upstream, at::TensorList weight_gradients,
              at::TensorList bias_gradients, const at::Tensor& inputs_gradient) {
  at::parallel_for(0, stack.devices(), grain(stack), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(stack.backward_scratch());
    for (int64_t device = begin; device < end; ++device) {
      const auto to_weights = written_rows<T>(weight_gradients, device),
                 to_biases = written_rows<T>(bias_gradients, device);
      T* to_inputs = inputs_gradient.numel() ? written_row<T>(inputs_gradient, device) : nullptr;
      stack.backward<T>(device, row_of<T>(upstream, device), {to_weights, to_biases, to_inputs},
                        scratch.data());
    }
  });
}

at::Tensor linear_layers_backward(const at::Tensor& upstream, const at::Tensor& inputs,
                                  at::TensorList weights, at::TensorList outputs,
                                  at::TensorList weight_gradients, at::TensorList bias_gradients,
                                  int64_t rectified, bool with_inputs) {
  check_linear_layers(inputs, weights, {}, rectified);
  check_linear_layers_gradients(upstream, inputs, weights, outputs, weight_gradients, bias_gradients);
  LinearStack stack{{dense(inputs)}, dense(weights), {}, static_cast<size_t>(rectified)};
  for (const at::Tensor& made : outputs) stack.values.push_back(dense(made));
  const at::Tensor above = dense(upstream);
  const at::Tensor gradient =
      with_inputs ? at::empty(inputs.sizes(), inputs.options()) : at::empty({0}, inputs.options());
  if (inputs.scalar_type() == at::kDouble)
    backward<double>(stack, above, weight_gradients, bias_gradients, gradient);
  else
    backward<float>(stack, above, weight_gradients, bias_gradients, gradient);
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("linear_layers", linear_layers);
  m.impl("linear_layers_backward_", linear_layers_backward);
}

}  // namespace dmmlkd
