// convolve and convolve_backward on CPU tensors: shares out devices, and forward their groups of samples.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../check.h"
#include "convolution_layer.h"

namespace dmmlkd {
namespace {

template <class T>
void forward(const at::Tensor& inputs, const ForwardLayer<T>& layer, const at::Tensor& outputs) {
  const Plan& p = layer.plan();
  T* target = outputs.mutable_data_ptr<T>();
  const int64_t device_size = p.samples * p.positions() * p.out_channels;
  at::parallel_for(0, p.devices * p.groups, convolution_grain(p.products_a_sample() * p.group),
                   [&](int64_t begin, int64_t end) {
                     typename ForwardLayer<T>::Memory memory(p);
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t device = task / p.groups;
                       layer.run_group(memory, device, task % p.groups, {inputs, device},
                                       target + device * device_size);
                     }
                   });
}

at::Tensor convolve(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
                    int64_t kernel, int64_t stride, bool rectify) {
  check_convolution(inputs, weight, kernel, stride);
  check_convolution_bias(weight, bias);
  at::Tensor outputs = recycled_empty(convolution_shape(inputs, weight, stride), inputs.options());
  if (outputs.numel() == 0) return outputs;
  const Plan plan(inputs, weight, kernel, stride);
  if (inputs.scalar_type() == at::kDouble)
    forward(inputs, ForwardLayer<double>(plan, weight, bias, rectify), outputs);
  else
    forward(inputs, ForwardLayer<float>(plan, weight, bias, rectify), outputs);
  return outputs;
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& upstream, const at::Tensor& inputs,
                                                        const at::Tensor& weight, const at::Tensor& outputs,
                                                        int64_t kernel, int64_t stride, bool rectify,
                                                        bool with_inputs) {
  const at::Tensor values = outputs.contiguous();
  const at::Tensor gradient =
      with_inputs ? recycled_empty(inputs.sizes(), inputs.options()) : at::empty({0}, inputs.options());
  const at::Tensor weight_gradient = at::empty(weight.sizes(), weight.options()),
                   bias_gradient = at::empty({weight.size(0), weight.size(2)}, weight.options());
  const BackwardLayer<T> layer(Plan(inputs, weight, kernel, stride), weight, gradient.numel() > 0);
  const Plan& p = layer.plan();
  const int64_t inputs_size = p.samples * p.height * p.width * p.channels,
                outputs_size = p.samples * p.positions() * p.out_channels;
  const T* made = rectify ? values.const_data_ptr<T>() : nullptr;
  T* to_inputs = gradient.numel() ? gradient.mutable_data_ptr<T>() : nullptr;
  T *to_weight = weight_gradient.mutable_data_ptr<T>(), *to_bias = bias_gradient.mutable_data_ptr<T>();
  at::parallel_for(0, p.devices, convolution_grain(2 * p.products_a_sample() * p.samples),
                   [&](int64_t begin, int64_t end) {
                     typename BackwardLayer<T>::Memory memory(layer);
                     for (int64_t device = begin; device < end; ++device)
                       layer.run_device(memory, device, {upstream, device}, {inputs, device},
                                        made ? made + device * outputs_size : nullptr,
                                        {to_inputs ? to_inputs + device * inputs_size : nullptr,
                                         to_weight + device * p.fan_in() * p.out_channels,
                                         to_bias + device * p.out_channels});
                   });
  return {gradient, weight_gradient, bias_gradient};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& upstream, const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& outputs,
    int64_t kernel, int64_t stride, bool rectify, bool with_inputs) {
  check_convolution(inputs, weight, kernel, stride);
  check_convolution_outputs("upstream", upstream, inputs, weight, stride);
  check_convolution_outputs("outputs", outputs, inputs, weight, stride);
  return inputs.scalar_type() == at::kDouble
             ? backward<double>(upstream, inputs, weight, outputs, kernel, stride, rectify, with_inputs)
             : backward<float>(upstream, inputs, weight, outputs, kernel, stride, rectify, with_inputs);
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("convolve", convolve);
  m.impl("convolve_backward", convolve_backward);
}

}  // namespace dmmlkd
