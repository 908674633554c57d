// || H^T S ||_F^2 of one pair of matrices and its gradient, by products whose operands stay in the cache.
//
// H is [samples, d], S is [samples, e]. By features: G = H^T S, [d, e], and dH = 2 S G^T, dS = 2 H G. By
// samples: P = H H^T and Q = S S^T, [samples, samples], the loss <P, Q>, and dH = 2 Q H, dS = 2 P S; P and Q
// are symmetric, so that half of each is computed and the other half copied.
//
// The work falls into steps, each over a range of rows, so that one large pair can be shared out between
// threads: what a row holds does not depend on the range it came in.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"
#include "../simd/small_product.inl"

namespace dmmlkd {
namespace {

// Reads of the left factor are single values, of the right one whole vectors.
template <class T>
struct Factor {
  const T* data;
  int64_t stride;
};

// c = alpha * a b, or c += for `add`, in registers. `by_columns`: a is given transposed, its rows at
// a_stride. Of the last vector `last` values are written.
template <class T, int height, int vectors, bool by_columns>
inline void multiply_tile(Factor<T> a, Factor<T> b, int64_t depth, T* c, int64_t c_stride, T alpha, bool add,
                          int64_t last) {
  constexpr int width = Simd<T>::width;
  Vector<T> sums[height][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) row[v] = load(b.data + k * b.stride + v * width);
#pragma GCC unroll 12
    for (int i = 0; i < height; ++i) {
      const Vector<T> factor = splat(by_columns ? a.data[k * a.stride + i] : a.data[i * a.stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < height; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      T* out = c + i * c_stride + v * width;
      const Vector<T> product = alpha * sums[i][v];
      if (v + 1 == vectors && last < width) {
        T values[width];
        store(values, product);
        for (int64_t lane = 0; lane < last; ++lane) out[lane] = add ? out[lane] + values[lane] : values[lane];
      } else {
        store(out, add ? load(out) + product : product);
      }
    }
}

// Two vectors beside twelve rows fill the registers of AVX-512, beside six those of the others.
constexpr int tile_height = DMMLKD_VECTOR_BYTES == 64 ? 12 : 6;
constexpr int64_t tile_depth = 256;  // rows of b whose panel stays in the first-level cache

template <class T, int vectors, bool by_columns>
inline void multiply_panel(Factor<T> a, Factor<T> b, int64_t depth, T* c, int64_t c_stride, int64_t begin,
                           int64_t end, T alpha, bool add, int64_t last) {
  int64_t i = begin;
  const auto rows = [&](int64_t row) {
    return Factor<T>{a.data + (by_columns ? row : row * a.stride), a.stride};
  };
  // Eight rows or nine are better taken by fours than as six and single ones.
  const auto by_fours = [&] { return tile_height == 6 && (end - i == 8 || end - i == 9); };
  for (; i + tile_height <= end && !by_fours(); i += tile_height)
    multiply_tile<T, tile_height, vectors, by_columns>(rows(i), b, depth, c + i * c_stride, c_stride, alpha,
                                                       add, last);
  if constexpr (tile_height > 8)
    for (; i + 8 <= end; i += 8)
      multiply_tile<T, 8, vectors, by_columns>(rows(i), b, depth, c + i * c_stride, c_stride, alpha, add,
                                               last);
  for (; i + 4 <= end; i += 4)
    multiply_tile<T, 4, vectors, by_columns>(rows(i), b, depth, c + i * c_stride, c_stride, alpha, add, last);
  for (; i < end; ++i)
    multiply_tile<T, 1, vectors, by_columns>(rows(i), b, depth, c + i * c_stride, c_stride, alpha, add, last);
}

struct Product {
  int64_t begin, end;      // rows of c
  int64_t columns, depth;  // columns of c, rows of b
  bool lower;              // c is symmetric: what lies right of the diagonal's tile is left out
};

// Rows [begin, end) of c = alpha * a b. Sums over the depth are taken in one order, whatever the range.
template <class T, bool by_columns>
inline void multiply(Factor<T> a, Factor<T> b, T* c, int64_t c_stride, const Product& p, T alpha) {
  constexpr int width = Simd<T>::width;
  for (int64_t k = 0; k < p.depth; k += tile_depth) {
    const int64_t depth = p.depth - k < tile_depth ? p.depth - k : tile_depth;
    const Factor<T> part{a.data + (by_columns ? k * a.stride : k), a.stride};
    for (int64_t column = 0; column < p.columns; column += 2 * width) {
      const int64_t left = p.columns - column, begin = p.lower && column > p.begin ? column : p.begin;
      const Factor<T> panel{b.data + k * b.stride + column, b.stride};
      if (left > width)
        multiply_panel<T, 2, by_columns>(part, panel, depth, c + column, c_stride, begin, p.end, alpha, k > 0,
                                         left - width);
      else
        multiply_panel<T, 1, by_columns>(part, panel, depth, c + column, c_stride, begin, p.end, alpha, k > 0,
                                         left);
    }
  }
}

// target[j][i] = source[i][j] for the rows i in [begin, end) and all columns j, square by square. Where the
// squares leave a matrix, they are moved back or filled with copies of the last row.
template <class T>
inline void transpose_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, int64_t begin,
                           int64_t end, T* target, int64_t target_stride) {
  constexpr int width = Simd<T>::width;
  for (int64_t row = begin; row < end; row += width)
    for (int64_t first = 0; first < columns; first += width) {
      const int64_t column = first + width > columns && columns >= width ? columns - width : first;
      Vector<T> square[width];
      for (int i = 0; i < width; ++i) {
        const T* from = source + (row + i < rows ? row + i : rows - 1) * stride + column;
        if (columns >= width) {
          square[i] = load(from);
          continue;
        }
        square[i] = Vector<T>{};
        for (int64_t j = 0; j < columns; ++j) square[i][j] = from[j];
      }
      transpose<T>(square);
      for (int j = 0; j < width && column + j < columns; ++j)
        store(target + (column + j) * target_stride + row, square[j]);
    }
}

// The inverse length of a row whose squares could leave the range of T: the peak is taken out first, and put
// back by a division, so that the length does not.
template <class T>
T inverse_extreme_length(const T* row, int64_t features) {
  T peak = 0, sum = 0;
  for (int64_t i = 0; i < features; ++i) {
    const T size = row[i] < T(0) ? -row[i] : row[i];
    peak = size > peak ? size : peak;
  }
  if (peak == T(0)) return T(0);
  for (int64_t i = 0; i < features; ++i) sum += (row[i] / peak) * (row[i] / peak);
  return T(1) / T(__builtin_sqrt(double(sum))) / peak;
}

template <class T>
inline T inverse_length(const T* row, int64_t features) {
  constexpr int width = Simd<T>::width;
  constexpr T small = sizeof(T) == 4 ? T(1e-24) : T(1e-240), large = 1 / small;
  Vector<T> sums{};
  int64_t i = 0;
  for (; i + width <= features; i += width) sums += load(row + i) * load(row + i);
  T sum = sum_lanes<T>(sums);
  for (; i < features; ++i) sum += row[i] * row[i];
  if (sum > small && sum < large) return T(1) / T(__builtin_sqrt(double(sum)));
  return sum != sum ? sum : inverse_extreme_length(row, features);
}

// A row so short that the inverse of its length leaves the range of T, scaled to unit length.
template <class T>
void scale_shortest_row(const T* row, int64_t features, T* out) {
  constexpr T lift = sizeof(T) == 4 ? T(0x1p100f) : T(0x1p1000);
  for (int64_t i = 0; i < features; ++i) out[i] = row[i] * lift;
  const T factor = inverse_extreme_length(out, features);
  for (int64_t i = 0; i < features; ++i) out[i] *= factor;
}

// Where everything of one pair lies: in the user's tensors, else in the scratch.
template <class T>
struct OrthogonalityPlan {
  const OrthogonalityPair<T>& o;
  int64_t samples_stride, d_stride, e_stride;
  T *common_scale, *specific_scale;  // factors of the rows; null: 1
  T *common_copy, *specific_copy;    // scaled, padded or spread rows; null: the user's do
  T *first, *second;                 // G and G^T; or P and Q
  T *common_columns, *specific_columns;
  T* product;  // some rows of G, where the form is by samples

  explicit OrthogonalityPlan(const OrthogonalityPair<T>& pair) : o(pair) {
    samples_stride = spread_stride(o.samples, o.samples);
    d_stride = spread_stride(o.common_features, o.samples);
    e_stride = spread_stride(o.specific_features, o.samples);
    T* next = o.scratch;
    const auto take = [&](int64_t values) { return next += values, next - values; };
    const bool scaled = o.mask || o.normalize;
    common_scale = scaled ? take(whole_vectors(o.samples)) : nullptr;
    specific_scale = scaled ? take(whole_vectors(o.samples)) : nullptr;
    const bool common_right = o.by_samples && d_stride != o.common_features;
    common_copy = scaled || common_right ? take(o.samples * d_stride) : nullptr;
    specific_copy = scaled || e_stride != o.specific_features ? take(o.samples * e_stride) : nullptr;
    first = take(o.by_samples ? o.samples * samples_stride : o.common_features * e_stride);
    second = take(o.by_samples ? o.samples * samples_stride : o.specific_features * d_stride);
    common_columns = take(o.by_samples ? o.common_features * samples_stride : 0);
    specific_columns = take(o.by_samples ? o.specific_features * samples_stride : 0);
    product = take(o.by_samples ? product_rows * e_stride : 0);
  }
  Factor<T> common() const {
    return common_copy ? Factor<T>{common_copy, d_stride} : Factor<T>{o.common, o.common_stride};
  }
  Factor<T> specific() const {
    return specific_copy ? Factor<T>{specific_copy, e_stride} : Factor<T>{o.specific, o.specific_stride};
  }
  // What the loss and its gradient are divided by.
  T weight() const {
    if (!o.normalize) return T(1);
    int64_t counted = o.mask ? 0 : o.samples;
    for (int64_t row = 0; o.mask && row < o.samples; ++row) counted += o.mask[row];
    return counted > 1 ? T(1) / (T(counted) * T(counted)) : T(1);
  }
};

// Rows times their scale, padded with zeros. A scale of 0 makes zeros of whatever the row holds.
template <class T>
inline void prepare_rows(const OrthogonalityPair<T>& o, Factor<T> rows, int64_t features, T* scale, T* copy,
                         int64_t stride, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* source = rows.data + row * rows.stride;
    T factor = T(1);
    if (o.mask && !o.mask[row])
      factor = T(0);
    else if (o.normalize)
      factor = inverse_length(source, features);
    constexpr T largest = sizeof(T) == 4 ? T(3.402823466e38) : T(1.7976931348623157e308);
    const bool shortest = factor > largest;
    if (scale) scale[row] = shortest ? largest : factor;
    if (!copy) continue;
    T* out = copy + row * stride;
    if (shortest)
      scale_shortest_row(source, features, out);
    else if (factor == T(0))
      for (int64_t i = 0; i < features; ++i) out[i] = T(0);
    else
      for (int64_t i = 0; i < features; ++i) out[i] = factor * source[i];
    for (int64_t i = features; i < stride; ++i) out[i] = 0;
  }
}

template <class T>
inline void gram_rows(const OrthogonalityPlan<T>& plan, int64_t begin, int64_t end) {
  const auto& o = plan.o;
  if (!o.by_samples) {
    multiply<T, true>(plan.common(), plan.specific(), plan.first, plan.e_stride,
                      {begin, end, whole_vectors(o.specific_features), o.samples, false}, T(1));
    return;
  }
  const auto half = [&](const T* columns, int64_t features, T* gram, int64_t from, int64_t to) {
    const Factor<T> factor{columns, plan.samples_stride};
    if (from < to)
      multiply<T, true>(factor, factor, gram, plan.samples_stride,
                        {from, to, whole_vectors(o.samples), features, true}, T(1));
  };
  const int64_t n = o.samples;
  half(plan.common_columns, o.common_features, plan.first, begin, end < n ? end : n);
  half(plan.specific_columns, o.specific_features, plan.second, begin < n ? 0 : begin - n, end - n);
}

// Copies the squares below the diagonal to above it.
template <class T>
inline void mirror(T* gram, int64_t samples, int64_t stride) {
  constexpr int width = Simd<T>::width;
  for (int64_t row = width; row < samples; row += width)
    transpose_rows(gram, stride, samples, row, row, row + width, gram, stride);
}

template <class T>
inline double dot_rows(const T* a, const T* b, int64_t rows, int64_t columns, int64_t stride) {
  constexpr int width = Simd<T>::width;
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const T *x = a + row * stride, *y = b + row * stride;
    Vector<T> sums{};
    int64_t i = 0;
    for (; i + width <= columns; i += width) sums += load(x + i) * load(y + i);
    T rest = sum_lanes<T>(sums);
    for (; i < columns; ++i) rest += x[i] * y[i];
    sum += double(rest);
  }
  return sum;
}

// The same in double precision throughout.
template <class T>
inline double dot_rows_exactly(const T* a, const T* b, int64_t rows, int64_t columns, int64_t stride) {
  constexpr int width = Simd<double>::width;
  const auto wide = [](const T* from) {
    return __builtin_convertvector(load_lanes<T, width>(from), Vector<double>);
  };
  Vector<double> sums[2]{};
  double rest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const T *x = a + row * stride, *y = b + row * stride;
    int64_t i = 0;
    for (; i + 2 * width <= columns; i += 2 * width) {
      sums[0] += wide(x + i) * wide(y + i);
      sums[1] += wide(x + i + width) * wide(y + i + width);
    }
    for (; i < columns; ++i) rest += double(x[i]) * double(y[i]);
  }
  return rest + sum_lanes<double>(sums[0] + sums[1]);
}

