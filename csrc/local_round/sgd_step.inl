// A step of gradient descent with momentum and weight decay on all rows of one device, its gradient clipped.
//
// The gradient is read twice, for its norm and for the step, the second time from the cache.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

// A row's gradient; with that of proximal / 2 || parameters - start ||^2 where it is pulled.
template <class T, bool pulled>
struct RowGradient {
  const SgdRow<T>& row;
  T proximal;

  Vector<T> vector(int64_t i) const {
    Vector<T> value = load(row.gradient + i);
    if constexpr (pulled) value += proximal * (load(row.parameters + i) - load(row.start + i));
    return value;
  }
  T scalar(int64_t i) const {
    return pulled ? row.gradient[i] + proximal * (row.parameters[i] - row.start[i]) : row.gradient[i];
  }
};

template <class T, class Gradient>
inline double sum_of_squares(const Gradient& gradient, int64_t count) {
  constexpr int width = Simd<T>::width;
  Vector<T> sums[4]{};
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Vector<T> value = gradient.vector(i + k * width);
      sums[k] += value * value;
    }
  double total = 0;
  const Vector<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int k = 0; k < width; ++k) total += sum[k];
  for (; i < count; ++i) total += static_cast<double>(gradient.scalar(i)) * gradient.scalar(i);
  return total;
}

template <class T, class Gradient>
inline void step_row(const SgdDevice<T>& d, const SgdRow<T>& row, const Gradient& gradient, T scale) {
  constexpr int width = Simd<T>::width;
  T *parameters = row.parameters, *momentum = row.momentum;
  int64_t i = 0;
  for (; i + width <= row.columns; i += width) {
    const Vector<T> w = load(parameters + i);
    const Vector<T> m =
        d.momentum_factor * load(momentum + i) + (d.weight_decay * w + scale * gradient.vector(i));
    store(momentum + i, m);
    store(parameters + i, w - d.learning_rate * m);
  }
  for (; i < row.columns; ++i) {
    momentum[i] =
        d.momentum_factor * momentum[i] + (d.weight_decay * parameters[i] + scale * gradient.scalar(i));
    parameters[i] -= d.learning_rate * momentum[i];
  }
}

template <class T, bool pulled>
void step_device(const SgdDevice<T>& d) {
  double squares = 0;
  for (int64_t row = 0; row < d.num_rows; ++row)
    squares += sum_of_squares<T>(RowGradient<T, pulled>{d.rows[row], d.proximal}, d.rows[row].columns);
  const double factor = d.clip_norm / (__builtin_sqrt(squares) + 1e-6);
  const T scale = factor > 1 ? T(1) : static_cast<T>(factor);  // NaN stays NaN
  for (int64_t row = 0; row < d.num_rows; ++row)
    step_row(d, d.rows[row], RowGradient<T, pulled>{d.rows[row], d.proximal}, scale);
}

template <class T>
void sgd_step(const SgdDevice<T>& d) {
  d.proximal != T(0) ? step_device<T, true>(d) : step_device<T, false>(d);
}

}  // namespace
}  // namespace dmmlkd
