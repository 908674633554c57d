// One layer of convolution on the samples of one device, forward and backward.
//
// The samples of a group are copied into scratch with their zero padding, so that no kernel knows borders,
// and so that they lie in the first-level cache while every tile of the window reads them.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../check.h"
#include "../simd/kernels.h"
#include "../simd/scratch.h"
#include "../stable/tensor.h"
#include "convolution_plan.h"

namespace dmmlkd {

template <class T>
void copy_row(const T* source, int64_t source_stride, T* target, int64_t target_stride, int64_t count) {
  if (source_stride == 1 && target_stride == 1) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) target[i * target_stride] = source[i * source_stride];
}

// Samples into scratch whose padding is zero already.
template <class T>
void copy_inputs(const Plan& p, const T* inputs, const Strides& strides, int64_t samples, T* padded) {
  const int64_t top = p.window_height / 2, left = p.window_width / 2;
  for (int64_t sample = 0; sample < samples; ++sample)
    for (int64_t y = 0; y < p.height; ++y) {
      const T* source = inputs + sample * strides.sample + y * strides.height;
      T* target = padded + sample * p.padded_sample();
      const int64_t row = (y + top) * p.padded_width + left;
      if (p.planes) {
        for (int64_t c = 0; c < p.channels; ++c)
          copy_row(source + c * strides.channel, strides.width,
                   target + c * p.padded_height * p.padded_width + row, 1, p.width);
      } else if ((strides.channel == 1 || p.channels == 1) && strides.width == p.channels) {
        copy_row(source, 1, target + row * p.channels, 1, p.width * p.channels);
      } else {
        for (int64_t c = 0; c < p.channels; ++c)
          copy_row(source + c * strides.channel, strides.width, target + row * p.channels + c, p.channels,
                   p.width);
      }
    }
}

template <class T>
struct Zeros : Scratch<T> {
  explicit Zeros(int64_t values) : Scratch<T>(std::max<int64_t>(1, values)) {
    std::fill_n(this->data(), values, T(0));
  }
};

// Rows of whole vectors in the order of the window; the lanes that fill them up stay zero.
template <class T>
void pack_weight(const Plan& p, const T* weight, const T* bias, T* packed, T* packed_bias) {
  for (size_t k = 0; k < p.window.rows.size(); ++k)
    copy_row(weight + p.window.rows[k] * p.out_channels, 1, packed + static_cast<int64_t>(k) * p.out_lanes(),
             1, p.out_channels);
  copy_row(bias, 1, packed_bias, 1, p.out_channels);
}

// For the gradient of the inputs: [taps of the class, out channels, lanes of channels].
template <class T>
void pack_transposed(const Plan& p, const InputClass& c, const T* weight, T* packed) {
  for (const int64_t tap : c.window.rows)
    for (int64_t out = 0; out < p.out_channels; ++out, packed += p.lanes())
      copy_row(weight + tap * p.channels * p.out_channels + out, p.out_channels, packed, 1, p.channels);
}

inline void run(const ConvolutionGather<float>& g) { kernels().convolution_gather_float(g); }
inline void run(const ConvolutionGather<double>& g) { kernels().convolution_gather_double(g); }
inline void run(const ConvolutionOuter<float>& o) { kernels().convolution_outer_float(o); }
inline void run(const ConvolutionOuter<double>& o) { kernels().convolution_outer_double(o); }
inline void run(const ConvolutionMask<float>& m) { kernels().convolution_mask_float(m); }
inline void run(const ConvolutionMask<double>& m) { kernels().convolution_mask_double(m); }

// The start and the strides of a device's values.
template <class T>
struct Values {
  const T* data;
  Strides strides;

  Values(const Tensor& t, int64_t device) : data(t.const_data_ptr<T>() + device * t.stride(0)), strides(t) {}
  Values(const T* begin, const Strides& lie) : data(begin), strides(lie) {}
};

template <class T>
class ForwardLayer {
 public:
  // The memory of one thread; the packed weights are those of one device at a time.
  struct Memory {
    Zeros<T> padded, packed, bias;
    int64_t packed_device = -1;

    explicit Memory(const Plan& p)
        : padded(p.group * p.padded_sample()), packed(p.fan_in() * p.out_lanes()), bias(p.out_lanes()) {}
  };

  ForwardLayer(Plan plan, const Tensor& weight, const Tensor& bias, bool rectify)
      : plan_(std::move(plan)),
        weight_(with_contiguous_rows(weight)),
        bias_(with_contiguous_rows(bias)),
        rectify_(rectify) {
    plan_.lay_places(false);
  }

  const Plan& plan() const { return plan_; }

  // All groups of a device's samples; outputs are contiguous.
  void run_device(Memory& memory, int64_t device, const Values<T>& inputs, T* outputs) const {
    for (int64_t group = 0; group < plan_.groups; ++group) run_group(memory, device, group, inputs, outputs);
  }

