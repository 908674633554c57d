// Products of small matrices whose operands stay in the cache, by register blocking.
//
// The larger sizes are left to the GEMM library: what is won here is the work around small products.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace dmmlkd {
namespace {

// A row-major matrix whose rows are padded with zeros to whole vectors.
template <class T>
struct Padded {
  T* data;
  int64_t rows, columns, stride;

  Padded(T*& scratch, int64_t row_count, int64_t column_count)
      : data(scratch), rows(row_count), columns(column_count), stride(whole_vectors(column_count)) {
    scratch += rows * stride;
  }
  // Memory of another; up to whole_vectors(columns) values of a row are read and written.
  Padded(T* memory, int64_t row_count, int64_t column_count, int64_t row_stride)
      : data(memory), rows(row_count), columns(column_count), stride(row_stride) {}
};

// What happens to a product before it is stored: alpha * (bias + product), then a rectifier.
template <class T>
struct Ending {
  T alpha = 1;
  const T* bias = nullptr;  // padded like a row of the product; null: 0
  bool rectify = false;
};

template <class T, int height, int vectors>
inline void multiply_tile(const T* a, int64_t a_row, int64_t a_column, const Padded<T>& b, int64_t column,
                          T* c, int64_t c_stride, const Ending<T>& end) {
  constexpr int width = Simd<T>::width;
  Vector<T> sums[height][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < height; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      sums[i][v] = end.bias ? load(end.bias + column + v * width) : Vector<T>{};
  for (int64_t k = 0; k < b.rows; ++k) {
    Vector<T> row[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) row[v] = load(b.data + k * b.stride + column + v * width);
#pragma GCC unroll 12
    for (int i = 0; i < height; ++i) {
      const Vector<T> factor = splat(a[i * a_row + k * a_column]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < height; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vector<T> value = end.alpha * sums[i][v];
      if (end.rectify) value = value < 0 ? Vector<T>{} : value;  // NaN stays NaN
      store(c + i * c_stride + column + v * width, value);
    }
}

// The last rows, fewer than `height` + 1, in one tile.
template <class T, int height, int vectors>
inline void multiply_rest(int64_t rows, const T* a, int64_t a_row, int64_t a_column, const Padded<T>& b,
                          int64_t column, T* c, int64_t c_stride, const Ending<T>& end) {
  if (rows == height)
    return multiply_tile<T, height, vectors>(a, a_row, a_column, b, column, c, c_stride, end);
  if constexpr (height > 1)
    multiply_rest<T, height - 1, vectors>(rows, a, a_row, a_column, b, column, c, c_stride, end);
}

template <class T, int vectors>
inline void multiply_columns(const T* a, int64_t a_row, int64_t a_column, const Padded<T>& b, int64_t column,
                             const Padded<T>& c, const Ending<T>& end) {
  // The sums of a tile fill the registers of each instruction set; SSE and AVX have half as many.
  constexpr int height = DMMLKD_VECTOR_BYTES == 64 && vectors <= 2 ? 12 : 6;
  int64_t i = 0;
  for (; i + height <= c.rows; i += height)
    multiply_tile<T, height, vectors>(a + i * a_row, a_row, a_column, b, column, c.data + i * c.stride,
                                      c.stride, end);
  if (i < c.rows)
    multiply_rest<T, height - 1, vectors>(c.rows - i, a + i * a_row, a_row, a_column, b, column,
                                          c.data + i * c.stride, c.stride, end);
}

// c = alpha * a b, or what else `end` makes of it, with a given by its strides: a transposed matrix needs no
// copy.
template <class T>
inline void multiply(const T* a, int64_t a_row, int64_t a_column, const Padded<T>& b, const Padded<T>& c,
                     const Ending<T>& end) {
  constexpr int width = Simd<T>::width;
  constexpr int most = DMMLKD_VECTOR_BYTES == 64 ? 4 : 2;
  const int64_t columns = whole_vectors(c.columns);
  int64_t column = 0;
  for (; column + most * width <= columns; column += most * width)
    multiply_columns<T, most>(a, a_row, a_column, b, column, c, end);
  if constexpr (most == 4)
    for (; column + 2 * width <= columns; column += 2 * width)
      multiply_columns<T, 2>(a, a_row, a_column, b, column, c, end);
  for (; column < columns; column += width) multiply_columns<T, 1>(a, a_row, a_column, b, column, c, end);
}

// Rows times their scale (null: 1), padded with zeros. A scale of 0 makes zeros of whatever the row holds.
template <class T>
inline void copy_rows(const T* source, int64_t row_stride, const T* scale, const Padded<T>& target) {
  for (int64_t row = 0; row < target.rows; ++row) {
    const T factor = scale ? scale[row] : T(1);
    T* out = target.data + row * target.stride;
    for (int64_t i = 0; i < target.columns; ++i)
      out[i] = factor == T(0) ? T(0) : factor * source[row * row_stride + i];
    for (int64_t i = target.columns; i < target.stride; ++i) out[i] = 0;
  }
}

template <class T>
inline void copy_transposed(const Padded<T>& source, const Padded<T>& target) {
  constexpr int width = Simd<T>::width;
  const int64_t whole_rows = target.rows / width * width, whole_columns = target.columns / width * width;
  for (int64_t row = 0; row < whole_rows; row += width)
    for (int64_t i = 0; i < whole_columns; i += width) {
      Vector<T> square[width];
#pragma GCC unroll 16
      for (int k = 0; k < width; ++k) square[k] = load(source.data + (i + k) * source.stride + row);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int k = 0; k < width; ++k) store(target.data + (row + k) * target.stride + i, square[k]);
    }
  for (int64_t row = 0; row < target.rows; ++row) {
    T* out = target.data + row * target.stride;
    for (int64_t i = row < whole_rows ? whole_columns : 0; i < target.columns; ++i)
      out[i] = source.data[i * source.stride + row];
    for (int64_t i = target.columns; i < whole_vectors(target.columns); ++i) out[i] = 0;
  }
}

// target += a.
template <class T>
inline void add_row(const T* a, int64_t count, T* target) {
  constexpr int width = Simd<T>::width;
  int64_t i = 0;
  for (; i + width <= count; i += width) store(target + i, load(target + i) + load(a + i));
  for (; i < count; ++i) target[i] += a[i];
}

}  // namespace
}  // namespace dmmlkd
