// The loss terms of one device's batch (METHOD 3) and the gradients of their weighted sum, for features and
// heads.
//
// The lanes of a vector are samples: logits and their gradients are [classes, samples], so that sums over
// classes need no shuffles, and the products with features and heads need no transposition.
#pragma once

#include "../encoder/linear.inl"
#include "../orthogonality/kernel.inl"
#include "../pairwise_kl/lanes.inl"
#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "../simd/small_product.inl"

namespace dmmlkd {
namespace {

// The matrix itself if its rows are whole vectors, else a padded copy in scratch.
template <class T>
inline Padded<T> readable_rows(const T* memory, int64_t rows, int64_t columns, int64_t stride, T*& scratch) {
  if (columns == whole_vectors(columns)) return Padded<T>(const_cast<T*>(memory), rows, columns, stride);
  const Padded<T> copy(scratch, rows, columns);
  copy_rows(memory, stride, static_cast<const T*>(nullptr), copy);
  return copy;
}

// Probabilities of `classes` vectors of logits; returns the logarithm of their exponentials' sum.
template <class T>
inline Vector<T> softmax_lanes(const Vector<T>* logits, int64_t classes, Vector<T>* probabilities) {
  Vector<T> peak;
  const Vector<T> inverse = exponentials<T>(logits, probabilities, classes, peak);
  for (int64_t i = 0; i < classes; ++i) probabilities[i] *= inverse;
  return peak + logarithm_from_1<T>(T(1) / inverse);
}

// Given one vector per class, returns every lane's value at its label.
template <class T>
inline Vector<T> at_labels(const Vector<T>* values, const Integers<T>& labels, int64_t classes) {
  Vector<T> found{};
  for (int64_t i = 0; i < classes; ++i) {
    const Integers<T> here = labels == static_cast<Integer<T>>(i);
    found = here ? values[i] : found;
  }
  return found;
}

template <class T>
struct Objective {
  using V = Vector<T>;
  using I = Integers<T>;
  static constexpr int width = Simd<T>::width;

  DeviceObjective<T>& o;
  T* scratch;
  const int64_t lanes;                                                // samples, filled up to whole vectors
  const Padded<T> shared_columns, shared_gradient, columns, product;  // [classes, width]
  T *common, *specific;  // logits, later their gradients: [modalities, classes, lanes]
  T* targets;            // logits of the targets, [classes, lanes]; null: no targets
  // Of one vector of samples:
  V *block, *powers, *row;                    // common logits; their probabilities; for pairwise_kl_lanes
  V *total, *teacher_logits, *probabilities;  // of all modalities; of the target, and its probabilities
  I* present;                                 // of each modality
  I labels, number, taught;
  V count, teacher_sum;                      // count: of the modalities, at least 1
  T inverse_samples = 1, inverse_known = 1;  // of the samples with a modality, and with a target as well

  explicit Objective(DeviceObjective<T>& device)
      : o(device),
        scratch(device.scratch),
        lanes(whole_vectors(device.samples)),
        shared_columns(scratch, device.classes, device.width),
        shared_gradient(scratch, device.classes, device.width),
        columns(scratch, device.classes, device.width),
        product(scratch, device.classes, device.width) {
    const int64_t group = o.num_modalities * o.classes;
    common = take(group * lanes), specific = take(group * lanes);
    targets = o.target && o.generator != T(0) && !o.by_distance ? take(o.classes * lanes) : nullptr;
    block = take_vectors(group), powers = take_vectors(group), row = take_vectors(4 * o.num_modalities);
    total = take_vectors(o.classes), teacher_logits = take_vectors(o.classes);
    probabilities = take_vectors(o.classes);
    present = reinterpret_cast<I*>(take_vectors(o.num_modalities));
    for (T& loss : o.losses) loss = 0;
    copy_transposed(padded_view(o.shared_head, o.width, o.classes), shared_columns);
    for (int64_t i = 0; i < shared_gradient.rows * shared_gradient.stride; ++i) shared_gradient.data[i] = 0;
  }