// || G ||_F^2, some rows of G at a time: a sum of squares, from which nothing cancels.
template <class T>
inline double loss_by_features(const OrthogonalityPlan<T>& plan) {
  const auto& o = plan.o;
  const Factor<T> h = plan.common();
  double loss = 0;
  for (int64_t row = 0; row < o.common_features; row += product_rows) {
    const int64_t left = o.common_features - row, rows = left < product_rows ? left : product_rows;
    multiply<T, true>({h.data + row, h.stride}, plan.specific(), plan.product, plan.e_stride,
                      {0, rows, whole_vectors(o.specific_features), o.samples, false}, T(1));
    loss += dot_rows_exactly(plan.product, plan.product, rows, o.specific_features, plan.e_stride);
  }
  return loss;
}

// <P, Q>; of features that are almost orthogonal little is left of it, which is computed by features.
template <class T>
inline double loss_by_samples(const OrthogonalityPlan<T>& plan) {
  const auto dot = [&](const T* a, const T* b) {
    return dot_rows_exactly(a, b, plan.o.samples, plan.o.samples, plan.samples_stride);
  };
  constexpr double least = sizeof(T) == 4 ? 1e-60 : 1e-280, most = 1 / least;
  const double p = dot(plan.first, plan.first), q = dot(plan.second, plan.second);
  if (!(p > least && p < most && q > least && q < most)) return untrusted_form;
  const double loss = dot(plan.first, plan.second);
  constexpr double enough = 1.0 / 64;
  return loss > enough * __builtin_sqrt(p) * __builtin_sqrt(q) ? loss : loss_by_features(plan);
}

