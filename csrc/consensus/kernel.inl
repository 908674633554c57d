// Distances of rows from their mean, in two passes over them; limited by the bandwidth of memory or cache.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

constexpr int64_t consensus_tile = 512;  // columns whose sums stay in the first-level cache

template <class T>
void column_sums(const ColumnSums<T>& c) {
  constexpr int width = Simd<double>::width;
  for (int64_t first = 0; first < c.columns; first += consensus_tile) {
    const int64_t columns = c.columns - first < consensus_tile ? c.columns - first : consensus_tile;
    double* sums = c.sums + first;
    for (int64_t i = 0; i < columns; ++i) sums[i] = 0;
    for (int64_t row = 0; row < c.num_rows; ++row) {
      const T* values = c.rows + row * c.row_stride + first;
      int64_t i = 0;
      for (; i + width <= columns; i += width) store(sums + i, load(sums + i) + load_double(values + i));
      for (; i < columns; ++i) sums[i] += values[i];
    }
  }
}

template <class T>
double squared_distance(const SquaredDistance<T>& d) {
  constexpr int width = Simd<double>::width;
  Vector<double> sums[4]{};
  int64_t i = 0;
  for (; i + 4 * width <= d.columns; i += 4 * width)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const auto apart = load_double(d.row + i + k * width) - load_double(d.center + i + k * width);
      sums[k] += apart * apart;
    }
  double total = sum_lanes<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < d.columns; ++i) {
    const double apart = static_cast<double>(d.row[i]) - d.center[i];
    total += apart * apart;
  }
  return total;
}

}  // namespace
}  // namespace dmmlkd
