// The geometry of one layer of convolution: where in padded scratch each output's window lies, and each
// input's.
//
// Samples are taken in groups that the first-level cache holds.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../refuse.h"
#include "../simd/kernels.h"

namespace dmmlkd {

// Of the outputs [devices, samples, *space, channels].
inline std::vector<int64_t> convolution_shape(const Tensor& inputs, const Tensor& weight, int64_t stride) {
  std::vector<int64_t> shape = inputs.sizes().vec();
  for (size_t i = 2; i + 1 < shape.size(); ++i) shape[i] = (shape[i] + stride - 1) / stride;
  shape.back() = weight.size(2);
  return shape;
}

constexpr int64_t group_bytes = 24 * 1024;  // of padded inputs

// Strides of [devices, samples, height, width, channels] in values; one dimension is a height of 1.
struct Strides {
  int64_t device, sample, height, width, channel;

  // Of one device's contiguous samples.
  Strides(int64_t sample_height, int64_t sample_width, int64_t channels)
      : device(0),
        sample(sample_height * sample_width * channels),
        height(sample_width * channels),
        width(channels),
        channel(1) {}

  explicit Strides(const Tensor& t)
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

  Plan(const Tensor& inputs, const Tensor& weight, int64_t kernel, int64_t step)
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
    CHECK_VALUE(largest * group <= std::numeric_limits<int32_t>::max(),
                "convolution: inputs must have fewer than 2^31 values per sample, got shape ",
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

}  // namespace dmmlkd
