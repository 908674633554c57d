// The encoder of a modality with its projection (METHOD 2), on the batch of one device at a time.
//
// Activations are in memory of one thread that all its devices reuse, and so stay in the cache.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../check.h"
#include "../simd/scratch.h"
#include "../stable/tensor.h"
#include "convolution_stack.h"
#include "linear_stack.h"

namespace dmmlkd {

// Where a layer's weight [inputs, outputs] and its bias begin in the row of a block.
struct LayerPlace {
  int64_t inputs, outputs, weight, bias;
};

// The content of a row of a modality's block: each layer's weight and bias, the projection, the head.
struct BlockPlaces {
  std::vector<int64_t> shape;  // of a sample
  int64_t kernel, stride;      // of the convolutions; kernel 0: the layers are linear
  std::vector<LayerPlace> layers{};
  LayerPlace projection{};
  int64_t head = 0, size = 0;

  BlockPlaces(std::vector<int64_t> sample, int64_t window, int64_t step, Sizes widths, int64_t features,
              int64_t classes)
      : shape(std::move(sample)), kernel(window), stride(step) {
    std::vector<int64_t> space(shape.begin() + 1, shape.end());
    int64_t channels = shape[0], taps = 1;
    for (size_t i = 0; kernel && i < space.size(); ++i) taps *= kernel;
    for (const int64_t width : widths) {
      const int64_t weight = taps * channels * width;
      layers.push_back({taps * channels, width, size, size + weight});
      size += weight + width, channels = width;
      for (int64_t& extent : space) extent = (extent + stride - 1) / stride;
    }
    const int64_t encoding = averaged() ? channels : channels * numel(space);
    projection = {encoding, features, size, -1};
    head = size + encoding * features;
    size = head + features / 2 * classes;
  }

  bool averaged() const { return shape.size() == 2; }  // over time

  // Where each of the encoder's parameter tensors ends, the projection last.
  std::vector<int64_t> encoder_ends() const {
    std::vector<int64_t> ends;
    for (const LayerPlace& layer : layers) ends.insert(ends.end(), {layer.bias, layer.bias + layer.outputs});
    ends.push_back(head);
    return ends;
  }
};

// Memory that all devices reuse, as a tensor [devices, *shape].
inline Tensor shared_by_devices(int64_t devices, std::vector<int64_t> shape, const Tensor& like) {
  const Tensor memory = like.new_empty(shape);
  std::vector<int64_t> strides = memory.strides().vec();
  shape.insert(shape.begin(), devices), strides.insert(strides.begin(), 0);
  return memory.strided(shape, strides);
}

// A part of all rows of a block, [devices, *shape].
inline Tensor part_of(const Tensor& block, int64_t begin, std::vector<int64_t> shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  shape.insert(shape.begin(), block.size(0)), strides.insert(strides.begin(), block.stride(0));
  return block.strided(shape, strides, begin);
}

// [devices, samples, channels, *space] as [devices, samples, *space, channels].
inline Tensor channels_last(const Tensor& inputs) {
  std::vector<int64_t> shape = inputs.sizes().vec(), strides = inputs.strides().vec();
  std::rotate(shape.begin() + 2, shape.begin() + 3, shape.end());
  std::rotate(strides.begin() + 2, strides.begin() + 3, strides.end());
  return inputs.strided(shape, strides);
}

// Contiguous samples [devices, samples, *shape] as [devices, samples, values].
inline Tensor flattened(const Tensor& samples) {
  const Sizes shape = samples.sizes();
  return samples.strided({shape[0], shape[1], numel(shape.slice(2))},
                         {samples.stride(0), samples.stride(1), 1});
}

// Convolutions with the memory of one thread.
template <class T>
struct DeviceConvolutions {
  const ConvolutionStack stack;
  const ForwardStack<T> forward;
  typename ForwardStack<T>::Memory forward_memory;

  DeviceConvolutions(ConvolutionStack layers, const std::vector<Tensor>& biases, const Tensor& means)
      : stack(std::move(layers)), forward(stack, biases, means), forward_memory(forward) {}
};

template <class T>
struct DeviceConvolutionGradients {
  const BackwardStack<T> backward;
  typename BackwardStack<T>::Memory memory;