// The loss, and what the gradients need of the Gram matrices beside themselves.
template <class T>
inline double finish_gram(const OrthogonalityPlan<T>& plan) {
  const auto& o = plan.o;
  double loss;
  if (o.by_samples) {
    mirror(plan.first, o.samples, plan.samples_stride);
    mirror(plan.second, o.samples, plan.samples_stride);
    loss = o.exact ? loss_by_samples(plan)
                   : dot_rows(plan.first, plan.second, o.samples, o.samples, plan.samples_stride);
    if (o.exact && loss == untrusted_form) return untrusted_form;
    loss = loss < 0 ? 0 : loss;  // orthogonal features may leave a rounding error below zero
  } else {
    const int64_t d = o.common_features, e = o.specific_features;
    loss = o.exact ? dot_rows_exactly(plan.first, plan.first, d, e, plan.e_stride)
                   : dot_rows(plan.first, plan.first, d, e, plan.e_stride);
    if (o.common_gradient) transpose_rows(plan.first, plan.e_stride, d, e, 0, d, plan.second, plan.d_stride);
  }
  return loss * double(plan.weight());
}

// Through the scaling of a row to unit length, in place: what lies along the row drops out.
template <class T>
inline void through_length(const OrthogonalityPair<T>& o, T* gradient, int64_t features, const T* scale,
                           Factor<T> rows, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T *g = gradient + row * features, along = 0;
    const T *v = rows.data + row * rows.stride, factor = scale[row];
    if (factor == T(0)) {
      for (int64_t i = 0; i < features; ++i) g[i] = 0;
    } else if (o.normalize) {
      along = dot_rows(g, v, 1, features, 0);
      for (int64_t i = 0; i < features; ++i) g[i] = factor * (g[i] - along * v[i]);
    }
  }
}

