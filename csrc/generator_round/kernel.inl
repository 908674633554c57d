// All steps of a round of one device's generator (METHOD 3), within the cache.
//
// Matrices are padded to whole vectors with zeros, so that no loop over columns has a remainder.
#pragma once

#include "../encoder/linear.inl"
#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "../simd/small_product.inl"
#include "kernel.h"

#if defined(__x86_64__) && defined(__GLIBC__)
// The same function under the name that a glibc before 2.29 has it by: else nothing here would need a newer
// one.
__asm__(".symver pow, pow@GLIBC_2.2.5");
#endif

namespace dmmlkd {
namespace {

constexpr double least_apart = 1e-5, largest_seeking = 1e3;  // of the mode-seeking term

// Rows side by side, without their padding; returns the end of what was written.
template <class T>
inline T* copy_packed(const Padded<T>& source, T* target) {
  for (int64_t row = 0; row < source.rows; ++row, target += source.columns)
    for (int64_t i = 0; i < source.columns; ++i) target[i] = source.data[row * source.stride + i];
  return target;
}

// theta, or a gradient of its shape, contiguous.
template <class T>
struct GeneratorWeights {
  Padded<T> weight1, bias1, weight2, bias2;

  GeneratorWeights(T*& scratch, const GeneratorShape& shape)
      : weight1(scratch, shape.inputs(), shape.hidden),
        bias1(scratch, 1, shape.hidden),
        weight2(scratch, shape.hidden, shape.width),
        bias2(scratch, 1, shape.width) {}

  int64_t values() const { return bias2.data + bias2.stride - weight1.data; }

  void read(const T* row) const {
    const Padded<T> parts[] = {weight1, bias1, weight2, bias2};
    for (const Padded<T>& part : parts) {
      copy_rows(row, part.columns, static_cast<const T*>(nullptr), part);
      row += part.rows * part.columns;
    }
  }

  void write(T* row) const {
    const Padded<T> parts[] = {weight1, bias1, weight2, bias2};
    for (const Padded<T>& part : parts) row = copy_packed(part, row);
  }
};

template <class T>
struct GeneratorMemory {
  GeneratorWeights<T> theta, gradient, first, second;
  Padded<T> hidden, hidden_gradient, features, feature_gradient;  // samples in rows
  Padded<T> feature_columns, gradient_columns, part, logits;      // samples in columns
  Padded<T> weight2_columns, mean, variance, class_weight, share;

