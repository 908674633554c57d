// Changes the gradient of a modality's block (METHOD 7), by OGM-GE (Peng et al. 2022) or MMPareto (Wei and Hu
// 2024).
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

// Whole vectors in double precision are summed by `vector(i)`, the rest by `scalar(i)`.
template <class Value>
inline double sum_in_double(int64_t begin, int64_t end, const Value& value) {
  constexpr int width = Simd<double>::width;
  Vector<double> sums[2]{};
  int64_t i = begin;
  for (; i + 2 * width <= end; i += 2 * width) sums[0] += value.vector(i), sums[1] += value.vector(i + width);
  double total = sum_lanes<double>(sums[0] + sums[1]);
  for (; i < end; ++i) total += value.scalar(i);
  return total;
}

template <class T>
struct PlainValue {
  const T* values;
  Vector<double> vector(int64_t i) const { return load_double(values + i); }
  double scalar(int64_t i) const { return values[i]; }
};

template <class T>
struct SquaredDeviation {
  const T* values;
  double mean;
  Vector<double> vector(int64_t i) const {
    const Vector<double> apart = load_double(values + i) - mean;
    return apart * apart;
  }
  double scalar(int64_t i) const { return (values[i] - mean) * (values[i] - mean); }
};

template <class T>
struct ProductOf {
  const T *first, *second;
  Vector<double> vector(int64_t i) const { return load_double(first + i) * load_double(second + i); }
  double scalar(int64_t i) const { return static_cast<double>(first[i]) * second[i]; }
};

// The square of a weighted sum of two gradients.
template <class T>
struct SquaredSum {
  const T *first, *second;
  double first_share, second_share;
  Vector<double> vector(int64_t i) const {
    const Vector<double> sum = first_share * load_double(first + i) + second_share * load_double(second + i);
    return sum * sum;
  }
  double scalar(int64_t i) const {
    const double sum = first_share * first[i] + second_share * second[i];
    return sum * sum;
  }
};

// values = first * values + second * other.
template <class T>
inline void combine(int64_t begin, int64_t end, T first, T* values, T second, const T* other) {
  constexpr int width = Simd<T>::width;
  int64_t i = begin;
  for (; i + width <= end; i += width) store(values + i, first * load(values + i) + second * load(other + i));
  for (; i < end; ++i) values[i] = first * values[i] + second * other[i];
}

// Scales the encoder's gradient; the noise on a tensor has the deviation of its unscaled gradient.
template <class T>
void ogm_ge(const ModulatedRow<T>& m) {
  int64_t begin = 0;
  for (int64_t tensor = 0; tensor < m.tensors; ++tensor) {
    const int64_t end = m.ends[tensor], count = end - begin;
    double deviation = 0;  // of a single value
    if (count > 1) {
      const double mean = sum_in_double(begin, end, PlainValue<T>{m.gradient}) / static_cast<double>(count);
      const double squares = sum_in_double(begin, end, SquaredDeviation<T>{m.gradient, mean});
      deviation = __builtin_sqrt(squares / static_cast<double>(count - 1));
    }
    combine(begin, end, m.factor, m.gradient, static_cast<T>(deviation), m.other);
    begin = end;
  }
}

// Adds the gradient of the unimodal loss. Over the encoder, two gradients that conflict are replaced by twice
// the shortest vector of their convex hull, each parameter tensor scaled up to the length of the sum; all
// times the factor.
template <class T>
void mmpareto(const ModulatedRow<T>& m) {
  const int64_t encoder = m.ends[m.tensors - 1];
  const double dot = sum_in_double(0, encoder, ProductOf<T>{m.gradient, m.other});
  const bool conflict = dot < 0;
  double share = 0.5;
  if (conflict) {
    const double joint = sum_in_double(0, encoder, ProductOf<T>{m.gradient, m.gradient}),
                 alone = sum_in_double(0, encoder, ProductOf<T>{m.other, m.other});
    const double apart = joint + alone - 2 * dot;
    share = (alone - dot) / (apart > 1e-20 ? apart : 1e-20);
  }
  int64_t begin = 0;
  for (int64_t tensor = 0; tensor < m.tensors; ++tensor) {
    const int64_t end = m.ends[tensor];
    double longer = 1;
    if (conflict) {
      const SquaredSum<T> sum{m.gradient, m.other, 1, 1},
          merged{m.gradient, m.other, 2 * share, 2 - 2 * share};
      const double length = __builtin_sqrt(sum_in_double(begin, end, merged));
      longer = __builtin_sqrt(sum_in_double(begin, end, sum)) / (length > 1e-12 ? length : 1e-12);
    }
    const double factor = (longer > 1 ? longer : 1) * m.factor;
    combine(begin, end, static_cast<T>(factor * 2 * share), m.gradient,
            static_cast<T>(factor * (2 - 2 * share)), m.other);
    begin = end;
  }
  combine(encoder, m.columns, T(1), m.gradient, T(1), m.other);
}

}  // namespace
}  // namespace dmmlkd
