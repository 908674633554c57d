// convolve and convolve_backward on CPU tensors: lays devices and groups of samples out for the kernels.
//
// The samples of a group are copied into scratch with their zero padding, so that no kernel knows borders; a
// group is as large as the first-level cache holds.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../checks.h"
#include "kernels.h"
#include "scratch.h"

namespace dmmlkd {
namespace {

void run(const ConvolutionGather<float>& g) { kernels().convolution_gather_float(g); }
void run(const ConvolutionGather<double>& g) { kernels().convolution_gather_double(g); }
void run(const ConvolutionOuter<float>& o) { kernels().convolution_outer_float(o); }
void run(const ConvolutionOuter<double>& o) { kernels().convolution_outer_double(o); }
void run(const ConvolutionMask<float>& m) { kernels().convolution_mask_float(m); }
void run(const ConvolutionMask<double>& m) { kernels().convolution_mask_double(m); }

constexpr int64_t group_bytes = 24 * 1024;       // of padded inputs
constexpr int64_t grain_products = 1024 * 1024;  // multiply-adds worth a thread

// Strides of [devices, samples, height, width, channels] in values; one dimension is a height of 1.
struct Strides {
  int64_t device, sample, height, width, channel;

  explicit Strides(const at::Tensor& t)
      : device(t.stride(0)),
        sample(t.stride(1)),
        height(t.dim() == 5 ? t.stride(2) : 0),
        width(t.stride(-2)),
        channel(t.stride(-1)) {}
};

// Offsets of the window's values from its place, and the rows of the weight there.
struct Window {
  std::vector<int32_t> offsets;
  std::vector<int64_t> rows;
  int64_t run = 0;  // values that lie one after the other

  ConvolutionWindow view() const { return {offsets.data(), static_cast<int64_t>(offsets.size()), run}; }
};

// Inputs of one residue of (y, x) by the stride meet the same taps of the window.
struct InputClass {
  Window window;  // rows: taps, with a run of out channels each
  std::vector<ConvolutionPlace> places;
  int64_t places_a_sample = 0;
};

// Sizes and offsets, the same for all devices.
struct Plan {
  int64_t devices, samples, height, width, channels, out_channels, stride;
  int64_t window_height, window_width, out_height, out_width;
  int64_t padded_height, padded_width, halo_height, halo_width;
  int64_t group, groups;
  bool planes;  // channels apart in scratch, as inputs with channels first are
  Window window;
  std::vector<ConvolutionPlace> places;

  Plan(const at::Tensor& inputs, const at::Tensor& weight, int64_t kernel, int64_t step)
      : devices(inputs.size(0)),
        samples(inputs.size(1)),
        height(inputs.dim() == 5 ? inputs.size(2) : 1),
        width(inputs.size(-2)),
        channels(inputs.size(-1)),
        out_channels(weight.size(2)),
        stride(step),
        window_height(inputs.dim() == 5 ? kernel : 1),
        window_width(kernel),
        out_height((height + step - 1) / step),
        out_width((width + step - 1) / step),
        padded_height(height + window_height - 1),
        padded_width(width + window_width - 1),
        halo_height((window_height / 2 + step - 1) / step),
        halo_width((window_width / 2 + step - 1) / step) {
    const Strides strides(inputs);
    planes = channels > 1 && strides.channel != 1 && strides.width == 1;
    const int64_t bytes = padded_sample() * inputs.element_size();
    group = std::clamp<int64_t>(group_bytes / std::max<int64_t>(1, bytes), 1, std::max<int64_t>(1, samples));
    groups = (samples + group - 1) / group;
    const int64_t largest =
        std::max({padded_sample(), padded_upstream(), height * width * channels, positions() * out_channels});
    TORCH_CHECK_VALUE(largest * group <= std::numeric_limits<int32_t>::max(),
                      "convolve: inputs must have fewer than 2^31 values a sample, got shape ",
                      inputs.sizes());
    lay_window();
  }

  int64_t positions() const { return out_height * out_width; }
  int64_t padded_sample() const { return padded_height * padded_width * channels; }
  int64_t upstream_row() const { return out_width + 2 * halo_width; }
  int64_t out_lanes() const { return convolution_lanes(out_channels); }
  int64_t lanes() const { return convolution_lanes(channels); }
  int64_t padded_upstream() const { return (out_height + 2 * halo_height) * upstream_row() * out_lanes(); }
  int64_t fan_in() const { return window_height * window_width * channels; }
  int64_t products_a_sample() const { return positions() * fan_in() * out_channels; }

  void lay_window() {
    window.run = planes ? window_width : window_width * channels;
    for (int64_t plane = 0; plane < (planes ? channels : 1); ++plane)
      for (int64_t tap = 0; tap < window_height; ++tap) {
        const int64_t row = padded_width * (planes ? 1 : channels);
        for (int64_t i = 0; i < window.run; ++i) {
          window.offsets.push_back(static_cast<int32_t>((plane * padded_height + tap) * row + i));
          window.rows.push_back(planes ? (tap * window_width + i) * channels + plane : tap * window.run + i);
        }
      }
  }

