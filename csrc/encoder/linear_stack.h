// The linear layers of an encoder, device by device: activations and the gradients of the hidden layers stay
// in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "../simd/kernels.h"
#include "../simd/rows.h"
#include "../stable/tensor.h"

namespace dmmlkd {

inline void run(const LinearLayer<float>& layer) { kernels().linear_forward_float(layer); }
inline void run(const LinearLayer<double>& layer) { kernels().linear_forward_double(layer); }
inline void run(const LinearGradient<float>& layer) { kernels().linear_backward_float(layer); }
inline void run(const LinearGradient<double>& layer) { kernels().linear_backward_double(layer); }

// The layers of all devices; `values` are the inputs, then each layer's outputs.
struct LinearStack {
  std::vector<Tensor> values, weights, biases;
  size_t rectified;

  size_t layers() const { return weights.size(); }
  int64_t devices() const { return values[0].size(0); }
  int64_t samples() const { return values[0].size(1); }
  int64_t inputs(size_t i) const { return weights[i].size(1); }
  int64_t outputs(size_t i) const { return weights[i].size(2); }

  int64_t forward_scratch() const {
    int64_t most = 0;
    for (size_t i = 0; i < layers(); ++i)
      most = std::max(most, linear_scratch(samples(), inputs(i), outputs(i)));
    return most;
  }

  int64_t backward_scratch() const { return forward_scratch() + 2 * widest(); }

  int64_t widest() const {
    int64_t most = 0;
    for (size_t i = 1; i < layers(); ++i) most = std::max(most, whole_vectors(samples() * inputs(i)));
    return most;
  }

  template <class T>
  void forward(int64_t device, T* scratch) const {
    for (size_t i = 0; i < layers(); ++i)
      run(LinearLayer<T>{row_of<T>(values[i], device), row_of<T>(weights[i], device),
                         i < biases.size() ? row_of<T>(biases[i], device) : nullptr, samples(), inputs(i),
                         outputs(i), i < rectified, written_row<T>(values[i + 1], device), scratch});
  }

  // Where a device's gradients go; that of the inputs is null where it is not wanted. The biases are those of
  // the first layers.
  template <class T>
  struct Gradients {
    const std::vector<T*>&weights, &biases;
    T* inputs;
  };

  template <class T>
  void backward(int64_t device, const T* upstream, const Gradients<T>& gradients, T* scratch) const {
    T* const between[] = {scratch, scratch + widest()};
    for (size_t i = layers(); i-- > 0;) {
      T* below = i ? between[i % 2] : gradients.inputs;
      run(LinearGradient<T>{row_of<T>(values[i], device), row_of<T>(weights[i], device), upstream,
                            i < rectified ? row_of<T>(values[i + 1], device) : nullptr, samples(), inputs(i),
                            outputs(i), gradients.weights[i],
                            i < gradients.biases.size() ? gradients.biases[i] : nullptr, below,
                            scratch + 2 * widest()});
      upstream = below;
    }
  }
};

}  // namespace dmmlkd