template <class T>
inline void gradient_rows(const OrthogonalityPlan<T>& plan, int64_t begin, int64_t end) {
  const auto& o = plan.o;
  const T alpha = 2 * plan.weight() * o.scale;
  const int64_t n = o.samples, d = o.common_features, e = o.specific_features;
  const Factor<T> h = plan.common(), s = plan.specific(), p{plan.first, plan.samples_stride},
                  q{plan.second, plan.samples_stride}, g{plan.first, plan.e_stride},
                  g_columns{plan.second, plan.d_stride};
  if (o.common_gradient) {
    if (o.by_samples)  // a symmetric matrix may as well be read by columns
      multiply<T, true>(q, h, o.common_gradient, d, {begin, end, d, n, false}, alpha);
    else
      multiply<T, false>(s, g_columns, o.common_gradient, d, {begin, end, d, e, false}, alpha);
    if (plan.common_scale) through_length(o, o.common_gradient, d, plan.common_scale, h, begin, end);
  }
  if (o.specific_gradient) {
    if (o.by_samples)
      multiply<T, true>(p, s, o.specific_gradient, e, {begin, end, e, n, false}, alpha);
    else
      multiply<T, false>(h, g, o.specific_gradient, e, {begin, end, e, d, false}, alpha);
    if (plan.specific_scale) through_length(o, o.specific_gradient, e, plan.specific_scale, s, begin, end);
  }
}

