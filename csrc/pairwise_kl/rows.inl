// Many classes: a vector holds neighbouring classes of one sample.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "sums.inl"

namespace dmmlkd {
namespace {

// The last, incomplete vector of a row: past its end the last value is repeated.
template <class T>
inline Vector<T> load_tail(const T* row, int64_t classes) {
  constexpr int width = Simd<T>::width;
  T values[width];
  const int64_t begin = classes / width * width;
  for (int64_t lane = 0; lane < width; ++lane)
    values[lane] = row[begin + lane < classes ? begin + lane : classes - 1];
  return load(values);
}

// Calls work(i, read, last) for each vector of classes; read(row, tail) gives a row's values there.
template <class T, class Work>
inline void over_classes(int64_t classes, const Work& work) {
  constexpr int width = Simd<T>::width;
  const int64_t whole = classes / width * width;
  for (int64_t i = 0; i < whole; i += width)
    work(i, [i](const T* row, const Vector<T>&) { return load(row + i); }, false);
  if (whole < classes) work(whole, [](const T*, const Vector<T>& tail) { return tail; }, true);
}

template <class T>
struct PairwiseKlRow {
  const T* logits;
  Vector<T> tail;
  T *p, *d, *gradient;
  T peak, inverse, shift;
};

// Sets the rows' shifts and moves their peaks by them; whether there is one.
template <class T>
inline bool shift_rows(PairwiseKlRow<T>* rows, int64_t count) {
  const auto size = [](T value) { return value < T(0) ? -value : value; };
  bool far = false;
  T smallest = rows[0].peak;
  for (int64_t k = 0; k < count; ++k) {
    far |= size(rows[k].peak - rows[0].peak) > far_apart<T>;
    if (size(rows[k].peak) < size(smallest)) smallest = rows[k].peak;
  }
  for (int64_t k = 0; k < count; ++k) {
    const T shift = rows[k].peak - smallest;
    rows[k].shift = far && size(shift) > far_apart<T> ? shift : T(0);
  }
  for (int64_t k = 0; k < count; ++k) rows[k].peak -= rows[k].shift;
  return far;
}

// Exponentials of one row to its p, 0 past its end.
template <class T>
inline void exponentials(PairwiseKlRow<T>& row, int64_t classes) {
  constexpr int width = Simd<T>::width;
  row.tail = load_tail(row.logits, classes);
  Vector<T> tops[2] = {row.tail, row.tail};
  int64_t i = 0;
  for (; i + 2 * width <= classes; i += 2 * width) {
    tops[0] = maximum<T>(tops[0], load(row.logits + i));
    tops[1] = maximum<T>(tops[1], load(row.logits + i + width));
  }
  if (i + width <= classes) tops[0] = maximum<T>(tops[0], load(row.logits + i));
  row.peak = max_lanes<T>(maximum<T>(tops[0], tops[1]));
  const Vector<T> top = splat(row.peak);
  Vector<T> total{};
  over_classes<T>(classes, [&](int64_t at, auto read, bool last) {
    Vector<T> e = exp_nonpositive(read(row.logits, row.tail) - top);
    if (last)
      for (int64_t lane = classes - at; lane < width; ++lane) e[lane] = 0;
    store(row.p + at, e);
    total += e;
  });
  row.inverse = T(1) / sum_lanes<T>(total);
}

template <class T>
inline void store_classes(T* target, Vector<T> value, int64_t classes, int64_t at, bool last) {
  if (!last) return store(target + at, value);
  for (int64_t lane = 0; at + lane < classes; ++lane) target[at + lane] = value[lane];
}

template <bool chosen>
struct Choice {
  static constexpr bool value = chosen;
};

// One sample with many classes and a few modalities, all present.
template <class T, int modalities>
inline T pairwise_kl_row_fixed(const PairwiseKlSamples<T>& s, PairwiseKlRow<T>* rows) {
  for (int m = 0; m < modalities; ++m) exponentials(rows[m], s.classes);
  PairwiseKlSums<T, modalities> sums;
  const auto add_classes = [&](auto shifted) {
    over_classes<T>(s.classes, [&](int64_t at, auto read, bool) {
      Vector<T> q[modalities], u[modalities], d[modalities], z[modalities];
      u[0] = Vector<T>{};
#pragma GCC unroll 8
      for (int m = 0; m < modalities; ++m) {
        q[m] = load(rows[m].p + at) * rows[m].inverse;
        z[m] = read(rows[m].logits, rows[m].tail);
        if (shifted.value) z[m] -= rows[m].shift;
        if (m) u[m] = (z[m] - z[0]) - (rows[m].peak - rows[0].peak);
      }
      sums.add(q, u, d);
#pragma GCC unroll 8
      for (int m = 0; m < modalities; ++m) store(rows[m].d + at, d[m]);
    });
  };
  if (shift_rows(rows, modalities))
    add_classes(Choice<true>{});
  else
    add_classes(Choice<false>{});
  if (modalities == 2) sums.rest[0] = -sums.rest[1];
  T total = sum_lanes<T>(sums.loss);
  Vector<T> moment[modalities];
  for (int m = 0; m < modalities; ++m) {
    const T sum = sum_lanes<T>(sums.moment[m]), rest = sum_lanes<T>(sums.rest[m]);
    moment[m] = splat(sum + rest);
    total -= sums.unit * sum * rest;
  }
  Vector<T> loss = splat(total * sums.unit);
  const Vector<T> weight = finish_loss<T>(loss, splat(T(modalities))) * (s.scale * sums.unit);
  if (!rows[0].gradient) return loss[0];
  over_classes<T>(s.classes, [&](int64_t at, auto, bool last) {
    Vector<T> q[modalities], d[modalities], g[modalities];
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m)
      q[m] = load(rows[m].p + at) * rows[m].inverse, d[m] = load(rows[m].d + at);
    sums.gradient(q, d, moment, weight, g);
#pragma GCC unroll 8
    for (int m = 0; m < modalities; ++m) store_classes<T>(rows[m].gradient, g[m], s.classes, at, last);
  });
  return loss[0];
}

// The same for any number of modalities.
template <class T>
inline T pairwise_kl_row(const PairwiseKlSamples<T>& s, PairwiseKlRow<T>* rows, int64_t count,
                         Vector<T>* moment, Vector<T>* rest) {
  for (int64_t k = 0; k < count; ++k) {
    exponentials(rows[k], s.classes);
    moment[k] = rest[k] = Vector<T>{};
  }
  shift_rows(rows, count);
  const T part = T(1) / T(count);
  Vector<T> loss{};
  over_classes<T>(s.classes, [&](int64_t at, auto read, bool) {
    const Vector<T> first = read(rows[0].logits, rows[0].tail) - rows[0].shift,
                    p_first = load(rows[0].p + at) * rows[0].inverse;
    Vector<T> p_sum{}, u_sum{};
    for (int64_t k = 0; k < count; ++k) {
      const Vector<T> pk = load(rows[k].p + at) * rows[k].inverse;
      const Vector<T> zk = read(rows[k].logits, rows[k].tail) - rows[k].shift,
                      uk = (zk - first) - (rows[k].peak - rows[0].peak);
      store(rows[k].p + at, pk);
      store(rows[k].d + at, uk);
      p_sum += pk - p_first;
      u_sum += uk;
    }
    const Vector<T> p_mean = p_sum * part, u_mean = u_sum * part;
    for (int64_t k = 0; k < count; ++k) {
      const Vector<T> pk = load(rows[k].p + at), d = load(rows[k].d + at) - u_mean;
      const Vector<T> deviation = (pk - p_first) - p_mean;
      store(rows[k].d + at, d);
      moment[k] += pk * d;
      rest[k] += deviation;
      loss += deviation * d;
    }
  });
  T total = sum_lanes<T>(loss);
  for (int64_t k = 0; k < count; ++k) {
    const T sum = sum_lanes<T>(moment[k]), left = sum_lanes<T>(rest[k]);
    moment[k] = splat(sum + left);
    total -= sum * left;
  }
  loss = splat(total);
  const T weight = finish_loss<T>(loss, splat(T(count)))[0] * s.scale;
  if (!rows[0].gradient) return loss[0];
  over_classes<T>(s.classes, [&](int64_t at, auto, bool last) {
    const Vector<T> p_first = load(rows[0].p + at);
    Vector<T> p_sum{};
    for (int64_t k = 0; k < count; ++k) p_sum += load(rows[k].p + at) - p_first;
    const Vector<T> p_mean = p_sum * part;
    for (int64_t k = 0; k < count; ++k) {
      const Vector<T> pk = load(rows[k].p + at), deviation = (pk - p_first) - p_mean;
      const Vector<T> g = weight * (pk * (load(rows[k].d + at) - moment[k]) + deviation);
      store_classes<T>(rows[k].gradient, g, s.classes, at, last);
    }
  });
  return loss[0];
}

template <class T>
double pairwise_kl_by_rows(const PairwiseKlSamples<T>& s) {
  const int64_t padded = whole_vectors(s.classes);
  T *p = s.scratch, *d = p + s.modalities * padded;
  Vector<T>* moment = reinterpret_cast<Vector<T>*>(d + s.modalities * padded);
  Vector<T>* rest = moment + s.modalities;
  PairwiseKlRow<T>* rows = reinterpret_cast<PairwiseKlRow<T>*>(rest + s.modalities);
  double sum = 0;
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    int64_t count = 0;
    T* gradient = s.gradient ? s.gradient + sample * s.gradient_sample_stride : nullptr;
    for (int64_t m = 0; m < s.modalities; ++m) {
      if (s.mask && !s.mask[sample * s.mask_sample_stride + m * s.mask_modality_stride]) continue;
      PairwiseKlRow<T>& row = rows[count];
      row.logits = s.logits + sample * s.sample_stride + m * s.modality_stride;
      row.p = p + count * padded, row.d = d + count * padded;
      row.gradient = gradient ? gradient + m * s.gradient_modality_stride : nullptr;
      ++count;
    }
    if (gradient && (count < s.modalities || count < 2)) {
      for (int64_t m = 0; m < s.modalities; ++m)
        for (int64_t i = 0; i < s.classes; ++i) gradient[m * s.gradient_modality_stride + i] = 0;
    }
    T loss = 0;
    if (count == 2)
      loss = pairwise_kl_row_fixed<T, 2>(s, rows);
    else if (count == 3)
      loss = pairwise_kl_row_fixed<T, 3>(s, rows);
    else if (count > 3)
      loss = pairwise_kl_row<T>(s, rows, count, moment, rest);
    if (loss != loss) loss = pairwise_kl_of_allowed<T>(s, sample);
    sum += loss;
    if (s.loss) s.loss[sample] = loss;
  }
  return sum;
}

}  // namespace
}  // namespace dmmlkd
