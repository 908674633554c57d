// Counts, sums and sums of products of one device's features, by class.
#pragma once

#include "../simd/kernels.h"

namespace dmmlkd {
namespace {

template <class T>
void class_moments(const ClassMoments<T>& m) {
  for (int64_t sample = 0; sample < m.samples; ++sample) {
    if (!m.present[sample]) continue;
    const T* feature = m.features + sample * m.feature_stride;
    const int64_t label = m.labels[sample];
    m.count[label] += 1;
    T* sum = m.sum + label * m.width;
    for (int64_t i = 0; i < m.width; ++i) sum[i] += feature[i];
    if (!m.full) {
      T* square = m.product + label * m.width;
      for (int64_t i = 0; i < m.width; ++i) square[i] += feature[i] * feature[i];
      continue;
    }
    T* product = m.product + label * m.width * m.width;
    for (int64_t k = 0; k < m.width; ++k)
      for (int64_t i = 0; i < m.width; ++i) product[k * m.width + i] += feature[k] * feature[i];
  }
}

}  // namespace
}  // namespace dmmlkd
