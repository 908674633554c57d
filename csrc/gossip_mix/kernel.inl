// out = weights * local over a range of columns, with the two squared norms of the parameter variation.
//
// The limit is memory: each value of local, of the old out (when it is measured) and of the new out moves
// once. An out that is not measured and larger than the cache is written past it, so that it is not fetched
// first. Columns are taken in tiles of 64: a tile of all rows stays in the first-level cache while each row
// of it is read once a neighbour. Meanwhile the tiles that come next are fetched, several of a row together:
// memory gives neighbouring lines sooner than the same number of lines of as many rows.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

inline float to_float(bfloat16_bits value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  return __builtin_bit_cast(float, bits);
}

inline bfloat16_bits to_bfloat16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if (value != value) return {uint16_t(0x7fc0)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// One of two values without a branch, so that rows are converted in vectors: a compiler must not run ahead
// with arithmetic that may trap, and leaves a branch around it.
inline uint32_t pick(bool first, uint32_t a, uint32_t b) {
  const uint32_t mask = -uint32_t(first);
  return (a & mask) | (b & ~mask);
}

inline float to_float(float16_bits value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  // Shifted into place the exponent is too small by 112; a product with 2^112 mends subnormals as well.
  const float scaled = __builtin_bit_cast(float, rest << 13) * 5.192296858534828e33f;
  const uint32_t infinite = 0x7f800000 | (rest & 0x3ff) << 13;
  return __builtin_bit_cast(float,
                            sign | pick(rest >= 0x7c00, infinite, __builtin_bit_cast(uint32_t, scaled)));
}

inline float16_bits to_float16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value), sign = (bits >> 16) & 0x8000,
                 rest = bits & 0x7fffffff;
  // Subnormal: adding 1/2 rounds to the spacing of 2^-24, the low bits hold the result.
  const float shifted = __builtin_bit_cast(float, rest) + 0.5f;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000;
  const uint32_t normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  const uint32_t finite = pick(rest < 0x38800000, subnormal, normal);
  const uint32_t number = pick(rest >= 0x477ff000, 0x7c00, finite);
  return {uint16_t(sign | pick(rest > 0x7f800000, 0x7e00, number))};
}

inline void convert_row(const float* source, float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = source[i];
}
inline void convert_row(const double* source, double* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = source[i];
}
template <class Half>
inline void convert_row(const Half* source, float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_float(source[i]);
}
inline void convert_row(const float* source, bfloat16_bits* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_bfloat16(source[i]);
}
inline void convert_row(const float* source, float16_bits* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = to_float16(source[i]);
}

// Whether a lane is below zero.
inline bool any_negative(Integers<float> value) {
#if defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 64
  return __builtin_ia32_cvtd2mask512(value);
#elif defined(__x86_64__) && DMMLKD_VECTOR_BYTES == 32
  return __builtin_ia32_movmskps256(reinterpret_cast<Vector<float>>(value));
#else
  Integer<float> signs = 0;
  for (int lane = 0; lane < Simd<float>::width; ++lane) signs |= value[lane];
  return signs < 0;
#endif
}

// Whether sums of squares have kept what float32 can hold: no lane is so small that squares were lost below
// the smallest number, and none so large that the sum over all columns of a chunk may overflow. Numbers that
// are not negative are ordered like their bits; NaN is larger than all.
inline bool kept_in_float(Vector<float> variation, Vector<float> size) {
  constexpr Integer<float> least = 0x03800000, most = 0x71800000;  // 2^-120 and 2^100
  const auto bits = reinterpret_cast<Integers<float>>(variation);
  const auto more = reinterpret_cast<Integers<float>>(size);
  return !any_negative((bits - least) | (most - bits) | (more - least) | (most - more));
}
inline bool kept_in_float(Vector<double>, Vector<double>) { return true; }

// Measures again, in float64 from the square on, what float32 has not kept, and adds it to the row's two
// norms. A lane that is zero because all of its values are is kept. Returns whether the sums were replaced.
template <class A>
__attribute__((noinline, cold)) bool measure_in_double(const A* local, const A* start, int64_t count,
                                                       Vector<A> variation, Vector<A> size, double* norms,
                                                       int64_t stride) {
  constexpr A least = A(7.52316384526264e-37), most = A(1.2676506002282294e30);  // 2^-120 and 2^100
  bool kept = true;
  double changes = 0, sizes = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int lane = int(i % Simd<A>::width);
    const A before = start[i], change = local[i] - before;
    kept &= (change == 0 || (variation[lane] >= least && variation[lane] <= most)) &&
            (before == 0 || (size[lane] >= least && size[lane] <= most));
    changes += double(change) * double(change), sizes += double(before) * double(before);
  }
  if (kept) return false;
  norms[0] += changes, norms[stride] += sizes;
  return true;
}

// Adds the squares of one row of a tile to that row's two running vectors. They are summed by themselves
// first: a sum of sums loses fewer digits. What they cannot hold goes to the row's sums in float64.
template <class A>
inline void measure_row(const A* local, const A* start, int64_t count, Vector<A>* norms, double* sums,
                        int64_t rows) {
  constexpr int width = Simd<A>::width;
  Vector<A> variation{}, size{};
  for (int64_t i = 0; i < count; i += width) {
    const Vector<A> before = load(start + i), change = load(local + i) - before;
    variation += change * change;
    size += before * before;
  }
  if (__builtin_expect(!kept_in_float(variation, size), 0) &&
      measure_in_double<A>(local, start, count, variation, size, sums, rows))
    return;
  norms[0] += variation;
  norms[1] += size;
}

