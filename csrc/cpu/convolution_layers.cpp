// convolve_layers and convolve_layers_backward_ on CPU tensors: shares out devices.
//
// Each device goes through all layers before the next one begins, so that what passes between them stays in
// the cache; backward, the gradients of the hidden layers never leave it.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <deque>

#include "../checks.h"
#include "convolution_layer.h"

namespace dmmlkd {
namespace {

// The layers of an encoder, on top of each other.
struct Stack {
  const at::Tensor& inputs;
  at::TensorList weights;
  int64_t kernel, stride;
  std::vector<at::Tensor> outputs{};

  size_t layers() const { return weights.size(); }
  const at::Tensor& below(size_t i) const { return i ? outputs[i - 1] : inputs; }
  Plan plan(size_t i) const { return {below(i), weights[i], kernel, stride}; }
  std::vector<int64_t> shape(size_t i) const { return convolution_shape(below(i), weights[i], stride); }
};

// The mean over space of one device's outputs [samples, positions, channels].
template <class T>
void average(const T* outputs, int64_t samples, int64_t positions, int64_t channels, T* means) {
  const T share = T(1) / static_cast<T>(positions);
  for (int64_t sample = 0; sample < samples; ++sample, means += channels) {
    std::fill_n(means, channels, T(0));
    for (int64_t position = 0; position < positions; ++position, outputs += channels)
      for (int64_t c = 0; c < channels; ++c) means[c] += outputs[c];
    for (int64_t c = 0; c < channels; ++c) means[c] *= share;
  }
}

template <class T>
T* row(const at::Tensor& tensor, int64_t device) {
  return tensor.mutable_data_ptr<T>() + device * tensor.stride(0);
}

template <class T>
void forward_layers(const Stack& stack, at::TensorList biases, const at::Tensor& means) {
  std::vector<ForwardLayer<T>> layers;
  int64_t products = 0;
  for (size_t i = 0; i < stack.layers(); ++i) {
    layers.emplace_back(stack.plan(i), stack.weights[i], biases[i], true);
    products += layers[i].plan().products_a_sample();
  }
  const Plan& last = layers.back().plan();
  at::parallel_for(0, last.devices, convolution_grain(products * last.samples),
                   [&](int64_t begin, int64_t end) {
                     std::deque<typename ForwardLayer<T>::Memory> memories;
                     for (const ForwardLayer<T>& layer : layers) memories.emplace_back(layer.plan());
                     for (int64_t device = begin; device < end; ++device) {
                       for (size_t i = 0; i < layers.size(); ++i)
                         layers[i].run_device(memories[i], device, {stack.below(i), device},
                                              row<T>(stack.outputs[i], device));
                       if (means.defined())
                         average<T>(row<T>(stack.outputs.back(), device), last.samples, last.positions(),
                                    last.out_channels, row<T>(means, device));
                     }
                   });
}

std::vector<at::Tensor> convolve_layers(const at::Tensor& inputs, at::TensorList weights,
                                        at::TensorList biases, int64_t kernel, int64_t stride,
                                        bool with_means) {
  check_convolution_list("biases", biases, weights);
  Stack stack{inputs, weights, kernel, stride};
  for (size_t i = 0; i < weights.size(); ++i) {
    check_convolution(stack.below(i), weights[i], kernel, stride);
    check_convolution_bias(weights[i], biases[i]);
    stack.outputs.push_back(recycled_empty(stack.shape(i), inputs.options()));
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
void backward_layers(const Stack& stack, const at::Tensor& upstream, at::TensorList weight_gradients,
                     at::TensorList bias_gradients) {
  std::vector<BackwardLayer<T>> layers;
  int64_t products = 0, widest = 1;
  for (size_t i = 0; i < stack.layers(); ++i) {
    const Plan& p = layers.emplace_back(stack.plan(i), stack.weights[i], i > 0).plan();
    products += 2 * p.products_a_sample();
    if (i) widest = std::max(widest, p.samples * p.height * p.width * p.channels);
  }
  at::parallel_for(
      0, upstream.size(0), convolution_grain(products * upstream.size(1)), [&](int64_t begin, int64_t end) {
        std::deque<typename BackwardLayer<T>::Memory> memories;
        for (const BackwardLayer<T>& layer : layers) memories.emplace_back(layer);
        const Scratch<T> first(widest), second(widest);
        for (int64_t device = begin; device < end; ++device) {
          Values<T> above(upstream, device);
          for (size_t i = layers.size(); i-- > 0;) {
            T* below = i == 0 ? nullptr : (i % 2 ? first : second).data();
            layers[i].run_device(
                memories[i], device, above, {stack.below(i), device}, row<T>(stack.outputs[i], device),
                {below, row<T>(weight_gradients[i], device), row<T>(bias_gradients[i], device)});
            const Plan& p = layers[i].plan();
            above = Values<T>(below, Strides(p.height, p.width, p.channels));
          }
        }
      });
}

void convolve_layers_backward(const at::Tensor& upstream, const at::Tensor& inputs, at::TensorList weights,
                              at::TensorList outputs, at::TensorList weight_gradients,
                              at::TensorList bias_gradients, int64_t kernel, int64_t stride) {
  check_convolution_list("outputs", outputs, weights);
  check_convolution_list("weight_gradients", weight_gradients, weights);
  check_convolution_list("bias_gradients", bias_gradients, weights);
  Stack stack{inputs, weights, kernel, stride};
  for (size_t i = 0; i < weights.size(); ++i) {
    check_convolution(stack.below(i), weights[i], kernel, stride);
    check_real("convolve_layers", "outputs", outputs[i], inputs.scalar_type(), stack.shape(i));
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
