// The loss terms of one device's batch (METHOD 3) and the gradients of their weighted sum, for features and
// heads.
//
// Logits and their gradients are [samples, modalities, classes], the classes padded to whole vectors with
// -infinity: such a class has no probability.

inline float logarithm(float x) { return __builtin_logf(x); }
inline double logarithm(double x) { return __builtin_log(x); }
inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// Writes the probabilities of a row of padded logits and returns the logarithm of their exponentials' sum.
template <class T>
inline T softmax(const T* logits, int64_t padded, T* probabilities) {
  constexpr int width = Simd<T>::width;
  Vector<T> most = load(logits);
  for (int64_t i = width; i < padded; i += width) most = maximum<T>(most, load(logits + i));
  const T peak = max_lanes<T>(most);
  Vector<T> sums{};
  for (int64_t i = 0; i < padded; i += width) {
    const Vector<T> power = exp_nonpositive(load(logits + i) - peak);
    store(probabilities + i, power);
    sums += power;
  }
  const T sum = sum_lanes<T>(sums), inverse = T(1) / sum;
  for (int64_t i = 0; i < padded; i += width) store(probabilities + i, inverse * load(probabilities + i));
  return peak + logarithm(sum);
}

template <class T>
inline void hide_padding(const Padded<T>& logits) {
  for (int64_t row = 0; row < logits.rows; ++row)
    for (int64_t i = logits.columns; i < whole_vectors(logits.columns); ++i)
      logits.data[row * logits.stride + i] = -static_cast<T>(__builtin_inf());
}

// target += factor * (a - b), or factor * a.
template <class T>
inline void add_difference(T factor, const T* a, const T* b, int64_t padded, T* target) {
  constexpr int width = Simd<T>::width;
  for (int64_t i = 0; i < padded; i += width)
    store(target + i, load(target + i) + factor * (load(a + i) - load(b + i)));
}
template <class T>
inline void add_scaled(T factor, const T* a, int64_t padded, T* target) {
  constexpr int width = Simd<T>::width;
  for (int64_t i = 0; i < padded; i += width) store(target + i, load(target + i) + factor * load(a + i));
}

// Cross-entropy's gradient for logits: the probabilities, less one at the label.
template <class T>
inline void add_entropy_gradient(T factor, const T* probabilities, int64_t label, int64_t padded, T* target) {
  add_scaled(factor, probabilities, padded, target);
  target[label] -= factor;
}

template <class T>
struct Objective {
  DeviceObjective<T>& o;
  T* scratch;
  const int64_t padded, row;  // values of a sample's logits of one modality, and of all
  const Padded<T> shared, shared_columns, shared_gradient, product;
  T *common, *specific, *common_gradient, *specific_gradient, *similarity;
  T* probabilities;
  // Of the samples with a voice, with a trained modality, and with a target as well.
  T inverse_counted = 1, inverse_samples = 1, inverse_known = 1;

  explicit Objective(DeviceObjective<T>& device)
      : o(device),
        scratch(device.scratch),
        padded(whole_vectors(device.classes)),
        row(device.num_modalities * padded),
        shared(scratch, device.width, device.classes),
        shared_columns(scratch, device.classes, device.width),
        shared_gradient(scratch, device.width, device.classes),
        product(scratch, device.width, device.classes) {
    common = take(o.samples * row), specific = take(o.samples * row);
    common_gradient = take(o.samples * row), specific_gradient = take(o.samples * row);
    similarity = take(o.samples * row);
    probabilities = take(padded);
    for (int64_t i = 0; i < o.samples * row; ++i)
      common[i] = specific[i] = common_gradient[i] = specific_gradient[i] = 0;
    for (T& loss : o.losses) loss = 0;
    copy_rows(o.shared_head, o.classes, static_cast<const T*>(nullptr), shared);
    copy_transposed(shared, shared_columns);
    for (int64_t i = 0; i < shared_gradient.rows * shared_gradient.stride; ++i) shared_gradient.data[i] = 0;
  }