// One row of a tile of exactly 64 columns, in registers.
template <class A, bool past_cache = false>
inline void mix_row(const A* tile, int64_t stride, const int64_t* columns, const A* values, int64_t count,
                    A* out) {
  constexpr int width = Simd<A>::width, vectors = gossip_tile / width, half = vectors > 8 ? 8 : vectors;
  for (int begin = 0; begin < vectors; begin += half) {
    Vector<A> sums[half] = {};
    for (int64_t k = 0; k < count; ++k) {
      const A* source = tile + columns[k] * stride + begin * width;
      const Vector<A> weight = splat(values[k]);
#pragma GCC unroll 8
      for (int v = 0; v < half; ++v) sums[v] += weight * load(source + v * width);
    }
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) {
      if constexpr (past_cache)
        store_past_cache(out + (begin + v) * width, sums[v]);
      else
        store(out + (begin + v) * width, sums[v]);
    }
  }
}

template <class T, bool past_cache>
inline void prefetch_tile(const GossipColumns<T, T>& g, int64_t row, int64_t column) {
  for (int64_t i = 0; i < gossip_tile; i += 64 / int64_t(sizeof(T))) {
    __builtin_prefetch(g.local + row * g.local_stride + column + i, 0, 2);
    if constexpr (!past_cache) __builtin_prefetch(g.out + row * g.out_stride + column + i, 1, 2);
  }
}

// A whole tile in the type of the sums: read and written in place, not staged. While the tiles of a
// block are mixed, those of the next one are fetched row by row.
template <class T, bool past_cache>
inline void mix_whole_tile(const GossipColumns<T, T>& g, int64_t column, Vector<T>* norms) {
  constexpr int64_t tiles = past_cache ? 4 : 8;
  const int64_t tile = (column - g.begin) / gossip_tile % tiles, next = column + (tiles - tile) * gossip_tile;
  const bool more = next + tiles * gossip_tile <= g.fetch_end;
  for (int64_t row = 0; row < g.rows_out; ++row) {
    const int64_t place = tile * g.rows_out + row;
    if (more && place / tiles < g.rows_in)
      prefetch_tile<T, past_cache>(g, place / tiles, next + place % tiles * gossip_tile);
    T* out = g.out + row * g.out_stride + column;
    if (norms)
      measure_row<T>(g.local + row * g.local_stride + column, out, gossip_tile, norms + 2 * row,
                     g.norms + row, g.rows_out);
    const int64_t first = g.row_pointers[row];
    mix_row<T, past_cache>(g.local + column, g.local_stride, g.columns + first, g.values + first,
                           g.row_pointers[row + 1] - first, out);
  }
}

// A tile that is not whole, or in another type, or to be written over itself: through a copy of its rows.
template <class T, class A>
inline void mix_staged_tile(const GossipColumns<T, A>& g, int64_t column, int64_t count, Vector<A>* norms) {
  constexpr int width = Simd<A>::width;
  for (int64_t row = 0; row < g.rows_in; ++row) {
    A* staged = g.scratch + row * gossip_tile;
    convert_row(g.local + row * g.local_stride + column, staged, count);
    for (int64_t i = count; i < gossip_tile; ++i) staged[i] = 0;
  }
  alignas(64) A mixed[gossip_tile];
  for (int64_t row = 0; row < g.rows_out; ++row) {
    T* out = g.out + row * g.out_stride + column;
    if (norms) {
      for (int64_t i = 0; i < gossip_tile; ++i) mixed[i] = 0;
      convert_row(out, mixed, count);
      measure_row<A>(g.scratch + row * gossip_tile, mixed, (count + width - 1) / width * width,
                     norms + 2 * row, g.norms + row, g.rows_out);
    }
    const int64_t first = g.row_pointers[row];
    mix_row<A>(g.scratch, gossip_tile, g.columns + first, g.values + first, g.row_pointers[row + 1] - first,
               mixed);
    convert_row(mixed, out, count);
  }
}

template <class T>
inline bool rows_are_aligned(const T* rows, int64_t stride, int64_t column) {
  return reinterpret_cast<uintptr_t>(rows + column) % 64 == 0 && stride * int64_t(sizeof(T)) % 64 == 0;
}

template <class T>
inline int64_t mix_whole_tiles(const GossipColumns<T, T>& g, Vector<T>* norms) {
  int64_t column = g.begin;
  if (g.local == g.out) return column;
  if (g.past_cache && !norms && rows_are_aligned(g.out, g.out_stride, column)) {
    for (; column + gossip_tile <= g.end; column += gossip_tile) mix_whole_tile<T, true>(g, column, norms);
    finish_stores_past_cache();
  }
  for (; column + gossip_tile <= g.end; column += gossip_tile) mix_whole_tile<T, false>(g, column, norms);
  return column;
}
template <class T, class A>
inline int64_t mix_whole_tiles(const GossipColumns<T, A>& g, Vector<A>*) {
  return g.begin;
}

template <class T, class A>
void gossip_mix(const GossipColumns<T, A>& g) {
  Vector<A>* norms = nullptr;
  if (g.norms) {
    norms = reinterpret_cast<Vector<A>*>(g.scratch + g.rows_in * gossip_tile);
    for (int64_t i = 0; i < 2 * g.rows_out; ++i) norms[i] = Vector<A>{}, g.norms[i] = 0;
  }
  for (int64_t column = mix_whole_tiles(g, norms); column < g.end; column += gossip_tile)
    mix_staged_tile<T, A>(g, column, g.end - column < gossip_tile ? g.end - column : gossip_tile, norms);
  if (!norms) return;
  for (int64_t row = 0; row < g.rows_out; ++row) {
    g.norms[row] += double(sum_lanes<A>(norms[2 * row]));
    g.norms[g.rows_out + row] += double(sum_lanes<A>(norms[2 * row + 1]));
  }
}

}  // namespace
}  // namespace dmmlkd
