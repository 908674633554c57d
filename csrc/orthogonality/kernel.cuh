// || H^T S ||_F^2 of many small pairs of matrices, H [B, d] and S [B, e], and its gradients, a block of
// threads a pair. By features: G = H^T S in shared memory, the loss the sum of its squares, dH = 2 S G^T and
// dS = 2 H G. By samples, where B is the least: P = H H^T and Q = S S^T, the loss <P, Q>, dH = 2 Q H and dS =
// 2 P S; what little is left of larger numbers, or left the range of its type, is computed again by features.
// Rows are masked and scaled to unit length on their way into shared memory, and gradients on their way out,
// so that nothing else goes through DRAM. A few pairs of many rows are shared out: a first launch leaves
// partial G, a second adds them up, a third takes gradients. kernel.inl beside this file computes the same on
// a CPU.
#pragma once

#include "../cuda/multiply.cuh"
#include "rows.cuh"

namespace dmmlkd::cuda {

constexpr int kOrthogonalityThreads = 256;  // at most

struct OrthogonalityPlan {
  bool by_samples;
  int threads;
  int chunk;                         // rows that lie in shared memory at a time
  int segments;                      // blocks that share the rows of a pair
  int segment_rows;                  // whole chunks
  int common_lanes, specific_lanes;  // threads a row
  int shared_bytes;
};

// Where the parts of a pair lie in a block's shared memory, in elements behind `kScratchBytes` for sums. G,
// or P with Q behind it; then rows of H and S, and of a gradient; then two factors a row.
struct OrthogonalityShared {
  static constexpr int kScratchBytes =
      4 * kOrthogonalityThreads / kWarpSize * static_cast<int>(sizeof(double));
  int second, common, specific, gradient, inverse, end;

  __host__ __device__ OrthogonalityShared(const OrthogonalityArguments& a, int chunk, bool by_samples) {
    const int rows = by_samples ? whole_tiles(a.samples) : chunk;
    const int d = row_pitch(a.common_features), e = row_pitch(a.specific_features);
    second = by_samples ? rows * row_pitch(rows) : whole_tiles(a.common_features) * e;
    common = by_samples ? 2 * second : second;
    specific = common + rows * d;
    gradient = specific + rows * e;
    inverse = gradient + chunk * (d > e ? d : e);
    end = inverse + 2 * rows;
  }
};

// What one block computes of a pair: its rows from `first` to `end`.
template <typename scalar>
struct OrthogonalityBlock {
  using compute = compute_t<scalar>;
  const OrthogonalityArguments& a;
  const OrthogonalityPlan& plan;
  int first, end;
  const bool* mask;
  double* scratch;
  compute *product, *second, *slopes;  // in shared memory
  Side<scalar> common, specific;

  __device__ __forceinline__ OrthogonalityBlock(const OrthogonalityArguments& a,
                                                const OrthogonalityPlan& plan, unsigned char* shared,
                                                int64_t problem, int segment)
      : a(a), plan(plan), first(segment * plan.segment_rows), scratch(reinterpret_cast<double*>(shared)) {
    end = min(first + plan.segment_rows, a.samples);
    mask = a.mask == nullptr ? nullptr : a.mask + problem * a.samples;
    const auto side = [&](const void* rows, void* gradient, int features, int lanes) {
      const int64_t offset = problem * a.samples * features;
      return Side<scalar>{static_cast<const scalar*>(rows) + offset,
                          gradient == nullptr ? nullptr : static_cast<scalar*>(gradient) + offset,
                          features,
                          row_pitch(features),
                          lanes,
                          nullptr,
                          nullptr};
    };
    common = side(a.common, a.common_gradient, a.common_features, plan.common_lanes);
    specific = side(a.specific, a.specific_gradient, a.specific_features, plan.specific_lanes);
  }

  __device__ __forceinline__ void lay_out(bool by_samples) {
    const OrthogonalityShared layout(a, plan.chunk, by_samples);
    product = reinterpret_cast<compute*>(reinterpret_cast<unsigned char*>(scratch) + layout.kScratchBytes);
    second = product + layout.second, slopes = product + layout.gradient;
    common.chunk = product + layout.common, specific.chunk = product + layout.specific;
    common.inverse = product + layout.inverse;
    specific.inverse = common.inverse + (by_samples ? whole_tiles(a.samples) : plan.chunk);
  }

  __device__ __forceinline__ void load(int row, int count) const {
    common.load(mask, a.normalize, row, end, count);
    specific.load(mask, a.normalize, row, end, count);
  }

  // 1, or 1 / B^2 of the rows that count where they are normalized.
  __device__ __forceinline__ double weight() const {
    if (!a.normalize) return 1.0;
    int held[1] = {a.samples};
    if (mask != nullptr) {
      held[0] = 0;
      for (int row = threadIdx.x; row < a.samples; row += blockDim.x) held[0] += mask[row] ? 1 : 0;
      combine_group(held, blockDim.x, reinterpret_cast<int*>(scratch + 3 * kOrthogonalityThreads / kWarpSize),
                    Add{});
    }
    const double samples = held[0] > 1 ? held[0] : 1;
    return 1.0 / (samples * samples);
  }