  T* take(int64_t values) {
    T* part = scratch;
    scratch += whole_vectors(values);
    return part;
  }
  V* take_vectors(int64_t vectors) { return reinterpret_cast<V*>(take(vectors * width)); }
  static T inverse(int64_t count) { return T(1) / static_cast<T>(count > 0 ? count : 1); }
  bool here(int64_t sample, int64_t m) const { return o.present[sample * o.num_modalities + m]; }
  Padded<T> of_modality(T* logits, int64_t m) const {
    return Padded<T>(logits + m * o.classes * lanes, o.classes, o.samples, lanes);
  }
  int64_t present_modalities(int64_t sample) const {
    int64_t present_ones = 0;
    for (int64_t m = 0; m < o.num_modalities; ++m) present_ones += here(sample, m);
    return present_ones;
  }

  // Logits of the heads on features [samples, ...] given by rows `stride` apart.
  void head_logits(const T* features, int64_t stride, int64_t samples, const T* head, const Padded<T>& logits,
                   T* memory) const {
    const Padded<T> feature_columns(memory, o.width, samples);
    copy_transposed(Padded<T>(const_cast<T*>(features), samples, o.width, stride), feature_columns);
    multiply(head, 1, o.classes, feature_columns, logits, {});
  }

  void forward() {
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      const ModalityOutputs<T>& modality = o.modalities[m];
      const Padded<T> own_common = of_modality(common, m), own_specific = of_modality(specific, m);
      if (!modality.features) {
        for (int64_t i = 0; i < o.classes * lanes; ++i) own_common.data[i] = own_specific.data[i] = 0;
        continue;
      }
      head_logits(modality.features, 2 * o.width, o.samples, o.shared_head, own_common, scratch);
      head_logits(modality.features + o.width, 2 * o.width, o.samples, modality.head, own_specific, scratch);
    }
    if (targets)
      head_logits(o.target, o.width, o.samples, o.shared_head,
                  Padded<T>(targets, o.classes, o.samples, lanes), scratch);
    int64_t trained = 0, known = 0;
    for (int64_t sample = 0; sample < o.samples; ++sample) {
      const int64_t present_ones = present_modalities(sample);
      trained += present_ones > 0, known += present_ones > 0 && o.known && o.known[sample];
    }
    inverse_samples = inverse(trained), inverse_known = inverse(known);
  }

  // Loads the samples from `begin` on; lanes past the last sample have no modality.
  void load_samples(int64_t begin) {
    const int64_t samples = o.samples - begin < width ? o.samples - begin : width;
    I known{};
    labels = number = I{};
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      I bits{};
      for (int64_t lane = 0; lane < samples; ++lane) bits[lane] = here(begin + lane, m) ? -1 : 0;
      present[m] = bits;
      number -= bits;
    }
    for (int64_t lane = 0; lane < samples; ++lane) {
      labels[lane] = static_cast<Integer<T>>(o.labels[begin + lane]);
      if (targets) known[lane] = o.known[begin + lane] ? -1 : 0;
    }
    const V ones = splat(T(1));
    taught = known & (number > 0);
    count = maximum<T>(__builtin_convertvector(number, V), ones);
  }

  // The gradient of a cross-entropy without its factor.
  V less_label(V probability, int64_t label) const {
    return labels == static_cast<Integer<T>>(label) ? probability - T(1) : probability;
  }