  int64_t upstream_place(int64_t sample, int64_t y, int64_t x) const {
    return sample * padded_upstream() + ((y + halo_height) * upstream_row() + x + halo_width) * out_lanes();
  }

  // From the padded inputs to the outputs, or to the padded upstream gradient.
  void lay_places(bool to_upstream) {
    const int64_t value = planes ? 1 : channels;
    for (int64_t sample = 0; sample < group; ++sample)
      for (int64_t y = 0; y < out_height; ++y)
        for (int64_t x = 0; x < out_width; ++x) {
          const int64_t in = sample * padded_sample() + (y * padded_width + x) * stride * value;
          const int64_t out = to_upstream ? upstream_place(sample, y, x)
                                          : ((sample * out_height + y) * out_width + x) * out_channels;
          places.push_back({static_cast<int32_t>(in), static_cast<int32_t>(out)});
        }
  }

  // From the padded upstream gradient to the gradient of the inputs.
  std::vector<InputClass> input_classes() const {
    std::vector<InputClass> classes;
    for (int64_t top = 0; top < std::min(stride, height); ++top)
      for (int64_t left = 0; left < std::min(stride, width); ++left)
        classes.push_back(input_class(top, left));
    return classes;
  }

  InputClass input_class(int64_t top, int64_t left) const {
    InputClass c;
    c.window.run = out_channels;
    for (int64_t i = 0; i < window_height; ++i)
      for (int64_t j = 0; j < window_width; ++j) {
        const int64_t down = top + window_height / 2 - i, right = left + window_width / 2 - j;
        if (down % stride != 0 || right % stride != 0) continue;
        const int64_t begin = (down / stride * upstream_row() + right / stride) * out_lanes();
        for (int64_t out = 0; out < out_channels; ++out)
          c.window.offsets.push_back(static_cast<int32_t>(begin + out));
        c.window.rows.push_back(i * window_width + j);
      }
    for (int64_t sample = 0; sample < group; ++sample)
      for (int64_t y = top; y < height; y += stride)
        for (int64_t x = left; x < width; x += stride)
          c.places.push_back({static_cast<int32_t>(upstream_place(sample, y / stride, x / stride)),
                              static_cast<int32_t>(((sample * height + y) * width + x) * channels)});
    c.places_a_sample = static_cast<int64_t>(c.places.size()) / group;
    return c;
  }
};

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

template <class T>
void forward(Plan& p, const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
             const at::Tensor& outputs, bool rectify) {
  p.lay_places(false);
  const Strides strides(inputs);
  const T* source = inputs.const_data_ptr<T>();
  T* target = outputs.mutable_data_ptr<T>();
  const int64_t sample_size = p.positions() * p.out_channels;
  const int64_t grain = std::max<int64_t>(1, grain_products / (p.products_a_sample() * p.group + 1));
  at::parallel_for(0, p.devices * p.groups, grain, [&](int64_t begin, int64_t end) {
    const Zeros<T> padded(p.group * p.padded_sample()), packed(p.fan_in() * p.out_lanes()),
        lane_bias(p.out_lanes());
    int64_t packed_device = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t device = task / p.groups, first = task % p.groups * p.group;
      const int64_t count = std::min(p.group, p.samples - first);
      if (device != packed_device)
        pack_weight(p, weight.const_data_ptr<T>() + device * weight.stride(0),
                    bias.const_data_ptr<T>() + device * bias.stride(0), packed.data(), lane_bias.data());
      packed_device = device;
      copy_inputs(p, source + device * strides.device + first * strides.sample, strides, count,
                  padded.data());
      run(ConvolutionGather<T>{padded.data(), target + (device * p.samples + first) * sample_size,
                               p.places.data(), count * p.positions(), p.window.view(), packed.data(),
                               lane_bias.data(), p.out_channels, rectify});
    }
  });
}

template <class T>
struct Backward {
  Plan p;
  const at::Tensor &upstream, &inputs, &weight;
  const at::Tensor* outputs;  // null: without a rectifier
  at::Tensor input_gradient, weight_gradient, bias_gradient;
  std::vector<InputClass> classes{};

  void run_all() {
    p.lay_places(true);
    if (input_gradient.defined()) classes = p.input_classes();
    const int64_t grain = std::max<int64_t>(1, grain_products / (2 * p.products_a_sample() * p.samples + 1));
    at::parallel_for(0, p.devices, grain, [&](int64_t begin, int64_t end) {
      const Zeros<T> padded(p.group * p.padded_sample()), masked(p.group * p.padded_upstream()),
          no_bias(p.lanes()), sums((p.fan_in() + 1) * p.out_lanes()),
          transposed(classes.empty() ? 0 : transposed_values());
      for (int64_t device = begin; device < end; ++device)
        run_device(device, padded.data(), masked.data(), sums.data(), transposed.data(), no_bias.data());
    });
  }

