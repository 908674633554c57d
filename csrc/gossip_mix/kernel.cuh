// Gossip mixing: out[i] = sum_j weight_ij local[j] over a range of columns, and on the way the squared norms
// of local[i] - out[i] and out[i], with the content that out had before. A block takes tiles of a few columns
// of all rows into shared memory, so that each element of `local` is read from memory once, however many rows
// use it. README.md has the limits that shaped this.
#pragma once

#include "../cuda/common.cuh"

namespace dmmlkd::cuda {

constexpr int kGossipThreads = 256;

struct GossipMixPlan {
  bool staged;           // a tile of all rows fits into shared memory; else rows are read through the caches
  bool edges_shared;     // so do the weights
  int width;             // elements per access: a pack's, or 1 where rows do not start aligned
  int tile_shift;        // log2 of the accesses per row of a tile
  int lanes;             // threads that share a row, at most a warp
  int64_t first_column;  // of the first tile: column_begin, or the aligned column before it
  int64_t tiles;
  int tiles_per_chunk;
  int64_t chunks;  // one per block
  int shared_bytes;
};

// A weight as it lies in shared memory.
template <typename compute>
struct Edge {
  compute weight;
  int column;
};

// Byte offsets into a block's shared memory.
struct GossipMixShared {
  int64_t tile, sums, edges, row_pointers, end;

  __host__ __device__ GossipMixShared(int64_t tile_bytes, int64_t accumulators, int64_t shared_edges,
                                      int edge_bytes, int64_t shared_row_pointers) {
    tile = 0;
    sums = (tile_bytes + kPackBytes - 1) / kPackBytes * kPackBytes;
    edges = sums + accumulators * static_cast<int64_t>(sizeof(double));
    row_pointers = edges + shared_edges * edge_bytes;
    end = row_pointers + shared_row_pointers * static_cast<int64_t>(sizeof(int));
  }
};

// kWidth consecutive elements; in the first and the last access of a range some of them are not ours.
template <typename scalar, int kWidth>
struct alignas(sizeof(scalar) * kWidth) Access {
  scalar values[kWidth];
};

template <typename scalar, int kWidth>
__device__ __forceinline__ Access<scalar, kWidth> load_access(const scalar* row, int64_t column,
                                                              int64_t begin, int64_t end) {
  if constexpr (kWidth > 1) {
    if (column < begin || column + kWidth > end) {
      Access<scalar, kWidth> access;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const bool ours = column + j >= begin && column + j < end;
        access.values[j] = ours ? row[column + j] : from_compute<scalar>(compute_t<scalar>(0));
      }
      return access;
    }
  }
  return *reinterpret_cast<const Access<scalar, kWidth>*>(row + column);
}

template <typename scalar, int kWidth>
__device__ __forceinline__ void store_access(scalar* row, int64_t column, int64_t begin, int64_t end,
                                             const Access<scalar, kWidth>& access) {
  if constexpr (kWidth > 1) {
    if (column < begin || column + kWidth > end) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (column + j >= begin && column + j < end) row[column + j] = access.values[j];
      }
      return;
    }
  }
  *reinterpret_cast<Access<scalar, kWidth>*>(row + column) = access;
}

