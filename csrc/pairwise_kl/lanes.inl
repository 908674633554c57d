// Few classes: a vector holds one class of many samples, so that sums over classes need no shuffles.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "sums.inl"

namespace dmmlkd {
namespace {

// Reads `run` values of each of `width` samples; value j of all samples becomes vector j of `block`. Rows of
// fewer values than a piece are read past their end.
template <class T>
inline void load_lanes(const T* source, int64_t stride, int64_t run, Vector<T>* block) {
  constexpr int side = piece<T>;
  for (int64_t first = 0; first < run; first += side) {
    // The last square is moved back over values already read, so that it does not leave the row.
    const int64_t column = first + side > run && run >= side ? run - side : first;
    Vector<T> rows[side];
    load_transposed(source + column, stride, rows);
#pragma GCC unroll 4
    for (int k = 0; k < side; ++k) block[column + k] = rows[k];
  }
}

template <class T>
inline void store_lanes(const Vector<T>* block, T* target, int64_t stride, int64_t run, int64_t samples) {
  constexpr int width = Simd<T>::width, side = piece<T>;
  for (int64_t first = 0; first < run; first += side) {
    const int64_t column = first + side > run && run >= side ? run - side : first;
    Vector<T> rows[side];
#pragma GCC unroll 4
    for (int k = 0; k < side; ++k) rows[k] = block[column + k];
    if (run >= side && samples == width) {
      store_transposed(rows, target + column, stride);
      continue;
    }
    T values[width * side];
    store_transposed(rows, values, side);
    const int64_t count = run < side ? run : side;
    for (int64_t row = 0; row < samples; ++row)
      for (int64_t i = 0; i < count; ++i) target[row * stride + column + i] = values[row * side + i];
  }
}

// The samples' logits in order of (modality, class); past the last sample it is repeated.
template <class T>
inline void load_group(const PairwiseKlSamples<T>& s, const T* logits, int64_t samples, Vector<T>* block,
                       T* staging) {
  constexpr int width = Simd<T>::width;
  const bool dense = s.modality_stride == s.classes;
  const int64_t run = dense ? s.modalities * s.classes : s.classes;
  const int64_t runs = dense ? 1 : s.modalities;
  const T* last = logits + (samples - 1) * s.sample_stride + (runs - 1) * s.modality_stride;
  if (samples == width && (run >= piece<T> || last + piece<T> <= s.readable_end)) {
    for (int64_t i = 0; i < runs; ++i)
      load_lanes<T>(logits + i * s.modality_stride, s.sample_stride, run, block + i * run);
    return;
  }
  const int64_t values = s.modalities * s.classes;
  for (int64_t row = 0; row < width; ++row) {
    const T* sample = logits + (row < samples ? row : samples - 1) * s.sample_stride;
    for (int64_t m = 0; m < s.modalities; ++m)
      for (int64_t i = 0; i < s.classes; ++i)
        staging[row * values + m * s.classes + i] = sample[m * s.modality_stride + i];
  }
  load_lanes<T>(staging, values, values, block);
}

template <class T>
struct Presence {  // one lane per sample: all bits set where the modality is present
  Integers<T>* present;
  Vector<T> count;
  Integers<T> active;  // at least two modalities
};

template <class T>
inline Presence<T> load_presence(const PairwiseKlSamples<T>& s, const bool* mask, int64_t samples,
                                 Integers<T>* present) {
  constexpr int width = Simd<T>::width;
  Integers<T> count{};
  for (int64_t m = 0; m < s.modalities; ++m) {
    Integers<T> bits{};
    for (int lane = 0; lane < width; ++lane) {
      const int64_t row = lane < samples ? lane : samples - 1;
      bits[lane] = mask[row * s.mask_sample_stride + m * s.mask_modality_stride] ? -1 : 0;
    }
    present[m] = bits;
    count -= bits;
  }
  return {present, __builtin_convertvector(count, Vector<T>), count > 1};
}

// Probabilities of one modality but for the division: exponentials to `p`, returns their sum's inverse.
template <class T>
inline Vector<T> exponentials(const Vector<T>* z, Vector<T>* p, int64_t classes, Vector<T>& peak) {
  Vector<T> top = z[0];
  for (int64_t i = 1; i < classes; ++i) top = maximum<T>(top, z[i]);
  Vector<T> total{};
  for (int64_t i = 0; i < classes; ++i) {
    const Vector<T> e = exp_nonpositive(z[i] - top);
    p[i] = e;
    total += e;
  }
  peak = top;
  return T(1) / total;
}

// Rows of lanes in which two rows lie far apart are moved together, in place, with their peaks.
template <class T>
[[gnu::noinline]] void move_rows_together(Vector<T>* z, Vector<T>* peak, const Integers<T>* present,
                                          Vector<T> first_peak, int64_t modalities, int64_t classes) {
  Vector<T> smallest = first_peak;
  Integers<T> far{};
  for (int64_t m = 0; m < modalities; ++m) {
    const Integers<T> here = present ? present[m] : ~Integers<T>{};
    far |= here & (magnitude<T>(peak[m] - first_peak) > far_apart<T>);
    smallest = here & (magnitude<T>(peak[m]) < magnitude<T>(smallest)) ? peak[m] : smallest;
  }
  for (int64_t m = 0; m < modalities; ++m) {
    const Integers<T> here = present ? far & present[m] : far;
    const Vector<T> shift = row_shift<T>(peak[m], smallest, here);
    peak[m] -= shift;
    for (int64_t i = 0; i < classes; ++i) z[m * classes + i] -= shift;
  }
}

// One vector of samples with all of a few modalities; z becomes the gradient, and the losses are returned.
template <class T, int modalities>
inline Vector<T> pairwise_kl_lanes_fixed(const PairwiseKlSamples<T>& s, Vector<T>* z, Vector<T>* p) {
  const int64_t classes = s.classes;
  Vector<T> peak[modalities], inverse[modalities];
  for (int m = 0; m < modalities; ++m)
    inverse[m] = exponentials<T>(z + m * classes, p + m * classes, classes, peak[m]);
  Vector<T> farthest = magnitude<T>(peak[1] - peak[0]);
  for (int m = 2; m < modalities; ++m) farthest = maximum<T>(farthest, magnitude<T>(peak[m] - peak[0]));
  if (any_above<T>(farthest, splat(far_apart<T>)))
    move_rows_together<T>(z, peak, nullptr, peak[0], modalities, classes);
  for (int m = 1; m < modalities; ++m) peak[m] -= peak[0];
  PairwiseKlSums<T, modalities> sums;
  constexpr int from = modalities == 2;  // of two modalities d_0 = -d_1
  for (int64_t i = 0; i < classes; ++i) {
    Vector<T> q[modalities], u[modalities], d[modalities];
    u[0] = Vector<T>{};
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) {
      q[m] = p[m * classes + i] * inverse[m];
      if (m) u[m] = (z[m * classes + i] - z[i]) - peak[m];
    }
    sums.add(q, u, d);
#pragma GCC unroll 8
    for (int m = from; m < modalities; ++m) z[m * classes + i] = d[m];
  }
  if (modalities == 2) sums.rest[0] = -sums.rest[1];
  Vector<T> loss = sums.loss;
  for (int m = 0; m < modalities; ++m) {
    loss -= sums.unit * sums.moment[m] * sums.rest[m];
    sums.moment[m] += sums.rest[m];
  }
  loss *= sums.unit;
  Vector<T> weight = finish_loss<T>(loss, splat(T(modalities)));
  if (!s.gradient) return loss;
  weight *= s.scale * sums.unit;
  for (int64_t i = 0; i < classes; ++i) {
    Vector<T> q[modalities], d[modalities], g[modalities];
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) q[m] = p[m * classes + i] * inverse[m], d[m] = z[m * classes + i];
    if (modalities == 2) d[0] = -d[1];
    sums.gradient(q, d, sums.moment, weight, g);
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) z[m * classes + i] = g[m];
  }
  return loss;
}

