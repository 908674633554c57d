// The mean cross-entropy of one device's features under several heads, and its gradient.
//
// Samples lie in the lanes of vectors: features, logits and gradients are transposed, [features or classes,
// samples].

// Logits [classes, samples] to their gradient; returns the sum of the samples' cross-entropies.
template <class T>
inline T entropy_of_columns(const Padded<T>& logits, const int64_t* labels, T factor) {
  constexpr int width = Simd<T>::width;
  T loss = 0;
  for (int64_t sample = 0; sample < logits.columns; sample += width) {
    T* column = logits.data + sample;
    const int64_t lanes = logits.columns - sample < width ? logits.columns - sample : width;
    Vector<T> peak = load(column), sum{};
    for (int64_t i = 1; i < logits.rows; ++i) peak = maximum<T>(peak, load(column + i * logits.stride));
    for (int64_t lane = 0; lane < lanes; ++lane)
      loss += peak[lane] - column[labels[sample + lane] * logits.stride + lane];
    for (int64_t i = 0; i < logits.rows; ++i) {
      const Vector<T> power = exp_nonpositive(load(column + i * logits.stride) - peak);
      store(column + i * logits.stride, power);
      sum += power;
    }
    const Vector<T> logarithms = logarithm_from_1<T>(sum);
    for (int64_t lane = 0; lane < lanes; ++lane) loss += logarithms[lane];
    const Vector<T> scale = factor / sum;
    for (int64_t i = 0; i < logits.rows; ++i)
      store(column + i * logits.stride, scale * load(column + i * logits.stride));
    for (int64_t lane = 0; lane < lanes; ++lane)
      column[labels[sample + lane] * logits.stride + lane] -= factor;
  }
  return loss;
}

template <class T>
T heads_entropy(const HeadsEntropy<T>& h) {
  T* scratch = h.scratch;
  const Padded<T> features(scratch, h.width, h.samples), sum(scratch, h.width, h.samples);
  const Padded<T> part(scratch, h.width, h.samples), logits(scratch, h.classes, h.samples);
  copy_transposed(padded_view(h.features, h.samples, h.width), features);
  for (int64_t i = 0; i < sum.rows * sum.stride; ++i) sum.data[i] = 0;
  const int64_t terms = h.num_heads * h.samples;
  const T share = terms > 0 ? T(1) / static_cast<T>(terms) : T(0);
  T loss = 0;
  for (int64_t k = 0; k < h.num_heads; ++k) {
    const T* head = h.heads + h.rows[k] * h.head_stride;
    multiply(head, 1, h.classes, features, logits, {});
    loss += entropy_of_columns(logits, h.labels, share);
    multiply(head, h.classes, 1, logits, part, {});
    add_row(part.data, part.rows * part.stride, sum.data);
  }
  if (h.gradient)
    for (int64_t sample = 0; sample < h.samples; ++sample)
      for (int64_t i = 0; i < h.width; ++i)
        h.gradient[sample * h.width + i] = sum.data[i * sum.stride + sample];
  return loss * share;
}