  GeneratorMemory(T* scratch, const GeneratorShape& shape, int64_t samples, int64_t num_heads)
      : theta(scratch, shape),
        gradient(scratch, shape),
        first(scratch, shape),
        second(scratch, shape),
        hidden(scratch, samples, shape.hidden),
        hidden_gradient(scratch, samples, shape.hidden),
        features(scratch, samples, shape.width),
        feature_gradient(scratch, samples, shape.width),
        feature_columns(scratch, shape.width, samples),
        gradient_columns(scratch, shape.width, samples),
        part(scratch, shape.width, samples),
        logits(scratch, shape.classes, samples),
        weight2_columns(scratch, shape.width, shape.hidden),
        mean(scratch, shape.classes, shape.width),
        variance(scratch, shape.classes, shape.width),
        class_weight(scratch, 1, shape.classes),
        share(scratch, num_heads, samples) {}
};

template <class T>
inline void set_zero(const Padded<T>& matrix) {
  for (int64_t i = 0; i < matrix.rows * matrix.stride; ++i) matrix.data[i] = 0;
}

// Inputs are padded rows, one each row of `hidden`.
template <class T>
inline void generate_rows(const GeneratorWeights<T>& theta, const T* inputs, const Padded<T>& hidden,
                          const Padded<T>& features) {
  const int64_t stride = whole_vectors(theta.weight1.rows);
  multiply(inputs, stride, 1, theta.weight1, hidden, Ending<T>{1, theta.bias1.data, true});
  multiply(hidden.data, hidden.stride, 1, theta.weight2, features, Ending<T>{1, theta.bias2.data, false});
}

// The weight of a sample under each head: the head's share of its class, divided by the number of samples.
template <class T>
inline void share_out(const GeneratorSteps<T>& device, const Padded<T>& share) {
  set_zero(share);
  const int64_t classes = device.shape.classes;
  const T alike = T(1) / static_cast<T>(device.num_heads * share.columns);
  for (int64_t label = 0; label < classes; ++label) {
    T total = 0;
    for (int64_t k = 0; device.seen && k < device.num_heads; ++k)
      total += device.seen[device.received[k] * classes + label];
    for (int64_t k = 0; k < device.num_heads; ++k) {
      T factor = alike;
      if (total > T(0))
        factor = device.seen[device.received[k] * classes + label] / total / static_cast<T>(share.columns);
      for (int64_t j = 0; j < device.copies; ++j)
        share.data[k * share.stride + label * device.copies + j] = factor;
    }
  }
}

// Mean and variance by class of the device's features, and the weight of each class: 0 if fewer than two
// features were seen, equal for all other classes.
template <class T>
inline void set_targets(const GeneratorSteps<T>& device, const GeneratorMemory<T>& memory) {
  const int64_t width = device.shape.width;
  set_zero(memory.mean), set_zero(memory.variance);
  int64_t seen = 0;
  for (int64_t label = 0; label < device.shape.classes; ++label) {
    const T count = device.count[label] > T(1) ? device.count[label] : T(1);
    seen += device.count[label] > T(1);
    for (int64_t i = 0; i < width; ++i) {
      const T mean = device.sum[label * width + i] / count;
      const T variance = device.product[label * width + i] / count - mean * mean;
      memory.mean.data[label * memory.mean.stride + i] = mean;
      memory.variance.data[label * memory.variance.stride + i] = variance > T(0) ? variance : T(0);
    }
  }
  for (int64_t label = 0; label < device.shape.classes; ++label)
    memory.class_weight.data[label] =
        device.count[label] > T(1) ? T(device.settings.moment_weight) / static_cast<T>(seen * width) : T(0);
}

// Logits [classes, samples] to the gradient of the samples' cross-entropies, weighed by their share.
template <class T>
inline void entropy_gradient(const Padded<T>& logits, const T* share, int64_t copies) {
  constexpr int width = Simd<T>::width;
  for (int64_t sample = 0; sample < logits.columns; sample += width) {
    T* column = logits.data + sample;
    Vector<T> peak = load(column), sum{};
    for (int64_t i = 1; i < logits.rows; ++i) peak = maximum<T>(peak, load(column + i * logits.stride));
    for (int64_t i = 0; i < logits.rows; ++i) {
      const Vector<T> power = exp_nonpositive(load(column + i * logits.stride) - peak);
      store(column + i * logits.stride, power);
      sum += power;
    }
    const Vector<T> scale = load(share + sample) / sum;
    for (int64_t i = 0; i < logits.rows; ++i)
      store(column + i * logits.stride, scale * load(column + i * logits.stride));
  }
  for (int64_t label = 0; label < logits.rows; ++label)
    for (int64_t sample = label * copies; sample < (label + 1) * copies; ++sample)
      logits.data[label * logits.stride + sample] -= share[sample];
}

// Writes the gradient of the features for the loss of the received heads.
template <class T>
inline void ask_heads(const GeneratorSteps<T>& device, const GeneratorMemory<T>& memory) {
  const int64_t classes = device.shape.classes;
  copy_transposed(memory.features, memory.feature_columns);
  set_zero(memory.gradient_columns);
  for (int64_t k = 0; k < device.num_heads; ++k) {
    const T* head = device.heads + device.received[k] * device.head_stride;
    multiply(head, 1, classes, memory.feature_columns, memory.logits, {});
    entropy_gradient(memory.logits, memory.share.data + k * memory.share.stride, device.copies);
    multiply(head, classes, 1, memory.logits, memory.part, {});
    add_row(memory.part.data, memory.part.rows * memory.part.stride, memory.gradient_columns.data);
  }
  copy_transposed(memory.gradient_columns, memory.feature_gradient);
}

// Adds the gradient of the squared distance of the generated means and variances from those of the device's
// features.
template <class T>
inline void match_moments(const GeneratorMemory<T>& memory, int64_t label, int64_t copies) {
  constexpr int width = Simd<T>::width;
  const int64_t stride = memory.features.stride;
  const T *features = memory.features.data + label * copies * stride, samples = static_cast<T>(copies);
  T* gradient = memory.feature_gradient.data + label * copies * stride;
  const T factor = memory.class_weight.data[label] * (T(2) / samples);
  for (int64_t i = 0; i < stride; i += width) {
    Vector<T> sum{}, squares{};
    for (int64_t j = 0; j < copies; ++j) sum += load(features + j * stride + i);
    const Vector<T> mean = sum / samples;
    for (int64_t j = 0; j < copies; ++j) {
      const Vector<T> centered = load(features + j * stride + i) - mean;
      squares += centered * centered;
    }
    const Vector<T> off = mean - load(memory.mean.data + label * stride + i);
    const Vector<T> wide = T(2) * (squares / samples - load(memory.variance.data + label * stride + i));
    for (int64_t j = 0; j < copies; ++j) {
      const Vector<T> centered = load(features + j * stride + i) - mean;
      T* out = gradient + j * stride + i;
      store(out, load(out) + factor * (off + wide * centered));
    }
  }
}

// Adds the gradient of the mode-seeking term: 1 / (mean over pairs of |features apart| / |noise apart|).
template <class T>
inline void seek_modes(const GeneratorSteps<T>& device, const GeneratorMemory<T>& memory,
                       const T* noise_apart) {
  constexpr int width = Simd<T>::width;
  const int64_t stride = memory.features.stride, half = device.copies / 2;
  const int64_t pairs = device.shape.classes * half;
  const auto first = [&](int64_t pair) { return (pair / half * device.copies + pair % half) * stride; };
  const T values = static_cast<T>(device.shape.width), terms = static_cast<T>(pairs);
  T ratio = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const T *one = memory.features.data + first(pair), *other = one + half * stride;
    Vector<T> moved{};
    for (int64_t i = 0; i < stride; i += width) {
      const Vector<T> apart = load(one + i) - load(other + i);
      moved += apart < T(0) ? -apart : apart;
    }
    ratio += sum_lanes<T>(moved) / values / noise_apart[pair];
  }
  const T term = T(1) / (ratio / terms + T(least_apart));
  if (term > T(largest_seeking)) return;
  const T slope = -T(device.settings.mode_seeking) * term * term / (terms * values);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const T *one = memory.features.data + first(pair), *other = one + half * stride;
    T *pull = memory.feature_gradient.data + first(pair), *push = pull + half * stride;
    const Vector<T> strength = splat(slope / noise_apart[pair]);
    for (int64_t i = 0; i < stride; i += width) {
      const Vector<T> apart = load(one + i) - load(other + i);
      const Vector<T> towards = apart > T(0) ? strength : apart < T(0) ? -strength : Vector<T>{};
      store(pull + i, load(pull + i) + towards);
      store(push + i, load(push + i) - towards);
    }
  }
}