  // G of this block's rows, ready behind a barrier.
  __device__ __forceinline__ void multiply_features() {
    lay_out(false);
    for (int row = first; row < end; row += plan.chunk) {
      if (row > first) __syncthreads();
      load(row, plan.chunk);
      __syncthreads();
      multiply<false, false, compute>({common.chunk, common.pitch}, {specific.chunk, specific.pitch},
                                      common.features, specific.features, plan.chunk, product, specific.pitch,
                                      row > first);
    }
    __syncthreads();
  }

  // Calls visit(offset) for the first of every four neighbours of a matrix in shared memory.
  template <typename Visit>
  __device__ __forceinline__ void for_each_run(int rows, int columns, int pitch, Visit visit) const {
    const int across = whole_tiles(columns) / kTile;
#pragma unroll 1
    for (int run = threadIdx.x; run < whole_tiles(rows) * across; run += blockDim.x) {
      const int row = run / across;
      visit(row * pitch + (run - row * across) * kTile);
    }
  }

  __device__ __forceinline__ compute* products(int64_t place) const {
    return static_cast<compute*>(a.products) + place * whole_tiles(common.features) * specific.pitch;
  }

  // Adds up `count` matrices that lie one behind the other; returns this thread's share of the sum of the
  // squares: from such a sum nothing cancels.
  __device__ __forceinline__ double copy_product(compute* to, const compute* from, int count) const {
    const int size = whole_tiles(common.features) * specific.pitch;
    Squares<compute> squares;
    for_each_run(common.features, specific.features, specific.pitch, [&](int offset) {
      compute sums[kTile] = {};
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        compute run[kTile];
        load_run(from + i * size + offset, run);
#pragma unroll
        for (int j = 0; j < kTile; ++j) sums[j] += run[j];
      }
      squares.add(sums);
      if (to != from || count > 1) store_run(to + offset, sums);
    });
    return squares.total();
  }

  // `loaded`: the rows of the only chunk are still there.
  __device__ __forceinline__ void gradients_by_features(compute factor, bool loaded) const {
    if (common.gradient == nullptr && specific.gradient == nullptr) return;
    for (int row = first; row < end; row += plan.chunk) {
      if (!loaded) {
        __syncthreads();
        load(row, plan.chunk);
        __syncthreads();
      }
      if (common.gradient != nullptr) {
        multiply<true, true, compute>({specific.chunk, specific.pitch}, {product, specific.pitch}, plan.chunk,
                                      common.features, specific.features, slopes, common.pitch);
        __syncthreads();
        common.store(slopes, factor, a.normalize, row, end, plan.chunk, 0);
        __syncthreads();
      }
      if (specific.gradient != nullptr) {
        multiply<true, false, compute>({common.chunk, common.pitch}, {product, specific.pitch}, plan.chunk,
                                       specific.features, common.features, slopes, specific.pitch);
        __syncthreads();
        specific.store(slopes, factor, a.normalize, row, end, plan.chunk, 0);
      }
    }
  }

  // Of one matrix: the other's Gram matrix times its rows.
  __device__ __forceinline__ void gradient_by_samples(const Side<scalar>& side, const compute* gram,
                                                      compute factor) const {
    if (side.gradient == nullptr) return;
    const int rows = whole_tiles(a.samples), pitch = row_pitch(rows);
    for (int row = 0; row < rows; row += plan.chunk) {
      const int count = min(plan.chunk, rows - row);
      multiply<false, false, compute>({gram + row, pitch}, {side.chunk, side.pitch}, count, side.features,
                                      rows, slopes, side.pitch);
      __syncthreads();
      side.store(slopes, factor, a.normalize, row, end, count, row);
      __syncthreads();
    }
  }

  // The loss before its weight, with both gradients; negative where this form keeps too few digits.
  __device__ __forceinline__ double by_samples(double scale) {
    lay_out(true);
    const int rows = whole_tiles(a.samples), pitch = row_pitch(rows);
    load(0, rows);
    __syncthreads();
    const Factor<compute> h{common.chunk, common.pitch}, s{specific.chunk, specific.pitch};
    multiply<true, true>(h, h, rows, rows, whole_tiles(common.features), product, pitch);
    multiply<true, true>(s, s, rows, rows, whole_tiles(specific.features), second, pitch);
    __syncthreads();
    double sums[3] = {0.0, 0.0, 0.0};  // <P, P>, <Q, Q>, <P, Q>
    for_each_run(rows, rows, pitch, [&](int offset) {
      compute p[kTile], q[kTile];
      load_run(product + offset, p);
      load_run(second + offset, q);
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        const double x = static_cast<double>(p[i]), y = static_cast<double>(q[i]);
        sums[0] = fma(x, x, sums[0]), sums[1] = fma(y, y, sums[1]), sums[2] = fma(x, y, sums[2]);
      }
    });
    combine_group(sums, blockDim.x, scratch, Add{});
    constexpr double least = sizeof(compute) == 4 ? 1e-60 : 1e-280, enough = 1.0 / 64;
    const bool in_range = sums[0] > least && sums[0] < 1 / least && sums[1] > least && sums[1] < 1 / least;
    if (!(in_range && sums[2] > enough * sqrt(sums[0]) * sqrt(sums[1]))) return -1.0;
    gradient_by_samples(common, second, static_cast<compute>(scale));
    gradient_by_samples(specific, product, static_cast<compute>(scale));
    return sums[2];
  }
};