  explicit DeviceConvolutionGradients(const ConvolutionStack& stack) : backward(stack), memory(backward) {}
};

template <class T>
class DeviceEncoder {
 public:
  // `block` holds the parameters [devices, places.size]; `trains`: backward() will be called.
  DeviceEncoder(const BlockPlaces& places, const Tensor& block, int64_t samples, bool trains)
      : places_(places), inputs_(memory(block, samples, places.shape)) {
    linear_.values = {places.kernel ? add_convolutions(block, samples) : inputs_};
    if (!places.kernel)
      for (const LayerPlace& layer : places.layers) add_linear(layer, block, samples);
    linear_.rectified = linear_.layers();
    add_linear(places.projection, block, samples);
    scratch_ = std::make_unique<Scratch<T>>(linear_.backward_scratch());
    if (trains && convolutions_) {
      gradients_ = std::make_unique<DeviceConvolutionGradients<T>>(convolutions_->stack);
      upstream_ = std::make_unique<Scratch<T>>(samples * places.projection.inputs);
    }
  }

  // [samples, *shape], to be filled before forward().
  T* inputs() const { return inputs_.mutable_data_ptr<T>(); }
  // [samples, features], of the last forward().
  const T* features() const { return linear_.values.back().const_data_ptr<T>(); }

  void forward(int64_t row) {
    if (convolutions_) {
      convolutions_->forward_memory.forget();
      convolutions_->forward.run_device(convolutions_->forward_memory, row);
    }
    linear_.forward(row, scratch_->data());
  }

  // Writes the gradients of all parameters but the head's, of the last forward(), to a row like the block's.
  void backward(int64_t row, const T* upstream, T* gradient) {
    to_weights_.clear(), to_biases_.clear();
    for (const LayerPlace& layer : places_.layers) {
      to_weights_.push_back(gradient + layer.weight);
      to_biases_.push_back(gradient + layer.bias);
    }
    to_linear_weights_.clear();
    if (!convolutions_) to_linear_weights_.swap(to_weights_);
    to_linear_weights_.push_back(gradient + places_.projection.weight);
    T* const to_encoding = convolutions_ ? upstream_->data() : nullptr;
    linear_.backward<T>(row, upstream, {to_linear_weights_, to_biases_, to_encoding}, scratch_->data());
    if (convolutions_)
      gradients_->backward.run_device(gradients_->memory, row, {to_encoding, spread(to_encoding)},
                                      to_weights_, to_biases_);
  }

 private:
  static Tensor memory(const Tensor& block, int64_t samples, std::vector<int64_t> shape) {
    shape.insert(shape.begin(), samples);
    return shared_by_devices(block.size(0), shape, block);
  }

  void add_linear(const LayerPlace& layer, const Tensor& block, int64_t samples) {
    linear_.weights.push_back(part_of(block, layer.weight, {layer.inputs, layer.outputs}));
    if (layer.bias >= 0) linear_.biases.push_back(part_of(block, layer.bias, {layer.outputs}));
    linear_.values.push_back(memory(block, samples, {layer.outputs}));
  }

  // Returns the encoding.
  Tensor add_convolutions(const Tensor& block, int64_t samples) {
    ConvolutionStack stack{channels_last(inputs_), {}, places_.kernel, places_.stride};
    std::vector<Tensor> biases;
    for (const LayerPlace& layer : places_.layers) {
      stack.weights.push_back(part_of(block, layer.weight, {layer.inputs, layer.outputs}));
      biases.push_back(part_of(block, layer.bias, {layer.outputs}));
      const auto made =
          convolution_shape(stack.below(stack.outputs.size()), stack.weights.back(), stack.stride);
      stack.outputs.push_back(memory(block, samples, {made.begin() + 2, made.end()}));
    }
    last_ = stack.outputs.back();
    const Tensor means = places_.averaged() ? memory(block, samples, {places_.projection.inputs}) : Tensor();
    convolutions_ = std::make_unique<DeviceConvolutions<T>>(std::move(stack), biases, means);
    return means.defined() ? means : flattened(last_);
  }

  // How the gradient of the last convolution's outputs lies: that of an average is the same at all times.
  Strides spread(T* gradient) const {
    Strides strides(last_);
    if (!places_.averaged()) return strides;
    const int64_t positions = last_.size(2), channels = last_.size(3);
    for (int64_t i = 0; i < last_.size(1) * channels; ++i) gradient[i] /= static_cast<T>(positions);
    strides.sample = channels, strides.width = 0;
    return strides;
  }

  const BlockPlaces& places_;
  const Tensor inputs_;
  Tensor last_;  // convolution's outputs
  LinearStack linear_{};
  std::vector<T*> to_weights_, to_biases_, to_linear_weights_;  // where gradients go
  std::unique_ptr<DeviceConvolutions<T>> convolutions_;
  std::unique_ptr<DeviceConvolutionGradients<T>> gradients_;
  std::unique_ptr<Scratch<T>> scratch_, upstream_;
};

}  // namespace dmmlkd
