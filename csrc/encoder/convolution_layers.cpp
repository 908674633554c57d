// convolve_layers and convolve_layers_backward_ on CPU tensors: checks, then shares out devices.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../check.h"
#include "convolution_stack.h"

namespace dmmlkd {
namespace {

template <class T>
void forward_layers(const ConvolutionStack& stack, at::TensorList biases, const at::Tensor& means) {
  const ForwardStack<T> layers(stack, biases, means);
  at::parallel_for(0, layers.devices(), convolution_grain(layers.products()),
                   [&](int64_t begin, int64_t end) {
                     typename ForwardStack<T>::Memory memory(layers);
                     for (int64_t device = begin; device < end; ++device) layers.run_device(memory, device);
                   });
}

std::vector<at::Tensor> convolve_layers(const at::Tensor& inputs, at::TensorList weights,
                                        at::TensorList biases, int64_t kernel, int64_t stride,
                                        bool with_means) {
  check_convolution_list("biases", biases, weights);
  ConvolutionStack stack{inputs, weights.vec(), kernel, stride};
  for (size_t i = 0; i < weights.size(); ++i) {
    check_convolution(stack.below(i), weights[i], kernel, stride);
    check_convolution_bias(weights[i], biases[i]);
    stack.outputs.push_back(
        recycled_empty(convolution_shape(stack.below(i), weights[i], stride), inputs.options()));
  }
  const at::Tensor& last = stack.outputs.back();
  const at::Tensor means =
      with_means ? at::empty({last.size(0), last.size(1), last.size(-1)}, inputs.options()) : at::Tensor();
  if (last.numel() > 0 && inputs.scalar_type() == at::kDouble) forward_layers<double>(stack, biases, means);
  if (last.numel() > 0 && inputs.scalar_type() == at::kFloat) forward_layers<float>(stack, biases, means);
  std::vector<at::Tensor> results = stack.outputs;
  if (with_means) results.push_back(means);
  return results;
}

template <class T>
void backward_layers(const ConvolutionStack& stack, const at::Tensor& upstream,
                     at::TensorList weight_gradients, at::TensorList bias_gradients) {
  const BackwardStack<T> layers(stack);
  at::parallel_for(
      0, upstream.size(0), convolution_grain(layers.products()), [&](int64_t begin, int64_t end) {
        typename BackwardStack<T>::Memory memory(layers);
        for (int64_t device = begin; device < end; ++device)
          layers.run_device(memory, device, {upstream, device}, written_rows<T>(weight_gradients, device),
                            written_rows<T>(bias_gradients, device));
      });
}

void convolve_layers_backward(const at::Tensor& upstream, const at::Tensor& inputs, at::TensorList weights,
                              at::TensorList outputs, at::TensorList weight_gradients,
                              at::TensorList bias_gradients, int64_t kernel, int64_t stride) {
  check_convolution_list("outputs", outputs, weights);
  check_convolution_list("weight_gradients", weight_gradients, weights);
  check_convolution_list("bias_gradients", bias_gradients, weights);
  ConvolutionStack stack{inputs, weights.vec(), kernel, stride};
  for (size_t i = 0; i < weights.size(); ++i) {
    check_convolution(stack.below(i), weights[i], kernel, stride);
    check_real("convolve_layers", "outputs", outputs[i], inputs.scalar_type(),
               convolution_shape(stack.below(i), weights[i], stride));
    check_written("convolve_layers", "weight_gradients", weight_gradients[i], inputs.scalar_type(),
                  weights[i].sizes());
    check_written("convolve_layers", "bias_gradients", bias_gradients[i], inputs.scalar_type(),
                  {weights[i].size(0), weights[i].size(2)});
    stack.outputs.push_back(outputs[i].contiguous());
  }
  check_real("convolve_layers", "upstream", upstream, inputs.scalar_type(), outputs.back().sizes());
  if (inputs.scalar_type() == at::kDouble)
    backward_layers<double>(stack, upstream, weight_gradients, bias_gradients);
  else
    backward_layers<float>(stack, upstream, weight_gradients, bias_gradients);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("convolve_layers", convolve_layers);
  m.impl("convolve_layers_backward_", convolve_layers_backward);
}

}  // namespace dmmlkd