// The same for any number of modalities, of which some may be absent. `row` holds four vectors per modality.
// local_round does without what `exact` adds: its recorded results were computed so.
template <class T, bool masked, bool exact = false>
inline Vector<T> pairwise_kl_lanes(const PairwiseKlSamples<T>& s, Vector<T>* z, Vector<T>* p,
                                   const Presence<T>& presence, Vector<T>* row) {
  const int64_t modalities = s.modalities, classes = s.classes;
  const Vector<T> zero{}, one = splat(T(1));
  Vector<T>*peak = row, *inverse = row + modalities, *moment = row + 2 * modalities,
  *rest = row + 3 * modalities;
  const auto held = [&](int64_t m, Vector<T> value) {
    return masked ? presence.present[m] ? value : zero : value;
  };
  // The value of the first modality present.
  const auto first_of = [&](const Vector<T>* values, int64_t stride) {
    Vector<T> first = values[0];
    if constexpr (masked)
      for (int64_t m = modalities - 1; m >= 0; --m) first = presence.present[m] ? values[m * stride] : first;
    return first;
  };
  for (int64_t m = 0; m < modalities; ++m) {
    Vector<T>* zm = z + m * classes;
    if constexpr (masked)  // what an absent modality holds must not matter, not even NaN
      for (int64_t i = 0; i < classes; ++i) zm[i] = held(m, zm[i]);
    inverse[m] = held(m, exponentials<T>(zm, p + m * classes, classes, peak[m]));
    moment[m] = rest[m] = zero;
  }
  Vector<T> first_peak = first_of(peak, 1);
  if constexpr (exact) {
    Vector<T> farthest = zero;
    for (int64_t m = 0; m < modalities; ++m)
      farthest = maximum<T>(farthest, magnitude<T>(held(m, peak[m] - first_peak)));
    if (any_above<T>(farthest, splat(far_apart<T>))) {
      move_rows_together<T>(z, peak, masked ? presence.present : nullptr, first_peak, modalities, classes);
      first_peak = first_of(peak, 1);
    }
  }
  for (int64_t m = 0; m < modalities; ++m) peak[m] -= first_peak;
  const Vector<T> count = masked ? maximum<T>(presence.count, one) : splat(T(modalities));
  const Vector<T> part = one / count;
  Vector<T> loss = zero;
  for (int64_t i = 0; i < classes; ++i) {
    const Vector<T> first = first_of(z + i, classes);
    Vector<T> p_sum = zero, u_sum = zero;
    for (int64_t m = 0; m < modalities; ++m) {
      Vector<T>&pm = p[m * classes + i], &um = z[m * classes + i];
      pm *= inverse[m];
      um = held(m, (um - first) - peak[m]);
      u_sum += um;
    }
    const Vector<T> p_first = first_of(p + i, classes);
    for (int64_t m = 0; m < modalities; ++m) p_sum += held(m, p[m * classes + i] - p_first);
    const Vector<T> p_mean = p_sum * part, u_mean = u_sum * part;
    for (int64_t m = 0; m < modalities; ++m) {
      const Vector<T> pm = p[m * classes + i], deviation = held(m, (pm - p_first) - p_mean);
      const Vector<T> d = held(m, z[m * classes + i] - u_mean);
      z[m * classes + i] = d;
      moment[m] += pm * d;
      rest[m] += deviation;
      loss += deviation * d;
    }
  }
  for (int64_t m = 0; m < modalities; ++m) {
    loss -= moment[m] * rest[m];
    if constexpr (exact) moment[m] += rest[m];
  }
  Vector<T> weight = finish_loss<T>(loss, count);
  if constexpr (masked) {
    loss = presence.active ? loss : zero;
    weight = presence.active ? weight : zero;
  }
  if (!s.gradient) return loss;
  weight *= s.scale;
  for (int64_t i = 0; i < classes; ++i) {
    const Vector<T> p_first = first_of(p + i, classes);
    Vector<T> p_sum = zero;
    for (int64_t m = 0; m < modalities; ++m) p_sum += held(m, p[m * classes + i] - p_first);
    const Vector<T> p_mean = p_sum * part;
    for (int64_t m = 0; m < modalities; ++m) {
      const Vector<T> pm = p[m * classes + i], deviation = (pm - p_first) - p_mean;
      Vector<T> g = held(m, weight * (pm * (z[m * classes + i] - moment[m]) + deviation));
      if constexpr (masked) g = presence.active ? g : zero;
      z[m * classes + i] = g;
    }
  }
  return loss;
}