template <typename scalar>
__device__ __forceinline__ void write_loss(const OrthogonalityArguments& a, int64_t place, double loss) {
  static_cast<scalar*>(a.loss)[place] = from_compute<scalar>(static_cast<compute_t<scalar>>(loss));
}

// The loss of one pair: a result, or to be reduced by a later kernel.
template <typename scalar>
__device__ __forceinline__ void keep_loss(const OrthogonalityArguments& a, int64_t problem, double loss) {
  if (a.reduction == Reduction::kNone || a.problems == 1)
    write_loss<scalar>(a, problem, loss);
  else
    a.partials[problem] = loss;
}

// A block a pair. (A loop over pairs would keep all their addresses in registers, and spill.)
template <typename scalar>
__global__ void __launch_bounds__(kOrthogonalityThreads, 1)
    orthogonality(const __grid_constant__ OrthogonalityArguments a,
                  const __grid_constant__ OrthogonalityPlan plan) {
  using compute = compute_t<scalar>;
  DMMLKD_DYNAMIC_SHARED(shared);
  OrthogonalityBlock<scalar> block(a, plan, shared, blockIdx.x, 0);
  const double weight = block.weight(), slope = 2.0 * weight * a.scale;
  double loss = plan.by_samples ? block.by_samples(slope) : -1.0;
  if (loss < 0.0) {
    block.multiply_features();
    double squares[1] = {block.copy_product(block.product, block.product, 1)};
    combine_group(squares, blockDim.x, block.scratch, Add{});
    loss = squares[0];
    block.gradients_by_features(static_cast<compute>(slope), a.samples <= plan.chunk);
  }
  if (threadIdx.x == 0) keep_loss<scalar>(a, blockIdx.x, weight * loss);
}

// The same in three kernels, the first and the last of a block a segment of a pair's rows: G of its rows; G
// of a pair, in the place of its first segment's, and the loss; gradients.
template <typename scalar>
__global__ void __launch_bounds__(kOrthogonalityThreads, 1)
    orthogonality_products(const __grid_constant__ OrthogonalityArguments a,
                           const __grid_constant__ OrthogonalityPlan plan) {
  DMMLKD_DYNAMIC_SHARED(shared);
  const int problem = blockIdx.x / plan.segments;
  OrthogonalityBlock<scalar> block(a, plan, shared, problem, blockIdx.x - problem * plan.segments);
  block.multiply_features();
  block.copy_product(block.products(blockIdx.x), block.product, 1);
}

template <typename scalar>
__global__ void __launch_bounds__(kOrthogonalityThreads, 1)
    orthogonality_losses(const __grid_constant__ OrthogonalityArguments a,
                         const __grid_constant__ OrthogonalityPlan plan) {
  DMMLKD_DYNAMIC_SHARED(shared);
  const OrthogonalityBlock<scalar> block(a, plan, shared, blockIdx.x, 0);
  compute_t<scalar>* products = block.products(int64_t{blockIdx.x} * plan.segments);
  double loss[1] = {block.copy_product(products, products, plan.segments)};
  combine_group(loss, blockDim.x, block.scratch, Add{});
  const double weighted = block.weight() * loss[0];
  if (threadIdx.x == 0) keep_loss<scalar>(a, blockIdx.x, weighted);
}

template <typename scalar>
__global__ void __launch_bounds__(kOrthogonalityThreads, 1)
    orthogonality_gradients(const __grid_constant__ OrthogonalityArguments a,
                            const __grid_constant__ OrthogonalityPlan plan) {
  DMMLKD_DYNAMIC_SHARED(shared);
  const int problem = blockIdx.x / plan.segments;
  OrthogonalityBlock<scalar> block(a, plan, shared, problem, blockIdx.x - problem * plan.segments);
  block.lay_out(false);
  block.copy_product(block.product, block.products(int64_t{problem} * plan.segments), 1);
  block.gradients_by_features(static_cast<compute_t<scalar>>(2.0 * block.weight() * a.scale), false);
  if (blockIdx.x > 0 || threadIdx.x > 0 || a.reduction == Reduction::kNone || a.problems == 1) return;
  double total = 0.0;  // few pairs share out their rows
  for (int64_t i = 0; i < a.problems; ++i) total += a.partials[i];
  write_loss<scalar>(a, 0, total * a.scale);
}

}  // namespace dmmlkd::cuda
