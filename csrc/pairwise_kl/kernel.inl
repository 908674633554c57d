// Loss and gradient of the pairwise Kullback-Leibler similarity in one pass (METHOD 3, "The form to
// compute").
//
// With p_m = softmax(z_m) and n modalities present, one sample's loss is
//     1 / (n (n - 1)) * n * sum_i sum_m (p_mi - pbar_i) (u_mi - ubar_i)
// and its gradient  1 / (n (n - 1)) * n * (p_m (d_m - A_m) + p_m - pbar),  d_m = u_m - ubar,  A_m = <p_m,
// d_m>. u_m is the log-probability up to a constant a row, written as a difference from the first modality
// present, u_m = (z_m - z_first) - (max_m - max_first): where modalities nearly agree both differences are
// exact, so that nothing cancels; no logarithm is needed because constants drop out of every term.
//
// Few classes: a vector holds one class of many samples ("lanes"), so that sums over classes need no
// shuffles. Many classes: a vector holds neighbouring classes of one sample ("rows").

template <class T>
inline T largest_finite() {
  return sizeof(T) == 4 ? T(3.402823466e38) : T(1.7976931348623157e308);
}

// Sums over the classes, class by class (or vector of classes by vector). Differences are taken from the
// first modality: where modalities nearly agree, and where there is one class, nothing is lost.
template <class T, int modalities>
struct PairwiseKlSums {
  // Of p d, of p - mean of p (zero but for rounding, which the loss is rid of), of the product of the
  // deviations.
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
      if (modalities > 2) loss += deviation[m] * d[m];
    }
    if (modalities == 2) loss += (p[1] - p[0]) * d[1];  // both deviations are halves of a difference
  }
  static void deviations(const Vector<T>* x, Vector<T>* d) {
    Vector<T> sum = d[1] = x[1] - x[0];
#pragma GCC unroll 8
    for (int m = 2; m < modalities; ++m) sum += d[m] = x[m] - x[0];
    const Vector<T> mean = sum * (T(1) / T(modalities));
    d[0] = -mean;
#pragma GCC unroll 8
    for (int m = 1; m < modalities; ++m) d[m] = modalities == 2 ? mean : d[m] - mean;
  }
  // p scaled and d to the gradient so scaled: p (d - moment) + p - mean of p.
  static void gradient(const Vector<T>* p, const Vector<T>* d, const Vector<T>* moments, Vector<T>* g) {
    Vector<T> deviation[modalities];
    deviations(p, deviation);
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) g[m] = p[m] * (d[m] - moments[m]) + deviation[m];
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

#include "lanes.inl"
#include "rows.inl"

template <class T>
double pairwise_kl(const PairwiseKlSamples<T>& s) {
  return uses_lanes(s.modalities, s.classes) ? pairwise_kl_by_lanes<T>(s) : pairwise_kl_by_rows<T>(s);
}