// `local` and `out` are not declared restrict: in the in-place form they are one.
template <typename scalar, int kWidth, bool kStaged>
__global__ void __launch_bounds__(kGossipThreads, 3)  // for fewer registers some architectures spill
    gossip_mix(const __grid_constant__ GossipMixArguments a, const __grid_constant__ GossipMixPlan plan) {
  using compute = compute_t<scalar>;
  using access_type = Access<scalar, kWidth>;
  DMMLKD_DYNAMIC_SHARED(shared);
  const int rows_out = static_cast<int>(a.rows_out);
  const bool measure = a.partials != nullptr;
  const bool accumulate = measure && plan.tiles_per_chunk > 1;
  const int accesses = 1 << plan.tile_shift;
  const GossipMixShared layout(kStaged ? a.rows_in * accesses * static_cast<int64_t>(sizeof(access_type)) : 0,
                               accumulate ? 2 * a.rows_out : 0, plan.edges_shared ? a.nonzeros : 0,
                               sizeof(Edge<compute>), plan.edges_shared ? a.rows_out + 1 : 0);
  access_type* tile = reinterpret_cast<access_type*>(shared + layout.tile);
  double* sums = reinterpret_cast<double*>(shared + layout.sums);
  Edge<compute>* edges = reinterpret_cast<Edge<compute>*>(shared + layout.edges);
  int* row_pointers = reinterpret_cast<int*>(shared + layout.row_pointers);

  const scalar* local = static_cast<const scalar*>(a.local);
  scalar* out = static_cast<scalar*>(a.out);
  const compute* values = static_cast<const compute*>(a.values);
  const compute not_a_number = static_cast<compute>(NAN);

  // Weights are checked by the caller; what slips through must not reach past an array, and shows as NaN.
  const auto edge_at = [&](int64_t e) {
    const int64_t column = a.columns[e];
    const bool known = column >= 0 && column < a.rows_in;
    return Edge<compute>{known ? values[e] : not_a_number, known ? static_cast<int>(column) : 0};
  };
  const auto row_pointer_at = [&](int row) {
    const int64_t pointer = a.row_pointers[row];
    return static_cast<int>(pointer < 0 ? 0 : pointer > a.nonzeros ? a.nonzeros : pointer);
  };
  if (plan.edges_shared) {
    for (int e = threadIdx.x; e < a.nonzeros; e += kGossipThreads) edges[e] = edge_at(e);
    for (int i = threadIdx.x; i <= rows_out; i += kGossipThreads) row_pointers[i] = row_pointer_at(i);
  }
  if (accumulate) {
    for (int i = threadIdx.x; i < 2 * rows_out; i += kGossipThreads) sums[i] = 0.0;
  }

  const int lane = threadIdx.x % plan.lanes;
  const int group = threadIdx.x / plan.lanes;
  const int groups = kGossipThreads / plan.lanes;
  const int64_t chunk = blockIdx.x;
  const int64_t last_tile = min((chunk + 1) * plan.tiles_per_chunk, plan.tiles);

  for (int64_t tile_index = chunk * plan.tiles_per_chunk; tile_index < last_tile; ++tile_index) {
    const int64_t tile_column = plan.first_column + tile_index * accesses * kWidth;
    if constexpr (kStaged) {
      const int items = static_cast<int>(a.rows_in) * accesses;
#pragma unroll 4
      for (int item = threadIdx.x; item < items; item += kGossipThreads) {
        const int64_t column = tile_column + (item & (accesses - 1)) * kWidth;
        if (column < a.column_end) {
          tile[item] = load_access<scalar, kWidth>(local + (item >> plan.tile_shift) * a.local_stride, column,
                                                   a.column_begin, a.column_end);
        }
      }
    }
    __syncthreads();

    // All threads walk equally often, for the sake of the sums over lanes.
    for (int first_row = 0; first_row < rows_out; first_row += groups) {
      const int row = first_row + group;
      Squares<compute> variation, magnitude;
      for (int i = lane; row < rows_out && i < accesses; i += plan.lanes) {
        const int64_t column = tile_column + i * kWidth;
        if (column >= a.column_end) break;
        const auto source = [&](int from) {
          if constexpr (kStaged) {
            return tile[from * accesses + i];
          } else {
            return load_access<scalar, kWidth>(local + from * a.local_stride, column, a.column_begin,
                                               a.column_end);
          }
        };
        scalar* const out_row = out + row * a.out_stride;
        access_type start;
        if (measure) start = load_access<scalar, kWidth>(out_row, column, a.column_begin, a.column_end);

        compute mixed[kWidth];
#pragma unroll
        for (int j = 0; j < kWidth; ++j) mixed[j] = 0;
        const auto add = [&](const Edge<compute>& edge) {
          const access_type term = source(edge.column);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) mixed[j] = fma(edge.weight, to_compute(term.values[j]), mixed[j]);
        };
        if (plan.edges_shared) {
          const int end = row_pointers[row + 1];
#pragma unroll 4
          for (int e = row_pointers[row]; e < end; ++e) add(edges[e]);
        } else {
          const int end = row_pointer_at(row + 1);
#pragma unroll 4
          for (int e = row_pointer_at(row); e < end; ++e) add(edge_at(e));
        }

        if (measure) {
          const access_type own = source(row);
          compute before[kWidth], change[kWidth];
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
            before[j] = to_compute(start.values[j]);
            change[j] = to_compute(own.values[j]) - before[j];
          }
          variation.add(change);
          magnitude.add(before);
        }
        access_type result;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) result.values[j] = from_compute<scalar>(mixed[j]);
        store_access<scalar, kWidth>(out_row, column, a.column_begin, a.column_end, result);
      }
      if (measure) {
        double norms[2] = {variation.total(), magnitude.total()};
        combine_group(norms, plan.lanes, static_cast<double*>(nullptr), Add{});
        if (lane == 0 && row < rows_out) {
          if (accumulate) {
            sums[row] += norms[0];
            sums[rows_out + row] += norms[1];
          } else {
            a.partials[row * plan.chunks + chunk] = norms[0];
            a.partials[(rows_out + row) * plan.chunks + chunk] = norms[1];
          }
        }
      }
    }
    __syncthreads();
  }
  if (accumulate) {
    for (int i = threadIdx.x; i < 2 * rows_out; i += kGossipThreads)
      a.partials[i * plan.chunks + chunk] = sums[i];
  }
}

}  // namespace dmmlkd::cuda
