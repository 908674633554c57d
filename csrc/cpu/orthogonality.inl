// || H^T S ||_F^2 of one pair of small matrices, and its gradient, by products whose operands stay in the
// cache.
//
// H is [samples, d], S is [samples, e]. By features: G = H^T S, [d, e], and dH = 2 S G^T, dS = 2 H G. By
// samples: P = H H^T and Q = S S^T, [samples, samples], the loss <P, Q>, and dH = 2 Q H, dS = 2 P S. The
// larger sizes are left to the GEMM library: what is won here is the work around small products, not their
// rate.

template <class T>
inline T dot(const T* a, const T* b, int64_t count) {
  constexpr int width = Simd<T>::width;
  Vector<T> sums{};
  for (int64_t i = 0; i < count; i += width) sums += load(a + i) * load(b + i);
  return sum_lanes<T>(sums);
}

template <class T>
inline T dot(const Padded<T>& a, const Padded<T>& b) {
  T sum = 0;
  for (int64_t row = 0; row < a.rows; ++row)
    sum += dot(a.data + row * a.stride, b.data + row * b.stride, a.stride);
  return sum;
}

// Writes the Gram matrices to o.gram, contiguous: [d, e], or [2, samples, samples] with S S^T first.
template <class T>
T orthogonality_forward(const OrthogonalityPair<T>& o) {
  T* scratch = o.scratch;
  const Padded<T> h(scratch, o.samples, o.common_features), s(scratch, o.samples, o.specific_features);
  copy_rows(o.common, o.common_stride, o.common_scale, h);
  copy_rows(o.specific, o.specific_stride, o.specific_scale, s);
  const auto keep = [&](const Padded<T>& gram, T* target) {
    for (int64_t row = 0; row < gram.rows; ++row)
      for (int64_t i = 0; i < gram.columns; ++i)
        target[row * gram.columns + i] = gram.data[row * gram.stride + i];
  };
  if (!o.by_samples) {
    const Padded<T> gram(scratch, o.common_features, o.specific_features);
    multiply(h.data, 1, h.stride, s, gram, {});
    if (o.gram) keep(gram, o.gram);
    return dot(gram, gram);
  }
  const Padded<T> h_gram(scratch, o.samples, o.samples), s_gram(scratch, o.samples, o.samples);
  const Padded<T> h_columns(scratch, o.common_features, o.samples);
  copy_transposed(h, h_columns);
  multiply(h.data, h.stride, 1, h_columns, h_gram, {});
  const Padded<T> s_columns(scratch, o.specific_features, o.samples);
  copy_transposed(s, s_columns);
  multiply(s.data, s.stride, 1, s_columns, s_gram, {});
  if (o.gram) keep(s_gram, o.gram), keep(h_gram, o.gram + o.samples * o.samples);
  const T loss = dot(h_gram, s_gram);
  return loss < T(0) ? T(0) : loss;  // orthogonal features may leave a rounding error below zero
}

// Gradient rows to the user's, through the scaling of a row to unit length: what lies along the row drops
// out.
template <class T>
inline void put_gradient(const Padded<T>& gradient, const Padded<T>& rows, const T* scale, bool normalize,
                         T* target) {
  for (int64_t row = 0; row < gradient.rows; ++row) {
    const T *g = gradient.data + row * gradient.stride, *v = rows.data + row * rows.stride;
    T* out = target + row * gradient.columns;
    const T along = normalize ? dot(g, v, gradient.stride) : T(0), factor = scale ? scale[row] : T(1);
    if (factor == T(0))
      for (int64_t i = 0; i < gradient.columns; ++i) out[i] = 0;
    else
      for (int64_t i = 0; i < gradient.columns; ++i) out[i] = factor * (g[i] - along * v[i]);
  }
}

// `upstream` times the gradient, to contiguous [samples, features] (null: not wanted).
template <class T>
void orthogonality_backward(const OrthogonalityPair<T>& o, T upstream, T* common_gradient,
                            T* specific_gradient) {
  T* scratch = o.scratch;
  const Padded<T> h(scratch, o.samples, o.common_features), s(scratch, o.samples, o.specific_features);
  copy_rows(o.common, o.common_stride, o.common_scale, h);
  copy_rows(o.specific, o.specific_stride, o.specific_scale, s);
  const Padded<T> dh(scratch, o.samples, o.common_features), ds(scratch, o.samples, o.specific_features);
  const T alpha = 2 * upstream;
  if (o.by_samples) {
    const T* h_gram = o.gram + o.samples * o.samples;
    if (common_gradient) multiply(static_cast<const T*>(o.gram), o.samples, 1, h, dh, {alpha});
    if (specific_gradient) multiply(h_gram, o.samples, 1, s, ds, {alpha});
  } else {
    const Padded<T> gram(scratch, o.common_features, o.specific_features);
    copy_rows(static_cast<const T*>(o.gram), o.specific_features, static_cast<const T*>(nullptr), gram);
    if (specific_gradient) multiply(h.data, h.stride, 1, gram, ds, {alpha});
    if (common_gradient) {
      const Padded<T> columns(scratch, o.specific_features, o.common_features);
      copy_transposed(gram, columns);
      multiply(s.data, s.stride, 1, columns, dh, {alpha});
    }
  }
  if (common_gradient) put_gradient(dh, h, o.common_scale, o.normalize, common_gradient);
  if (specific_gradient) put_gradient(ds, s, o.specific_scale, o.normalize, specific_gradient);
}
