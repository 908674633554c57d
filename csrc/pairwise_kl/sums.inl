// What the two kernels of the pairwise Kullback-Leibler similarity share: sums over classes, and how a
// sample's loss is finished.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

template <class T>
inline T largest_finite() {
  return sizeof(T) == 4 ? T(3.402823466e38) : T(1.7976931348623157e308);
}

// Peaks of two rows may differ by so much: the rounding of z_m - z_first is then that of a log-softmax.
template <class T>
constexpr T far_apart = T(4);

template <class T>
inline Vector<T> magnitude(Vector<T> value) {
  return value < T(0) ? -value : value;
}

// Whether a lane of a is above that of b.
template <class T>
inline bool any_above(Vector<T> a, Vector<T> b) {
#if defined(__x86_64__) && !defined(__clang__) && DMMLKD_VECTOR_BYTES == 64
  constexpr int above = 14, all_lanes = -1, current_rounding = 4;
  if constexpr (sizeof(T) == 4)
    return __builtin_ia32_cmpps512_mask(a, b, above, all_lanes, current_rounding) != 0;
  else
    return __builtin_ia32_cmppd512_mask(a, b, above, all_lanes, current_rounding) != 0;
#elif defined(__x86_64__) && !defined(__clang__) && DMMLKD_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return __builtin_ia32_movmskps256(reinterpret_cast<Vector<float> >(a > b)) != 0;
  else
    return __builtin_ia32_movmskpd256(reinterpret_cast<Vector<double> >(a > b)) != 0;
#else
  return max_lanes<T>(a - b) > T(0);
#endif
}

// What is taken off a row, so that a constant between the rows does not cost the digits below it: its
// distance from the row whose peak is the smallest number, where that is far. The difference of a row and
// this constant is exact wherever p counts.
template <class T>
inline Vector<T> row_shift(Vector<T> peak, Vector<T> smallest, Integers<T> far) {
  const Vector<T> shift = peak - smallest;
  return far & (magnitude<T>(shift) > far_apart<T>) ? shift : Vector<T>{};
}

// Sums over the classes, class by class (or vector of classes by vector). Differences are taken from the
// first modality: where modalities nearly agree, and where there is one class, nothing is lost.
template <class T, int modalities>
struct PairwiseKlSums {
  // Deviations from the mean of the modalities are counted in this unit: of two they are halves of one
  // difference.
  static constexpr T unit = modalities == 2 ? T(0.5) : T(1);
  // Of p d, of p - mean of p (zero but for rounding, which loss and gradient are rid of), of the product of
  // the deviations.
  Vector<T> moment[modalities]{}, rest[modalities]{}, loss{};

  // p: probabilities; u: distances, whose deviations from their mean are left in d.
  void add(const Vector<T>* p, const Vector<T>* u, Vector<T>* d) {
    Vector<T> deviation[modalities];
    deviations(p, deviation);
    deviations(u, d);
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) {
      moment[m] += p[m] * d[m];
      if (modalities > 2 || m) rest[m] += deviation[m];
      if (modalities > 2 || m) loss += deviation[m] * d[m];
    }
  }
  static void deviations(const Vector<T>* x, Vector<T>* d) {
    if constexpr (modalities == 2) {
      d[1] = x[1] - x[0], d[0] = -d[1];
    } else {
      Vector<T> sum = d[1] = x[1] - x[0];
#pragma GCC unroll 8
      for (int m = 2; m < modalities; ++m) sum += d[m] = x[m] - x[0];
      const Vector<T> mean = sum * (T(1) / T(modalities));
      d[0] = -mean;
#pragma GCC unroll 8
      for (int m = 1; m < modalities; ++m) d[m] = d[m] - mean;
    }
  }
  // The gradient: p (d - moment - rest) + p - mean of p, all times the weight.
  static void gradient(const Vector<T>* p, const Vector<T>* d, const Vector<T>* moments, Vector<T> weight,
                       Vector<T>* g) {
    Vector<T> deviation[modalities];
    deviations(p, deviation);
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) g[m] = (p[m] * (d[m] - moments[m]) + deviation[m]) * weight;
  }
};

// Loss and gradient's factor from the sum over classes: n / (n (n - 1)). A value that is not finite anywhere
// makes the loss so, and then everything NaN.
template <class T>
inline Vector<T> finish_loss(Vector<T>& loss, Vector<T> count) {
  const Vector<T> zero{}, one = splat(T(1));
  Vector<T> weight = one / maximum<T>(count - one, one);
  loss = loss < zero ? zero : loss;
  loss = loss <= splat(largest_finite<T>()) ? loss : loss - loss;
  weight += loss - loss;
  loss *= weight;
  return weight;
}

template <class T>
inline T pairwise_kl_of_allowed(const PairwiseKlSamples<T>& s, int64_t sample);

}  // namespace
}  // namespace dmmlkd
