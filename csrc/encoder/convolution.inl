// The products of a convolution of one device. The limit is the rate of multiply-add: forward, in the
// gradient of the inputs and in that of the weights, positions * window * channels * out channels of them.
//
// Gather, for the outputs and for the gradient of the inputs: a tile of places times one or two vectors of
// lanes (out channels, or channels) is summed in registers. A weight vector serves all places of a tile, a
// broadcast value all vectors of lanes, so that a step of 2 x 8 multiply-adds loads 2 + 8 values.
// Outer, for the gradient of the weights: a tile of the window times one or two vectors of lanes is summed in
// registers over all places of some samples.
#pragma once

#include "../simd/kernels.h"
#include "../simd/simd.h"

namespace dmmlkd {
namespace {

constexpr bool many_registers = DMMLKD_VECTOR_BYTES == 64;

// Calls body.run<lanes of a vector, vectors>(first lane) for blocks of lanes, the widest first.
template <class T, class Body>
inline void for_lane_blocks(int64_t lanes, const Body& body) {
  constexpr int width = Simd<T>::width;
  int64_t lane = 0;
  for (; lane + 2 * width <= lanes; lane += 2 * width) body.template run<width, 2>(lane);
  for (; lane + width <= lanes; lane += width) body.template run<width, 1>(lane);
  if constexpr (width > 8)
    if (lane < lanes) body.template run<width / 2, 1>(lane);
}

template <class T>
struct GatherBlock {
  const ConvolutionGather<T> g;  // a copy: what is stored cannot change it