  T* take(int64_t values) {
    T* part = scratch;
    scratch += whole_vectors(values);
    return part;
  }
  static T inverse(int64_t count) { return T(1) / static_cast<T>(count > 0 ? count : 1); }
  bool here(int64_t sample, int64_t m) const { return o.present[sample * o.num_modalities + m]; }
  Padded<T> of_modality(T* logits, int64_t m) const {
    return Padded<T>(logits + m * padded, o.samples, o.classes, row);
  }
  int64_t present_modalities(int64_t sample) const {
    int64_t count = 0;
    for (int64_t m = 0; m < o.num_modalities; ++m) count += here(sample, m);
    return count;
  }
  int64_t voices(int64_t sample) const {
    return present_modalities(sample) + (o.waiting_count ? o.waiting_count[sample] : 0);
  }

  void forward() {
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      const ModalityOutputs<T>& modality = o.modalities[m];
      if (!modality.features) continue;
      copy_rows(modality.head, o.classes, static_cast<const T*>(nullptr), product);
      const Padded<T> own_common = of_modality(common, m), own_specific = of_modality(specific, m);
      multiply(modality.features, 2 * o.width, 1, shared, own_common, {});
      multiply(modality.features + o.width, 2 * o.width, 1, product, own_specific, {});
      hide_padding(own_common);
    }
    int64_t counted = 0, trained = 0, known = 0;
    for (int64_t sample = 0; sample < o.samples; ++sample) {
      const bool trains = present_modalities(sample) > 0;
      counted += voices(sample) > 0, trained += trains, known += trains && o.known && o.known[sample];
    }
    inverse_counted = inverse(counted), inverse_samples = inverse(trained), inverse_known = inverse(known);
  }

  // Cross-entropy of the mean of all logits of the modalities that are there.
  void task(int64_t sample) {
    const int64_t count = voices(sample), label = o.labels[sample];
    if (count == 0) return;
    T* total = similarity;  // not in use yet
    for (int64_t i = 0; i < padded; ++i)
      total[i] = i >= o.classes     ? -static_cast<T>(__builtin_inf())
                 : o.waiting_logits ? o.waiting_logits[sample * o.classes + i]
                                    : T(0);
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      if (!here(sample, m)) continue;
      add_scaled(T(1), common + sample * row + m * padded, padded, total);
      add_scaled(T(1), specific + sample * row + m * padded, padded, total);
    }
    const T share = T(1) / static_cast<T>(count);
    for (int64_t i = 0; i < padded; ++i) total[i] *= share;
    o.losses[0] += (softmax(total, padded, probabilities) - total[label]) * inverse_counted;
    const T factor = inverse_counted * share;
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      if (!here(sample, m)) continue;
      add_entropy_gradient(factor, probabilities, label, padded, common_gradient + sample * row + m * padded);
      add_entropy_gradient(factor, probabilities, label, padded,
                           specific_gradient + sample * row + m * padded);
    }
  }

  // Cross-entropy of the shared head on each common feature, and its divergence from the teacher's
  // prediction.
  void common_predictions(int64_t sample, const T* teacher, const T* teacher_logits, T teacher_sum) {
    const int64_t present = present_modalities(sample), label = o.labels[sample];
    const T share = inverse_samples * inverse(present), taught_share = inverse_known * inverse(present);
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      if (!here(sample, m)) continue;
      const T* logits = common + sample * row + m * padded;
      T* gradient = common_gradient + sample * row + m * padded;
      const T sum = softmax(logits, padded, probabilities);
      if (o.classification != T(0)) {
        o.losses[1] += share * (sum - logits[label]);
        add_entropy_gradient(o.classification * share, probabilities, label, padded, gradient);
      }
      if (!teacher) continue;
      T divergence = 0;
      for (int64_t i = 0; i < o.classes; ++i)
        divergence += teacher[i] * ((teacher_logits[i] - teacher_sum) - (logits[i] - sum));
      o.losses[4] += o.strength * taught_share * divergence;
      add_difference(o.generator * o.strength * taught_share, probabilities, teacher, padded, gradient);
    }
  }

  void entropies() {
    const bool taught = o.target && o.generator != T(0) && !o.by_distance;
    T* teacher = take(padded);
    T* targets = taught ? take(o.samples * padded) : nullptr;
    const Padded<T> target_logits(targets, o.samples, o.classes, padded);
    if (taught) {
      multiply(o.target, o.width, 1, shared, target_logits, {});
      hide_padding(target_logits);
    }
    for (int64_t sample = 0; sample < o.samples; ++sample) {
      task(sample);
      const bool guided = taught && o.known[sample];
      const T* logits = guided ? targets + sample * padded : nullptr;
      const T sum = guided ? softmax(logits, padded, teacher) : T(0);
      if (guided || o.classification != T(0))
        common_predictions(sample, guided ? teacher : nullptr, logits, sum);
    }
  }

  void similarities() {
    if (o.similarity == T(0)) return;
    PairwiseKlSamples<T> s{};
    s.logits = common, s.sample_stride = row, s.modality_stride = padded;
    s.readable_end = common + o.samples * row;
    s.mask = o.present, s.mask_sample_stride = o.num_modalities, s.mask_modality_stride = 1;
    s.gradient = similarity, s.gradient_sample_stride = row, s.gradient_modality_stride = padded;
    s.samples = o.samples, s.modalities = o.num_modalities, s.classes = o.classes;
    s.scale = o.similarity * inverse_samples, s.scratch = scratch;
    o.losses[2] = static_cast<T>(pairwise_kl(s)) * inverse_samples;
    for (int64_t k = 0; k < o.samples * o.num_modalities; ++k)
      for (int64_t i = 0; i < o.classes; ++i) common_gradient[k * padded + i] += similarity[k * padded + i];
  }

  // Cross-entropy of the shared head on the generated features that there are.
  void rehearse() {
    if (!o.rehearsal || o.rehearsing == T(0) || o.rehearsed == 0) return;
    T* memory = scratch;
    const Padded<T> logits(memory, o.rehearsed, o.classes);
    multiply(o.rehearsal, o.width, 1, shared, logits, {});
    hide_padding(logits);
    int64_t known = 0;
    for (int64_t k = 0; k < o.rehearsed; ++k) known += o.rehearsal_known[k];
    const T share = o.strength * inverse(known);
    for (int64_t k = 0; k < o.rehearsed; ++k) {
      T* own = logits.data + k * padded;
      const int64_t label = o.rehearsal_labels[k];
      if (o.rehearsal_known[k]) o.losses[5] += share * (softmax(own, padded, probabilities) - own[label]);
      for (int64_t i = 0; i < padded; ++i) own[i] = 0;
      if (!o.rehearsal_known[k]) continue;
      add_entropy_gradient(o.rehearsing * share, probabilities, label, padded, own);
    }
    multiply(o.rehearsal, 1, o.width, logits, product, {});
    add_scaled(T(1), product.data, product.rows * product.stride, shared_gradient.data);
  }

  // Adds the orthogonality's gradients to those of common and specific features.
  void difference(int64_t m, const Padded<T>& to_common, const Padded<T>& to_specific, T* memory) {
    const int64_t half = whole_vectors(o.samples * o.width);
    T *halves = memory, *gradients = halves + 2 * half;
    bool* mask = reinterpret_cast<bool*>(gradients + 2 * half);
    for (int64_t sample = 0; sample < o.samples; ++sample) {
      const T* own = o.modalities[m].features + sample * 2 * o.width;
      mask[sample] = here(sample, m);
      for (int64_t i = 0; i < o.width; ++i) {
        halves[sample * o.width + i] = own[i];
        halves[half + sample * o.width + i] = own[o.width + i];
      }
    }
    OrthogonalityPair<T> pair{};
    pair.common = halves, pair.specific = halves + half, pair.mask = mask;
    pair.samples = o.samples, pair.common_features = pair.specific_features = o.width;
    pair.by_samples = o.by_samples, pair.normalize = true, pair.scale = o.difference;
    pair.common_gradient = gradients, pair.specific_gradient = gradients + half;
    pair.scratch = gradients + 2 * half + whole_vectors(o.samples);
    orthogonality(pair, OrthogonalityStep::prepare, 0, o.samples);
    orthogonality(pair, OrthogonalityStep::gram, 0, o.by_samples ? 2 * o.samples : o.width);
    o.losses[3] += static_cast<T>(orthogonality(pair, OrthogonalityStep::loss, 0, 0));
    orthogonality(pair, OrthogonalityStep::gradient, 0, o.samples);
    for (int64_t k = 0; k < o.samples; ++k)
      for (int64_t i = 0; i < o.width; ++i) {
        to_common.data[k * to_common.stride + i] += gradients[k * o.width + i];
        to_specific.data[k * to_specific.stride + i] += gradients[half + k * o.width + i];
      }
  }

  // Adds the gradient of the squared distance from the sample's prototype.
  void distance(int64_t m, const Padded<T>& to_common) {
    for (int64_t k = 0; k < o.samples; ++k) {
      if (!here(k, m) || !o.known[k]) continue;
      const T *feature = o.modalities[m].features + k * 2 * o.width, *target = o.target + k * o.width;
      const int64_t present = present_modalities(k);
      const T share = o.strength * inverse_known * inverse(o.width * present);
      for (int64_t i = 0; i < o.width; ++i) {
        const T apart = feature[i] - target[i];
        o.losses[4] += share * apart * apart;
        to_common.data[k * to_common.stride + i] += 2 * o.generator * share * apart;
      }
    }
  }

  void backward() {
    T* memory = scratch;
    const Padded<T> columns(memory, o.classes, o.width);
    const Padded<T> to_common(memory, o.samples, o.width), to_specific(memory, o.samples, o.width);
    for (int64_t m = 0; m < o.num_modalities; ++m) {
      const ModalityOutputs<T>& modality = o.modalities[m];
      if (!modality.features) continue;
      const Padded<T> own_common = of_modality(common_gradient, m);
      const Padded<T> own_specific = of_modality(specific_gradient, m);
      multiply(modality.features, 1, 2 * o.width, own_common, product, {});
      add_scaled(T(1), product.data, product.rows * product.stride, shared_gradient.data);
      multiply(modality.features + o.width, 1, 2 * o.width, own_specific, product, {});
      copy_back(product, modality.head_gradient);
      copy_rows(modality.head, o.classes, static_cast<const T*>(nullptr), product);
      copy_transposed(product, columns);
      multiply(own_common.data, row, 1, shared_columns, to_common, {});
      multiply(own_specific.data, row, 1, columns, to_specific, {});
      if (o.difference != T(0)) difference(m, to_common, to_specific, memory);
      if (o.target && o.generator != T(0) && o.by_distance) distance(m, to_common);
      for (int64_t k = 0; k < o.samples; ++k)
        for (int64_t i = 0; i < o.width; ++i) {
          T* out = modality.feature_gradient + k * 2 * o.width;
          out[i] = to_common.data[k * to_common.stride + i];
          out[o.width + i] = to_specific.data[k * to_specific.stride + i];
        }
    }
    copy_back(shared_gradient, o.shared_head_gradient);
  }
};

template <class T>
void objective(DeviceObjective<T>& device) {
  Objective<T> whole(device);
  whole.forward();
  whole.entropies();
  whole.similarities();
  whole.rehearse();
  whole.backward();
}
