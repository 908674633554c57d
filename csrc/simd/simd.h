// Vectors of the instruction set that the including shell chose (see isa_*.cpp), in the vector extensions
// that GCC and Clang share. The shell defines DMMLKD_VECTOR_BYTES. All is in an anonymous namespace, and no
// standard header may be included from here or from a kernel, so that no function compiled for a newer
// processor can be picked by the linker for an older one.
#pragma once

#include "kernels.h"

#ifndef DMMLKD_VECTOR_BYTES
#define DMMLKD_VECTOR_BYTES 16  // for editors, which open this without a shell
#endif

namespace dmmlkd {
namespace {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int width = DMMLKD_VECTOR_BYTES / 4;
  typedef float Vector __attribute__((vector_size(DMMLKD_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(DMMLKD_VECTOR_BYTES), aligned(4), may_alias));
  typedef int Integer;
  typedef Integer Integers __attribute__((vector_size(DMMLKD_VECTOR_BYTES)));
};

template <>
struct Simd<double> {
  static constexpr int width = DMMLKD_VECTOR_BYTES / 8;
  typedef double Vector __attribute__((vector_size(DMMLKD_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(DMMLKD_VECTOR_BYTES), aligned(8), may_alias));
  typedef long long Integer;
  typedef Integer Integers __attribute__((vector_size(DMMLKD_VECTOR_BYTES)));
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Integer = typename Simd<T>::Integer;
template <class T>
using Integers = typename Simd<T>::Integers;

template <class T>
inline Vector<T> splat(T value) {
  return value - Vector<T>{};
}

template <class T>
inline Vector<T> load(const T* pointer) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(pointer);
}

template <class T>
inline void store(T* pointer, Vector<T> value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(pointer) = value;
}

// So many lanes, whatever the width of a whole vector.
template <class T, int lanes>
struct LaneVector {
  typedef T Vector __attribute__((vector_size(lanes * sizeof(T))));
};
template <class T, int lanes>
using LanesOf = typename LaneVector<T, lanes>::Vector;

template <class T, int lanes>
inline LanesOf<T, lanes> load_lanes(const T* pointer) {
  LanesOf<T, lanes> value;
  __builtin_memcpy(&value, pointer, sizeof(value));
  return value;
}

// The next values of a row, in double precision, as many as fill a vector.
template <class T>
inline Vector<double> load_double(const T* pointer) {
  return __builtin_convertvector((load_lanes<T, Simd<double>::width>(pointer)), Vector<double>);
}

template <class T, int lanes>
inline void store_lanes(T* pointer, LanesOf<T, lanes> value) {
  __builtin_memcpy(pointer, &value, sizeof(value));
}

// The larger one; where a is NaN it is a. One instruction of x86 does just this; GCC takes two where b is a
// constant, unless it is told.
template <class T>
inline Vector<T> maximum(Vector<T> a, Vector<T> b) {
#if defined(__x86_64__) && !defined(__clang__) && DMMLKD_VECTOR_BYTES == 64
  constexpr int all_lanes = -1, current_rounding = 4;
  if constexpr (sizeof(T) == 4)
    return __builtin_ia32_maxps512_mask(b, a, a, all_lanes, current_rounding);
  else
    return __builtin_ia32_maxpd512_mask(b, a, a, all_lanes, current_rounding);
#elif defined(__x86_64__) && !defined(__clang__) && DMMLKD_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return __builtin_ia32_maxps256(b, a);
  else
    return __builtin_ia32_maxpd256(b, a);
#else
  return b > a ? b : a;
#endif
}

template <int... Lane>
struct Lanes {};
template <int count>
struct LaneList;
template <>
struct LaneList<2> : Lanes<0, 1> {};
template <>
struct LaneList<4> : Lanes<0, 1, 2, 3> {};
template <>
struct LaneList<8> : Lanes<0, 1, 2, 3, 4, 5, 6, 7> {};
template <>
struct LaneList<16> : Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> {};

// Stores to a whole aligned line that is not read again soon: it is not fetched from memory first. Others
// must wait for finish_stores_past_cache() before they read it.
template <class T>
inline void store_past_cache(T* pointer, Vector<T> value) {
#if defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 64
  __builtin_ia32_movntpd512(reinterpret_cast<double*>(pointer), reinterpret_cast<Vector<double>>(value));
#elif defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 32
  __builtin_ia32_movntpd256(reinterpret_cast<double*>(pointer), reinterpret_cast<Vector<double>>(value));
#else
  store(pointer, value);
#endif
}

inline void finish_stores_past_cache() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Lanes moved down by half of those that count: folding in halves leaves the result in lane 0.
template <class T, int half, int... Lane>
inline Vector<T> upper_half(Vector<T> value, Lanes<Lane...>) {
  return __builtin_shufflevector(value, value, ((Lane + half) % Simd<T>::width)...);
}

template <class T, int half = Simd<T>::width / 2>
inline T sum_lanes(Vector<T> value) {
  if constexpr (half == 0)
    return value[0];
  else
    return sum_lanes<T, half / 2>(value + upper_half<T, half>(value, LaneList<Simd<T>::width>{}));
}

template <class T, int half = Simd<T>::width / 2>
inline T max_lanes(Vector<T> value) {
  if constexpr (half == 0)
    return value[0];
  else
    return max_lanes<T, half / 2>(maximum<T>(value, upper_half<T, half>(value, LaneList<Simd<T>::width>{})));
}

// exp(x) for x <= 0; NaN stays NaN. 2^n comes from the exponent bits, the rest from a polynomial.
// Below the clamp the true value is under 1e-37: small enough to stand for zero beside a 1.
inline Vector<float> exp_nonpositive(Vector<float> x) {
  const Vector<float> lowest = splat(-87.0f);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  x = maximum<float>(x, lowest);
  const Vector<float> shifted = x * 1.44269504088896341f + shift;
  const Vector<float> whole = shifted - shift;
  // ln 2 in two parts: the first product is exact, so that the reduction does not cost |x| rounding errors.
  const Vector<float> r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  // Chebyshev interpolation of exp on [-ln 2 / 2, ln 2 / 2], relative error 3e-9 before rounding
  Vector<float> y = splat(1.3941118904e-3f);
  y = y * r + 8.3751347748e-3f;
  y = y * r + 4.1666352771e-2f;
  y = y * r + 1.6666415414e-1f;
  y = y * r + 5.0000000471e-1f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const Integers<float> exponent = (reinterpret_cast<Integers<float>>(shifted) + 127) << 23;
  return y * reinterpret_cast<Vector<float>>(exponent);
}

inline Vector<double> exp_nonpositive(Vector<double> x) {
  const Vector<double> lowest = splat(-708.0);
  const double shift = 6755399441055744.0;  // 1.5 * 2^52
  x = maximum<double>(x, lowest);
  const Vector<double> shifted = x * 1.4426950408889634074 + shift;
  const Vector<double> whole = shifted - shift;
  const Vector<double> r = (x - whole * 6.93145751953125e-1) - whole * 1.42860682030941723212e-6;
  // Taylor: the first term left out, r^14 / 14!, is below 5e-18
  Vector<double> y = splat(1.0 / 6227020800);
  y = y * r + 1.0 / 479001600;
  y = y * r + 1.0 / 39916800;
  y = y * r + 1.0 / 3628800;
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const Integers<double> exponent = (reinterpret_cast<Integers<double>>(shifted) + 1023) << 52;
  return y * reinterpret_cast<Vector<double>>(exponent);
}

// The logarithm of what is at least 1; NaN stays NaN. With m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m +
// 1), log(2^n m) = n ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...).
template <class T>
inline Vector<T> logarithm_from_1(Vector<T> x) {
  constexpr bool single = sizeof(T) == 4;
  constexpr int mantissa = single ? 23 : 52, terms = single ? 5 : 11;
  constexpr int64_t root_half = single ? 0x3f3504f3 : 0x3fe6a09e667f3bcd;  // bits of sqrt(1/2)
  const Integers<T> bits = reinterpret_cast<Integers<T>>(x);
  const Integers<T> exponent = (bits - static_cast<Integer<T>>(root_half)) >> mantissa;
  const Vector<T> m = reinterpret_cast<Vector<T>>(bits - (exponent << mantissa));
  const Vector<T> s = (m - T(1)) / (m + T(1)), square = s * s;
  Vector<T> series = splat(T(1) / T(2 * terms - 1));
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) series = series * square + T(1) / T(2 * k + 1);
  const Vector<T> n = __builtin_convertvector(exponent, Vector<T>);
  return (n * T(0.69314718055994530942) + T(2) * s * series) + (x - x);
}

// The lanes of a vector of `bytes` bytes that lie in pieces of 16 bytes, a stride apart.
template <class T, int bytes>
struct Wide {
  typedef T Vector __attribute__((vector_size(bytes)));
  typedef T Unaligned __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
  static constexpr int width = bytes / int(sizeof(T));
};

template <class Half, int... Lane>
inline auto join(Half low, Half high, Lanes<Lane...>) {
  return __builtin_shufflevector(low, high, Lane...);
}

template <class T, int bytes>
inline typename Wide<T, bytes>::Vector load_pieces(const T* source, int64_t stride) {
  if constexpr (bytes == 16) {
    return *reinterpret_cast<const typename Wide<T, 16>::Unaligned*>(source);
  } else {
    const auto low = load_pieces<T, bytes / 2>(source, stride),
               high = load_pieces<T, bytes / 2>(source + bytes / 32 * stride, stride);
    return join(low, high, LaneList<Wide<T, bytes>::width>{});
  }
}

template <class T, int bytes, int... Lane>
inline void store_pieces(typename Wide<T, bytes>::Vector value, T* target, int64_t stride, Lanes<Lane...>) {
  if constexpr (bytes == 16) {
    *reinterpret_cast<typename Wide<T, 16>::Unaligned*>(target) = value;
  } else {
    constexpr int half = Wide<T, bytes / 2>::width;
    using Next = LaneList<(half / 2 < 2 ? 2 : half / 2)>;
    store_pieces<T, bytes / 2>(__builtin_shufflevector(value, value, Lane...), target, stride, Next{});
    store_pieces<T, bytes / 2>(__builtin_shufflevector(value, value, (Lane + half)...),
                               target + bytes / 32 * stride, stride, Next{});
  }
}

// Values in 16 bytes: vectors are transposed in squares of that side.
template <class T>
constexpr int piece = 16 / int(sizeof(T));

// In each square: the first or the last halves of two rows, value by value or, for `pairs`, two by two.
template <class T, bool last, bool pairs, int... Lane>
inline Vector<T> interleave(Vector<T> a, Vector<T> b, Lanes<Lane...>) {
  constexpr int width = Simd<T>::width, side = piece<T>, run = pairs ? 2 : 1;
  return __builtin_shufflevector(a, b,
                                 (Lane / side * side + (last ? side / 2 : 0) + Lane % side / (2 * run) * run +
                                  Lane % run + (Lane % side / run % 2) * width)...);
}

// Transposes the squares side by side in `piece` rows.
template <class T>
inline void transpose_pieces(Vector<T>* rows) {
  constexpr LaneList<Simd<T>::width> lanes{};
  if constexpr (piece<T> == 2) {
    const Vector<T> low = interleave<T, false, false>(rows[0], rows[1], lanes);
    rows[1] = interleave<T, true, false>(rows[0], rows[1], lanes);
    rows[0] = low;
  } else {
    const Vector<T> a = interleave<T, false, false>(rows[0], rows[1], lanes),
                    b = interleave<T, true, false>(rows[0], rows[1], lanes),
                    c = interleave<T, false, false>(rows[2], rows[3], lanes),
                    d = interleave<T, true, false>(rows[2], rows[3], lanes);
    rows[0] = interleave<T, false, true>(a, c, lanes), rows[1] = interleave<T, true, true>(a, c, lanes);
    rows[2] = interleave<T, false, true>(b, d, lanes), rows[3] = interleave<T, true, true>(b, d, lanes);
  }
}

// value[j] of sample i, i < width: column j becomes rows[j], one lane per sample.
template <class T>
inline void load_transposed(const T* source, int64_t stride, Vector<T>* rows) {
#pragma GCC unroll 4
  for (int k = 0; k < piece<T>; ++k)
    rows[k] = load_pieces<T, DMMLKD_VECTOR_BYTES>(source + k * stride, piece<T> * stride);
  transpose_pieces<T>(rows);
}

template <class T>
inline void store_transposed(Vector<T>* rows, T* target, int64_t stride) {
  transpose_pieces<T>(rows);
  using Half = LaneList<(Simd<T>::width / 2 < 2 ? 2 : Simd<T>::width / 2)>;
#pragma GCC unroll 4
  for (int k = 0; k < piece<T>; ++k)
    store_pieces<T, DMMLKD_VECTOR_BYTES>(rows[k], target + k * stride, piece<T> * stride, Half{});
}

// Exchanges the off-diagonal blocks of size `block` of two rows: one step of a transposition.
template <class T, int block, int... Lane>
inline void swap_blocks(Vector<T>& upper, Vector<T>& lower, Lanes<Lane...>) {
  constexpr int width = Simd<T>::width;
  const Vector<T> a = upper, b = lower;
  upper = __builtin_shufflevector(a, b, ((Lane & block) ? width + Lane - block : Lane)...);
  lower = __builtin_shufflevector(a, b, ((Lane & block) ? width + Lane : Lane + block)...);
}

template <class T, int block>
inline void transpose_step(Vector<T>* rows) {
  if constexpr (block < Simd<T>::width) {
#pragma GCC unroll 16
    for (int row = 0; row < Simd<T>::width; ++row)
      if (!(row & block)) swap_blocks<T, block>(rows[row], rows[row + block], LaneList<Simd<T>::width>{});
    transpose_step<T, block * 2>(rows);
  }
}

// Transposes a square of width x width values in registers.
template <class T>
inline void transpose(Vector<T>* rows) {
  transpose_step<T, 1>(rows);
}

}  // namespace
}  // namespace dmmlkd
