// The convolutions of an encoder, device by device: activations and the gradients of the hidden layers stay
// in the cache.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "../simd/rows.h"
#include "../simd/scratch.h"
#include "../stable/tensor.h"
#include "convolution_layer.h"

namespace dmmlkd {

// The layers of all devices.
struct ConvolutionStack {
  Tensor inputs;
  std::vector<Tensor> weights;
  int64_t kernel, stride;
  std::vector<Tensor> outputs{};

  size_t layers() const { return weights.size(); }
  const Tensor& below(size_t i) const { return i ? outputs[i - 1] : inputs; }
  Plan plan(size_t i) const { return {below(i), weights[i], kernel, stride}; }
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
class ForwardStack {
 public:
  // The memory of one thread.
  class Memory {
   public:
    explicit Memory(const ForwardStack& stack) {
      for (const ForwardLayer<T>& layer : stack.layers_) layers_.emplace_back(layer.plan());
    }
    // To be called after a device's weights have changed.
    void forget() {
      for (auto& layer : layers_) layer.packed_device = -1;
    }

   private:
    friend ForwardStack;
    std::deque<typename ForwardLayer<T>::Memory> layers_;
  };

  // `means` of the last outputs over space, or none.
  ForwardStack(const ConvolutionStack& stack, const std::vector<Tensor>& biases, const Tensor& means)
      : stack_(stack), means_(means) {
    for (size_t i = 0; i < stack.layers(); ++i)
      layers_.emplace_back(stack.plan(i), stack.weights[i], biases[i], true);
  }

  void run_device(Memory& memory, int64_t device) const {
    for (size_t i = 0; i < layers_.size(); ++i)
      layers_[i].run_device(memory.layers_[i], device, {stack_.below(i), device},
                            written_row<T>(stack_.outputs[i], device));
    const Plan& last = layers_.back().plan();
    if (means_.defined())
      average(row_of<T>(stack_.outputs.back(), device), last.samples, last.positions(), last.out_channels,
              written_row<T>(means_, device));
  }

 private:
  const ConvolutionStack& stack_;
  const Tensor means_;
  std::vector<ForwardLayer<T>> layers_;
};

template <class T>
class BackwardStack {
 public:
  // The memory of one thread.
  class Memory {
   public:
    explicit Memory(const BackwardStack& stack) : first_(stack.widest_), second_(stack.widest_) {
      for (const BackwardLayer<T>& layer : stack.layers_) layers_.emplace_back(layer);
    }

   private:
    friend BackwardStack;
    Scratch<T> first_, second_;
    std::deque<typename BackwardLayer<T>::Memory> layers_;
  };

  explicit BackwardStack(const ConvolutionStack& stack) : stack_(stack) {
    for (size_t i = 0; i < stack.layers(); ++i) {
      const Plan& p = layers_.emplace_back(stack.plan(i), stack.weights[i], i > 0).plan();
      if (i) widest_ = std::max(widest_, p.samples * p.height * p.width * p.channels);
    }
  }

  // Writes the gradients of a device's weights and biases.
  void run_device(Memory& memory, int64_t device, Values<T> upstream, const std::vector<T*>& to_weights,
                  const std::vector<T*>& to_biases) const {
    for (size_t i = layers_.size(); i-- > 0;) {
      T* below = i == 0 ? nullptr : (i % 2 ? memory.first_ : memory.second_).data();
      layers_[i].run_device(memory.layers_[i], device, upstream, {stack_.below(i), device},
                            row_of<T>(stack_.outputs[i], device), {below, to_weights[i], to_biases[i]});
      const Plan& p = layers_[i].plan();
      upstream = Values<T>(below, Strides(p.height, p.width, p.channels));
    }
  }

 private:
  const ConvolutionStack& stack_;
  std::vector<BackwardLayer<T>> layers_;
  int64_t widest_ = 1;
};

}  // namespace dmmlkd
