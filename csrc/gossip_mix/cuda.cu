// Plans and starts the kernel of kernel.cuh.
#include "kernel.cuh"

namespace dmmlkd::cuda {
namespace {

// Tiles of this many bytes leave room for several blocks on a processor, which overlap their reads and sums.
constexpr int64_t kTileBytes = 32 * 1024;
constexpr int64_t kEdgeBytes = 16 * 1024;
constexpr int64_t kWidestRow = 512;
constexpr int64_t kNarrowestRow = 32;  // a sector of DRAM: less would be read in vain
constexpr int64_t kFewTiles = 512;
// Each chunk leaves two partial norms a row: no more of them than keep a processor busy.
constexpr int64_t kChunksPerProcessor = 8;
constexpr int64_t kMostTilesPerChunk = 16;

template <typename scalar>
const char* make_plan(const GossipMixArguments& a, bool measure, const DeviceLimits& limits,
                      GossipMixPlan& plan) {
  constexpr int kPackWidth = Pack<scalar>::kWidth;
  constexpr int64_t kEdge = sizeof(Edge<compute_t<scalar>>);
  if (a.rows_in > 0x7fffffff / kWidestRow || a.rows_out > 0x7fffffff / 2 || a.nonzeros > 0x7fffffff) {
    return "too many rows or weights";
  }
  const auto aligned = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % kPackBytes == 0 && stride % kPackWidth == 0;
  };
  plan.width = aligned(a.local, a.local_stride) && aligned(a.out, a.out_stride) ? kPackWidth : 1;
  // Packs lie on an aligned grid of columns wherever the range begins; its first and last may stick out of
  // it.
  plan.first_column = a.column_begin / plan.width * plan.width;
  const int64_t columns = a.column_end - plan.first_column;

  const int64_t bytes_per_access = plan.width * static_cast<int64_t>(sizeof(scalar));
  const int64_t weight_bytes = a.nonzeros * kEdge + (a.rows_out + 1) * static_cast<int64_t>(sizeof(int));
  plan.edges_shared = weight_bytes <= kEdgeBytes;
  const int64_t beside_tile = (plan.edges_shared ? weight_bytes : 0) +
                              (measure ? 2 * a.rows_out * static_cast<int64_t>(sizeof(double)) : 0);

  int64_t row_bytes = kWidestRow;
  while (row_bytes > 2 * kNarrowestRow && a.rows_in * row_bytes > kTileBytes) row_bytes /= 2;
  if (2 * (a.rows_in * row_bytes + beside_tile) > limits.max_shared) row_bytes = kNarrowestRow;
  plan.staged = a.rows_in * row_bytes + beside_tile + kPackBytes <= limits.max_shared;
  if (!plan.staged) row_bytes = kWidestRow;
  const auto tiles_of = [&](int64_t bytes) {
    const int64_t tile_columns = bytes / static_cast<int64_t>(sizeof(scalar));
    return (columns + tile_columns - 1) / tile_columns;
  };
  while (row_bytes > 4 * kNarrowestRow && tiles_of(row_bytes) < kFewTiles) row_bytes /= 2;

  plan.tile_shift = 0;
  while ((bytes_per_access << plan.tile_shift) < row_bytes) ++plan.tile_shift;
  plan.lanes = 1 << (plan.tile_shift < 5 ? plan.tile_shift : 5);
  plan.tiles = tiles_of(row_bytes);
  const int64_t wanted_chunks = kChunksPerProcessor * limits.processors;
  int64_t tiles_per_chunk = (plan.tiles + wanted_chunks - 1) / wanted_chunks;
  if (tiles_per_chunk > kMostTilesPerChunk) tiles_per_chunk = kMostTilesPerChunk;
  if (tiles_per_chunk < 1 || !plan.staged) tiles_per_chunk = 1;
  plan.tiles_per_chunk = static_cast<int>(tiles_per_chunk);
  plan.chunks = (plan.tiles + tiles_per_chunk - 1) / tiles_per_chunk;
  if (plan.chunks > 0x7fffffff) return "too many columns";
  plan.shared_bytes = static_cast<int>(
      GossipMixShared(plan.staged ? a.rows_in * row_bytes : 0,
                      measure && tiles_per_chunk > 1 ? 2 * a.rows_out : 0, plan.edges_shared ? a.nonzeros : 0,
                      static_cast<int>(kEdge), plan.edges_shared ? a.rows_out + 1 : 0)
          .end);
  return nullptr;
}

template <typename scalar, int kWidth, bool kStaged>
const char* launch_kernel(const GossipMixArguments& a, const GossipMixPlan& plan, void* stream) {
  const auto kernel = gossip_mix<scalar, kWidth, kStaged>;
  if (!allow_shared(reinterpret_cast<const void*>(kernel), plan.shared_bytes)) return last_launch_error();
  DMMLKD_LAUNCH(kernel, plan.chunks, kGossipThreads, plan.shared_bytes, stream, a, plan);
  const char* error = last_launch_error();
  if (error != nullptr || a.partials == nullptr) return error;
  DMMLKD_LAUNCH(sum_partials<double>, 2 * a.rows_out, kSumThreads, kSumShared, stream, a.partials,
                plan.chunks, 1.0, a.norms);
  return last_launch_error();
}

template <typename scalar>
const char* launch(const GossipMixArguments& a, const DeviceLimits& limits, void* stream) {
  GossipMixPlan plan{};
  if (const char* error = make_plan<scalar>(a, a.partials != nullptr, limits, plan)) return error;
  if (!plan.staged && a.local == a.out) return "too many rows to be mixed in place";
  constexpr int kWidth = Pack<scalar>::kWidth;
  if (plan.width == 1) {
    return plan.staged ? launch_kernel<scalar, 1, true>(a, plan, stream)
                       : launch_kernel<scalar, 1, false>(a, plan, stream);
  }
  return plan.staged ? launch_kernel<scalar, kWidth, true>(a, plan, stream)
                     : launch_kernel<scalar, kWidth, false>(a, plan, stream);
}

}  // namespace
}  // namespace dmmlkd::cuda

extern "C" const char* dmmlkd_cuda_gossip_mix_partials(const dmmlkd::cuda::GossipMixArguments* arguments,
                                                       int device, int64_t* partials, bool* staged) {
  using namespace dmmlkd::cuda;
  DeviceLimits limits;
  if (const char* error = limits.read(device)) return error;
  return dispatch(arguments->dtype, [&](auto* type) {
    using scalar = std::remove_pointer_t<decltype(type)>;
    GossipMixPlan plan{};
    const char* error = make_plan<scalar>(*arguments, true, limits, plan);
    *partials = 2 * arguments->rows_out * plan.chunks;
    *staged = plan.staged;
    return error;
  });
}

extern "C" const char* dmmlkd_cuda_gossip_mix(const dmmlkd::cuda::GossipMixArguments* arguments, int device,
                                              void* stream) {
  using namespace dmmlkd::cuda;
  if (arguments->rows_out < 1 || arguments->column_begin >= arguments->column_end) return "nothing to do";
  DeviceLimits limits;
  if (const char* error = limits.read(device)) return error;
  return dispatch(arguments->dtype, [&](auto* type) {
    using scalar = std::remove_pointer_t<decltype(type)>;
    return launch<scalar>(*arguments, limits, stream);
  });
}