  // Cross-entropy of the mean of all logits of the present modalities. Its gradient for each of them
  // takes the place of their logits.
  void task(int64_t begin) {
    for (int64_t i = 0; i < o.classes; ++i) {
      V sum{};
      for (int64_t m = 0; m < o.num_modalities; ++m)
        sum += present[m] ? block[m * o.classes + i] + load(specific + (m * o.classes + i) * lanes + begin)
                          : V{};
      total[i] = sum / count;
    }
    const V sum = softmax_lanes<T>(total, o.classes, powers), factor = inverse_samples / count;
    const V loss = number > 0 ? sum - at_labels<T>(total, labels, o.classes) : V{};
    o.losses[0] += sum_lanes<T>(loss) * inverse_samples;
    for (int64_t i = 0; i < o.classes; ++i) {
      const V gradient = factor * less_label(powers[i], i);
      for (int64_t m = 0; m < o.num_modalities; ++m) {
        const int64_t at = (m * o.classes + i) * lanes + begin;
        store(common + at, present[m] ? gradient : V{}), store(specific + at, present[m] ? gradient : V{});
      }
    }
  }

  // Cross-entropy of the shared head on a modality's common feature, and its divergence from what the target
  // says: adds their gradients for the logits.
  void common_prediction(const V* logits, const I& where, T* gradient) {
    const V share = inverse_samples / count, taught_share = o.strength * inverse_known / count;
    const V sum = softmax_lanes<T>(logits, o.classes, powers);
    const I pupil = where & taught;
    if (o.classification != T(0)) {
      const V loss = where ? share * (sum - at_labels<T>(logits, labels, o.classes)) : V{};
      o.losses[1] += sum_lanes<T>(loss);
    }
    V divergence{};
    for (int64_t i = 0; i < o.classes; ++i) {
      V pull = o.classification * share * less_label(powers[i], i);
      if (targets) {
        divergence += probabilities[i] * ((teacher_logits[i] - teacher_sum) - (logits[i] - sum));
        const V drawn = o.generator * taught_share * (powers[i] - probabilities[i]);
        pull += pupil ? drawn : V{};
      }
      store(gradient + i * lanes, load(gradient + i * lanes) + (where ? pull : V{}));
    }
    const V loss = pupil ? taught_share * divergence : V{};
    o.losses[4] += sum_lanes<T>(loss);
  }

  // Divergence of the common features' predictions from each other; adds its gradient. Overwrites the logits.
  void similarity(int64_t begin) {
    PairwiseKlSamples<T> s{};
    s.modalities = o.num_modalities, s.classes = o.classes;
    s.gradient = common, s.scale = o.similarity * inverse_samples;
    const Presence<T> presence{present, __builtin_convertvector(number, V), number > 1};
    const V loss = pairwise_kl_lanes<T, true>(s, block, powers, presence, row);
    o.losses[2] += sum_lanes<T>(loss) * inverse_samples;
    for (int64_t i = 0; i < o.num_modalities * o.classes; ++i) {
      T* gradient = common + i * lanes + begin;
      store(gradient, load(gradient) + block[i]);
    }
  }

  void entropies() {
    for (int64_t begin = 0; begin < o.samples; begin += width) {
      load_samples(begin);
      for (int64_t i = 0; i < o.num_modalities * o.classes; ++i) block[i] = load(common + i * lanes + begin);
      task(begin);
      if (targets) {
        for (int64_t i = 0; i < o.classes; ++i) teacher_logits[i] = load(targets + i * lanes + begin);
        teacher_sum = softmax_lanes<T>(teacher_logits, o.classes, probabilities);
      }
      for (int64_t m = 0; m < o.num_modalities; ++m)
        if (o.modalities[m].features && (targets || o.classification != T(0)))
          common_prediction(block + m * o.classes, present[m], common + m * o.classes * lanes + begin);
      if (o.similarity != T(0)) similarity(begin);
    }
  }