template <class T>
inline void sum_rows(const Padded<T>& matrix, T* sums) {
  for (int64_t i = 0; i < matrix.stride; ++i) sums[i] = 0;
  for (int64_t row = 0; row < matrix.rows; ++row)
    add_row(matrix.data + row * matrix.stride, matrix.stride, sums);
}

// From the gradient of the features to that of theta.
template <class T>
inline void pull_back(const GeneratorMemory<T>& memory, const T* inputs) {
  constexpr int width = Simd<T>::width;
  const Padded<T>&above = memory.feature_gradient, &below = memory.hidden_gradient, &hidden = memory.hidden;
  multiply(hidden.data, 1, hidden.stride, above, memory.gradient.weight2, {});
  sum_rows(above, memory.gradient.bias2.data);
  copy_transposed(memory.theta.weight2, memory.weight2_columns);
  multiply(above.data, above.stride, 1, memory.weight2_columns, below, {});
  for (int64_t i = 0; i < below.rows * below.stride; i += width)
    store(below.data + i, load(hidden.data + i) <= T(0) ? Vector<T>{} : load(below.data + i));
  sum_rows(below, memory.gradient.bias1.data);
  multiply(inputs, 1, whole_vectors(memory.theta.weight1.rows), below, memory.gradient.weight1, {});
}