  void run_group(Memory& memory, int64_t device, int64_t group, const Values<T>& inputs, T* outputs) const {
    const int64_t first = group * plan_.group, count = std::min(plan_.group, plan_.samples - first);
    if (device != memory.packed_device)
      pack_weight(plan_, weight_.const_data_ptr<T>() + device * weight_.stride(0),
                  bias_.const_data_ptr<T>() + device * bias_.stride(0), memory.packed.data(),
                  memory.bias.data());
    memory.packed_device = device;
    copy_inputs(plan_, inputs.data + first * inputs.strides.sample, inputs.strides, count,
                memory.padded.data());
    run(ConvolutionGather<T>{memory.padded.data(), outputs + first * plan_.positions() * plan_.out_channels,
                             plan_.places.data(), count * plan_.positions(), plan_.window.view(),
                             memory.packed.data(), memory.bias.data(), plan_.out_channels, rectify_});
  }

 private:
  Plan plan_;
  Tensor weight_, bias_;
  bool rectify_;
};

template <class T>
class BackwardLayer {
 public:
  struct Memory {
    Zeros<T> padded, upstream, no_bias, sums, transposed;

    explicit Memory(const BackwardLayer& layer)
        : padded(layer.plan_.group * layer.plan_.padded_sample()),
          upstream(layer.plan_.group * layer.plan_.padded_upstream()),
          no_bias(layer.plan_.lanes()),
          sums((layer.plan_.fan_in() + 1) * layer.plan_.out_lanes()),
          transposed(layer.classes_.empty() ? 0 : layer.transposed_values()) {}
  };

  // One device's gradients; that of the inputs is contiguous, or null where it is not wanted.
  struct Gradients {
    T *inputs, *weight, *bias;
  };

  BackwardLayer(Plan plan, const Tensor& weight, bool with_inputs)
      : plan_(std::move(plan)), weight_(with_contiguous_rows(weight)) {
    plan_.lay_places(true);
    if (with_inputs) classes_ = plan_.input_classes();
  }

  const Plan& plan() const { return plan_; }

  // `outputs`, contiguous, are those of a rectified layer; null for another.
  void run_device(Memory& memory, int64_t device, const Values<T>& upstream, const Values<T>& inputs,
                  const T* outputs, const Gradients& gradients) const {
    const Plan& p = plan_;
    T *sums = memory.sums.data(), *bias_sums = sums + p.fan_in() * p.out_lanes();
    std::fill_n(sums, (p.fan_in() + 1) * p.out_lanes(), T(0));
    pack_classes(weight_.const_data_ptr<T>() + device * weight_.stride(0), memory.transposed.data());
    for (int64_t first = 0; first < p.samples; first += p.group) {
      const int64_t count = std::min(p.group, p.samples - first);
      copy_inputs(p, inputs.data + first * inputs.strides.sample, inputs.strides, count,
                  memory.padded.data());
      const Strides& up = upstream.strides;
      run(ConvolutionMask<T>{upstream.data + first * up.sample,
                             outputs ? outputs + first * p.positions() * p.out_channels : nullptr, count,
                             p.out_height, p.out_width, p.out_channels, up.sample, up.height, up.width,
                             up.channel, p.places.data(), memory.upstream.data()});
      run(ConvolutionOuter<T>{memory.padded.data(), memory.upstream.data(), p.places.data(),
                              count * p.positions(), p.window.view(), sums, bias_sums, p.out_channels});
      if (gradients.inputs)
        gather_inputs(memory, count, gradients.inputs + first * p.height * p.width * p.channels);
    }
    for (size_t k = 0; k < p.window.rows.size(); ++k)
      copy_row(sums + static_cast<int64_t>(k) * p.out_lanes(), 1,
               gradients.weight + p.window.rows[k] * p.out_channels, 1, p.out_channels);
    copy_row(bias_sums, 1, gradients.bias, 1, p.out_channels);
  }

 private:
  int64_t transposed_values() const {
    return plan_.window_height * plan_.window_width * plan_.out_channels * plan_.lanes();
  }

  void pack_classes(const T* weight, T* transposed) const {
    for (const InputClass& c : classes_) {
      pack_transposed(plan_, c, weight, transposed);
      transposed += static_cast<int64_t>(c.window.rows.size()) * plan_.out_channels * plan_.lanes();
    }
  }

  void gather_inputs(const Memory& memory, int64_t count, T* target) const {
    const T* transposed = memory.transposed.data();
    for (const InputClass& c : classes_) {
      run(ConvolutionGather<T>{memory.upstream.data(), target, c.places.data(), count * c.places_a_sample,
                               c.window.view(), transposed, memory.no_bias.data(), plan_.channels, false});
      transposed += static_cast<int64_t>(c.window.rows.size()) * plan_.out_channels * plan_.lanes();
    }
  }

  Plan plan_;
  Tensor weight_;
  std::vector<InputClass> classes_;
};

}  // namespace dmmlkd