  // The unimodal losses: cross-entropies of the sum of both heads, each a mean over the samples that have it.
  void modality_entropies(T* scores) {
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      scores[m] = 0;
      if (!o.modalities[m].features) continue;
      int64_t samples = 0;
      for (int64_t sample = 0; sample < o.samples; ++sample) samples += here(sample, m);
      const T share = inverse(samples);
      for (int64_t begin = 0; begin < o.samples; begin += width) {
        load_samples(begin);
        const int64_t first = m * o.classes * lanes + begin;
        for (int64_t i = 0; i < o.classes; ++i)
          total[i] = load(common + first + i * lanes) + load(specific + first + i * lanes);
        softmax_lanes<T>(total, o.classes, powers);
        const V right = present[m] ? at_labels<T>(powers, labels, o.classes) : V{};
        scores[m] += share * sum_lanes<T>(right);
        for (int64_t i = 0; i < o.classes; ++i) {
          const V gradient = present[m] ? share * less_label(powers[i], i) : V{};
          store(common + first + i * lanes, gradient), store(specific + first + i * lanes, gradient);
        }
      }
    }
  }

  // Cross-entropy of the shared head on the valid generated features.
  void rehearse() {
    if (!o.rehearsal || o.rehearsing == T(0) || o.rehearsed == 0) return;
    T* memory = scratch;
    const Padded<T> logits(memory, o.classes, o.rehearsed);
    head_logits(o.rehearsal, o.width, o.rehearsed, o.shared_head, logits, memory);
    int64_t counted = 0;
    for (int64_t k = 0; k < o.rehearsed; ++k) counted += o.rehearsal_known[k];
    const T share = o.strength * inverse(counted);
    for (int64_t begin = 0; begin < o.rehearsed; begin += width) {
      I known{};
      labels = I{};
      for (int64_t lane = 0; lane < width && begin + lane < o.rehearsed; ++lane) {
        known[lane] = o.rehearsal_known[begin + lane] ? -1 : 0;
        labels[lane] = static_cast<Integer<T>>(o.rehearsal_labels[begin + lane]);
      }
      for (int64_t i = 0; i < o.classes; ++i) total[i] = load(logits.data + i * logits.stride + begin);
      const V sum = softmax_lanes<T>(total, o.classes, powers);
      const V loss = known ? share * (sum - at_labels<T>(total, labels, o.classes)) : V{};
      o.losses[5] += sum_lanes<T>(loss);
      for (int64_t i = 0; i < o.classes; ++i) {
        const V gradient = o.rehearsing * share * less_label(powers[i], i);
        store(logits.data + i * logits.stride + begin, known ? gradient : V{});
      }
    }
    multiply(logits.data, logits.stride, 1, readable_rows(o.rehearsal, o.rehearsed, o.width, o.width, memory),
             product, {});
    add_row(product.data, product.rows * product.stride, shared_gradient.data);
  }

  // Adds the orthogonality's gradients to those of common and specific features.
  void difference(int64_t m, const Padded<T>& to_common, const Padded<T>& to_specific, T* memory) {
    const int64_t half = whole_vectors(o.samples * o.width);
    bool* mask = reinterpret_cast<bool*>(memory + 2 * half);
    for (int64_t sample = 0; sample < o.samples; ++sample) mask[sample] = here(sample, m);
    OrthogonalityPair<T> pair{};
    pair.common = o.modalities[m].features, pair.specific = pair.common + o.width;
    pair.common_stride = pair.specific_stride = 2 * o.width;
    pair.mask = mask;
    pair.samples = o.samples, pair.common_features = pair.specific_features = o.width;
    pair.by_samples = o.by_samples, pair.normalize = true, pair.scale = o.difference;
    pair.common_gradient = memory, pair.specific_gradient = memory + half;
    pair.scratch = memory + 2 * half + whole_vectors(o.samples);
    orthogonality(pair, OrthogonalityStep::prepare, 0, o.samples);
    orthogonality(pair, OrthogonalityStep::gram, 0, o.by_samples ? 2 * o.samples : o.width);
    o.losses[3] += static_cast<T>(orthogonality(pair, OrthogonalityStep::loss, 0, 0));
    orthogonality(pair, OrthogonalityStep::gradient, 0, o.samples);
    for (int64_t k = 0; k < o.samples; ++k) {
      add_row(pair.common_gradient + k * o.width, o.width, to_common.data + k * to_common.stride);
      add_row(pair.specific_gradient + k * o.width, o.width, to_specific.data + k * to_specific.stride);
    }
  }

  // Adds the gradient of the squared distance from the sample's prototype.
  void distance(int64_t m, const Padded<T>& to_common) {
    for (int64_t k = 0; k < o.samples; ++k) {
      if (!here(k, m) || !o.known[k]) continue;
      const T *feature = o.modalities[m].features + k * 2 * o.width, *target = o.target + k * o.width;
      const T share = o.strength * inverse_known * inverse(o.width * present_modalities(k));
      for (int64_t i = 0; i < o.width; ++i) {
        const T apart = feature[i] - target[i];
        o.losses[4] += share * apart * apart;
        to_common.data[k * to_common.stride + i] += 2 * o.generator * share * apart;
      }
    }
  }

  // The gradients of a modality's head and features; adds to that of the shared head.
  void backward(int64_t m) {
    const ModalityOutputs<T>& modality = o.modalities[m];
    const Padded<T> own_common = of_modality(common, m), own_specific = of_modality(specific, m);
    T* memory = scratch;
    const auto features = [&](int64_t from) {
      return readable_rows(modality.features + from, o.samples, o.width, 2 * o.width, memory);
    };
    multiply(own_common.data, lanes, 1, features(0), product, {});
    add_row(product.data, product.rows * product.stride, shared_gradient.data);
    multiply(own_specific.data, lanes, 1, features(o.width), product, {});
    copy_columns(product, modality.head_gradient);
    copy_transposed(padded_view(modality.head, o.width, o.classes), columns);
    const bool direct = o.width == whole_vectors(o.width);
    const auto target = [&](int64_t from) {
      return direct ? Padded<T>(modality.feature_gradient + from, o.samples, o.width, 2 * o.width)
                    : Padded<T>(memory, o.samples, o.width);
    };
    const Padded<T> to_common = target(0), to_specific = target(o.width);
    multiply(own_common.data, 1, lanes, shared_columns, to_common, {});
    multiply(own_specific.data, 1, lanes, columns, to_specific, {});
    if (o.difference != T(0)) difference(m, to_common, to_specific, memory);
    if (o.target && o.generator != T(0) && o.by_distance) distance(m, to_common);
    for (int64_t k = 0; !direct && k < o.samples; ++k)
      for (int64_t i = 0; i < o.width; ++i) {
        modality.feature_gradient[k * 2 * o.width + i] = to_common.data[k * to_common.stride + i];
        modality.feature_gradient[(k * 2 + 1) * o.width + i] = to_specific.data[k * to_specific.stride + i];
      }
  }

  // The gradients of all heads and features, from those of the logits in common and specific.
  void backward() {
    for (int64_t m = 0; m < o.num_modalities; ++m)
      if (o.modalities[m].features) backward(m);
    copy_columns(shared_gradient, o.shared_head_gradient);
  }

  // [classes, width] to contiguous [width, classes].
  void copy_columns(const Padded<T>& source, T* target) const {
    for (int64_t i = 0; i < o.width; ++i)
      for (int64_t c = 0; c < o.classes; ++c) target[i * o.classes + c] = source.data[c * source.stride + i];
  }
};

template <class T>
void objective(DeviceObjective<T>& device) {
  Objective<T> whole(device);
  whole.forward();
  whole.entropies();
  whole.rehearse();
  whole.backward();
}

template <class T>
void modality_objectives(DeviceObjective<T>& device, T* scores, bool with_gradients) {
  Objective<T> whole(device);
  whole.forward();
  whole.modality_entropies(scores);
  if (with_gradients) whole.backward();
}

}  // namespace
}  // namespace dmmlkd
