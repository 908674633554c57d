// linear_layers and linear_layers_backward_ on CPU tensors: checks, then shares out devices.
//
// Each device goes through all layers before the next one begins, so that what passes between them stays in
// the cache; backward, the gradients of the hidden layers never leave it.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "kernels.h"
#include "scratch.h"

namespace dmmlkd {
namespace {

void run(const LinearLayer<float>& layer) { kernels().linear_forward_float(layer); }
void run(const LinearLayer<double>& layer) { kernels().linear_forward_double(layer); }
void run(const LinearGradient<float>& layer) { kernels().linear_backward_float(layer); }
void run(const LinearGradient<double>& layer) { kernels().linear_backward_double(layer); }

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

template <class T>
const T* read(const at::Tensor& tensor, int64_t device) {
  return tensor.const_data_ptr<T>() + device * tensor.stride(0);
}

template <class T>
T* written(const at::Tensor& tensor, int64_t device) {
  return tensor.mutable_data_ptr<T>() + device * tensor.stride(0);
}

// The layers of all devices; `values` are the inputs, then each layer's outputs.
struct Layers {
  std::vector<at::Tensor> values, weights, biases;
  size_t rectified;

  size_t number() const { return weights.size(); }
  int64_t devices() const { return values[0].size(0); }
  int64_t samples() const { return values[0].size(1); }
  int64_t inputs(size_t i) const { return weights[i].size(1); }
  int64_t outputs(size_t i) const { return weights[i].size(2); }

  int64_t grain() const {
    int64_t products = 1;
    for (const at::Tensor& weight : weights) products += samples() * weight.size(1) * weight.size(2);
    return std::max<int64_t>(1, grain_products / products);
  }

  int64_t scratch() const {
    int64_t most = 0;
    for (size_t i = 0; i < number(); ++i)
      most = std::max(most, linear_scratch(samples(), inputs(i), outputs(i)));
    return most;
  }

  int64_t widest() const {
    int64_t most = 0;
    for (size_t i = 1; i < number(); ++i) most = std::max(most, whole_vectors(samples() * inputs(i)));
    return most;
  }
};

template <class T>
void forward(const Layers& layers) {
  at::parallel_for(0, layers.devices(), layers.grain(), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(layers.scratch());
    for (int64_t device = begin; device < end; ++device)
      for (size_t i = 0; i < layers.number(); ++i)
        run(LinearLayer<T>{read<T>(layers.values[i], device), read<T>(layers.weights[i], device),
                           i < layers.biases.size() ? read<T>(layers.biases[i], device) : nullptr,
                           layers.samples(), layers.inputs(i), layers.outputs(i), i < layers.rectified,
                           written<T>(layers.values[i + 1], device), scratch.data()});
  });
}

std::vector<at::Tensor> linear_layers(const at::Tensor& inputs, at::TensorList weights, at::TensorList biases,
                                      int64_t rectified) {
  check_linear_layers(inputs, weights, biases, rectified);
  Layers layers{{dense(inputs)}, dense(weights), dense(biases), static_cast<size_t>(rectified)};
  std::vector<at::Tensor> outputs;
  for (const at::Tensor& weight : weights) {
    outputs.push_back(at::empty({inputs.size(0), inputs.size(1), weight.size(2)}, inputs.options()));
    layers.values.push_back(outputs.back());
  }
  if (inputs.scalar_type() == at::kDouble)
    forward<double>(layers);
  else
    forward<float>(layers);
  return outputs;
}

template <class T>
void backward(const Layers& layers, const at::Tensor& upstream, at::TensorList weight_gradients,
              at::TensorList bias_gradients, const at::Tensor& inputs_gradient) {
  at::parallel_for(0, layers.devices(), layers.grain(), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(layers.scratch() + 2 * layers.widest());
    T* const between[] = {scratch.data(), scratch.data() + layers.widest()};
    for (int64_t device = begin; device < end; ++device) {
      const T* above = read<T>(upstream, device);
      for (size_t i = layers.number(); i-- > 0;) {
        T* below = i ? between[i % 2] : nullptr;
        if (!i && inputs_gradient.numel()) below = written<T>(inputs_gradient, device);
        run(LinearGradient<T>{read<T>(layers.values[i], device), read<T>(layers.weights[i], device), above,
                              i < layers.rectified ? read<T>(layers.values[i + 1], device) : nullptr,
                              layers.samples(), layers.inputs(i), layers.outputs(i),
                              written<T>(weight_gradients[i], device),
                              i < bias_gradients.size() ? written<T>(bias_gradients[i], device) : nullptr,
                              below, between[1] + layers.widest()});
        above = below;
      }
    }
  });
}

at::Tensor linear_layers_backward(const at::Tensor& upstream, const at::Tensor& inputs,
                                  at::TensorList weights, at::TensorList outputs,
                                  at::TensorList weight_gradients, at::TensorList bias_gradients,
                                  int64_t rectified, bool with_inputs) {
  check_linear_layers(inputs, weights, {}, rectified);
  check_linear_layers_gradients(upstream, inputs, weights, outputs, weight_gradients, bias_gradients);
  Layers layers{{dense(inputs)}, dense(weights), {}, static_cast<size_t>(rectified)};
  for (const at::Tensor& made : outputs) layers.values.push_back(dense(made));
  const at::Tensor above = dense(upstream);
  const at::Tensor gradient =
      with_inputs ? at::empty(inputs.sizes(), inputs.options()) : at::empty({0}, inputs.options());
  if (inputs.scalar_type() == at::kDouble)
    backward<double>(layers, above, weight_gradients, bias_gradients, gradient);
  else
    backward<float>(layers, above, weight_gradients, bias_gradients, gradient);
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(dmmlkd, CPU, m) {
  m.impl("linear_layers", linear_layers);
  m.impl("linear_layers_backward_", linear_layers_backward);
}

}  // namespace dmmlkd
