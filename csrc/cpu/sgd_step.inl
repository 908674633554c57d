// A step of gradient descent with momentum and weight decay on all rows of one device, its gradient clipped.
//
// The gradient is read twice, for its norm and for the step; a device's rows are still in the cache the
// second time.

template <class T>
inline double sum_of_squares(const T* values, int64_t count) {
  constexpr int width = Simd<T>::width;
  Vector<T> sums[4]{};
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Vector<T> value = load(values + i + k * width);
      sums[k] += value * value;
    }
  double total = 0;
  const Vector<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int k = 0; k < width; ++k) total += sum[k];
  for (; i < count; ++i) total += static_cast<double>(values[i]) * values[i];
  return total;
}

template <class T>
void sgd_step(const SgdDevice<T>& d) {
  constexpr int width = Simd<T>::width;
  double squares = 0;
  for (int64_t row = 0; row < d.num_rows; ++row)
    squares += sum_of_squares(d.rows[row].gradient, d.rows[row].columns);
  const double factor = d.clip_norm / (__builtin_sqrt(squares) + 1e-6);
  const T scale = factor > 1 ? T(1) : static_cast<T>(factor);  // NaN stays NaN
  for (int64_t row = 0; row < d.num_rows; ++row) {
    T *parameters = d.rows[row].parameters, *momentum = d.rows[row].momentum;
    const T* gradient = d.rows[row].gradient;
    const int64_t columns = d.rows[row].columns;
    int64_t i = 0;
    for (; i + width <= columns; i += width) {
      const Vector<T> w = load(parameters + i);
      const Vector<T> m =
          d.momentum_factor * load(momentum + i) + (d.weight_decay * w + scale * load(gradient + i));
      store(momentum + i, m);
      store(parameters + i, w - d.learning_rate * m);
    }
    for (; i < columns; ++i) {
      momentum[i] = d.momentum_factor * momentum[i] + (d.weight_decay * parameters[i] + scale * gradient[i]);
      parameters[i] -= d.learning_rate * momentum[i];
    }
  }
}