// One instruction of x86, which GCC does not choose by itself, as the root of a negative number sets errno.
template <class T>
inline Vector<T> square_root(Vector<T> value) {
  constexpr bool single = sizeof(T) == 4;
#if defined(__clang__)
  return __builtin_elementwise_sqrt(value);
#elif defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 64
  constexpr int all_lanes = -1, current_rounding = 4;
  if constexpr (single)
    return __builtin_ia32_sqrtps512_mask(value, value, all_lanes, current_rounding);
  else
    return __builtin_ia32_sqrtpd512_mask(value, value, all_lanes, current_rounding);
#elif defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 32
  if constexpr (single)
    return __builtin_ia32_sqrtps256(value);
  else
    return __builtin_ia32_sqrtpd256(value);
#else
  for (int lane = 0; lane < Simd<T>::width; ++lane)
    value[lane] = single ? T(__builtin_sqrtf(float(value[lane]))) : T(__builtin_sqrt(double(value[lane])));
  return value;
#endif
}

// Step number `step`, counted from 1, of Adam (Kingma and Ba 2015, with its factors moved as in section 2).
template <class T>
inline void adam_step(const GeneratorMemory<T>& memory, const GeneratorSettings& adam, double step) {
  constexpr int width = Simd<T>::width;
  const T rate = T(adam.learning_rate / (1 - __builtin_pow(adam.first_decay, step)));
  const T scale = T(1 / __builtin_sqrt(1 - __builtin_pow(adam.second_decay, step)));
  const T decay1 = T(adam.first_decay), decay2 = T(adam.second_decay), epsilon = T(adam.epsilon);
  const T fresh1 = T(1 - adam.first_decay), fresh2 = T(1 - adam.second_decay);
  T *theta = memory.theta.weight1.data, *first = memory.first.weight1.data,
    *second = memory.second.weight1.data;
  const T* gradients = memory.gradient.weight1.data;
  for (int64_t i = 0; i < memory.theta.values(); i += width) {
    const Vector<T> gradient = load(gradients + i);
    const Vector<T> mean = decay1 * load(first + i) + fresh1 * gradient;
    const Vector<T> square = decay2 * load(second + i) + fresh2 * (gradient * gradient);
    store(first + i, mean), store(second + i, square);
    store(theta + i, load(theta + i) - rate * mean / (scale * square_root<T>(square) + epsilon));
  }
}

template <class T>
void generator_steps(const GeneratorSteps<T>& device) {
  const int64_t classes = device.shape.classes, samples = classes * device.copies;
  const GeneratorMemory<T> memory(device.scratch, device.shape, samples, device.num_heads);
  memory.theta.read(device.parameters);
  memory.first.read(device.first_moment), memory.second.read(device.second_moment);
  share_out(device, memory.share);
  set_targets(device, memory);
  for (int64_t step = 0; step < device.steps; ++step) {
    const T* inputs = device.inputs + step * samples * whole_vectors(device.shape.inputs());
    generate_rows(memory.theta, inputs, memory.hidden, memory.features);
    ask_heads(device, memory);
    for (int64_t label = 0; label < classes; ++label)
      if (memory.class_weight.data[label] > T(0)) match_moments(memory, label, device.copies);
    if (device.settings.mode_seeking != 0)
      seek_modes(device, memory, device.noise_apart + step * classes * (device.copies / 2));
    pull_back(memory, inputs);
    adam_step(memory, device.settings, device.taken + static_cast<double>(step + 1));
  }
  memory.theta.write(device.parameters);
  memory.first.write(device.first_moment), memory.second.write(device.second_moment);
}

template <class T>
void generator_features(const GeneratorFeatures<T>& device) {
  T* scratch = device.scratch;
  const GeneratorWeights<T> theta(scratch, device.shape);
  theta.read(device.parameters);
  const int64_t width = device.shape.width, stride = whole_vectors(device.shape.inputs());
  Padded<T> hidden(scratch, generator_feature_rows, device.shape.hidden),
      features(scratch, generator_feature_rows, width);
  for (int64_t begin = 0; begin < device.samples; begin += generator_feature_rows) {
    const int64_t rows =
        device.samples - begin < generator_feature_rows ? device.samples - begin : generator_feature_rows;
    hidden.rows = features.rows = rows;
    generate_rows(theta, device.inputs + begin * stride, hidden, features);
    copy_packed(features, device.features + begin * width);
  }
}

}  // namespace
}  // namespace dmmlkd
