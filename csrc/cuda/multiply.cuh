// Products of small matrices in shared memory by all threads of a block.
#pragma once

#include "common.cuh"

namespace dmmlkd::cuda {

constexpr int kTile = 4;  // a thread computes 4 x 4 elements at a time

__host__ __device__ constexpr int whole_tiles(int size) { return (size + kTile - 1) / kTile * kTile; }

// How far rows lie apart in shared memory: an odd number of tiles, so that lanes which read neighbouring rows
// meet different banks.
__host__ __device__ constexpr int row_pitch(int width) { return (whole_tiles(width) / kTile | 1) * kTile; }

// In shared memory; element (k, i) lies at k * pitch + i, or, by rows, at i * pitch + k.
template <typename compute>
struct Factor {
  const compute* data;
  int pitch;
};

// block[k][i], the depth k of four neighbours from `depth` on. Indices are four neighbours, too, or, by rows,
// `apart` apart, so that neighbouring lanes read neighbouring rows.
template <bool kByRows, typename compute>
__device__ __forceinline__ void load_block(Factor<compute> factor, int index, int apart, int depth,
                                           compute (&block)[kTile][kTile]) {
#pragma unroll
  for (int q = 0; q < kTile; ++q) {
    if constexpr (kByRows) {
      compute run[kTile];
      load_run(factor.data + (index + q * apart) * factor.pitch + depth, run);
#pragma unroll
      for (int k = 0; k < kTile; ++k) block[k][q] = run[k];
    } else {
      load_run(factor.data + (depth + q) * factor.pitch + index, block[q]);
    }
  }
}

// target[i][j] = sum over k of left(k, i) * right(k, j), or += for `add`, by all threads of the block. All
// sizes are rounded up to whole tiles, whose elements must be there, and zero along the depth.
template <bool kLeftByRows, bool kRightByRows, typename compute>
__device__ __forceinline__ void multiply(Factor<compute> left, Factor<compute> right, int rows, int columns,
                                         int depth, compute* target, int pitch, bool add = false) {
  left.pitch = computed_here(left.pitch), right.pitch = computed_here(right.pitch);
  rows = computed_here(rows), columns = computed_here(columns), pitch = computed_here(pitch);
  const int down = whole_tiles(rows) / kTile, across = whole_tiles(columns) / kTile;
#pragma unroll 1
  for (int tile = threadIdx.x; tile < down * across; tile += blockDim.x) {
    const int i = tile / across, j = tile - i * across;
    const int row = kLeftByRows ? i : kTile * i, row_step = kLeftByRows ? down : 1;
    const int column = kRightByRows ? j : kTile * j;
    compute sums[kTile][kTile] = {};
#pragma unroll 1
    for (int k = 0; k < depth; k += kTile) {
      compute a[kTile][kTile], b[kTile][kTile];
      load_block<kLeftByRows>(left, row, down, k, a);
      load_block<kRightByRows>(right, column, across, k, b);
#pragma unroll
      for (int q = 0; q < kTile; ++q) {
#pragma unroll
        for (int m = 0; m < kTile; ++m) {
#pragma unroll
          for (int n = 0; n < kTile; ++n) sums[m][n] = fma(a[q][m], b[q][n], sums[m][n]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTile; ++m) {
      compute* to = target + (row + m * row_step) * pitch + column;
      if constexpr (kRightByRows) {
#pragma unroll
        for (int n = 0; n < kTile; ++n) to[n * across] = add ? to[n * across] + sums[m][n] : sums[m][n];
      } else {
        compute before[kTile] = {};
        if (add) load_run(to, before);
#pragma unroll
        for (int n = 0; n < kTile; ++n) before[n] += sums[m][n];
        store_run(to, before);
      }
    }
  }
}

}  // namespace dmmlkd::cuda