template <class T>
inline Vector<T> pairwise_kl_group(const PairwiseKlSamples<T>& s, int64_t begin, int64_t samples,
                                   Vector<T>* z, Vector<T>* p, Integers<T>* present, Vector<T>* row) {
  if (s.mask) {
    const bool* mask = s.mask + begin * s.mask_sample_stride;
    return pairwise_kl_lanes<T, true, true>(s, z, p, load_presence<T>(s, mask, samples, present), row);
  }
  if (s.modalities == 2) return pairwise_kl_lanes_fixed<T, 2>(s, z, p);
  if (s.modalities == 3) return pairwise_kl_lanes_fixed<T, 3>(s, z, p);
  if (s.modalities == 4) return pairwise_kl_lanes_fixed<T, 4>(s, z, p);
  if (s.modalities == 6) return pairwise_kl_lanes_fixed<T, 6>(s, z, p);
  return pairwise_kl_lanes<T, false, true>(s, z, p, Presence<T>{}, row);
}

template <class T>
double pairwise_kl_by_lanes(const PairwiseKlSamples<T>& s) {
  constexpr int width = Simd<T>::width;
  const int64_t group = s.modalities * s.classes + width;
  Vector<T>* z = reinterpret_cast<Vector<T>*>(s.scratch);
  Vector<T>*p = z + group, *row = p + group;
  Integers<T>* present = reinterpret_cast<Integers<T>*>(row + 4 * s.modalities);
  T* staging = reinterpret_cast<T*>(present + s.modalities);
  double sum = 0;
  for (int64_t begin = 0; begin < s.samples; begin += width) {
    const int64_t samples = s.samples - begin < width ? s.samples - begin : width;
    load_group<T>(s, s.logits + begin * s.sample_stride, samples, z, staging);
    Vector<T> loss = pairwise_kl_group<T>(s, begin, samples, z, p, present, row);
    if (s.gradient) {
      T* gradient = s.gradient + begin * s.gradient_sample_stride;
      const bool dense = s.gradient_modality_stride == s.classes;
      const int64_t run = dense ? s.modalities * s.classes : s.classes;
      for (int64_t m = 0; m < (dense ? 1 : s.modalities); ++m)
        store_lanes<T>(z + m * s.classes, gradient + m * s.gradient_modality_stride, s.gradient_sample_stride,
                       run, samples);
    }
    if (const T part = sum_lanes<T>(loss); part != part)
      for (int64_t lane = 0; lane < samples; ++lane)
        if (loss[lane] != loss[lane]) loss[lane] = pairwise_kl_of_allowed<T>(s, begin + lane);
    if (samples == width) {
      sum += double(sum_lanes<T>(loss));
      if (s.loss) store(s.loss + begin, loss);
    } else {
      for (int64_t lane = 0; lane < samples; ++lane) {
        sum += double(loss[lane]);
        if (s.loss) s.loss[begin + lane] = loss[lane];
      }
    }
  }
  return sum;
}

}  // namespace
}  // namespace dmmlkd