  int64_t transposed_values() const { return p.window_height * p.window_width * p.out_channels * p.lanes(); }

  void run_device(int64_t device, T* padded, T* masked, T* sums, T* transposed, const T* no_bias) const {
    const Strides in(inputs), up(upstream);
    T* bias_sums = sums + p.fan_in() * p.out_lanes();
    std::fill_n(sums, (p.fan_in() + 1) * p.out_lanes(), T(0));
    pack_classes(weight.const_data_ptr<T>() + device * weight.stride(0), transposed);
    for (int64_t first = 0; first < p.samples; first += p.group) {
      const int64_t count = std::min(p.group, p.samples - first), sample = device * p.samples + first;
      copy_inputs(p, inputs.const_data_ptr<T>() + device * in.device + first * in.sample, in, count, padded);
      run(ConvolutionMask<T>{
          upstream.const_data_ptr<T>() + device * up.device + first * up.sample,
          outputs ? outputs->const_data_ptr<T>() + sample * p.positions() * p.out_channels : nullptr, count,
          p.out_height, p.out_width, p.out_channels, up.sample, up.height, up.width, up.channel,
          p.places.data(), masked});
      run(ConvolutionOuter<T>{padded, masked, p.places.data(), count * p.positions(), p.window.view(), sums,
                              bias_sums, p.out_channels});
      gather_inputs(masked, transposed, no_bias, count, sample);
    }
    T* target = weight_gradient.mutable_data_ptr<T>() + device * p.fan_in() * p.out_channels;
    for (size_t k = 0; k < p.window.rows.size(); ++k)
      copy_row(sums + static_cast<int64_t>(k) * p.out_lanes(), 1, target + p.window.rows[k] * p.out_channels,
               1, p.out_channels);
    copy_row(bias_sums, 1, bias_gradient.mutable_data_ptr<T>() + device * p.out_channels, 1, p.out_channels);
  }

  void pack_classes(const T* weight, T* transposed) const {
    for (const InputClass& c : classes) {
      pack_transposed(p, c, weight, transposed);
      transposed += static_cast<int64_t>(c.window.rows.size()) * p.out_channels * p.lanes();
    }
  }

  void gather_inputs(const T* masked, const T* transposed, const T* no_bias, int64_t count,
                     int64_t sample) const {
    for (const InputClass& c : classes) {
      T* target = input_gradient.mutable_data_ptr<T>() + sample * p.height * p.width * p.channels;
      run(ConvolutionGather<T>{masked, target, c.places.data(), count * c.places_a_sample, c.window.view(),
                               transposed, no_bias, p.channels, false});
      transposed += static_cast<int64_t>(c.window.rows.size()) * p.out_channels * p.lanes();
    }
  }
};

// A device's weight must lie in one piece; devices may lie apart.
at::Tensor in_pieces(const at::Tensor& parameter) {
  return parameter.numel() == 0 || parameter.select(0, 0).is_contiguous() ? parameter
                                                                          : parameter.contiguous();
}

at::Tensor convolve_cpu(const at::Tensor& inputs, const at::Tensor& weight, const at::Tensor& bias,
                        int64_t kernel, int64_t stride, bool rectify) {
  check_convolution(inputs, weight, kernel, stride);
  check_convolution_bias(weight, bias);
  at::Tensor outputs = at::empty(convolution_shape(inputs, weight, stride), inputs.options());
  if (outputs.numel() == 0) return outputs;
  Plan plan(inputs, weight, kernel, stride);
  if (inputs.scalar_type() == at::kDouble)
    forward<double>(plan, inputs, in_pieces(weight), in_pieces(bias), outputs, rectify);
  else
    forward<float>(plan, inputs, in_pieces(weight), in_pieces(bias), outputs, rectify);
  return outputs;
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& upstream, const at::Tensor& inputs,
                                                        const at::Tensor& weight, const at::Tensor& outputs,
                                                        int64_t kernel, int64_t stride, bool rectify,
                                                        bool with_inputs) {
  const at::Tensor values = outputs.contiguous(), pieces = in_pieces(weight);
  at::Tensor gradient = at::empty({0}, inputs.options());
  if (with_inputs) gradient = at::empty(inputs.sizes(), inputs.options());
  Backward<T> b{Plan(inputs, weight, kernel, stride),
                upstream,
                inputs,
                pieces,
                rectify ? &values : nullptr,
                with_inputs && inputs.numel() > 0 ? gradient : at::Tensor(),
                at::empty(weight.sizes(), weight.options()),
                at::empty({weight.size(0), weight.size(2)}, weight.options())};
  b.run_all();
  return {gradient, b.weight_gradient, b.bias_gradient};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward_cpu(
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
  m.impl("convolve", convolve_cpu);
  m.impl("convolve_backward", convolve_backward_cpu);
}

}  // namespace dmmlkd