  template <int width, int vectors, int tile>
  void sum(const ConvolutionPlace* places, int64_t lane) const {
    using V = LanesOf<T, width>;
    const int64_t row = convolution_lanes(g.lanes);
    const T *weights = g.weights + lane, *values[tile];
    V sums[tile][vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[0][v] = load_lanes<T, width>(g.bias + lane + v * width);
#pragma GCC unroll 16
    for (int i = 0; i < tile; ++i) {
      values[i] = g.in + places[i].in;
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[i][v] = sums[0][v];
    }
    const int32_t *offset = g.window.offsets, *end = offset + g.window.size;
    for (; offset != end; ++offset, weights += row) {
      const int64_t at = *offset;
      V weight[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) weight[v] = load_lanes<T, width>(weights + v * width);
#pragma GCC unroll 16
      for (int i = 0; i < tile; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sums[i][v] += values[i][at] * weight[v];
    }
    if (g.rectify)
#pragma GCC unroll 16
      for (int i = 0; i < tile; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sums[i][v] = sums[i][v] < T(0) ? V{} : sums[i][v];  // NaN stays NaN
    T* out = g.out + lane;
    const int64_t lanes = g.lanes - lane;
    if (lanes >= vectors * width) {
#pragma GCC unroll 16
      for (int i = 0; i < tile; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) store_lanes<T, width>(out + places[i].out + v * width, sums[i][v]);
    } else {
      T copy[tile][vectors * width];  // a copy, so that the sums may stay in registers
#pragma GCC unroll 16
      for (int i = 0; i < tile; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) store_lanes<T, width>(copy[i] + v * width, sums[i][v]);
      for (int i = 0; i < tile; ++i) __builtin_memcpy(out + places[i].out, copy[i], lanes * sizeof(T));
    }
  }

  template <int width, int vectors>
  void run(int64_t lane) const {
    constexpr int tile = vectors == 2 && !many_registers ? 6 : 8;
    if (lane >= g.lanes) return;
    int64_t first = 0;
    for (; first + tile <= g.count; first += tile) sum<width, vectors, tile>(g.places + first, lane);
    if (first == g.count) return;
    ConvolutionPlace last[tile];  // filled up with the last place, which is summed and written again
    for (int i = 0; i < tile; ++i) last[i] = g.places[first + i < g.count ? first + i : g.count - 1];
    sum<width, vectors, tile>(last, lane);
  }
};

template <class T>
void convolution_gather(const ConvolutionGather<T>& g) {
  for_lane_blocks<T>(convolution_lanes(g.lanes), GatherBlock<T>{g});
}

template <class T>
struct OuterBlock {
  const ConvolutionOuter<T> o;

  // Rows [first, first + rows) of `runs` consecutive runs of the window.
  template <int width, int vectors, int runs, int rows>
  void sum(int64_t run, int64_t first, int64_t lane) const {
    using V = LanesOf<T, width>;
    const int64_t row = convolution_lanes(o.lanes);
    const int64_t begin_row = run * o.window.run + first, apart = o.window.run * row;
    T* begin = o.sums + begin_row * row + lane;
    const T* in[runs];
    V sums[runs][rows][vectors];
#pragma GCC unroll 4
    for (int s = 0; s < runs; ++s) {
      in[s] = o.in + o.window.offsets[begin_row + s * o.window.run];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v)
          sums[s][r][v] = load_lanes<T, width>(begin + s * apart + r * row + v * width);
    }
    for (int64_t place = 0; place < o.count; ++place) {
      const int64_t at = o.places[place].in;
      const T* source = o.upstream + o.places[place].out + lane;
      V upstream[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) upstream[v] = load_lanes<T, width>(source + v * width);
#pragma GCC unroll 4
      for (int s = 0; s < runs; ++s)
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sums[s][r][v] += in[s][at + r] * upstream[v];
    }
#pragma GCC unroll 4
    for (int s = 0; s < runs; ++s)
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v)
          store_lanes<T, width>(begin + s * apart + r * row + v * width, sums[s][r][v]);
  }

  // The rows of some runs from `first` on, by tiles of the heights given, the highest first.
  template <int width, int vectors, int runs, int rows, int... lower>
  void rest(int64_t run, int64_t first, int64_t lane) const {
    for (; first + rows <= o.window.run; first += rows) sum<width, vectors, runs, rows>(run, first, lane);
    if constexpr (sizeof...(lower) > 0)
      if (first < o.window.run) rest<width, vectors, runs, lower...>(run, first, lane);
  }

  template <int width, int vectors>
  void run(int64_t lane) const {
    const int64_t runs = o.window.size / o.window.run;
    int64_t run = 0;
    // Short runs by threes, that there are sums enough to hide the latency of a multiply-add.
    if constexpr (vectors == 1)
      if (o.window.run <= 5)
        for (; run + 3 <= runs; run += 3)
          rest<width, vectors, 3, many_registers ? 5 : 4, 3, 2, 1>(run, 0, lane);
    for (; run < runs; ++run) {
      if constexpr (vectors == 2 && !many_registers)
        rest<width, vectors, 1, 6, 5, 4, 3, 2, 1>(run, 0, lane);
      else
        rest<width, vectors, 1, 12, 8, 5, 4, 3, 2, 1>(run, 0, lane);
    }
    for (int v = 0; v < vectors; ++v) sum_upstream<width>(lane + v * width);
  }

  template <int width>
  void sum_upstream(int64_t lane) const {
    LanesOf<T, width> sums[4]{};
    int64_t place = 0;
    for (; place + 4 <= o.count; place += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sums[i] += load_lanes<T, width>(o.upstream + o.places[place + i].out + lane);
    for (; place < o.count; ++place) sums[0] += load_lanes<T, width>(o.upstream + o.places[place].out + lane);
    const auto before = load_lanes<T, width>(o.bias_sums + lane);
    store_lanes<T, width>(o.bias_sums + lane, before + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
  }
};

template <class T>
void convolution_outer(const ConvolutionOuter<T>& o) {
  for_lane_blocks<T>(convolution_lanes(o.lanes), OuterBlock<T>{o});
}

// Lanes from `lane` on of one place, as whole vectors; returns how far it came.
template <int width, class T>
inline int64_t mask_vectors(const T* upstream, const T* outputs, T* target, int64_t lane, int64_t lanes) {
  for (; lane + width <= lanes; lane += width) {
    LanesOf<T, width> value = load_lanes<T, width>(upstream + lane);
    if (outputs)
      value = load_lanes<T, width>(outputs + lane) <= T(0) ? LanesOf<T, width>{} : value;  // as torch does
    store_lanes<T, width>(target + lane, value);
  }
  return lane;
}

template <class T>
void convolution_mask(const ConvolutionMask<T>& m) {
  constexpr int width = Simd<T>::width;
  const ConvolutionPlace* place = m.places;
  const T* outputs = m.outputs;
  for (int64_t sample = 0; sample < m.samples; ++sample)
    for (int64_t y = 0; y < m.height; ++y)
      for (int64_t x = 0; x < m.width; ++x, ++place) {
        const T* upstream = m.upstream + sample * m.sample_stride + y * m.height_stride + x * m.width_stride;
        T* target = m.target + place->out;
        int64_t lane = 0;
        if (m.lane_stride == 1) {
          lane = mask_vectors<width>(upstream, outputs, target, lane, m.lanes);
          if constexpr (width > 8) lane = mask_vectors<width / 2>(upstream, outputs, target, lane, m.lanes);
        }
        for (; lane < m.lanes; ++lane)
          target[lane] = outputs && outputs[lane] <= T(0) ? T(0) : upstream[lane * m.lane_stride];
        if (outputs) outputs += m.lanes;
      }
}

}  // namespace
}  // namespace dmmlkd
