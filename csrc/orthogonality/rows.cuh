// The way of a matrix's rows into shared memory, masked and scaled to unit length, and of its gradients out
// of it.
#pragma once

#include "../cuda/multiply.cuh"

namespace dmmlkd::cuda {

template <typename compute>
__device__ __forceinline__ compute at_most_largest(compute x) {
  constexpr compute largest =
      sizeof(compute) == 4 ? compute(3.402823466e38) : compute(1.7976931348623157e308);
  return x > largest ? largest : x;
}

// Scales a row, four numbers of which each of its lanes holds, to unit length; returns the inverse of its
// length, 0 for a row of zeros. The peak is taken out first, so that no square leaves the range of its type.
// NaN stays.
template <typename compute>
__device__ __forceinline__ compute to_unit_length(compute (&values)[kTile], int lanes) {
  compute peak[1] = {0}, square[1] = {0};
#pragma unroll
  for (int q = 0; q < kTile; ++q) peak[0] = Maximum{}(peak[0], fabs(values[q]));
  combine_group(peak, lanes, static_cast<compute*>(nullptr), Maximum{});
  const compute divisor = at_most_largest(compute(1) / peak[0]);
#pragma unroll
  for (int q = 0; q < kTile; ++q) {
    values[q] *= divisor;
    square[0] = fma(values[q], values[q], square[0]);
  }
  combine_group(square, lanes, static_cast<compute*>(nullptr), Add{});
  const compute inverse = square[0] == compute(0) ? compute(0) : compute(1) / sqrt(square[0]);
#pragma unroll
  for (int q = 0; q < kTile; ++q) values[q] *= inverse;
  return at_most_largest(inverse * divisor);
}

// One matrix of a pair.
template <typename scalar>
struct Side {
  const scalar* rows;  // [samples, features]
  scalar* gradient;    // likewise, or null
  int features, pitch, lanes;
  compute_t<scalar>* chunk;    // rows in shared memory, scaled
  compute_t<scalar>* inverse;  // their lengths' inverses, 0 for rows that do not count

  // Calls visit(row, lane, lanes) on the lanes of each of `count` rows. All lanes of a warp go the same way:
  // those of no row come with one beyond `count`.
  template <typename Visit>
  __device__ __forceinline__ void for_each_row(int count, Visit visit) const {
    const int a_row = computed_here(lanes), thread = threadIdx.x;
#pragma unroll 1
    for (int row = thread / a_row; row - thread / a_row < count; row += static_cast<int>(blockDim.x) / a_row)
      visit(row, thread & (a_row - 1), a_row);
  }

  // `count` rows from `first` on into shared memory; what is masked, or not before `end`, becomes zero.
  __device__ __forceinline__ void load(const bool* mask, bool normalize, int first, int end,
                                       int count) const {
    const int features = computed_here(this->features), pitch = computed_here(this->pitch);
    for_each_row(count, [&](int row, int lane, int lanes) {
      const bool held = row < count && first + row < end && (mask == nullptr || mask[first + row]);
      const scalar* from = rows + static_cast<int64_t>(first + row) * features;
      compute_t<scalar> values[kTile];
#pragma unroll
      for (int q = 0; q < kTile; ++q) {
        const int column = lane + q * lanes;
        values[q] = held && column < features ? to_compute(from[column]) : compute_t<scalar>(0);
      }
      compute_t<scalar> factor = held ? compute_t<scalar>(1) : compute_t<scalar>(0);
      if (normalize) factor = to_unit_length(values, lanes);
      if (row >= count) return;
#pragma unroll
      for (int q = 0; q < kTile; ++q) {
        const int column = lane + q * lanes;
        if (column < whole_tiles(features)) chunk[row * pitch + column] = values[q];
      }
      if (lane == 0) inverse[row] = factor;
    });
  }

  // Writes the gradients of `count` rows from `first` on, before `end`, which lie in the chunk from `place`
  // on. Through the scaling to unit length: what lies along the row drops out.
  __device__ __forceinline__ void store(const compute_t<scalar>* slopes, compute_t<scalar> factor,
                                        bool normalize, int first, int end, int count, int place) const {
    using compute = compute_t<scalar>;
    const int features = computed_here(this->features), pitch = computed_here(this->pitch);
    for_each_row(count, [&](int row, int lane, int lanes) {
      const bool held = row < count && first + row < end;
      compute slope[kTile], unit[kTile], along[1] = {0};
#pragma unroll
      for (int q = 0; q < kTile; ++q) {
        const int column = lane + q * lanes;
        const bool there = held && column < features;
        slope[q] = there ? factor * slopes[row * pitch + column] : compute(0);
        unit[q] = there && normalize ? chunk[(place + row) * pitch + column] : compute(0);
        along[0] = fma(slope[q], unit[q], along[0]);
      }
      if (normalize) combine_group(along, lanes, static_cast<compute*>(nullptr), Add{});
      if (!held) return;
      const compute scale = inverse[place + row];
      scalar* to = gradient + static_cast<int64_t>(first + row) * features;
#pragma unroll
      for (int q = 0; q < kTile; ++q) {
        const int column = lane + q * lanes;
        const compute value = scale == compute(0) ? compute(0) : scale * fma(-along[0], unit[q], slope[q]);
        if (column < features) to[column] = from_compute<scalar>(value);
      }
    });
  }
};

}  // namespace dmmlkd::cuda