template <class T>
double orthogonality(const OrthogonalityPair<T>& o, OrthogonalityStep step, int64_t begin, int64_t end) {
  const OrthogonalityPlan<T> plan(o);
  switch (step) {
    case OrthogonalityStep::prepare:
      if (plan.common_copy)
        prepare_rows(o, {o.common, o.common_stride}, o.common_features, plan.common_scale, plan.common_copy,
                     plan.d_stride, begin, end);
      if (plan.specific_copy)
        prepare_rows(o, {o.specific, o.specific_stride}, o.specific_features, plan.specific_scale,
                     plan.specific_copy, plan.e_stride, begin, end);
      if (o.by_samples) {
        const Factor<T> h = plan.common(), s = plan.specific();
        transpose_rows(h.data, h.stride, o.samples, o.common_features, begin, end, plan.common_columns,
                       plan.samples_stride);
        transpose_rows(s.data, s.stride, o.samples, o.specific_features, begin, end, plan.specific_columns,
                       plan.samples_stride);
      }
      return 0;
    case OrthogonalityStep::gram:
      gram_rows(plan, begin, end);
      return 0;
    case OrthogonalityStep::loss:
      return finish_gram(plan);
    default:
      gradient_rows(plan, begin, end);
      return 0;
  }
}

}  // namespace
}  // namespace dmmlkd
